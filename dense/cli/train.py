"""`dense train` and `dense.train`: a head for depth, segmentation, both or restoration, on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dense.predict import Predictor


def main(argv: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    return _train(argv)[0]


def _train(argv: Sequence[str]) -> tuple[int, Path]:
    """Train; return the exit status and the folder of the run."""
    from dense.cli.parser import epilogue
    from dense.media.draw import write_picture
    from dense.model.network import DenseModel
    from dense.predict.sheet import predictions_sheet
    from dense.tasks.run import examples, open_run, run

    cli = open_run(argv, epilogue("dense train"))
    folder = Path(cli.config.output)
    status = run(cli)
    if status == 0 and cli.trainer.is_global_zero:
        model = folder / "model"
        sheet = predictions_sheet(DenseModel.from_pretrained(model), *examples(cli.datamodule))
        write_picture(folder / "predictions.png", sheet)
        print(f"curves and predictions: {folder / 'curves.png'}, {folder / 'predictions.png'}")
        print(f"wrote {model}; open it with dense.load({str(model)!r}), or dense predict {model} IMAGES")
    return status, folder
