"""Saved directories, and wrong files: one clear error each, naming what was found and what would fit."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

import dense
from dense.backbone import Backbone, WeightsError, load_backbone
from dense.backbone.saved import fetching
from dense.backbone.spec import IMAGENET_MEAN
from dense.console import voice
from tests.backbone import official_files as files
from tests.backbone.conftest import TINY, tiny

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4}


def test_saved_directory(token_backbone: Backbone, tmp_path: Path) -> None:
    """save_pretrained, then load_backbone, from_pretrained and weights=DIRECTORY: equal spec, weights and features."""
    token_backbone.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        expected = token_backbone(images).maps[-1]
        for again in (
            load_backbone(tmp_path / "saved"),
            load_backbone(str(tmp_path / "saved")),
            Backbone.from_pretrained(tmp_path / "saved"),
            load_backbone(token_backbone.spec.name, tmp_path / "saved", **TINY),
        ):
            assert again.spec == token_backbone.spec
            assert torch.equal(again(images).maps[-1], expected)
            assert not again.training
    changed = load_backbone(tmp_path / "saved", padding="resize", drop_path_rate=0.1)
    assert changed.spec.padding == "resize"
    assert changed.spec.arguments["drop_path_rate"] == 0.1


def test_an_official_file_saved_and_exported_again(tmp_path: Path) -> None:
    """Tensors that the model does not use are kept in a saved directory too."""
    state = files.dinov3(32, 2, 4)
    load_backbone("dinov3_vits16", state, **SMALL).save_pretrained(tmp_path / "saved")
    back = load_backbone(tmp_path / "saved").export_official(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_pyramids_are_saved(tmp_path: Path) -> None:
    """Batch-norm statistics travel with the weights."""
    backbone = load_backbone("resnet18")
    backbone.model.bn1.running_mean.fill_(0.5)
    backbone.save_pretrained(tmp_path)
    assert float(load_backbone(tmp_path).model.bn1.running_mean[0]) == 0.5


def test_a_damaged_directory(tmp_path: Path) -> None:
    """Truncated weights, broken JSON, unknown fields and missing files give different errors."""
    backbone = tiny("dino_vits16")
    backbone.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="may be truncated"):
        load_backbone(tmp_path)
    weights.write_bytes(whole)
    config.write_text(text.replace('"positions"', '"position"'))
    with pytest.raises(ValueError, match="Did you mean positions"):
        load_backbone(tmp_path)
    config.write_text(text[:40])
    with pytest.raises(ValueError, match="not valid JSON"):
        load_backbone(tmp_path)
    config.write_text(
        json.dumps(json.loads(text) | {"backbone": json.loads(text)["backbone"] | {"arguments": {**SMALL, "depth": 3}}})
    )
    with pytest.raises(WeightsError, match=r"unexpected \(\d+\)"):
        load_backbone(tmp_path)
    config.write_text(text)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_backbone(tmp_path)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('run!')",))


def test_wrong_files(tmp_path: Path) -> None:
    """Malicious, truncated, text, empty, missing, a tensor, other pickles."""
    path = tmp_path / "weights.pth"

    def load() -> Backbone:
        return load_backbone("dino_vits16", path, **SMALL)

    with pytest.raises(FileNotFoundError, match="no such weight file"):
        load()
    torch.save({"teacher": _Evil()}, path)
    with pytest.raises(WeightsError, match=r"refused: it asks to run '[a-z_.]*exec'"):
        load()
    path.write_bytes(pickle.dumps(_Evil(), protocol=2))
    with pytest.raises(WeightsError, match=r"refused|not a PyTorch"):
        load()
    torch.save(files.dino(32, 2, 16), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="truncated"):
        load()
    path.write_text("<!DOCTYPE html>\n<html>Please log in</html>")
    with pytest.raises(WeightsError, match="web page"):
        load()
    path.write_text("just some notes\nabout weights\n")
    with pytest.raises(WeightsError, match="text file"):
        load()
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match="empty"):
        load()
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(WeightsError):
        load()
    torch.save(torch.zeros(3), path)
    with pytest.raises(WeightsError, match="holds a Tensor"):
        load()
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, path)
    with pytest.raises(WeightsError, match="holds no weights"):
        load()
    torch.save({"some.layer": torch.zeros(1), "other.layer": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="no known layout"):
        load()
    bad = tmp_path / "weights.safetensors"
    bad.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json}")
    with pytest.raises(WeightsError, match="safetensors"):
        load_backbone("dino_vits16", bad)


def test_another_architecture_names_the_one_that_fits() -> None:
    """Other widths, patches and releases: the error describes the file and names the backbone that would open it."""
    with pytest.raises(WeightsError, match=r"patch 8, dim 384, depth 2.*load_backbone\('dino_vits8'"):
        load_backbone("dino_vits16", files.dino(384, 2, 8))
    with pytest.raises(WeightsError, match=r"load_backbone\('dinov2_vits14_reg'"):
        load_backbone("dinov2_vits14", files.dinov2(384, 1, registers=4), depth=1)
    with pytest.raises(WeightsError, match=r"load_backbone\('dinov3_vits16'"):
        load_backbone("dinov2_vitb14", files.dinov3(384, 1, 6))
    with pytest.raises(WeightsError, match=r"load_backbone\('dinov2_vits14'"):
        load_backbone("dino_vits16", files.dinov2(384, 2))
    with pytest.raises(WeightsError, match="other shapes"):
        load_backbone("dinov2_vits14", files.dinov2(32, 2, size=224), **SMALL)


def test_a_partial_match_is_refused() -> None:
    """One tensor missing, or one too many, and nothing is loaded."""
    state = files.dino(32, 2, 16)
    missing = {k: v for k, v in state.items() if k != "norm.bias"}
    with pytest.raises(WeightsError, match=r"missing \(1\): model\.norm\.bias"):
        load_backbone("dino_vits16", missing, **SMALL)
    with pytest.raises(WeightsError, match=r"unexpected \(1\): model\.blocks\.0\.extra"):
        load_backbone("dino_vits16", state | {"blocks.0.extra": torch.zeros(1)}, **SMALL)


def test_wrong_names() -> None:
    """A wrong name, option or path suggests the nearest right one."""
    with pytest.raises(ValueError, match=r"Did you mean dinov2_vits14"):
        load_backbone("dinov2_vits_14")
    with pytest.raises(TypeError, match=r"Did you mean drop_path_rate"):
        load_backbone("dino_vits16", drop_path=0.1)
    for name, options in (("resnet18", {"patch_size": 8, "depth": 4}), ("convnext_tiny", {"img_size": 32})):
        words = f"^{name} has no {next(iter(options))}: .* of another kind .*--model.backbone.arguments"
        with pytest.raises(TypeError, match=words):
            load_backbone(name, **options)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load_backbone("runs/nothing/here")
    with pytest.raises(AttributeError, match="Did you mean load_backbone"):
        _ = dense.load_backbon
    with pytest.raises(ValueError, match="no official layout"):
        load_backbone("vit_tiny_patch16_224", depth=1).export_official()


def test_the_folder_of_a_run_names_the_backbone_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is named; a folder that is called like an architecture hides none."""
    monkeypatch.chdir(tmp_path)
    for run in ("mine", "resnet18"):
        tiny("dino_vits16").save_pretrained(f"{run}/backbone")
    for name in ("mine", Path("mine"), str(tmp_path / "mine")):
        with pytest.raises(FileNotFoundError, match=r"mine has no config.json; .*mine/backbone has one"):
            load_backbone(name)
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"none has no config.json; expected a directory"):
        load_backbone("none")
    assert load_backbone("resnet18").spec.kind == "pyramid"


def test_overrides_of_a_saved_directory(tmp_path: Path) -> None:
    """They are resolved and checked as for a name; what the weights contradict is refused."""
    tiny("dino_vits16").save_pretrained(tmp_path)
    assert load_backbone(tmp_path, layers="last").spec.layers == (3,)
    assert load_backbone(tmp_path, layers=(-2, -1)).spec.layers == (2, 3)
    with pytest.raises(ValueError, match="does not exist"):
        load_backbone(tmp_path, depth=1)
    with pytest.raises(WeightsError, match="unexpected"):
        load_backbone(tmp_path, depth=1, layers="last")
    with pytest.raises(ValueError, match=r"positions='offical'.*Did you mean official"):
        load_backbone(tmp_path, positions="offical")
    with pytest.raises(TypeError, match="no option 'bogus'"):
        Backbone.from_pretrained(tmp_path, bogus=1)


def test_a_directory_under_a_wrong_name(tmp_path: Path) -> None:
    """Equal sizes are not enough: the family, registers and kind must agree with the name."""
    tiny("dinov3_vits16").save_pretrained(tmp_path / "three")
    tiny("vit_small_patch14_reg4_dinov2").save_pretrained(tmp_path / "registers")
    with pytest.raises(WeightsError, match=r"not dino_vits16 \(patch 16, dim 32, depth 4\)$"):
        load_backbone("dino_vits16", tmp_path / "three", **TINY)
    with pytest.raises(WeightsError, match=r"not vit_tiny_patch16_224 \(patch 16, dim 32, depth 4\)$"):
        load_backbone("vit_tiny_patch16_224", tmp_path / "three", **TINY)
    with pytest.raises(WeightsError, match="4 registers"):
        load_backbone("dinov2_vits14", tmp_path / "registers", **TINY)


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving over a directory replaces its files whole or not at all."""
    backbone = tiny("dino_vits16")
    backbone.save_pretrained(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("dense.backbone.saved.save_file", full)
    with pytest.raises(OSError, match="no space"):
        backbone.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).spec == backbone.spec


def test_branches() -> None:
    """A missing branch raises; the other one is not used instead."""
    bare = files.dino(32, 2, 16)
    for checkpoint in ({"teacher": bare}, {"state_dict": {f"model.teacher.backbone.{k}": v for k, v in bare.items()}}):
        load_backbone("dino_vits16", checkpoint, **SMALL)
        with pytest.raises(WeightsError, match=r"holds a teacher and no student"):
            load_backbone("dino_vits16", checkpoint, branch="student", **SMALL)
    with pytest.raises(ValueError, match="Did you mean student"):
        load_backbone("dino_vits16", {"teacher": bare}, branch="studnt", **SMALL)
    assert load_backbone("dino_vits16", {"teacher": bare, "loss": torch.zeros(1)}, **SMALL).report.complete


def test_a_wrapped_state_dict_is_not_dino() -> None:
    """{"model": ...} is a common wrapper of weights; only a teacher or student means DINO."""
    bare = files.dino(32, 2, 16)
    plain = load_backbone("vit_small_patch16_224", {"model": bare}, **SMALL).spec
    dino = load_backbone("vit_small_patch16_224", {"teacher": bare}, **SMALL).spec
    assert (plain.family, plain.positions, plain.mean[0]) == ("timm", "timm", 0.5)
    assert (dino.family, dino.positions, dino.mean[0]) == ("dino", "official", 0.485)


def test_models_that_pool_before_the_norm_load(tmp_path: Path) -> None:
    """timm's fc_norm belongs to some models and finds its place there."""
    import timm

    small = {"embed_dim": 32, "depth": 2, "num_heads": 4}
    state = timm.create_model("eva02_tiny_patch14_224", num_classes=0, **small).state_dict()
    assert any(k.startswith("fc_norm") for k in state)
    assert load_backbone("eva02_tiny_patch14_224", state, **small).report.complete


def test_sharded_hugging_face_directory(tmp_path: Path) -> None:
    """Large models are published in several files and an index."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28)
    transformers.Dinov2Model(config).save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    assert load_backbone(tmp_path).report.complete
    for shard in {*places.values()}:  # the older form
        torch.save(load_file(tmp_path / shard), tmp_path / f"{shard}.bin")
        (tmp_path / shard).unlink()
    index.unlink()
    older = tmp_path / "pytorch_model.bin.index.json"
    older.write_text(json.dumps({"weight_map": {k: f"{shard}.bin" for k, shard in places.items()}}))
    assert load_backbone(tmp_path).report.complete
    older.write_text(json.dumps({"weight_map": dict.fromkeys(places, "../elsewhere.bin")}))
    with pytest.raises(WeightsError, match=r"names '\.\./elsewhere\.bin', which is no file of"):
        load_backbone(tmp_path)


IDS = {  # model of transformers, its config, images of a size that it takes
    "facebook/dino-vits16": ("ViT", {"image_size": 32, "patch_size": 16}),
    "facebook/dinov2-small": ("Dinov2", {"image_size": 28}),
    "facebook/dinov2-with-registers-base": ("Dinov2WithRegisters", {"image_size": 28, "patch_size": 14}),
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("DINOv3ViT", {"image_size": 32, "intermediate_size": 64}),
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": (
        "DINOv3ConvNext",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
}


@pytest.mark.parametrize("name", IDS)
def test_hugging_face_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They name the architecture; with weights="hub" the directory is fetched and computes what transformers does."""
    transformers = pytest.importorskip("transformers")
    kind, options = IDS[name]
    if "ConvNext" not in kind:
        options = options | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options)).eval()
    theirs.save_pretrained(tmp_path)
    asked = []

    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, tuple(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    ours = load_backbone(name, "hub")
    assert asked == [(name, ("*.json", "*.safetensors"))]
    assert ours.report.complete
    size = options.get("image_size", 64)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
        features = ours(images, layers="last", norm=True)
    grid = features.maps[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(grid, expected[:, -grid.shape[1] :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["hub", "directory", "file"])
def test_dino_of_hugging_face_is_dino(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json is that of any plain ViT; positions, mean and family follow from the name, at every door."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 6, "intermediate_size": 1536}
    transformers.ViTModel(transformers.ViTConfig(**small, patch_size=16), add_pooling_layer=False).save_pretrained(
        tmp_path
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    places = {"hub": "hub", "directory": tmp_path, "file": tmp_path / "model.safetensors"}
    name = "facebook/dino-vits16" if weights == "hub" else "dino_vits16"
    spec = load_backbone(name, places[weights], depth=1).spec
    assert (spec.family, spec.positions, spec.mean, spec.norm_eps) == ("dino", "official", IMAGENET_MEAN, 1e-12)


def test_a_hugging_face_id_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(WeightsError, match=r"dinov2-base is not in the local cache .* on this machine: .*scenes_tiny"):
        load_backbone("facebook/dinov2-base", "hub")
    with pytest.raises(WeightsError, match=r"dinov2-bas is not .* Did you mean facebook/dinov2-base"):
        load_backbone("facebook/dinov2-bas", "hub")
    for name, meant in {
        "dinov2_vits14": r"\. Did you mean facebook/dinov2-small\?$",
        "dinov2_vitb14_reg": r"\. Did you mean facebook/dinov2-with-registers-base\?$",
        "ibot_vits16": r"\.$",  # no such id
        "dinov2-small": r"\. Did you mean facebook/dinov2-small",
    }.items():
        with pytest.raises(ValueError, match=f"belong to a Hugging Face id owner/name, not '{name}'{meant}"):
            load_backbone(name, "hub")
    with pytest.raises(FileNotFoundError, match=r"weights 'hub'\. Did you mean facebook/dinov2-base"):
        load_backbone("facebook/dinov2-bas")


@pytest.mark.parametrize("quiet", [True, False])
def test_a_slow_download_is_announced(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub tries again for a minute where there is no network."""
    monkeypatch.setattr("dense.backbone.saved.PATIENCE", 0.01)
    with voice(quiet), fetching("dinov2_vits14"):
        time.sleep(0.2)
    said = "warning: waiting for dinov2_vits14 from the Hugging Face hub; without a network this ends within a minute"
    assert capsys.readouterr().err.strip() == ("" if quiet else said)


@pytest.mark.parametrize(
    "wrong",
    [{"num_heads": 5}, {"depth": 0}, {"patch_size": 0}, {"patch_drop_rate": 0.5}, {"norm": 1}, {"family": "dinno"}],
)
def test_absurd_options(wrong: dict[str, Any]) -> None:
    """One ValueError each."""
    with pytest.raises(ValueError, match=r".+"):
        load_backbone("dino_vits16", **(SMALL | wrong))


@pytest.mark.parametrize("options", [{"weights": "timm"}, {}])
def test_no_network(options: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without a network there is one error with advice, and no log about retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "dino_vits16" if options else "somebody/something"
    with pytest.raises(
        WeightsError, match=r"hub cannot be reached; check the network, or work offline: fetch its file"
    ):
        load_backbone(name, **options) if options else Backbone.from_pretrained(name)
    assert not caplog.records
