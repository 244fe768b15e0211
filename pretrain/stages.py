"""Runs that build on runs: the next stage of a recipe, a Gram teacher, a teacher to distil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from dense.backbone.weights.checkpoint import read_checkpoint
from dense.training.checkpoints import LAST
from dense.training.fit import differences
from pretrain.recipe import Recipe

# what a stage may start from; high_res without a Gram term may leave the gram stage out
BEFORE = {"gram": ("pretrain", "gram"), "high_res": ("gram", "high_res")}
SHAPES = ("head", "backbone.name", "backbone.arguments", "backbone.local_norm", "ibot.head")


@dataclass(frozen=True)
class Run:
    """A training checkpoint of `dense pretrain`."""

    path: Path
    recipe: Mapping[str, Any]
    state: Mapping[str, Tensor]
    step: int
    steps: int  # that the run was to have

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {name.removeprefix(prefix): value for name, value in self.state.items() if name.startswith(prefix)}


def open_run(place: str | Path, what: str) -> Run:
    """A run by its directory, which must be finished, or by one of its .ckpt files, which need not. `what` asked for it."""
    path = Path(place)
    if not path.exists():
        raise FileNotFoundError(f"{what}: {path} does not exist; give the --output of a run of dense pretrain")
    file = path / "checkpoints" / LAST if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{what}: {path} has no checkpoints/{LAST}; give the --output of a run of dense pretrain"
        )
    content = read_checkpoint(file)
    if not {"recipe", "run_steps", "global_step", "state_dict"} <= content.keys():
        raise ValueError(f"{what}: {file} is no checkpoint of dense pretrain")
    run = Run(file, content["recipe"], content["state_dict"], content["global_step"], content["run_steps"])
    if path.is_dir() and run.step < run.steps:
        raise ValueError(
            f"{what}: the run in {path} stands at step {run.step} of {run.steps}; finish it, or name one of its checkpoints "
            f"({file}) to build on it as it is"
        )
    return run


def check_stage(recipe: Recipe) -> None:
    """Whether a recipe's stage and what it starts from belong together; says what is wrong."""
    if recipe.stage == "pretrain":
        if recipe.start_from is not None:
            raise ValueError(
                f"start_from={recipe.start_from} with stage: pretrain, which is the first; set model.stage to gram or "
                "high_res, or continue from weights alone with backbone.init_from"
            )
        return
    if recipe.start_from is None:
        raise ValueError(
            f"stage: {recipe.stage} starts from a run of the stage before; give its directory: --model.start_from RUN"
        )
    if recipe.stage == "gram" and not recipe.gram.weight:
        raise ValueError("stage: gram without a Gram term; set gram.weight (published: 2)")
    if recipe.backbone.init_from is not None:
        raise ValueError(
            f"both start_from={recipe.start_from} and backbone.init_from={recipe.backbone.init_from}; leave one out"
        )


def check_start(recipe: Recipe, run: Run) -> None:
    """Whether a run is what a recipe's stage may start from."""
    before = run.recipe["stage"]
    allowed = BEFORE[recipe.stage] + (("pretrain",) if not recipe.gram.weight else ())
    if before not in allowed:
        raise ValueError(
            f"stage: {recipe.stage} starts from a run of stage {' or '.join(dict.fromkeys(allowed))}, and {run.path} is of "
            f"stage {before}"
        )
    changed = [line for line in differences(recipe.to_dict(), run.recipe) if line.startswith(SHAPES)]
    if changed:
        raise ValueError(f"start_from: {run.path} holds another network; {'; '.join(changed)}")


def gram_teacher(place: str) -> Backbone:
    """The backbone of a run's or a backbone's directory."""
    folder = Path(place)
    inside = folder / "backbone" if (folder / "backbone" / "config.json").is_file() else folder
    if not (inside / "config.json").is_file():
        raise FileNotFoundError(
            f"gram.teacher: {folder} holds no backbone; give a finished run's directory or one written by save_pretrained"
        )
    backbone = load_backbone(inside)
    if backbone.spec.kind == "pyramid":
        raise ValueError(
            f"gram.teacher: {inside} holds {backbone.spec.name}, which is convolutional; give a ViT's directory"
        )
    return backbone


def load_start(module: torch.nn.Module, run: Run) -> None:
    """Take over student, teacher and centres. The optimiser, the schedules and the Gram teacher begin anew."""
    own = module.state_dict()
    kept = ("student.", "teacher.", "terms.dino.", "terms.ibot.")
    state = {name: value for name, value in run.state.items() if name.startswith(kept) and name in own}
    lost = [n for n in own if n.startswith(("student.", "teacher.")) and n not in state]
    wrong = [n for n in state if own[n].shape != state[n].shape] + lost
    if wrong:
        raise ValueError(f"start_from: {run.path} holds another network; {', '.join(wrong[:5])} do not fit")
    module.load_state_dict(state, strict=False)
