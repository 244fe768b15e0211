"""Command-line parsing that names the nearest valid option and exits with status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dense.console import COMMON
from dense.suggest import with_suggestion


class Parser(argparse.ArgumentParser):
    """argparse with suggestions, defaults and examples in the help, and no abbreviated options."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but a misspelt option is named before a missing one."""
        given = list(sys.argv[1:] if args is None else args)
        known = {option for action in self._actions for option in action.option_strings}
        for argument in given:
            if argument.startswith("--") and len(argument) > 2 and argument.split("=")[0] not in known:
                self.error(f"unrecognized arguments: {argument}")
        return super().parse_args(given, namespace)

    def format_help(self) -> str:
        """With examples."""
        return super().format_help() + epilogue(self.prog)

    def error(self, message: str) -> NoReturn:
        """Print the error with a suggestion in one line, and exit with status 2."""
        valid = [option for action in self._actions for option in action.option_strings]
        valid += [*COMMON, *(str(c) for action in self._actions for c in action.choices or ())]
        self.exit(2, f"{self.prog}: error: {with_suggestion(message, valid).rstrip('.')} (see {self.prog} --help)\n")


def key_value(text: str) -> tuple[str, Any]:
    """'depth=4' -> ("depth", 4), with YAML's idea of values."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"{value!r} is not a YAML value") from None


def device(text: str) -> str:
    """A device that this machine has: cpu, cuda, cuda:1, mps, ..."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"this machine has no device {text!r} ({reason}); use cpu") from None
    return text


EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {  # prog -> (command, what it does)
    "dense pretrain": (
        ("dense pretrain --config pretrain/scenes_tiny --output runs/scenes", "embedded scenes, no files, an hour"),
        ("dense pretrain --config pretrain/small_data --data.root IMAGES --output runs/mine", "your own images"),
        ("dense pretrain --config pretrain/dino_vits16 --print_config", "every key of a recipe"),
    ),
    "dense train": (
        ("dense train --config segmentation/scenes_linear --output runs/scenes", "embedded scenes, a minute"),
        (
            "dense train --config depth/dpt_dinov2 --data.layout folder --data.root MINE --output runs/depth",
            "MINE/images, MINE/depth, MINE/depth.yaml",
        ),
        ("dense train --config joint/dpt_dinov2 --print_config", "every key of a recipe"),
    ),
    "dense evaluate": (
        ("dense evaluate probe --backbone scenes_tiny --baselines", "a backbone, on embedded scenes"),
        ("dense evaluate depth runs/depth/model --data MINE --flip", "a trained model, on your images"),
    ),
    "dense evaluate knn": (
        ("dense evaluate knn --backbone runs/mine/backbone --train A --val B --output results", "one folder a class"),
    ),
    "dense evaluate linear": (
        ("dense evaluate linear --backbone dino_vits16 --weights FILE --train A --val B", "DINOv2's grid of heads"),
        ("dense evaluate linear --backbone scenes_tiny --train A --val B --no-augment --steps 500", "quick"),
    ),
    "dense evaluate finetune": (
        ("dense evaluate finetune --backbone dino_vits16 --weights FILE --train A --val B --epochs 30", "all of it"),
    ),
    "dense evaluate probe": (
        ("dense evaluate probe --backbone scenes_tiny --baselines", "beside random initialisation and raw pixels"),
    ),
    "dense evaluate depth": (
        ("dense evaluate depth runs/depth/model --data MINE --flip", "MINE/images and MINE/depth"),
        ("dense evaluate depth runs/depth/model --data NYU --layout nyuv2 --protocol nyuv2", "a published protocol"),
    ),
    "dense evaluate segmentation": (
        ("dense evaluate segmentation runs/mine/model --data MINE --boundary", "MINE/images and MINE/masks"),
        ("dense evaluate segmentation runs/mine/model --data ADE --layout ade20k --protocol slide_512", "windows"),
    ),
    "dense evaluate restoration": (
        (
            "dense evaluate restoration runs/restore/model --data CLEAN --degrade noise=25 rain",
            "any folder of images",
        ),
        ("dense evaluate restoration runs/restore/model --data PAIRS --layout paired", "PAIRS/input and PAIRS/target"),
    ),
    "dense evaluate discovery": (
        ("dense evaluate discovery --backbone scenes_tiny --data scenes --method all --baselines", "embedded scenes"),
        (
            "dense evaluate discovery --backbone dino_vits16 --weights FILE --data VOC2012 --layout voc2012 --method lost",
            "Pascal VOC",
        ),
    ),
    "dense evaluate video": (
        ("dense evaluate video --backbone scenes_tiny --data scenes --baselines", "embedded clips"),
        ("dense evaluate video --backbone dino_vits16 --weights FILE --data DAVIS", "DAVIS-2017"),
    ),
    "dense predict": (
        ("dense predict runs/mine/model PHOTO.jpg FOLDER --output targets", "images and folders"),
        ("dense predict runs/mine/model VIDEO.mp4 --window 518 --stride 345", "a video, seen through windows"),
    ),
    "dense discover": (
        ("dense discover IMAGES --backbone scenes_tiny --method tokencut --output found", "one object per image"),
        (
            "dense discover IMAGES --backbone dino_vits16 --weights FILE --method cocluster --count 8",
            "classes that all images share",
        ),
    ),
    "dense track": (
        ("dense track VIDEO.mp4 --mask FIRST.png --backbone dino_vits16 --weights FILE --output tracked", "a video"),
    ),
    "dense curate": (
        ("dense curate POOL --backbone dino_vits16 --weights FILE --output curated", "drop what is unfit and copies"),
        (
            "dense curate POOL MORE --like CURATED --held-out TEST --backbone dino_vits16 --weights FILE --total 100000",
            "what is like CURATED, nothing of TEST, in equal shares",
        ),
        ("dense curate scenes:train --backbone scenes_tiny --resize 96 --crop 96", "embedded scenes, as shards"),
    ),
    "dense features": (
        ("dense features IMAGES --backbone dinov2_vits14 --weights FILE --output maps --layers last4", "four layers"),
        ("dense features IMAGES --backbone scenes_tiny --output maps --format none --pca", "images of them alone"),
    ),
    "dense convert": (
        ("dense convert dino_deitsmall16_pretrain.pth mine --backbone dino_vits16", "to a directory"),
        ("dense convert runs/mine/backbone official.pth --official", "and back to the release's own layout"),
    ),
    "dense export": (
        ("dense export runs/mine/model --output mine.onnx --size 518 686 --raw", "ONNX that takes uint8 values"),
        ("dense export scenes_tiny --output backbone.pt2 --size 96 96", "a backbone, as torch.export saves it"),
    ),
    "dense demo": (
        ("dense demo", "embedded scenes: pretraining, heads, discovery, and a report of it all"),
        ("dense demo --images FOLDER --backbone dino_vits16 --weights FILE", "your own images, without labels"),
    ),
    "dense completion": (
        ("dense completion bash > ~/.local/share/bash-completion/completions/dense", "for every new shell"),
        ("dense completion zsh > ~/.zfunc/_dense", "with ~/.zfunc in fpath"),
        ("dense completion fish > ~/.config/fish/completions/dense.fish", "for every new shell"),
    ),
}


def epilogue(prog: str) -> str:
    """What stands below the options of a verb: what every verb takes, and examples."""
    lines = ["", "options of every verb:"]
    lines += [f"  {option:<9} {words}" for option, words in COMMON.items()]
    if prog in EXAMPLES:
        lines += ["", "examples:"]
        for command, words in EXAMPLES[prog]:
            lines += [f"  # {words}", f"  {command}"]
    return "\n".join(lines) + "\n"
