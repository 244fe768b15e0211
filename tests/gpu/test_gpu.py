"""On a CUDA device: the same numbers as on the CPU, in every precision, compiled, packed, sharded and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dense.backbone import Backbone, load_backbone
from dense.memory import build_anomaly, remember
from dense.memory.anomaly import detect
from dense.predict.predictor import Predictor
from dense.training.precision import probe
from tests.memory.test_memory import Pairs, painted
from tests.pretrain import runs as pretrain_runs
from tests.runs import call, weights
from tests.tasks.test_train import argv, write

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = {"trainer.accelerator": "gpu", "trainer.devices": 1}
TINY = {"patch_size": 8, "img_size": 32, "depth": 4, "embed_dim": 64, "num_heads": 2}
ERROR = {None: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}  # relative, against fp32 on the CPU


def backbone() -> Backbone:
    torch.manual_seed(0)
    return load_backbone("vit_tiny_patch16_224", None, frozen=True, **TINY)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, *size, generator=generator) for size in sizes]


def close(found: torch.Tensor, expected: torch.Tensor, error: float) -> None:
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    assert float((found - expected).norm()) <= error * float(expected.norm())


def near(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], error: float) -> None:
    """Equal names and close tensors."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=error, atol=error, msg=name)


# ---- features


@pytest.mark.parametrize("dtype", ERROR)
def test_features(dtype: torch.dtype | None) -> None:
    """Any size, in every precision."""
    network = backbone()
    for batch in images((32, 32), (40, 56), (33, 50)):
        expected = network.to("cpu")(batch, layers=(1, 3), norm=True)
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            found = network.to("cuda")(batch.cuda(), layers=(1, 3), norm=True)
        for ours, theirs in zip((*found.maps, *found.prefix), (*expected.maps, *expected.prefix), strict=True):
            close(ours, theirs, ERROR[dtype])


def test_compiled_features() -> None:
    network, (batch,) = backbone().cuda(), [batch.cuda() for batch in images((32, 32))]
    compiled = torch.compile(lambda x: network(x, layers=(1, 3), norm=True).maps)
    with torch.no_grad():
        for ours, theirs in zip(compiled(batch), network(batch, layers=(1, 3), norm=True).maps, strict=True):
            close(ours, theirs, ERROR[None])


@pytest.mark.parametrize("dtype", ERROR)
def test_packed_crops(dtype: torch.dtype | None) -> None:
    """Class tokens and gradients of crops of two sizes in one packed sequence equal those of one size at a time."""
    torch.manual_seed(0)
    network = load_backbone("vit_tiny_patch16_224", None, **TINY).cuda()
    groups = [batch.cuda() for batch in images((32, 32), (16, 16))]
    results = []
    for sets in ([groups], [[group] for group in groups]):
        network.zero_grad()
        with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
            tokens = torch.cat([network.image_features(group)[0] for group in sets])
        tokens.float().square().sum().backward()
        gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        results.append((tokens, torch.cat([gradient.flatten() for gradient in gradients])))
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs, 2 * ERROR[dtype])


def test_attention_rows() -> None:
    network, (batch,) = backbone(), images((40, 56))
    expected = network.attention(batch, layer=-1)
    close(network.cuda().attention(batch.cuda(), layer=-1), expected, ERROR[None])


@pytest.mark.parametrize("method", ["knn", "insid3"])
def test_segmentation_like_an_annotated_image(method: str) -> None:
    source: Any = Pairs([painted(0, (16, 48, 24, 56))], ("background", "object"))
    found = {}
    for device in ("cpu", "cuda"):
        model = remember(method, backbone().to(device), source, resize=None)
        assert next(model.head.buffers()).device.type == device
        found[device] = Predictor(model)(painted(1, (8, 40, 8, 40))[0])
    assert (found["cpu"].labels == found["cuda"].labels).mean() > 0.98  # type: ignore[union-attr]


def test_a_bank_of_good_images() -> None:
    good = [painted(i, (0, 0, 0, 0))[0] for i in range(4)]
    ours, theirs = (build_anomaly(backbone().to(device), good, resize=None) for device in ("cuda", "cpu"))
    close(ours.head.bank, theirs.head.bank, 1e-3)
    assert ours.head.threshold == pytest.approx(theirs.head.threshold, abs=1e-3)
    scores = [detect(model, painted(5, (16, 48, 24, 56))[0])[0] for model in (ours, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


# ---- runs


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_head_trains_and_predicts(tmp_path: Path, precision: str) -> None:
    """Finite weights; a prediction on cuda equals that on the CPU."""
    done = call(argv(write(tmp_path, **GPU, **{"trainer.precision": precision}), tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path / "run").values())
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ours, theirs = (Predictor.open(tmp_path / "run/model", device)(image) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)  # type: ignore[union-attr]
    assert (ours.labels == theirs.labels).mean() > 0.999  # type: ignore[union-attr]


def test_a_head_trains_as_on_the_cpu(tmp_path: Path) -> None:
    plain = {"model.init_args.head": {"name": "linear", "outputs": {"labels": {"name": "classes"}}}}
    for name, changes in (("gpu", GPU), ("cpu", {})):
        done = call(argv(write(tmp_path / name, **plain, **changes), tmp_path / name / "run"))
        assert done.returncode == 0, done.stderr
    near(weights(tmp_path / "gpu/run"), weights(tmp_path / "cpu/run"), 2e-3)


def pretrain(folder: Path, **changes: Any) -> Path:
    done = pretrain_runs.run(pretrain_runs.write_config(folder, **GPU, **changes), folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_pretraining(tmp_path: Path, precision: str) -> None:
    run = pretrain(tmp_path, **{"trainer.precision": precision})
    assert all(bool(tensor.isfinite().all()) for tensor in weights(run).values() if tensor.is_floating_point())


def test_sharded_on_one_device(tmp_path: Path) -> None:
    """FSDP2 over one process trains as none does."""
    plain = pretrain(tmp_path / "plain", **{"trainer.precision": "32-true"})
    sharded = pretrain(tmp_path / "sharded", **{"trainer.precision": "32-true", "trainer.strategy": "fsdp2"})
    near(weights(sharded), weights(plain), 2e-3)


def test_resumed_pretraining(tmp_path: Path) -> None:
    """A run of two sessions ends as a run of one, and keeps the precision that it began with."""
    whole = pretrain(tmp_path / "whole", **{"trainer.precision": None, "checkpoint.every_steps": 4})
    began = (whole / "config.yaml").read_text().partition("\n")[0]
    assert began.startswith("# precision ")
    (tmp_path / "parts").mkdir()
    options: dict[str, Any] = {"trainer.precision": None, "checkpoint.every_steps": 4}
    pretrain(tmp_path / "parts", **options, **{"trainer.max_steps": 4})
    parts = pretrain(tmp_path / "parts", **options)
    assert (parts / "config.yaml").read_text().partition("\n")[0].startswith("# precision ")
    near(weights(parts), weights(whole), 2e-3)


def test_the_precision_is_measured() -> None:
    """Both timings, within a second."""
    choice = probe(384, 4096, torch.device("cuda"))
    assert choice.precision in ("32-true", "bf16-mixed")
    assert not torch.cuda.is_bf16_supported(including_emulation=False) or "ms in fp32" in choice.reason
