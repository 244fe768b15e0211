"""`dense train` and `dense.train`: a head for depth, segmentation, both or restoration, on labelled images."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dense.cli.parser import epilogue
from dense.cli.trainings import ShortHelp
from dense.console import hint
from dense.files import RunFolder

if TYPE_CHECKING:
    from dense.predict import Predictor


def parser(**options: bool) -> ShortHelp:
    """The options that most runs need."""
    return ShortHelp("train", **options)


def main(argv: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    parser().check(argv)
    return _train(argv)[0]


def train(
    recipe: str,
    *,
    data: str | Path,
    output: str | Path,
    backbone: str | Path | None = None,
    weights: str | Path | None = None,
    **overrides: Any,
) -> Predictor:
    """Train a head, exactly as `dense train` does, and return a predictor of the best model.

    A run that was stopped continues when the same call is made again.

    Args:
        recipe: a shipped recipe such as "segmentation/small_data", or a YAML file.
        data: folder of the labelled images (`data.root`).
        output: folder of the run.
        backbone: a timm name, an official name or a saved directory; None for the recipe's.
        weights: "timm", a file or a directory; None for the recipe's, or for those of a saved directory.
        **overrides: any other option by its dotted name, such as ``**{"model.steps": 200}``.

    Raises:
        UsageError: an option or a value is not accepted.
        KeyboardInterrupt: a signal stopped the run.
    """
    from dense.backbone.weights.names import directory
    from dense.predict import Predictor
    from dense.training.cli import arguments_of

    chosen = {"model.backbone.name": backbone, "model.backbone.weights": weights}
    options: dict[str, Any] = {"data.root": data, "output": output}
    options |= {k: v for k, v in chosen.items() if v is not None}
    if backbone is not None and weights is None and directory(backbone) is not None:
        options["model.backbone.weights"] = None  # it brings its own
    status, folder = _train(arguments_of(recipe, options | overrides))
    if status:
        raise KeyboardInterrupt(f"the run in {folder} was stopped; the same call continues it")
    return Predictor.open(folder / "model")


def _train(argv: Sequence[str]) -> tuple[int, Path]:
    """Train; return the exit status and the folder of the run."""
    from dense.media.draw import write_picture
    from dense.model.network import DenseModel
    from dense.predict.sheet import predictions_sheet
    from dense.tasks.run import examples, open_run, run

    cli = open_run(argv, epilogue(parser().examples))
    folder = Path(cli.config.output)
    with RunFolder(folder, "train") if cli.trainer.is_global_zero else nullcontext():
        status = run(cli)
        cli.trainer.strategy.barrier()  # the first process writes the model
        if status == 0 and cli.trainer.is_global_zero:
            sheet = predictions_sheet(DenseModel.from_pretrained(folder / "model"), *examples(cli.datamodule))
            write_picture(folder / "predictions.png", sheet)
    if status == 0 and cli.trainer.is_global_zero:
        model = folder / "model"
        print(f"curves and predictions: {folder / 'curves.png'}, {folder / 'predictions.png'}")
        print(f"wrote {model}; open it with dense.load({str(model)!r}), or dense predict {model} IMAGES")
        of, root = "depth" if cli.model.task == "joint" else cli.model.task, str(cli.config.data.root)
        hint(shlex.join(("dense", "evaluate", of, str(model), "--data", root)), "its errors, by a named protocol")
        command = ("dense", "explore", str(model), root, "--output", "page.html")
        hint(shlex.join(command), "where it fails: worst images first")
    return status, folder
