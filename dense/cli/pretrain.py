"""`dense pretrain` and `dense.pretrain`: from unlabelled images to a backbone directory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dense.cli.parser import epilogue
from dense.cli.trainings import ShortHelp
from dense.files import RunFolder
from dense.suggest import UsageError

if TYPE_CHECKING:
    from dense.backbone import Backbone


def parser(**options: bool) -> ShortHelp:
    """Return the parser of the options that most runs need."""
    return ShortHelp("pretrain", **options)


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit status."""
    parser().check(argv)
    return _pretrain(argv, epilogue(parser().examples))


def pretrain(recipe: str, *, data: str | Path, output: str | Path, **overrides: Any) -> Backbone:
    """Pretrain a backbone, exactly as `dense pretrain` does, and return the teacher's backbone.

    The same call continues a run that was stopped, and opens the backbone of one that is finished. Checkpoints, curves,
    measurements of health and the backbone are in `output`.

    Args:
        recipe: a shipped recipe such as "pretrain/small_data", or a YAML file.
        data: a folder of images, a text list, .tar shards or "scenes:train" (`data.root`).
        output: folder of the run.
        **overrides: any other option by its dotted name, with a Python value; None is YAML's null.

    Raises:
        UsageError: an option or a value is not accepted.
        TrainingFailed: weights or losses are no longer finite, or the recipe stops at a collapse.
        KeyboardInterrupt: a signal stopped the run; it was saved before.

    >>> backbone = dense.pretrain(
    ...     "pretrain/small_data",
    ...     data="IMAGES",
    ...     output="runs/mine",
    ...     **{"model.steps": 2000, "model.koleo.weight": 0.1, "data.views.local_crops": 4},
    ... )
    >>> features = backbone(images, layers="last", norm=True)
    """
    from dense.backbone import load_backbone
    from dense.training.cli import arguments_of
    from pretrain.sharding import wait_for_all

    status = _pretrain(arguments_of(recipe, {"data.root": data, "output": output} | overrides))
    if status:
        raise KeyboardInterrupt(f"the run in {output} was stopped; the same call continues it")
    wait_for_all()  # the first process writes the backbone
    return load_backbone(Path(output) / "backbone")


def _pretrain(argv: Sequence[str], epilogue: str = "") -> int:
    """Pretrain, in a folder that belongs to this run alone; return the exit status."""
    from pretrain.run import open_run, run, show_views

    argv, drawing = _without(argv, "--show-views")
    arguments = open_run(argv, epilogue)
    if drawing is not None:
        return show_views(arguments.data, Path(drawing), mixup=arguments.model.recipe.mixup)
    with RunFolder(arguments.folder, "pretrain") if arguments.trainer.is_global_zero else nullcontext():
        return run(*arguments)


def _without(argv: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """Return the arguments without an option, and its value, None if it is not among them."""
    kept, value = list(argv), None
    for place, argument in enumerate(argv):
        name, equals, given = argument.partition("=")
        if name == option:
            if not equals and place + 1 == len(argv):
                raise UsageError(f"{option}: expected a file, such as views.png")
            value = given if equals else argv[place + 1]
            del kept[place : place + (1 if equals else 2)]
    return kept, value
