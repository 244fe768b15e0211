"""`dense pretrain`: from a folder of unlabelled images to a backbone directory."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit status."""
    from pretrain.run import main as run_verb

    return run_verb(argv)
