"""Help that needs no import of what it is about.

Of a training, recipes and the options that most runs need (`--help_all` lists the others); of other verbs, what their parsers
print, kept as text in dense/help.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from dense.cli.parser import epilogue
from dense.recipes import config_folder, title

HELP = Path(__file__).parent / "help"  # written by python -m dense.cli.helps
Options = dict[str, str]  # option with what follows it -> what it does

RUN: Options = {
    "--output FOLDER": "folder of the run; the same command again continues what is there",
    "--checkpoint.every_minutes M": "minutes between checkpoints (5)",
    "--trainer.accelerator NAME": "cpu, gpu or mps; what the machine has, if left out",
    "--trainer.devices N": "how many of them",
    "--trainer.num_nodes N": "how many machines, under SLURM or torchrun",
    "--trainer.precision NAME": "32-true, bf16-mixed or 16-mixed; bf16 where the hardware has it, if left out",
    "--trainer.accumulate_grad_batches N": "batches that make a step",
}
DATA: Options = {
    "--data.batch_size N": "images a batch, of each process",
    "--data.workers N": "processes that read images",
}
# verb -> (what it does, folders of its recipes, options)
TRAININGS: dict[str, tuple[str, tuple[str, ...], Options]] = {
    "pretrain": (
        "Pretrain a backbone with the objectives of DINO, iBOT, DINOv2 and DINOv3.",
        ("pretrain",),
        {
            "--data.root PLACE": "a folder of images, a list of files, shards, or scenes:train",
            **DATA,
            "--model.backbone.name NAME": "the student: any name of timm or of the hubs",
            "--model.backbone.init_from PATH": "weights that it begins with",
            "--model.epochs N": "length of the run; --model.steps N instead, for a small set",
            "--model.optim.lr RATE": "learning rate, for 256 images a step",
            "--model.head.out_dim K": "prototypes: about a tenth of the number of images, at most 65536",
            "--model.teacher.momentum M": "of the teacher at the start",
            "--model.teacher.temperature T": "of its targets, after the warm-up",
            "--model.ibot.weight W": "weight of masked patches; --model.koleo.weight and --model.gram.weight likewise",
            "--knn.train FOLDER": "labelled images, a folder a class: k-NN during the run, with --knn.val FOLDER",
            **RUN,
        },
    ),
    "train": (
        "Train a head for depth, segmentation, both or restoration on labelled images.",
        ("depth", "segmentation", "joint", "restoration"),
        {
            "--data.root FOLDER": "your labelled images: images/ with masks/, depth/ or both",
            "--data.layout NAME": "folder, ade20k, voc2012, cityscapes, nyuv2, kitti_eigen, ...",
            **DATA,
            "--data.crop_size N": "side of the crops that are trained on",
            "--data.cache FOLDER": "where features of a frozen backbone are kept, so that they are computed once",
            "--model.backbone.name NAME": "any name of timm or of the hubs, or a saved directory",
            "--model.backbone.weights PATH": "its file, or timm to download it",
            "--model.steps N": "length of the run",
            "--model.optim.lr RATE": "learning rate of the head",
            "--model.tune.unfreeze WHAT": "none, how many last blocks learn, or all; LoRA by --model.tune.lora_rank R",
            "--val_every N": "steps between validations; 0 for ten in a run",
            "--patience N": "early stopping after so many validations without improvement; 0 for none",
            **RUN,
        },
    ),
}


def instant_help(verb: str, rest: Sequence[str]) -> str | None:
    """What `dense VERB REST` targets, where REST asks for help; None where the verb itself has to."""
    if not {"-h", "--help"} & {*rest}:
        return None
    if verb in TRAININGS:
        return short_help(verb)
    words = [verb, *rest[:1]] if verb == "evaluate" and not rest[0].startswith("-") else [verb]
    path = HELP / f"{' '.join(words)}.txt"
    return path.read_text(encoding="utf-8").rstrip() if path.is_file() else None


def short_help(verb: str) -> str:
    """Usage, recipes, options and examples of a training."""
    words, folders, options = TRAININGS[verb]
    root = config_folder()
    recipes = {
        f"{folder}/{path.stem}": title(path) for folder in folders for path in sorted((root / folder).glob("*.yaml"))
    }
    return "\n".join(
        (
            f"usage: dense {verb} --config RECIPE [--KEY VALUE ...]",
            "",
            f"{words} The same command again continues a run that was stopped.",
            "",
            "recipes:",
            columns(recipes),
            "",
            "options that most runs need; a recipe sets them, the command line has the last word:",
            columns(options),
            "",
            "all others:",
            columns(
                {
                    "--config RECIPE --print_config": "every key, with the recipe's value",
                    "--help_all": "every option, with its words",
                }
            ),
            epilogue(f"dense {verb}"),
        )
    )


def columns(rows: dict[str, str], width: int = 118) -> str:
    """Names on the left, what they are on the right."""
    left = max(map(len, rows)) + 4
    return "\n".join(
        textwrap.fill(
            words,
            width,
            initial_indent=f"  {name}".ljust(left),
            subsequent_indent=" " * left,
            break_on_hyphens=False,
        )
        for name, words in rows.items()
    )
