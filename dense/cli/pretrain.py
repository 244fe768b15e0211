"""`dense pretrain`: from a folder of unlabelled images to a backbone directory."""

from __future__ import annotations

from collections.abc import Sequence

from dense.cli.trainings import TrainingParser


def parser(**options: bool) -> TrainingParser:
    """The options that most runs need."""
    return TrainingParser("pretrain", **options)


def main(argv: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    parser().check(argv)
    from pretrain.run import main as run

    return run(argv)
