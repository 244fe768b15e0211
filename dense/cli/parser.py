"""Parsers of the verbs. They need the standard library alone, so that help and wrong options are answered at once."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dense.console import COMMON
from dense.files import RunFolder, check_writable
from dense.items import digest, version
from dense.ranks import local_rank, ranks
from dense.suggest import UsageError, nearest, with_suggestion

Examples = Sequence[tuple[str, str]]  # command, what it does


class Parser(argparse.ArgumentParser):
    """argparse with suggestions, defaults and examples in the help, and without abbreviated options."""

    def __init__(self, prog: str, description: str, examples: Examples = (), **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(prog, description=description, allow_abbrev=False, **options)
        self.examples = examples

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse like argparse, but report a misspelt option before a missing one."""
        given = list(sys.argv[1:] if args is None else args)
        known = {option for action in self._actions for option in action.option_strings}
        for argument in given:
            if argument.startswith("--") and len(argument) > 2 and argument.split("=")[0] not in known:
                self.error(f"unrecognized arguments: {argument}")
        return super().parse_args(given, namespace)

    def format_help(self) -> str:
        """Append the common options and the examples."""
        return super().format_help() + epilogue(self.examples)

    def error(self, message: str) -> NoReturn:
        """Print the error with a suggestion on one line, and exit with status 2."""
        valid = [option for action in self._actions for option in action.option_strings]
        valid += [*COMMON, *(str(c) for action in self._actions for c in action.choices or ())]
        self.exit(2, f"{self.prog}: error: {with_suggestion(message, valid).rstrip('.')} (see {self.prog} --help)\n")


def epilogue(examples: Examples) -> str:
    """Return the end of a help text: the options of every verb, and examples."""
    lines = ["", "options of every verb:"]
    lines += [f"  {option:<9} {words}" for option, words in COMMON.items()]
    if examples:
        lines += ["", "examples:"]
    for command, words in examples:
        lines += [f"  # {words}", f"  {command}"]
    return "\n".join(lines) + "\n"


class Former(argparse.Action):
    """The former spelling of a flag: hidden from help, it warns and sets the present one."""

    def __init__(self, option_strings: Sequence[str], dest: str, present: str) -> None:
        super().__init__(
            option_strings, present.lstrip("-").replace("-", "_"), nargs=0, default=False, help=argparse.SUPPRESS
        )
        self.present = present

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        warnings.warn(
            f"{option} is now {self.present}; the former spelling ends with the next release", FutureWarning, 2
        )
        setattr(namespace, self.dest, True)


# ---- types of options


def key_value(text: str) -> tuple[str, Any]:
    """'depth=4' -> ("depth", 4); the value is read as YAML."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a YAML value") from None


def writable(text: str) -> Path:
    """A folder for results, checked before any work is done."""
    check_writable(Path(text))
    return Path(text)


def layers(text: str) -> str | tuple[int, ...]:
    """A named choice of layers, or block indices separated by commas."""
    if text.isidentifier():
        return text
    try:
        return tuple(int(index) for index in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected last, last4, even4, default, or indices such as 2,5,8,11"
        ) from None


def norm(text: str | None) -> Any:
    """The final norm that --norm names: true, false, last, or None if it is left out."""
    return {"true": True, "false": False}.get(text or "", text)


def point(text: str) -> tuple[float, float]:
    """'120,80' -> (120.0, 80.0), in pixels."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected X,Y, two numbers of pixels such as 120,80") from None
    return x, y


def usable_device(name: str) -> str:
    """The name of a device that this machine has: cpu, cuda, cuda:1, mps, ...

    Of several processes on a machine each takes a GPU of its own.
    """
    import torch

    if name == "cuda" and ranks().world > 1 and (count := torch.cuda.device_count()) > 1:
        name = f"cuda:{local_rank() % count}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"argument --device: this machine has no device {name!r} ({reason}); use cpu") from None
    return name


SOURCES = {  # options that name what is there already, and what that is
    "inputs": "image, folder or video", "images": "image, folder or video", "video": "video or folder of frames",
    "mask": "mask", "pool": "folder, list or shards", "like": "folder, list or shards",
    "held_out": "folder, list or shards", "blur_boxes": "file", "train": "folder, list or shards",
    "val": "folder, list or shards", "data": "folder", "source": "weight file or directory", "weights": "weight file",
    "classes": "file", "depth": "file", "model": "directory", "backbone": "saved directory",
}  # fmt: skip
NAMES = ("classes", "depth", "model", "backbone")  # of these, values that are no paths may be names


def check_sources(options: argparse.Namespace) -> None:
    """Raise for a path that does not exist, before anything large is imported; then choose a backbone left out.

    The folder of a run becomes that of its model.
    """
    if getattr(options, "model", None):
        options.model = model_of_run(options.model)
    for option, what in SOURCES.items():
        given = getattr(options, option, None) or []
        for text in map(str, given if isinstance(given, list) else [given]):
            check_source(text, what, name=option in NAMES)
    if "download" in options and options.backbone is None and getattr(options, "model", None) is None:
        from dense.backbone.at_hand import at_hand

        options.backbone, options.weights = at_hand(None, options.weights, options.download)
        options.at_hand = True


def check_source(text: str, what: str, name: bool = False) -> None:
    """Raise for a path that does not exist; name: what does not look like a path is a name, which others check.

    Embedded scenes, patterns of shards, weights of timm and of the teacher are no paths, and neither is a model or a
    backbone ``owner/name`` of the Hugging Face hub, unless there is a folder of that owner's name.
    """
    path = Path(text)
    words = ("timm", "hub", "teacher", "teacher_first", "scenes")
    word = text in words or text.startswith("scenes:") or {"{", "*"} & {*text}
    if word or os.path.lexists(path):
        return
    is_path = os.sep in text or path.suffix in (".yaml", ".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".json")
    hub = text.count("/") == 1 and not text.startswith((".", "/", "~")) and not path.parent.is_dir()
    if name and (not is_path or ("directory" in what and hub)):
        return
    near = nearest(path.name, [other.name for other in path.parent.glob("*")], 1) if path.parent.is_dir() else []
    hint = f". Did you mean {path.parent / near[0]}?" if near else ""
    raise FileNotFoundError(f"no such {what}: {text}{hint}")


def model_config(folder: str | Path) -> dict[str, Any] | None:
    """Return the configuration of a saved model, a backbone and a head; None where there is none."""
    config = Path(folder) / "config.json"
    if not (config.is_file() and config.with_name("model.safetensors").is_file()):
        return None
    try:
        found = json.loads(config.read_text())
    except ValueError:
        return None
    return found if isinstance(found, dict) and "head" in found else None


def model_of_run(name: str) -> str:
    """Return the model of a run's folder, which stands for it; any other name as it is."""
    model = Path(name) / "model"
    return str(model) if not Path(name, "config.json").is_file() and model_config(model) else name


# ---- options that several verbs share


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add --overwrite."""
    words = "remove what an earlier run of this verb with other settings wrote to the folder"
    parser.add_argument("--overwrite", action="store_true", help=words)


WITHOUT_EFFECT = (  # on what is written: where and how it is computed, and additional files
    "out", "output", "overwrite", "device", "batch", "overlays", "no_overlay", "no_video", "no_film", "maps",
    "download", "at_hand", "table", "per",
)  # fmt: skip


YOUNGER = ("levels", "channels")  # which folders of an earlier version lack


def run_folder(
    verb: str, folder: Path, options: argparse.Namespace, but: Sequence[str] = (), shared: bool = False
) -> RunFolder:
    """Return the folder of a run, with the options that decide what is written there, except those in `but`.

    shared: the verb shares its items among the processes of the run and continues after a stop, see `dense.items`
    """
    settings = {k: v for k, v in vars(options).items() if k not in (*WITHOUT_EFFECT, *but)}
    settings = {k: v for k, v in settings.items() if v is not None or k not in YOUNGER}
    if not shared:
        return RunFolder(folder, verb, settings, options.overwrite)
    every = {k: str(v) for k, v in vars(options).items() if k not in ("overwrite", *but)}
    given = [getattr(options, name, None) for name in ("model", "backbone", "weights", "classes")]
    files = [version(Path(text)) for text in given if text]
    return RunFolder(folder, verb, settings, options.overwrite, "continues", ranks(), digest([every, files]))


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, which `usable_device` checks."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps, ...")


def add_set(parser: argparse.ArgumentParser, words: str = "override of the backbone, such as padding=resize") -> None:
    """Add --set KEY=VALUE, which may be given several times."""
    parser.add_argument("--set", type=key_value, action="append", default=[], metavar="KEY=VALUE", help=words)


def add_backbone(parser: argparse.ArgumentParser, seed: str = "of random initialisation") -> None:
    """Add --backbone, --weights, --download, --set, --device and --seed."""
    words = "timm name, official name or saved directory; if left out DENSE_BACKBONE, or the best one at hand"
    parser.add_argument("--backbone", help=words)
    words = "a file, a directory, or timm or hub to download; random initialisation of a named backbone if left out"
    parser.add_argument("--weights", help=words)
    parser.add_argument("--download", action="store_true", help="of no --backbone: fetch DINOv2-S once, without asking")
    parser.set_defaults(at_hand=False)
    words = (
        "numbers that become black and white, such as 0 4095; per_image; auto, quantiles of a folder, in some verbs; "
        "as saved with the backbone if left out"
    )
    parser.add_argument("--levels", nargs="+", metavar="NUMBER", help=words)
    words = "number or names of the images' channels; as saved with the backbone, or RGB, if left out"
    parser.add_argument("--channels", nargs="+", metavar="NAME", help=words)
    add_set(parser)
    add_device(parser)
    parser.add_argument("--seed", type=int, default=0, help=seed)


def reading_of(options: argparse.Namespace) -> Any:
    """Return what the images of a backbone's verb hold: as --levels and --channels say, or as saved with it."""
    from dense.backbone.load import saved_spec
    from dense.data.levels import Reading, channel_names

    spec = saved_spec(options.backbone)
    saved = Reading() if spec is None else Reading.of_spec(spec)
    if options.levels is None and options.channels is None:
        return saved
    names = options.channels or []
    channels = channel_names(int(names[0]) if len(names) == 1 and names[0].isdigit() else names or None)
    if options.levels is None and len(channels) == len(saved.channels):
        return dataclasses.replace(saved, channels=channels)
    return Reading.of(levels(options.levels), channels or saved.channels or None)


def choose_levels(options: argparse.Namespace, inputs: Any, without: Path | None = None) -> None:
    """Replace --levels auto by quantiles of a sample of the images, and print them.

    inputs: files and folders; or what returns the images of a reading, as a training opens them
    without: the folder of what is written, which is left out
    """
    if "auto" not in " ".join(options.levels or ()):
        return
    import yaml

    from dense.console import say
    from dense.media.inputs import sort_inputs
    from dense.training.reading import Files, before_auto, chosen, is_auto

    given = levels(options.levels)
    if not is_auto(given):
        return

    def opened(reading: Any) -> Any:
        if callable(inputs):
            return inputs(reading)
        images, _ = sort_inputs(inputs, without=without, apart=False, reading=reading)
        if not images:
            raise ValueError(f"--levels auto looks at images, and {', '.join(map(str, inputs))} holds none")
        return Files(str(path) for path, _ in images)

    names = reading_of(argparse.Namespace(**vars(options) | {"levels": None})).channels
    found, reason = chosen(before_auto(given, names or None), opened, None)
    plain = {name: value for name, value in found.to_dict().items() if name != "channels"}
    options.levels = [yaml.safe_dump(plain, default_flow_style=True, width=10**6).strip()]
    say(f"chosen: --levels {found}, {reason}; the same as --levels '{options.levels[0]}'")


def levels(words: Sequence[str] | None) -> Any:
    """The value of --levels: two numbers, per_image, or a mapping in YAML."""
    import yaml

    if words is None:
        return None
    values = [yaml.safe_load(word) for word in words]
    return values[0] if len(values) == 1 and not isinstance(values[0], int | float) else values


def open_backbone(options: argparse.Namespace, **overrides: Any) -> Any:
    """Return the backbone that the options of `add_backbone` name, on its device, with the reading of its images."""
    import torch

    from dense.backbone import load_backbone

    if options.levels is not None or options.channels is not None:
        reading = reading_of(options)
        overrides |= {"reading": reading.to_dict()} | ({"channels": reading.channels} if reading.channels else {})
    device = usable_device(options.device)
    torch.manual_seed(options.seed)
    return load_backbone(options.backbone, options.weights, **(overrides | dict(options.set))).to(device)


def again(options: argparse.Namespace, *words: Any) -> str:
    """Return a command line of these words, with the backbone that the options of `add_backbone` name, as it reads."""
    named = [] if options.at_hand else ["--backbone", options.backbone]
    named += ["--weights", options.weights] if named and options.weights else []
    for name in ("channels", "levels"):
        given = getattr(options, name)
        named += [f"--{name}", *given] if given else []
    for key, value in options.set:
        named += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(map(str, ("dense", *words, *named)))


OPENING = ("layout", "split", "val_ratio", "split_by", "classes", "depth")  # how labelled images are opened


def opening_words(options: argparse.Namespace) -> list[str]:
    """Return the options of `OPENING` that were given, for the next command."""
    given = {name: getattr(options, name, None) for name in OPENING}
    pairs = [(name, value) for name, value in given.items() if value is not None and (name, value) != ("split", "val")]
    return [word for name, value in pairs for word in (f"--{name.replace('_', '-')}", str(value))]


IMAGES_OF_DATA = ("images", "val/images", "train/images", "JPEGImages", "leftImg8bit", "test")


def images_of(data: str | Path | None, layout: str | None = None) -> str:
    """Return the folder of the images of data that a verb read, for the next command; IMAGES where there is none."""
    folder = Path(data or "scenes")
    inside = next((folder / name for name in IMAGES_OF_DATA if (folder / name).is_dir()), None)
    if inside is None and folder.is_dir() and layout in (None, "folder", "images"):
        inside = folder
    return "IMAGES" if inside is None else str(inside)


def weights_in_words(options: argparse.Namespace) -> str:
    """Return the origin of the weights that the options of `add_backbone` name."""
    if options.weights is not None:
        return f"weights of {options.weights}" if options.weights in ("timm", "hub") else str(options.weights)
    return f"random initialisation (seed {options.seed})" if is_random(options) else str(options.backbone)


def backbone_in_words(options: argparse.Namespace) -> str:
    """Return the backbone of the options and the origin of its weights, unless both are one name."""
    return ", ".join(dict.fromkeys((str(options.backbone), weights_in_words(options))))


def is_random(options: argparse.Namespace) -> bool:
    """Return whether the backbone is randomly initialised."""
    from dense.backbone.weights.names import directory

    return options.weights is None and directory(options.backbone) is None


def warn_if_random(options: argparse.Namespace) -> None:
    """Print a line if the backbone is randomly initialised, since its results mean nothing."""
    if is_random(options):
        print("the weights are random: add published ones with --weights FILE, or name a directory as --backbone")


def add_published(parser: argparse.ArgumentParser, backbone: bool = True) -> None:
    """Add options that a published file does not record; without `backbone`, the verb adds --backbone and --set."""
    group = parser.add_argument_group("options that a published file does not record (docs/published.md)")
    group.add_argument("--family", help="family, such as depth_anything_v2, if the keys match several")
    group.add_argument("--kind", help="kind of depth: relative, metric, nyu, kitti")
    group.add_argument("--max-depth", type=float, help="maximum depth of metric heads, in metres")
    if backbone:
        group.add_argument("--backbone", help="backbone of a head published without one: a name or a saved directory")
        add_set(parser, "any other option that a published file does not record")
    group.add_argument("--weights", help="weights of --backbone")


def published_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_published` that were given."""
    names = ("family", "kind", "max_depth", "backbone", "weights")
    found = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    return found | dict(options.set)
