"""The short help of `dense train` and `dense pretrain`, and mistakes that are found before anything heavy is imported.

`--help_all` lists every option; it has to import what the options belong to.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dense.cli.parser import Examples, Parser, check_source, epilogue
from dense.files import check_free, check_writable
from dense.recipes import config_folder, find_config, title
from dense.suggest import nearest

Options = dict[str, str]  # option with its placeholder -> what it does
GROUPS = (
    "model",
    "data",
    "trainer",
    "checkpoint",
    "knn",
)  # dotted options: --model.KEY, checked by the training itself

PATHS = {  # options that name what is there already, and what that is
    "data.root": "folder, list or shards", "model.backbone.weights": "weight file", "model.backbone.init_from":
    "weight file", "model.backbone.name": "saved directory", "model.teacher.name": "saved directory",
    "model.teacher.weights": "weight file", "knn.train": "folder", "knn.val": "folder",
    "data.metadata": "CSV file",
}  # fmt: skip

RUN: Options = {
    "--output FOLDER": "folder of the run; the same command again continues what is there",
    "--checkpoint.every_minutes M": "minutes between checkpoints (5)",
    "--trainer.accelerator NAME": "cpu, gpu or mps; the machine's own if left out",
    "--trainer.devices N": "number of devices",
    "--trainer.num_nodes N": "number of machines, under SLURM or torchrun",
    "--trainer.precision NAME": "32-true, bf16-mixed or 16-mixed; the faster of the first two, measured, if left out",
    "--trainer.accumulate_grad_batches N": "batches per optimiser step",
}
DATA: Options = {
    "--data.batch_size N": "images per batch and process",
    "--data.channels NAMES": "of images that are not photographs, names or a number (docs/scientific.md)",
    "--data.levels LEVELS": "numbers that become black and white, [0, 4095]; auto to choose them",
    "--data.workers N": "processes that read images",
    "--data.domain NAME": "augmentation for photographs, microscopy, satellite or xray",
}
# verb -> (what it does, folders of its recipes, options, examples)
TRAININGS: dict[str, tuple[str, tuple[str, ...], Options, Examples]] = {
    "pretrain": (
        "Pretrain a backbone with the objectives of DINO, iBOT, DINOv2 and DINOv3.",
        ("pretrain",),
        {
            "--data.root PLACE": "a folder of images, a list of files, shards, or scenes:train",
            **DATA,
            "--model.backbone.name NAME": "the student: any name of timm or of the hubs",
            "--model.backbone.init_from PATH": "weights to start from",
            "--model.teacher.name NAME": "a frozen teacher to distil, with --model.teacher.weights PATH",
            "--model.epochs N": "length of the run; --model.steps N instead, for a small set",
            "--model.optim.lr RATE": "learning rate at a batch of 256",
            "--model.head.out_dim K": "prototypes, fewer than images: 1024 to 4096 for thousands, 65536 for a million",
            "--model.teacher.momentum M": "EMA momentum of the teacher at the start",
            "--model.teacher.temperature T": "of the teacher's targets, after the warm-up",
            "--model.ibot.weight W": "weight of masked patches; --model.koleo.weight and --model.gram.weight likewise",
            "--data.metadata FILE.csv": "columns that --model.guides.keep and --model.guides.forget name",
            "--knn.train FOLDER": "labelled images, one folder per class: k-NN during the run, with --knn.val FOLDER",
            "--show-views FILE.png": "draw the first images and their views, and stop",
            **RUN,
        },
        (
            ("dense pretrain --config pretrain/scenes_tiny --output runs/scenes", "embedded scenes, no files, an hour"),
            ("dense pretrain --config pretrain/small_data --data.root IMAGES --output runs/mine", "your own images"),
            ("dense pretrain --config pretrain/dino_vits16 --print_config", "every key of a recipe"),
        ),
    ),
    "train": (
        "Train a head for depth, segmentation, both or restoration on labelled images.",
        ("depth", "segmentation", "joint", "restoration"),
        {
            "--data.root FOLDER": "your labelled images: images/ with masks/, depth/ or both",
            "--data.layout NAME": "folder, ade20k, voc2012, voc2012_aug, cityscapes, nyuv2, kitti_eigen",
            **DATA,
            "--data.val_ratio SHARE": "validation fraction, where there are no validation images; 0 for none",
            "--data.split_by PATTERN": "what file names have in common that stay on one side, such as ^(.*)/",
            "--data.crop_size N": "side of the training crops",
            "--data.cache FOLDER": "folder in which features of a frozen backbone are cached",
            "--model.backbone.name NAME": "any name of timm or of the hubs, or a saved directory",
            "--model.backbone.weights PATH": "a weight file, or timm or hub to download",
            "--model.steps N": "length of the run",
            "--model.optim.lr RATE": "learning rate of the head",
            "--model.tune.unfreeze WHAT": "none, all, or how many last blocks train; LoRA: --model.tune.lora_rank",
            "--val_every N": "steps between validations; 0 for ten in a run",
            "--patience N": "early stopping after so many validations without improvement; 0 for none",
            **RUN,
        },
        (
            ("dense train --config segmentation/scenes_linear --output runs/scenes", "embedded scenes, a minute"),
            (
                "dense train --config depth/dpt_dinov2 --data.layout folder --data.root MINE --output runs/depth",
                "MINE/images, MINE/depth, MINE/depth.yaml",
            ),
            ("dense train --config joint/dpt_dinov2 --print_config", "every key of a recipe"),
        ),
    ),
}


class ShortHelp(Parser):
    """The options that most runs need. It is shown and completed; the training itself parses the command line."""

    def __init__(self, verb: str, **options: Any) -> None:
        words, self.folders, self.short, examples = TRAININGS[verb]
        super().__init__(f"dense {verb}", words, examples, **options)
        recipes: Any = self.add_argument("-c", "--config", help="a recipe or a YAML file")
        recipes.completer = lambda **_: self.recipes()
        for option in (*self.short, "--print_config", "--help_all"):
            self.add_argument(option.split()[0])

    def recipes(self) -> dict[str, str]:
        """Recipe -> the first sentence of its header."""
        root = config_folder()
        paths = [path for folder in self.folders for path in sorted((root / folder).glob("*.yaml"))]
        return {str(path.relative_to(root).with_suffix("")): title(path) for path in paths}

    def format_help(self) -> str:
        """Usage, recipes, options and examples."""
        others = {
            "--config RECIPE --print_config": "every key, with the recipe's value",
            "--help_all": "every option, with its description",
        }
        return "\n".join(
            (
                f"usage: {self.prog} --config RECIPE [--KEY VALUE ...]",
                "",
                f"{self.description} The same command continues a run that was stopped.",
                "",
                "recipes:",
                columns(self.recipes()),
                "",
                "options that most runs need; the command line overrides the recipe:",
                columns(self.short),
                "",
                "all others:",
                columns(others),
                epilogue(self.examples),
            )
        )

    def check(self, argv: Sequence[str]) -> None:
        """Show the help if it is asked for; raise for an unknown recipe or option without a dot, for data or weights
        that do not exist, and for a folder in which another run is at work."""
        if {"-h", "--help"} & {*argv}:
            self.print_help()
            self.exit()
        known = {option for action in self._actions for option in action.option_strings}
        for number, argument in enumerate(argv):
            option, equals, value = argument.partition("=")
            if option.startswith("--") and option not in known and option[2:].split(".")[0] not in GROUPS:
                self.error(f"unrecognized arguments: {option}")
            if option in ("-c", "--config") and (equals or number + 1 < len(argv)):
                find_config(value if equals else argv[number + 1])
        given = self.given(argv)
        if {"print_config", "help_all"} & given.keys():
            return
        typed = [argument.partition("=")[0].removeprefix("--") for argument in argv if argument.startswith("--")]
        for option, what in PATHS.items():
            if str(given.get(option)).isupper() and option not in typed and not Path(str(given[option])).exists():
                like = [name for name in typed if nearest(name, [option], 1)]
                reason = f"--{like[0]} is no option" if like else f"the recipe names no {what} of yours"
                self.error(f"--{option} is missing, and {reason}; add --{option} {given[option]}")
            if given.get(option) not in (None, "null"):
                check_source(str(given[option]), f"{what} for --{option}", name=option.endswith(".name"))
        if output := given.get("output"):
            check_writable(Path(output))
            check_free(Path(output))

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the values of `PATHS`, of the output and of flags: the command line's, or the recipe's."""
        import yaml

        found: dict[str, Any] = {}
        for argument, following in pairwise([*argv, "--"]):
            option, equals, value = argument.partition("=")
            name = {"-c": "config"}.get(option, option.removeprefix("--"))
            if name == "config" and (equals or not following.startswith("--")):
                content = yaml.safe_load(find_config(value if equals else following).read_text())
                for key in PATHS:
                    place: Any = content
                    for part in key.split("."):
                        place = place.get(part) if isinstance(place, dict) else None
                    if isinstance(place, str):
                        found.setdefault(key, place)
            elif option.startswith("--"):
                found[name] = value if equals else following
        return found


def columns(rows: dict[str, str], width: int = 118) -> str:
    """Names on the left, descriptions on the right."""
    left = max(map(len, rows)) + 4
    return "\n".join(
        textwrap.fill(
            words, width, initial_indent=f"  {name}".ljust(left), subsequent_indent=" " * left, break_on_hyphens=False
        )
        for name, words in rows.items()
    )
