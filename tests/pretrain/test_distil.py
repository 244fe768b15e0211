"""Distillation of frozen backbones: losses, students of every shape, caches, resume, processes, and refusals."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dense
from dense.training.curves import read_metrics
from pretrain import DINO, FeatureLoss, RelationLoss, stages
from pretrain.recipe import (
    BackboneOptions,
    DINOOptions,
    FeatureOptions,
    FrozenTeacher,
    Recipe,
    RelationOptions,
    TeacherOptions,
    completed,
)
from pretrain.terms import RelationTerm, StepOutputs
from tests.pretrain.runs import command, run, write_config
from tests.runs import assert_same, in_processes, weights

TINY = {"img_size": 32, "num_heads": 2}
VIEWS = {"global_size": 32, "local_crops": 0, "global_scale": [0.5, 1.0], "solarise": 0.0}


def vit(patch: int = 8, width: int = 16, depth: int = 2) -> dict[str, Any]:
    return TINY | {"patch_size": patch, "embed_dim": width, "depth": depth}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a ViT of width 24 with 5 blocks and features that differ from image to image."""
    return save_teacher(tmp_path_factory.mktemp("teacher"), depth=5, width=24)


def save_teacher(folder: Path, patch: int = 8, **shape: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        backbone = dense.load_backbone("vit_tiny_patch16_224", **vit(patch, **shape))
        for name, parameter in backbone.named_parameters():
            if "blocks" in name or "pos_embed" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    backbone.save_pretrained(folder)
    return str(folder)


def config(folder: Path, teacher: str, **changes: Any) -> Path:
    """A run of 6 steps that distils a teacher with both terms."""
    plain = {
        "model.backbone": {"name": "vit_tiny_patch16_224", "arguments": vit(), "drop_path": 0.1},
        "model.teacher": {"name": teacher, "momentum": 0.9},
        "model.dino": {"weight": 0.0},
        "model.features": {"weight": 1.0},
        "model.relations": {"weight": 1.0, "queue": 12},
        "model.optim": {"warmup_epochs": 0, "lr": 0.01, "lr_scaling": "none"},
        "model.steps": 6,
        "data.views.init_args": VIEWS,
    }
    return write_config(folder, **{**plain, **changes})


def module(teacher: TeacherOptions, backbone: BackboneOptions, **options: Any) -> DINO:
    terms = {"dino": DINOOptions(0.0), "features": FeatureOptions(1.0), "relations": RelationOptions(1.0, queue=8)}
    return DINO(backbone=backbone, teacher=teacher, **(terms | options))


def outputs(model: DINO, crops: list[Tensor]) -> StepOutputs:
    return StepOutputs(
        student=model.student(crops), teacher=None, masked=None, gram_crops=crops, grid=model.student.grid(crops[0]),
        step=0, steps_per_epoch=1, measure=True, frozen=model._frozen_features(torch.cat(crops)),
    )  # fmt: skip


def test_losses_equal_their_formulas() -> None:
    """Both objectives, and the divergence of similarities, computed with NumPy."""
    s, t = (torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(n)) for n in range(2))
    x, y = s.numpy().astype(np.float64), t.numpy().astype(np.float64)
    unit = [z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y)]
    assert FeatureLoss()(s, t).item() == pytest.approx(1 - (unit[0] * unit[1]).sum(-1).mean(), rel=1e-5)
    white = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    gap = np.abs(x - white)
    expected = np.where(gap < 2, gap**2 / 4, gap - 1).mean()
    assert FeatureLoss("smooth_l1")(s, t).item() == pytest.approx(expected, rel=1e-5)
    logs = []
    for z in unit:
        logits = z @ z.swapaxes(1, 2) / 0.07
        logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    expected = (np.exp(logs[1]) * (logs[1] - logs[0])).sum(-1).mean()
    assert RelationLoss()(s, t, s, t).item() == pytest.approx(expected, rel=1e-4)
    assert RelationLoss()(3 * t, t, t, t).item() == pytest.approx(0, abs=1e-6)


def test_a_student_that_can_represent_its_teacher_does(tmp_path: Path) -> None:
    """A student of the teacher's shape reaches a cosine of .99 for class token and patches of a few fixed views."""
    folder = save_teacher(tmp_path / "teacher", width=16, depth=1)
    changes = {
        "model.backbone": {"name": "vit_tiny_patch16_224", "arguments": vit(width=32, depth=1), "drop_path": 0.0},
        "model.relations": {"weight": 0.0}, "data.scenes": 4, "data.copies": 1, "data.cache": str(tmp_path / "cache"),
        "model.steps": 251, "model.health": {"every": 50}, "model.optim.weight_decay": 0.0,
        "model.optim.final_weight_decay": 0.0, "model.optim.clip": 0, "checkpoint.every_steps": 0,
    }  # fmt: skip
    done = run(config(tmp_path, folder, **changes), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    curves = read_metrics(tmp_path / "run/metrics.csv")
    assert min(curves[f"health/{name}_cosine"][1][-1] for name in ("image", "patch")) > 0.99
    card = (tmp_path / "run/backbone/README.md").read_text()
    assert "distilled" in card
    facts = json.loads((tmp_path / "run/facts.json").read_text())
    assert folder in facts["teacher"]
    assert facts["cosine to teacher, patches"].startswith("0.")
    assert "(features without their mean)" in facts["cosine to teacher, patches"]
    assert dense.load_backbone(tmp_path / "run/backbone").spec.dim == 32


@pytest.mark.parametrize(("images", "length"), [(32, 16), (999, 256), (1_000, 512), (19_999, 4096), (20_000, 8192)])
def test_the_queue_fits_the_number_of_images(images: int, length: int, teacher: str) -> None:
    """As published; a length that is given stays."""
    for queue, expected in ((None, length), (12, 12)):
        relations = RelationTerm(RelationOptions(1.0, queue), [FrozenTeacher(teacher)], [24])
        relations.open_queues(images)
        assert relations.get_buffer("queue_0").shape == (expected, 24)


@pytest.mark.parametrize("theirs", [8, 14, 16])
@pytest.mark.parametrize("ours", [8, 14, 16, "resnet10t", "convnext_atto"])
def test_every_student_meets_the_grid_of_its_teacher(ours: int | str, theirs: int, tmp_path: Path) -> None:
    """Patches of any size, and pyramids: features are compared on the teacher's grid, and every parameter learns."""
    side = 224 if isinstance(ours, str) else 112
    folder = save_teacher(tmp_path, theirs, width=24, depth=1)
    options = (
        BackboneOptions("vit_tiny_patch16_224", vit(ours, depth=1))
        if isinstance(ours, int)
        else BackboneOptions(ours, drop_path=0.0)
    )
    model = module(TeacherOptions(name=folder), options)
    assert model.student.head is None
    crops = [torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8) for _ in range(2)]
    found = outputs(model, crops)
    ((images, their_images, patches, their_patches),) = found.pairs()
    assert images.shape == their_images.shape == (2, 24)
    assert patches.shape == their_patches.shape == (2, (side // theirs) ** 2, 24)
    torch.stack([term(found) for term in model.terms.values()]).sum().backward()
    assert [name for name, p in model.student.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(parameter.grad is None for parameter in model.frozen.parameters())


def test_several_teachers_share_by_weight(teacher: str, tmp_path: Path) -> None:
    """The loss is the mean over teachers by their weights; each has maps and a queue of its own width."""
    other = save_teacher(tmp_path, 16, width=32, depth=1)
    options = TeacherOptions(name=teacher, others=[FrozenTeacher(other, weight=3.0)])
    model = module(options, BackboneOptions("vit_tiny_patch16_224", vit()))
    found = outputs(model, [torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8) for _ in range(2)])
    term: Any = model.terms["features"]
    each = [sum(FeatureLoss()(*found.pairs()[n][i : i + 2]).item() for i in (0, 2)) for n in range(2)]
    assert term(found).item() == pytest.approx((each[0] + 3 * each[1]) / 4, rel=1e-5)
    assert {"image_cosine", "patch_cosine_2"} <= term.measurements.keys()
    relations: Any = model.terms["relations"]
    relations(found)
    relations.after_step()
    assert [relations.get_buffer(f"queue_{n}").shape[1] for n in range(2)] == [24, 32]
    assert int(relations.filled) == 4


def test_a_shallower_student_starts_from_the_teachers_blocks(teacher: str) -> None:
    """Blocks 0, 2 and 4 of 5 or the first three, and everything else; a student that computes otherwise is refused."""
    theirs = dense.load_backbone(teacher).state_dict()
    for init, blocks in (("teacher_first", (0, 1, 2)), ("teacher", (0, 2, 4))):
        backbone = BackboneOptions("vit_tiny_patch16_224", vit(width=24, depth=3), init_from=init)
        ours = module(TeacherOptions(name=teacher), backbone).student.backbone.state_dict()
        for place, block in enumerate(blocks):
            name = "model.blocks.{}.attn.qkv.weight"
            assert torch.equal(ours[name.format(place)], theirs[name.format(block)])
    assert torch.equal(ours["model.patch_embed.proj.weight"], theirs["model.patch_embed.proj.weight"])
    larger = BackboneOptions("vit_tiny_patch16_224", vit(width=24) | {"img_size": 64}, init_from="teacher")
    assert module(TeacherOptions(name=teacher), larger).student.backbone.state_dict()["model.pos_embed"].shape[1] == 65
    for arguments, message in (
        (vit(), "dim: 16 here, 24 there"),
        (vit(width=24, depth=6), "depth: 6 here, 5 there"),
        (vit(width=24) | {"num_heads": 3}, "heads: 3 here, 2 there"),
        (vit(width=24) | {"mean": [0.485, 0.456, 0.406]}, r"mean: \(0.485, .* here, \(0.5, 0.5, 0.5\) there"),
    ):
        options = BackboneOptions("vit_tiny_patch16_224", arguments, init_from="teacher")
        with pytest.raises(ValueError, match=f"init_from: teacher needs.*{message}"):
            module(TeacherOptions(name=teacher), options)


@pytest.fixture(scope="module")
def finished(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with both terms, from a cache."""
    folder = tmp_path_factory.mktemp("distilled")
    done = run(config(folder, teacher, **{"data.cache": str(folder / "cache"), "data.copies": 2}), folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_stopped_and_continued(finished: Path, teacher: str, tmp_path: Path) -> None:
    """A run that was stopped twice ends with the same weights and queue, bit for bit, from a filled cache."""
    cached = {"data.cache": str(finished.parent / "cache"), "data.copies": 2}
    path = config(tmp_path, teacher, **cached)
    for stop in ("2", "5", "6"):
        done = run(path, tmp_path / "run", "--trainer.max_steps", stop)
        assert done.returncode == 0, done.stderr
    assert "0 computed, 64 in the cache" in done.stdout + done.stderr
    assert_same(tmp_path / "run", finished)
    state = weights(finished)
    assert not any(name.startswith("frozen.") for name in state)
    assert int(state["terms.relations.filled"]) == 6 * 8


def test_self_distillation_of_distilled_runs(finished: Path, teacher: str, tmp_path: Path) -> None:
    """A run with heads beside a frozen teacher gives its prototypes as targets; one without heads names the option."""
    heads = {"model.dino.weight": 1.0, "model.steps": 2}
    assert run(config(tmp_path / "both", teacher, **heads), tmp_path / "both/run").returncode == 0
    for source, status in ((tmp_path / "both/run", 0), (finished, 1)):
        done = run(config(tmp_path, teacher, **heads, **{"model.distill": str(source)}), tmp_path / "run")
        assert done.returncode == status, done.stderr
    assert f"distill: this run has no heads; use --model.teacher.name {finished}" in done.stderr


def test_live_mixup_is_continued_too(teacher: str, tmp_path: Path) -> None:
    """Mixed images of a step are the same in a continued run; the teacher is read anew, from where it is now."""
    changes = {"model.mixup": True, "model.relations": {"weight": 1.0}, "model.steps": 3}
    path = config(tmp_path, teacher, **changes)
    assert run(path, tmp_path / "whole").returncode == 0
    moved = shutil.copytree(teacher, tmp_path / "moved")
    for place, stop in ((teacher, "1"), (str(moved), "3")):
        done = run(path, tmp_path / "parts", "--trainer.max_steps", stop, "--model.teacher.name", place)
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "parts", tmp_path / "whole")
    other = save_teacher(tmp_path / "other", depth=4, width=24)
    done = run(path, tmp_path / "parts", "--model.teacher.name", other)
    assert done.returncode == 1
    assert "frozen teachers: ['" in done.stderr
    done = run(path, tmp_path / "parts", "--show-views", str(tmp_path / "views.png"))
    assert "2 views, before mixup, of 32, 32 pixels" in done.stdout, done.stderr
    assert len(weights(tmp_path / "whole")["terms.relations.queue_0"]) == 16  # by the number of images


def test_the_cache_holds_what_the_teacher_computes(teacher: str, tmp_path: Path) -> None:
    """In the first epoch, cached and live training see the same views: losses differ by rounding to 16 bits alone."""
    losses = []
    for name, cache in (("live", None), ("cached", str(tmp_path / "cache"))):
        changes = {"data.cache": cache, "model.optim.lr": 1e-3}  # so that six steps do not amplify the rounding
        done = run(config(tmp_path / name, teacher, **changes), tmp_path / name / "run")
        assert done.returncode == 0, done.stderr
        losses.append(read_metrics(tmp_path / name / "run/metrics.csv")["loss"][1])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_the_cache_follows_the_images(teacher: str, tmp_path: Path) -> None:
    """An image that a list names twice has two records; a rewritten shard and another scene_size are computed anew."""
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\na.png\nb.png\n")
    shard = tmp_path / "images.tar"

    def computed(root: str, **changes: Any) -> str:
        given = {"data.root": root, "data.cache": str(tmp_path / "cache"), "data.copies": 1, "model.steps": 2}
        done = run(config(tmp_path, teacher, **given, **changes), tmp_path / "run", "--checkpoint.every_steps", "0")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / "run")
        return (done.stdout + done.stderr).partition("the teacher's features: ")[2].partition("\n")[0]

    def written(*names: str) -> str:
        with tarfile.open(shard, "w") as archive:
            for place, name in enumerate(names):
                archive.add(tmp_path / name, f"{place}.png")
        return str(shard)

    listed = str(tmp_path / "list.txt")
    assert [computed(listed) for _ in range(2)] == ["4 computed, 0 in the cache", "0 computed, 4 in the cache"]
    assert computed(written("a.png", "b.png", "a.png", "b.png")) == "4 computed, 0 in the cache"
    assert computed(str(shard)) == "0 computed, 4 in the cache"
    assert computed(written("b.png", "a.png", "a.png", "b.png")) == "4 computed, 0 in the cache"
    scenes = {"data.scenes": 8}
    assert computed("scenes:train", **scenes) == "8 computed, 0 in the cache"
    assert computed("scenes:train", **scenes, **{"data.scene_size": 40}) == "8 computed, 0 in the cache"


def test_live_and_cached_runs_do_not_continue_each_other(teacher: str, finished: Path, tmp_path: Path) -> None:
    """Their views differ from the second epoch on."""
    cached = {"data.cache": str(finished.parent / "cache"), "data.copies": 2}
    for first, then in (({}, cached), (cached, {})):
        folder = tmp_path / f"{bool(first)}"
        assert run(config(folder, teacher, **first), folder / "run", "--trainer.max_steps", "2").returncode == 0
        done = run(config(folder, teacher, **then), folder / "run")
        assert done.returncode == 1, done.stderr
        assert "data.copies: " in done.stderr


def test_a_convolutional_student_keeps_its_statistics(teacher: str, tmp_path: Path) -> None:
    """The product's batch norm has the running statistics of the student, which alone sees images."""
    changes = {
        "model.backbone": {"name": "resnet10t", "drop_path": 0.0}, "data.views.init_args": VIEWS, "model.steps": 2,
    }  # fmt: skip
    done = run(config(tmp_path, teacher, **changes), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    state = weights(tmp_path / "run")
    mine = dense.load_backbone(tmp_path / "run/backbone").state_dict()
    name = "model.bn1.running_var"
    assert torch.equal(mine[name], state[f"student.backbone.{name}"])
    assert not torch.equal(mine[name], torch.ones_like(mine[name]))


@pytest.mark.slow
def test_two_processes_train_as_one(teacher: str, tmp_path: Path) -> None:
    """2 x 2 images over gloo train as one process with 4, each with its share of the cache."""
    plain = {
        "model.steps": 4, "model.optim.lr": 1e-4, "data.cache": str(tmp_path / "cache"),
        "model.backbone": {"name": "vit_tiny_patch16_224", "arguments": vit(), "drop_path": 0.0},
        "model.relations.queue": 16,  # vectors of whole steps, so that both replace the same ones
    }  # fmt: skip
    two = {**plain, "data.batch_size": 2, "trainer.devices": 2, "trainer.strategy": "ddp"}
    arguments = command(config(tmp_path / "two", teacher, **two), tmp_path / "two/run")[3:]
    for extra in (["--trainer.max_steps", "2"], []):
        in_processes([*arguments, *extra], tmp_path / "two")
    done = run(config(tmp_path / "one", teacher, **plain), tmp_path / "one/run")
    assert done.returncode == 0, done.stderr
    a, b = weights(tmp_path / "one/run"), weights(tmp_path / "two/run")
    assert a.keys() == b.keys()
    for name in a:
        if "queue" not in name:  # the same vectors in another order
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=5e-5, msg=name)


def test_wrong_teachers(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is missing, wrong, without weights or larger than memory is one error that names it."""
    other = tmp_path / "other.safetensors"
    other.write_bytes((Path(teacher) / "model.safetensors").read_bytes())
    student = BackboneOptions("vit_tiny_patch16_224", vit())
    for options, message in (
        (TeacherOptions(name="dinov2_vits14"), "teacher.name=dinov2_vits14: without weights it would teach random"),
        (TeacherOptions(name=str(tmp_path)), f"teacher.name={tmp_path}: .* has no config.json; expected a directory"),
        (TeacherOptions(name=teacher, others=[FrozenTeacher("gone")]), "teacher.others=gone: unknown backbone 'gone'"),
        (TeacherOptions(name=teacher, others=[FrozenTeacher("dinov2_vits14")]), "give weights: FILE beside its name"),
        (TeacherOptions(name="dinov2_vits14", weights=str(other)), "teacher.name=dinov2_vits14: .*does not fit"),
        (TeacherOptions(name="dinov2_vits14", weights="/nowhere.pth"), "teacher.name=dinov2_vits14: .*/nowhere.pth"),
        (TeacherOptions(name="dinov2_vitz14", weights=str(other)), "unknown backbone 'dinov2_vitz14'.*Did you mean"),
        (TeacherOptions(name=str(tmp_path / "none")), "no such directory"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            module(options, student)
    monkeypatch.setattr(stages, "free_memory", lambda: 50_000)
    with pytest.raises(ValueError, match=r"its weights take .* and 0.0 MB of memory are free; choose a smaller"):
        module(TeacherOptions(name=teacher), student)
    with pytest.raises(ValueError, match=r"its weights take 2\d\.\d MB"):  # as fp32, of a file in 16 bits
        module(TeacherOptions(name="photos_tiny"), student)
    with pytest.raises(ValueError, match=r"its weights take 8\d\.\d MB"):
        module(TeacherOptions(name="dinov2_vits14", weights=str(other)), student)


def test_wrong_options(teacher: str, tmp_path: Path) -> None:
    """Options that do not go together, and crops that fit no common grid, are refused before training."""
    for changes, message in (
        ({"model.teacher": {"momentum": 0.9}}, "need a frozen teacher: --model.teacher.name"),
        ({"model.teacher": {"weights": teacher}}, "set teacher.name"),
        ({"model.features.weight": 0.0, "model.relations.weight": 0.0, "model.dino.weight": 1.0}, "without a term"),
        ({"model.features.image_weight": 0, "model.features.patch_weight": 0}, "nothing to learn; raise one of them"),
        ({"model.teacher.others": [{"name": teacher, "weight": -1.0}]}, f"others: {teacher} has weight -1.0: expected"),
        ({"model.distill": teacher}, "set dino.weight or ibot.weight, or use --model.teacher.name"),
        ({"model.mixup": True, "model.dino.weight": 1.0}, "mixup is for features"),
        ({"model.teacher.name": "./nope/x"}, "no such saved directory for --model.teacher.name: ./nope/x"),
        ({"data.cache": str(Path(teacher) / "config.json")}, "config.json is a file; expected a folder"),
        ({"data.copies": -1}, "data.copies=-1: expected at least 1"),
        ({"model.mixup": True, "data.cache": str(tmp_path / "c")}, "with mixup, which makes new images"),
        ({"data.views.init_args": VIEWS | {"local_crops": 2, "local_size": 16}}, "set it to 0"),
        ({"model.backbone.arguments": vit(14), "data.views.init_args": VIEWS | {"global_size": 60}}, "such as 56"),
    ):
        done = run(config(tmp_path / "wrong", teacher, **changes), tmp_path / "wrong/run")
        assert done.returncode == 1, (changes, done.stderr)
        assert message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_checkpoints_of_former_versions_continue() -> None:
    """Options that a checkpoint does not know yet have their defaults."""
    recipe = Recipe(steps=3)
    old: dict[str, Any] = json.loads(json.dumps(recipe.to_dict()))
    for name in ("features", "relations", "mixup"):
        del old[name]
    del old["teacher"]["name"]
    assert json.loads(json.dumps(completed(old))) == json.loads(json.dumps(recipe.to_dict()))
