"""FSDP2 over gloo: it trains as one process does, and its checkpoints are those of one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import dense
from pretrain.fsdp import FSDP2
from pretrain.module import DINO
from pretrain.network import MultiCropNetwork
from pretrain.optim import build_optimizer, clip_gradients_, parameter_groups, set_hyperparameters
from pretrain.recipe import BackboneOptions, HeadOptions
from pretrain.sharding import local, unsharded, whole
from pretrain.teacher import Teacher
from tests.pretrain.runs import command, run, write_config
from tests.runs import in_processes, weights

FULL: dict[str, Any] = {  # every term, both heads, no stochastic depth
    "model.backbone.drop_path": 0.0,
    "model.ibot": {"weight": 1.0, "head": {"out_dim": 24, "hidden_dim": 32, "bottleneck_dim": 8}},
    "model.koleo": {"weight": 0.1, "distributed": True},
    "model.gram": {"weight": 1.0, "start": 1},
    "model.teacher": {"momentum": 0.9, "centering": "sinkhorn"},
    "model.optim": {"warmup_epochs": 0.5, "lr": 0.01, "layer_decay": 0.9, "clip": 0.3, "clip_mode": "global"},
    "model.steps": 5,
}
KNN = {"train": "scenes:train", "val": "scenes:val", "every_steps": 3, "k": 3}
KNN |= {"resize": None, "scenes": [12, 6], "scene_size": 32}


def test_two_processes_train_as_one_and_checkpoints_move(tmp_path: Path) -> None:
    """One process to step 1, two sharded ones to step 4, one to the end: the weights of an uninterrupted run."""
    still, moved = tmp_path / "still", tmp_path / "moved"
    done = run(write_config(still, **FULL), still / "run")
    assert done.returncode == 0, done.stderr
    one = write_config(moved, **FULL)
    assert run(one, moved / "run", "--trainer.max_steps", "1").returncode == 0
    two = {**FULL, "data.batch_size": 2, "trainer.devices": 2, "trainer.strategy": "fsdp2", "trainer.max_steps": 4}
    arguments = command(write_config(tmp_path / "two", **two, knn=KNN), moved / "run")[3:]
    first, _ = in_processes(arguments, tmp_path / "two")
    assert "continuing" in first.output
    assert "3-NN" in first.output
    checkpoint = torch.load(moved / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert not any(isinstance(value, DTensor) for value in checkpoint["state_dict"].values())
    backbone = dense.load_backbone(moved / "run/backbone").state_dict()
    for name, value in backbone.items():
        assert torch.equal(value, checkpoint["state_dict"][f"teacher.network.backbone.{name}"]), name
    assert run(one, moved / "run").returncode == 0
    a, b = weights(still / "run"), weights(moved / "run")
    assert a.keys() == b.keys()
    assert {
        n: float((a[n] - b[n]).abs().max()) for n in a if not torch.allclose(a[n], b[n], rtol=1e-3, atol=5e-5)
    } == {}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("fsdp3", "fsdp3"),
        ({"class_path": "pretrain.fsdp.FSDP2", "init_args": {"reduce_dtype": "bf17"}}, "bf17"),
        ({"class_path": "pretrain.fsdp.FSDP2", "init_args": {"param_dtype": "bfloat16"}}, "set --trainer.precision"),
    ],
)
def test_bad_strategies(tmp_path: Path, strategy: object, message: str) -> None:
    """They are reported without a traceback."""
    done = run(write_config(tmp_path, **{"trainer.strategy": strategy}), tmp_path / "run")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# ---- the parts, in two processes that share one file


def test_parts_on_two_processes(tmp_path: Path) -> None:
    """What `_check` checks."""
    torch.multiprocessing.start_processes(_check, (str(tmp_path / "store"),), nprocs=2, start_method="forkserver")


def _check(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for mode in ("per_parameter", "global"):
        for optimizer in ("adamw", "lars"):
            _one_step(rank, mode, optimizer)
    exact, coarse = (_gradients(rank, FSDP2(reduce_dtype=name)) for name in (None, "bfloat16"))
    for name, value in exact.items():
        torch.testing.assert_close(coarse[name], value, rtol=0.02, atol=0.02 * float(value.abs().max()))
        assert torch.equal(coarse[name], coarse[name].bfloat16().float()), "reduced in bf16"
    assert any(not torch.equal(coarse[name], exact[name]) for name in exact)
    with torch.autocast("cpu", torch.bfloat16):
        low = _gradients(rank, FSDP2(param_dtype="bfloat16", reduce_dtype="float32"))
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in low.values())
    distributed.destroy_process_group()


def _network() -> MultiCropNetwork:
    arguments = {"patch_size": 8, "img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2, "init_values": 0.1}
    return DINO(BackboneOptions("vit_tiny_patch16_224", arguments, 0.0), HeadOptions(33, 16, 8)).student


def _crops(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    crops = [torch.randint(0, 256, (4, 3, s, s), dtype=torch.uint8, generator=generator) for s in (32, 32, 16)]
    return [crop.chunk(2)[rank] for crop in crops]


def _shard(strategy: FSDP2, *networks: nn.Module) -> None:
    strategy._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    for network in networks:
        strategy.shard(network)


def _gradients(rank: int, strategy: FSDP2) -> dict[str, Tensor]:
    """Whole ones, by name."""
    student = _network()
    _shard(strategy, student)
    student(_crops(rank)).logits.float().square().mean().backward()
    return {name: whole(p.grad) for name, p in student.named_parameters() if p.grad is not None}


def _one_step(rank: int, mode: Any, optimizer: str) -> None:
    """Gradients clipped, an optimiser's step and the teacher's, against the same on the whole batch in one process."""
    student = _network()
    teacher = Teacher(student)
    pairs = []
    for sharded in (True, False):
        mine, follower = copy.deepcopy((student, teacher))
        if sharded:
            _shard(FSDP2(), mine, follower.network)
            crops = _crops(rank)
            follower(crops)  # leaves the teacher sharded
            assert all(isinstance(p, DTensor) for p in follower.parameters())
        else:
            crops = [torch.cat(both) for both in zip(_crops(0), _crops(1), strict=True)]
        mine(crops).logits.square().mean().backward()
        total = clip_gradients_(mine.parameters(), 1e-3, mode)
        options = build_optimizer(optimizer, parameter_groups(mine))
        set_hyperparameters(options, 0.1, 0.04)
        options.step()
        follower.after_step(mine, 0.5)
        pairs.append((mine, follower, total))
    (mine, follower, total), (other, leader, expected) = pairs
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    for ours, theirs in ((mine, other), (follower, leader)):
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert local(a).numel() <= (b.numel() + b[:1].numel()) // 2 + b[:1].numel(), name
            torch.testing.assert_close(whole(a), b, rtol=1e-4, atol=1e-5, msg=name)
    copied = unsharded(follower.network.backbone)  # type: ignore[arg-type]
    assert not any(isinstance(p, DTensor) for p in copied.parameters())
    torch.testing.assert_close(
        copied.image_feature(torch.ones(1, 3, 32, 32)),
        leader.network.backbone.image_feature(torch.ones(1, 3, 32, 32)),  # type: ignore[union-attr, operator]
    )
