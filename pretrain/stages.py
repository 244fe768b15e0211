"""Runs that continue other runs: the next stage of a recipe, a Gram teacher, a teacher to distil."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dense.backbone import Backbone, load_backbone
from dense.backbone.weights.checkpoint import read_checkpoint
from dense.backbone.weights.names import directory
from dense.files import megabytes
from dense.training.checkpoints import LAST
from dense.training.fit import differences
from pretrain.network import MultiCropNetwork, build_network
from pretrain.recipe import BackboneOptions, FrozenTeacher, HeadOptions, IBOTOptions, Recipe

# stages that a stage may start from; high_res without a Gram term may skip the gram stage
BEFORE = {"gram": ("pretrain", "gram"), "high_res": ("gram", "high_res")}
SHAPES = ("head", "backbone.name", "backbone.arguments", "backbone.channels:", "backbone.local_norm", "ibot.head")


@dataclass(frozen=True)
class SavedRun:
    """A training checkpoint of `dense pretrain`."""

    path: Path
    recipe: Mapping[str, Any]
    state: Mapping[str, Tensor]
    step: int
    steps: int  # planned length


def load_run(place: str | Path, what: str) -> SavedRun:
    """Return a run, given its directory, which must be finished, or one of its .ckpt files, which need not be.

    what: name of the option that names the run, for errors.
    """
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
    run = SavedRun(file, content["recipe"], content["state_dict"], content["global_step"], content["run_steps"])
    if path.is_dir() and run.step < run.steps:
        raise ValueError(
            f"{what}: the run in {path} stands at step {run.step} of {run.steps}; finish it, or name one of its "
            f"checkpoints ({file}) to use it as it is"
        )
    return run


def check_start(recipe: Recipe, run: SavedRun) -> None:
    """Refuse a run that the stage of a recipe cannot start from."""
    before = run.recipe["stage"]
    allowed = BEFORE[recipe.stage] + (("pretrain",) if not recipe.gram.weight else ())
    if before not in allowed:
        raise ValueError(
            f"stage: {recipe.stage} starts from a run of stage {' or '.join(dict.fromkeys(allowed))}, and {run.path} "
            f"is of stage {before}"
        )
    changed = [line for line in differences(recipe.to_dict(), run.recipe) if line.startswith(SHAPES)]
    if changed:
        raise ValueError(f"start_from: {run.path} holds another network; {'; '.join(changed)}")


def gram_teacher(place: str) -> Backbone:
    """Return the backbone in the directory of a run or of a backbone."""
    folder = Path(place)
    inside = _inside(folder)
    if not (inside / "config.json").is_file():
        raise FileNotFoundError(
            f"gram.teacher: {folder} holds no backbone; give the directory of a finished run or one that "
            "save_pretrained wrote"
        )
    backbone = load_backbone(inside)
    if backbone.spec.kind == "pyramid":
        raise ValueError(
            f"gram.teacher: {inside} holds {backbone.spec.name}, which is convolutional; give a ViT's directory"
        )
    return backbone


def _inside(folder: Path) -> Path:
    """Return the folder of the backbone in the folder of a run, or the folder itself."""
    return folder / "backbone" if (folder / "backbone" / "config.json").is_file() else folder


def frozen_teachers(recipe: Recipe) -> list[Backbone]:
    """Return the frozen backbones whose features are targets."""
    channels = recipe.backbone.channels
    given: dict[str, Any] = {} if channels is None else {"channels": channels}
    if given and recipe.backbone.channels_from != "random":  # a teacher with a random layer teaches nothing
        given["channels_from"] = recipe.backbone.channels_from
    return [
        _frozen_teacher("teacher.others" if number else "teacher.name", teacher, given)
        for number, teacher in enumerate(recipe.teacher.frozen)
    ]


def _frozen_teacher(option: str, teacher: FrozenTeacher, channels: dict[str, Any]) -> Backbone:
    name = str(_inside(Path(teacher.name)))
    folder = directory(name)
    try:
        if folder is None:
            with torch.device("meta"):  # takes no memory
                needed = sum(parameter.nbytes for parameter in load_backbone(name).parameters())
            if teacher.weights is None:
                own = "--model.teacher.weights FILE" if option == "teacher.name" else "weights: FILE beside its name"
                raise ValueError(
                    f"without weights it would teach random features; give {own}, or the directory of a backbone as "
                    "its name"
                )
        else:
            needed = sum(map(_bytes_in_fp32, folder.glob("*.safetensors")))
        if needed > (free := free_memory()):
            raise ValueError(
                f"its weights take {megabytes(needed, up=True)} and {megabytes(free)} of memory are free; choose a "
                "smaller teacher or a machine with more memory"
            )
        return load_backbone(name, teacher.weights, frozen=True, **channels)
    except (ValueError, OSError, SafetensorError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{option}={teacher.name}: {error}") from None


def _bytes_in_fp32(file: Path) -> int:
    """Return what the tensors of a safetensors file take once they are loaded, by its header."""
    with safe_open(file, "pt") as tensors:
        return sum(4 * math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))


def free_memory() -> int:
    """Return the bytes of memory that are available, where the system tells, or else all of it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load_start(module: torch.nn.Module, run: SavedRun) -> None:
    """Load student, teacher and centres of a run. The optimiser, the schedules and the Gram teacher start anew."""
    own = module.state_dict()
    kept = ("student.", "teacher.", "terms.dino.", "terms.ibot.")
    state = {name: value for name, value in run.state.items() if name.startswith(kept) and name in own}
    lost = [n for n in own if n.startswith(("student.", "teacher.")) and n not in state]
    wrong = [n for n in state if own[n].shape != state[n].shape] + lost
    if wrong:
        raise ValueError(f"start_from: {run.path} holds another network; {', '.join(wrong[:5])} do not fit")
    module.load_state_dict(state, strict=False)


def distillation_teacher(recipe: Recipe, student: MultiCropNetwork, place: str) -> MultiCropNetwork:
    """Return the frozen teacher of a finished run, backbone and heads, which makes targets for this student."""
    run = load_run(place, "distill")
    ibot, prefix = dict(run.recipe["ibot"]), "teacher.network."
    state = {k.removeprefix(prefix): v for k, v in run.state.items() if k.startswith(prefix)}
    if not any(name.startswith("head.") for name in state):
        raise ValueError(f"distill: this run has no heads; use --model.teacher.name {place}")
    network = build_network(
        Recipe(
            backbone=replace(BackboneOptions(**run.recipe["backbone"]), init_from=None, drop_path=0.0),
            head=HeadOptions(**run.recipe["head"]),
            ibot=IBOTOptions(**(ibot | {"head": None if ibot["head"] is None else HeadOptions(**ibot["head"])})),
        )
    )
    network.load_state_dict({name: value for name, value in state.items() if not name.startswith("maps.")})
    network.backbone.freeze()
    _check_distillation(recipe, student, network, ibot["weight"] > 0)
    return network.requires_grad_(False).eval()


def _check_distillation(
    recipe: Recipe, student: MultiCropNetwork, teacher: MultiCropNetwork, trained_with_ibot: bool
) -> None:
    """Refuse a teacher whose targets do not fit the student's prototypes and patches."""
    ours, theirs = student.backbone.spec.channels, teacher.backbone.spec.channels
    if len(ours) != len(theirs):
        raise ValueError(
            f"distill: the teacher reads {len(theirs)} channels ({', '.join(theirs)}) and the student {len(ours)} "
            f"({', '.join(ours)}); make them equal"
        )
    pairs = [("head.out_dim", student.head, teacher.head)]
    if recipe.ibot.weight:
        pairs.append(("ibot.head.out_dim", student.patch_head or student.head, teacher.patch_head or teacher.head))
        if not trained_with_ibot:
            raise ValueError(
                "distill: the teacher was trained without iBOT, so its head makes no targets for patches; set "
                "ibot.weight to 0"
            )
        patch, other = student.backbone.spec.patch, teacher.backbone.spec.patch
        if patch != other:
            raise ValueError(
                f"distill: the teacher's patches have {other} pixels, the student's {patch}; iBOT compares patch by "
                "patch"
            )
    for name, *heads in pairs:
        mine, others = (head.last_layer.out_features for head in heads)  # type: ignore[union-attr]
        if mine != others:
            raise ValueError(f"distill: {name}={mine}, but the teacher has {others} prototypes; make them equal")
