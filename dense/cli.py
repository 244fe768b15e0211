"""The command `dense`: verbs that load only when they are called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from dense._version import __version__
from dense.suggest import did_you_mean

VERBS: dict[str, tuple[str, str]] = {  # verb -> (module with `main`, one line)
    "pretrain": ("pretrain.cli", "learn a backbone from unlabelled pictures (DINO)"),
    "train": ("dense.train", "train a head for depth, segmentation or both on labelled pictures"),
    "evaluate": ("dense.evaluate.cli", "k-NN, linear and fine-tuned classification, and dense probes"),
    "predict": ("dense.predict.cli", "depth and classes of pictures, folders and films, by a trained model"),
    "discover": ("dense.discovering", "objects and regions of pictures and films without labels"),
    "features": ("dense.features", "write a backbone's feature maps for pictures"),
    "convert": ("dense.convert", "convert weights between official, timm, Hugging Face and own layouts"),
    "export": ("dense.export.cli", "write a trained model or a backbone as one ONNX or torch.export file"),
    "demo": ("dense.demo", "see it work on embedded scenes, without downloads"),
}


def usage() -> str:
    """The help of `dense`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items())
    return (
        f"dense {__version__}: DINO backbones and dense heads\n\n"
        f"usage: dense VERB [options]      dense VERB --help\n\nverbs:\n{verbs}\n\n"
        "options:\n  --version  print the version\n  -h, --help  print this help\n\n"
        "DENSE_TRACEBACK=1 shows where an error came from."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0, 1 (the work failed), 2 (wrong usage) or 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(f"dense {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"dense: error: unknown verb {verb!r}.{did_you_mean(verb, VERBS)} See dense --help.", file=sys.stderr)
        return 2
    return run(verb, rest)


def run(verb: str, rest: Sequence[str]) -> int:
    """Call a verb and turn expected errors into one line."""
    try:
        return int(importlib.import_module(VERBS[verb][0]).main(rest) or 0)
    except KeyboardInterrupt:
        print(f"\ndense {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if os.environ.get("DENSE_TRACEBACK"):
            raise
        print(f"dense {verb}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, TypeError) else 1  # an unknown option of a backbone is wrong usage


if __name__ == "__main__":
    sys.exit(main())
