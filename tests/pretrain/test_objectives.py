"""Runs of the whole objective: masks, resume, processes, stages, distillation, and starts that are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import dense
from dense.training.curves import read_metrics
from tests.pretrain.runs import command, run, write_config
from tests.runs import assert_same, in_processes, weights

HEAD = {"out_dim": 24, "hidden_dim": 32, "bottleneck_dim": 8}
FULL: dict[str, Any] = {  # every term but Gram
    "model.ibot": {"weight": 1.0, "head": HEAD},
    "model.koleo": {"weight": 0.1},
    "model.teacher": {"momentum": 0.9, "centering": "sinkhorn"},
    "model.optim": {
        "warmup_epochs": 0.5, "freeze_last_layer_epochs": 0.5, "lr": 0.01, "layer_decay": 0.9, "patch_embed_lr": 0.2,
    },
    "model.steps": 6,
}  # fmt: skip
GRAM = {"weight": 2.0, "start": 2, "refresh_every": 2, "refreshes": 1, "warmup_steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with every term."""
    folder = tmp_path_factory.mktemp("full")
    changes = {**FULL, "model.gram": GRAM, "data.views.init_args": VIEWS | {"gram_size": 64}}
    done = run(write_config(folder, **changes), folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


VIEWS = {"global_size": 32, "local_size": 16, "local_crops": 2}


def test_every_term_is_measured(finished: Path) -> None:
    """Losses of terms, the patch head's entropy, Sinkhorn's convergence and Gram drift are logged, and finite."""
    curves = read_metrics(finished / "metrics.csv")
    for name in ("dino_loss", "ibot_loss", "koleo_loss", "gram_loss", "sinkhorn_error", "patch_sinkhorn_error",
                 "patch_teacher_entropy", "patch_marginal_entropy", "patch_kl", "patch_prototype_usage", "gram_drift",
                 ):  # fmt: skip
        values = curves[f"health/{name}"][1]
        assert values, name
        assert all(math.isfinite(v) for v in values), name
    assert curves["gram_weight"][1] == pytest.approx([0.0, 0.0, 2.0])  # steps 0, 2 (warming up), 4
    assert curves["health/gram_drift"][0] == [2, 4]  # measured from `start` on
    total, parts = curves["loss"][1][2], [curves[f"health/{n}_loss"][1][2] for n in ("dino", "ibot", "koleo", "gram")]
    assert total == pytest.approx(parts[0] + parts[1] + 0.1 * parts[2] + 2 * parts[3], rel=1e-5)
    assert (finished / "health.png").is_file()


def test_the_gram_teacher_is_the_teacher_of_its_last_refresh(finished: Path, tmp_path: Path) -> None:
    """It is copied at step 2 and at step 4, so it equals the teacher of a run that stops at step 4."""
    changes = {**FULL, "model.gram": GRAM, "data.views.init_args": VIEWS | {"gram_size": 64}, "trainer.max_steps": 4}
    assert run(write_config(tmp_path, **changes), tmp_path / "run").returncode == 0
    state, early = weights(finished), weights(tmp_path / "run")
    names = [k.removeprefix("terms.gram.teacher.") for k in state if k.startswith("terms.gram.teacher.")]
    assert names
    assert all(torch.equal(state[f"terms.gram.teacher.{k}"], early[f"teacher.network.backbone.{k}"]) for k in names)


def test_stopped_and_continued(finished: Path, tmp_path: Path) -> None:
    """A run with masks, KoLeo and a Gram teacher that was stopped ends with the same weights, bit for bit."""
    changes = {**FULL, "model.gram": GRAM, "data.views.init_args": VIEWS | {"gram_size": 64}}
    config = write_config(tmp_path, **changes)
    for stop in ("3", "5", "6"):
        done = run(config, tmp_path / "run", "--trainer.max_steps", stop)
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", finished)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """iBOT, distributed KoLeo and Gram over gloo with 2 x 2 images train as one process with 4, with the same masks."""
    plain = {
        **FULL,
        "model.koleo": {"weight": 0.1, "distributed": True},
        "model.gram": {"weight": 1.0, "start": 1},
        "model.backbone.drop_path": 0.0,
        "model.steps": 3,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    done = run(write_config(one, **plain), one / "run")
    assert done.returncode == 0, done.stderr
    changes = {**plain, "data.batch_size": 2, "trainer.devices": 2, "trainer.strategy": "ddp"}
    in_processes(command(write_config(two, **changes), two / "run")[3:], two)
    a, b = weights(one / "run"), weights(two / "run")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=5e-5, msg=name)


def test_accumulation_keeps_the_meaning_of_a_batch(tmp_path: Path) -> None:
    """Two micro-batches of 2 train as one batch of 4: masks, both centres and the schedules are equal."""
    changes = {"model.teacher": {"momentum": 0.9}, "model.koleo": {"weight": 0.0}, "model.steps": 3}
    plain = {**FULL, **changes, "model.backbone.drop_path": 0.0}
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(write_config(one, **plain), one / "run").returncode == 0
    accumulated = write_config(two, **plain, **{"data.batch_size": 2, "trainer.accumulate_grad_batches": 2})
    done = run(accumulated, two / "run")
    assert done.returncode == 0, done.stderr
    a, b = weights(one / "run"), weights(two / "run")
    assert float(a["terms.ibot.targets.centering.center"].abs().max()) > 0
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=5e-5, msg=name)


def dinov3(**changes: Any) -> dict[str, Any]:
    """A small DINOv3: rotary positions that are rescaled, linear prototypes, a norm for local class tokens."""
    arguments = {"patch_size": 8, "img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_reg_tokens": 1}
    return {
        **FULL,
        "model.backbone": {
            "name": "vit_small_patch16_dinov3_qkvb",
            "arguments": arguments | {"rope_rescale_coords": 2.0},
            "drop_path": 0.1,
            "drop_path_rule": "uniform",
            "local_norm": True,
        },
        "model.head": HEAD | {"last_layer": "linear"},
        "model.ibot": {"weight": 1.0, "head": HEAD | {"last_layer": "linear"}, "complete": True},
        "model.steps": 3,
        **changes,
    }


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first stage of a small DINOv3."""
    folder = tmp_path_factory.mktemp("first")
    done = run(write_config(folder, **dinov3()), folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_stages_follow_one_another(first_stage: Path, tmp_path: Path) -> None:
    """pretrain, gram, high_res: each starts with the student and teacher of the previous one and writes a backbone."""
    state = weights(first_stage)
    assert not torch.equal(state["student.local_norm.weight"], state["student.backbone.model.norm.weight"])
    gram = dinov3(**{
        "model.stage": "gram", "model.start_from": str(first_stage), "model.gram": {"weight": 2.0},
        "data.views.init_args": VIEWS | {"gram_size": 64},
    })  # fmt: skip
    done = run(write_config(tmp_path / "gram", **gram), tmp_path / "gram/run")
    assert done.returncode == 0, done.stderr
    second = weights(tmp_path / "gram/run")
    mine = {k: v for k, v in second.items() if k.startswith("terms.gram.teacher.")}
    assert all(
        torch.equal(v, state[k.replace("terms.gram.teacher", "teacher.network.backbone")]) for k, v in mine.items()
    )
    mixture = [[32, 16, 48, 0.5], [48, 24, 64, 0.5]]
    high_res = dinov3(**{
        "model.stage": "high_res", "model.start_from": str(tmp_path / "gram/run"),
        "model.gram": {"weight": 1.5, "teacher": str(first_stage)},
        "data.views": {"class_path": "pretrain.mixed.MixedCrops", "init_args": {"mixture": mixture, "local_crops": 2}},
    })  # fmt: skip
    done = run(write_config(tmp_path / "high", **high_res), tmp_path / "high/run")
    assert done.returncode == 0, done.stderr
    backbone = dense.load_backbone(tmp_path / "high/run/backbone")
    assert backbone(torch.randn(1, 3, 32, 48)).maps[-1].shape == (1, 16, 4, 6)
    resumed = run(write_config(tmp_path / "high", **high_res), tmp_path / "high/run")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_wrong_starts(first_stage: Path, finished: Path, tmp_path: Path) -> None:
    """A stage that cannot start from the given run is refused before training."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.ckpt").write_text("words")
    unfinished = tmp_path / "unfinished"
    done = run(write_config(tmp_path / "u", **dinov3()), unfinished, "--trainer.max_steps", "2")
    assert done.returncode == 0, done.stderr
    gram = {"model.stage": "gram", "model.gram": {"weight": 2.0}}
    for changes, message in (
        ({"model.stage": "gram"}, "starts from a run of the stage before"),
        (gram | {"model.start_from": "/nowhere"}, "/nowhere does not exist"),
        (gram | {"model.start_from": str(tmp_path / "empty")}, "has no checkpoints/last.ckpt"),
        (gram | {"model.start_from": str(tmp_path / "words.ckpt")}, "words.ckpt"),
        (gram | {"model.start_from": str(unfinished)}, "stands at step 2 of 3"),
        (gram | {"model.start_from": str(finished)}, "holds another network"),
        ({"model.stage": "gram", "model.start_from": str(first_stage)}, "without a Gram term"),
        ({"model.start_from": str(first_stage)}, "stage: pretrain, which is the first"),
        (gram | {"model.stage": "high_res", "model.start_from": str(first_stage)}, "stage gram or high_res, and"),
        (gram | {"model.start_from": str(first_stage), "model.gram": {"weight": 1.0, "teacher": str(tmp_path)}},
         "holds no backbone"),
    ):  # fmt: skip
        done = run(write_config(tmp_path / "wrong", **dinov3(**changes)), tmp_path / "wrong/run")
        assert done.returncode == 1, (changes, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    checkpoint = str(unfinished / "checkpoints/last.ckpt")  # an unfinished run may be named on purpose
    ok = dinov3(**(gram | {"model.start_from": checkpoint, "model.steps": 1}))
    done = run(write_config(tmp_path / "ok", **ok), tmp_path / "ok/run")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_smaller_student_learns_from_a_finished_run(finished: Path, tmp_path: Path) -> None:
    """Distillation: targets of a frozen teacher, wider than the student; checkpoints leave its weights out."""
    small = {
        **FULL,
        "model.distill": str(finished),
        "model.backbone.arguments": {"patch_size": 8, "img_size": 32, "depth": 1, "embed_dim": 8, "num_heads": 1},
        "model.ibot": {"weight": 1.0, "head": HEAD, "masking": "none"},
        "model.steps": 4,
    }
    config = write_config(tmp_path, **small)
    for stop in ("2", "4"):
        done = run(config, tmp_path / "run", "--trainer.max_steps", stop)
        assert done.returncode == 0, done.stderr
    state = weights(tmp_path / "run")
    assert not any(k.startswith("distilled.") for k in state)
    assert dense.load_backbone(tmp_path / "run/backbone").spec.dim == 8
    whole = run(write_config(tmp_path / "whole", **small), tmp_path / "whole/run")
    assert whole.returncode == 0, whole.stderr
    assert_same(tmp_path / "run", tmp_path / "whole/run")
    plain = tmp_path / "plain"
    assert run(write_config(plain, **(FULL | {"model.ibot": {"weight": 0.0}})), plain / "run").returncode == 0
    for changes, message in (
        ({"model.head.out_dim": 48}, "head.out_dim=48, but the teacher has 32 prototypes"),
        ({"model.ibot": {"weight": 1.0, "head": HEAD | {"out_dim": 12}}}, "ibot.head.out_dim=12"),
        ({"model.backbone.arguments": {"patch_size": 16, "img_size": 32, "depth": 1, "embed_dim": 8, "num_heads": 1}},
         "patches have 8 pixels"),
        ({"model.distill": "/nowhere"}, "does not exist"),
        ({"model.distill": str(plain / "run")}, "trained without iBOT"),
    ):  # fmt: skip
        done = run(write_config(tmp_path / "wrong", **{**small, **changes}), tmp_path / "wrong/run")
        assert done.returncode == 1
        assert message in done.stderr


def test_a_convolutional_gram_teacher_is_refused(tmp_path: Path) -> None:
    dense.load_backbone("resnet18").save_pretrained(tmp_path / "resnet")
    gram = {"weight": 1.0, "teacher": str(tmp_path / "resnet")}
    done = run(write_config(tmp_path, **{"model.gram": gram}), tmp_path / "run")
    assert done.returncode == 1
    assert "holds resnet18, which is convolutional" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.gram": {"weight": 1.0}}, "Gram without a teacher"),
        ({"model.gram": {"weight": 1.0, "start": 1, "tokens": "masked"}}, "without masks"),
        ({"model.gram": {"weight": 1.0, "teacher": "x", "refresh_every": 2}}, "would replace the given gram.teacher"),
        ({"model.gram": {"weight": 1.0, "start": -1}}, "gram.start=-1: expected at least 0"),
        ({"model.gram": {"weight": 1.0, "start": 12}}, "gram.start=12 is never reached by a run of 12 steps"),
        ({"model.ibot": {"weight": 1.0}, "model.backbone": {"name": "resnet18"}}, "needs a ViT, and resnet18 is conv"),
        ({"model.gram": {"weight": 1.0, "start": 1}, "model.backbone": {"name": "resnet18"}}, "needs a ViT"),
        ({"model.backbone": {"name": "resnet18", "local_norm": True}}, "backbone.local_norm needs a ViT, and resnet18"),
        ({"model.optim": {"layer_decay": 0.9}, "model.backbone": {"name": "resnet18"}}, "needs a ViT"),
        ({"model.optim": {"layer_decay": 1.5}}, "optim.layer_decay=1.5"),
        ({"model.ibot": {"weight": 1.0, "mask_ratio": [0.5, 1.5]}}, "mask_ratio"),
        ({"model.ibot": {"weight": 1.0, "mask_probability": 0}}, "mask_probability=0"),
        ({"model.ibot": {"weight": 1.0, "mask_probability": 0.1}},
         "mask_probability=0.1 masks none of the 8 global crops"),
        ({"model.ibot": {"weight": -1.0}}, "ibot.weight=-1.0"),
        ({"model.ibot": {"weight": 1.0}, "data.views.init_args": {"global_size": 16, "local_size": 8}},
         "too small for masks"),
        ({"model.koleo": {"weight": 1.0, "group": 3}}, "koleo.group=3 does not divide"),
        ({"model.backbone.local_norm": True, "data.views.init_args": {"global_size": 32, "local_crops": 0}},
         "without local crops"),
        ({"data.views.init_args": {"global_size": 32, "local_size": 16, "gram_size": 64}}, "without a Gram term"),
        ({"data.views.init_args": {"global_size": 32, "local_size": 16, "gram_size": 16}}, "gram_size=16"),
        ({"model.gram": {"weight": 1.0, "start": 1},
          "data.views.init_args": {"global_size": 36, "local_size": 16, "gram_size": 72}},
         "gram_size=72 and global_size=36 with patches of 8"),
        ({"model.gram": {"weight": 1.0, "start": 1, "final_weight": -3.0}}, "gram.final_weight=-3.0"),
        ({"model.dino": {"weight": 0.0}}, "nothing to learn"),
        ({"trainer.precision": "bf16-true"}, "trainer.precision=bf16-true"),
        ({"model.head.last_layer": "cosine"}, "last_layer"),
        ({"model.backbone.drop_path_rule": "cubic"}, "drop_path_rule"),
        ({"model.backbone.drop_path": 1.0}, "backbone.drop_path=1.0"),
        ({"model.backbone.drop_path": -0.1}, "backbone.drop_path=-0.1"),
        ({"model.steps_per_epoch": 0}, "steps_per_epoch=0"),
    ],
)  # fmt: skip
def test_bad_combinations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """One clear error before training starts."""
    done = run(write_config(tmp_path, **changes), tmp_path / "run")
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/metrics.csv").exists()
