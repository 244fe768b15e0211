"""The command `dense`: each verb is a module that is imported when the verb is called."""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from dense._version import __version__
from dense.console import COMMON, voice
from dense.suggest import UnknownOption, UsageError, did_you_mean

VERBS: dict[str, tuple[str, str]] = {  # verb -> (module with `parser` and `main`, one line)
    "look": ("dense.cli.look", "show what a backbone sees in a photo: colours, attention, objects, regions"),
    "explore": ("dense.cli.explore", "write a page on which a click on a patch shows what resembles it in all images"),
    "demo": (
        "dense.demo.verb",
        "make a report on photographs and embedded scenes, without downloads, or on your own images",
    ),
    "train": ("dense.cli.train", "train a head for depth, segmentation, both or restoration on labelled images"),
    "pretrain": ("dense.cli.pretrain", "pretrain a backbone on unlabelled images: DINO, iBOT, DINOv2, DINOv3"),
    "curate": ("dense.cli.curate", "select a pretraining set from an uncurated pool, without copies or test images"),
    "predict": ("dense.cli.predict", "predict depth, classes or restored images for images, folders and videos"),
    "segment": ("dense.cli.segment", "segment images and videos like a few annotated ones, without training"),
    "anomaly": (
        "dense.cli.anomaly",
        "fit a model to good images, which finds what differs from them, without training",
    ),
    "discover": ("dense.cli.discover", "find objects and regions in images and videos without labels"),
    "track": ("dense.cli.track", "follow the objects of a first frame through a video"),
    "features": ("dense.cli.features", "write a backbone's feature maps of images"),
    "evaluate": ("dense.cli.evaluate", "measure a backbone or a model by a named protocol, saved with the numbers"),
    "reproduce": ("dense.cli.reproduce", "list published numbers, or measure one here, beside the published value"),
    "convert": ("dense.cli.convert", "convert weights between official, timm, Hugging Face and own layouts"),
    "export": ("dense.cli.export", "write a trained model or a backbone as one ONNX or torch.export file"),
    "completion": ("dense.cli.completion", "print a script that completes verbs and options in bash, zsh or fish"),
}

GROUPS = {
    "start": ("look", "explore", "demo"),
    "train": ("train", "pretrain", "curate"),
    "use": ("predict", "segment", "anomaly", "discover", "track", "features"),
    "measure": ("evaluate", "reproduce"),
    "tools": ("convert", "export", "completion"),
}
WAYS_IN = (
    ("what a backbone sees in a photo, without labels", "dense look photo.jpg"),
    (
        "a head for your labelled images",
        "dense train --config segmentation/small_data --data.root MINE --output runs/a",
    ),
    ("a backbone of your own images", "dense pretrain --config pretrain/small_data --data.root IMAGES --output runs/b"),
)


def usage() -> str:
    """Return the help text of `dense`: three ways in, then all verbs in groups."""
    width = max(map(len, VERBS))
    ways = "\n".join(f"  # {words}\n  {command}" for words, command in WAYS_IN)
    verbs = "\n".join(
        f"{group}:\n" + "\n".join(f"  {verb:<{width}}  {VERBS[verb][1]}" for verb in inside)
        for group, inside in GROUPS.items()
    )
    return (
        f"dense {__version__}: DINO backbones and dense heads\n\nthree ways in:\n{ways}\n\n"
        f"usage: dense VERB [options]      dense VERB --help\n\n{verbs}\n\n"
        "options:\n  --version  print the version\n  -h, --help  print this help\n\n"
        "options of every verb:\n"
        + "\n".join(f"  {option:<9} {words}" for option, words in COMMON.items())
        + "\n\nexit status: 0 done (unreadable files are listed); 1 the work failed; 2 wrong usage; 130 or 143 a signal"
    )


def process() -> NoReturn:
    """Run `dense` as a process of its own, with the exit status of `main`.

    A process of a distributed group leaves with `os._exit`: gloo's threads outlive `destroy_process_group`, and one
    that needs Python during the shutdown aborts the process, upon which Lightning ends the others.
    """
    if "_ARGCOMPLETE" in os.environ:
        from dense.cli.completion import complete

        complete({verb: module for verb, (module, _) in VERBS.items()})
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    if status > 128 and "multiprocessing" in sys.modules:  # workers ignore the signal that stopped the verb
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in sys.modules["multiprocessing"].active_children():
            worker.kill()
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit status: 0, 1 (the work failed), 2 (wrong usage), 130 (Ctrl-C) or 143 (SIGTERM)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(f"dense {__version__}")
        return 0
    given = {option for option in COMMON if option in arguments}
    verb, *rest = [argument for argument in arguments if argument not in given] or [""]
    if verb not in VERBS:
        print(f"dense: error: unknown verb {verb!r}.{did_you_mean(verb, VERBS)} See dense --help.", file=sys.stderr)
        return 2
    with voice(quiet="--quiet" in given), stopping() as signals:
        return run(verb, rest, signals, debug="--debug" in given)


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt inside this context; yield the list of signals that came.

    A second Ctrl-C ends the process at once. A training has handlers of its own, which finish and save a step first.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os._exit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        before = {n: signal.signal(n, stop) for n, handler in ours.items() if signal.getsignal(n) is handler}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(verb: str, rest: Sequence[str], signals: Sequence[int] = (), debug: bool = False) -> int:
    """Call a verb and report errors on one line, or with `debug` let them through.

    signals: those that came, for the exit status
    """
    try:
        status = int(importlib.import_module(VERBS[verb][0]).main(rest) or 0)
        if levels := sys.modules.get("dense.data.levels"):  # of a verb that has read images
            levels.report_nan()
        return status
    except KeyboardInterrupt as stop:
        number = signals[0] if signals else signal.SIGINT
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        kept = str(stop) or "no file is incomplete, and the same command starts again"
        print(f"\ndense {verb}: stopped by {name}; {kept}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        print(f"dense {verb}: error: {in_words(error)}", file=sys.stderr)
        return 2 if isinstance(error, UnknownOption | UsageError) else 1


def in_words(error: Exception) -> str:
    """Return the message of an error that is written for users; of others the kind and the first line."""
    text = str(error)
    if "in DataLoader worker process" in text.partition("\n")[0]:  # torch appends the traceback of the worker
        text = text.rstrip().rpartition("\n")[2].partition(": ")[2] or text
    if isinstance(error, ValueError | OSError | ImportError | UnknownOption | UsageError) and text:
        return text
    if isinstance(error, RuntimeError) and text and "\n" not in text:
        return text
    first = text.strip().partition("\n")[0]
    return f"{type(error).__name__}{': ' if first else ''}{first} (--debug shows where it came from)"
