"""Pretraining on real images: DINO from scratch, two objectives, an independent implementation, and continued DINOv2.

    python benchmarks/real/pretraining.py REAL --weights dinov2_vits14.pth --output runs/pretraining --steps 8000

REAL holds cifar10/train/, camvid/ and kitchen/ (README.md of this folder names their public sources). Without names of
parts all are run; each takes minutes with --steps 100. Finished parts are kept in --output, and the table has all of
them: call it once per part for parts of other --steps. --markdown also draws k-NN along the runs beside that page.

cifar10      the recipe pretrain/cifar10, k-NN along the run, beside random initialisation and raw pixels
objectives   a small ViT on the same images, crops and steps with DINO alone, and with masked patches and KoLeo (DINOv2)
lightly      DINO, and lightly's head, loss and moving average on the very same batches, from the same student; both
             centre their targets. Left out where lightly is absent (pip install --target FOLDER lightly; PYTHONPATH)
continued    DINOv2-S continued on the training images of CamVid and the kitchen: k-NN of CIFAR-10 along the run shows
             what it forgets, a linear probe of CamVid before and after what it gains

k-NN (k = 20) has --bank of CIFAR-10's training images as bank and --val others, which no run of CIFAR-10 sees.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import _rows
import lightning.pytorch as pl
import torch
from _measure import table
from cifar10 import draw
from photos_tiny import labelled
from torch import nn

import dense
from dense.backbone import Backbone
from dense.evaluate.classification.features import randomly_initialised
from dense.training.cli import arguments_of
from dense.training.curves import plot_curves, read_metrics
from pretrain.run import open_run, run

PARTS = ("cifar10", "objectives", "lightly", "continued")
RECIPE, SIZE = "pretrain/cifar10", 96  # pixels at which k-NN sees images of CIFAR-10
VIT: dict[str, Any] = {  # masked patches need tokens
    "model.backbone": {
        "name": "vit_tiny_patch16_224", "arguments": {"patch_size": 8, "img_size": 32, "depth": 6}, "drop_path": 0.0,
    },
    "data.views.init_args.global_size": 32, "data.views.init_args.blur_sigma": [0.1, 0.5], "model.optim.lr": 1e-3,
    "knn.resize": 32, "knn.crop": 32,
}  # fmt: skip
MASKED = {
    "model.ibot": {
        "weight": 1.0, "head": {"out_dim": 1024, "hidden_dim": 512, "bottleneck_dim": 128, "batch_norm": True},
    },
    "model.koleo": {"weight": 0.1},
}  # fmt: skip


def lists_of(options: argparse.Namespace) -> tuple[str, str, str]:
    """Return lists of all images of CIFAR-10 but the validation images, of the bank among them, and of these."""
    root = options.data / "cifar10/train"
    bank, val = draw(root, options.output, options.bank, options.val, options.seed)
    held = {line.split("\t")[0] for line in Path(val).read_text().splitlines()}
    images = [p for p in sorted(root.resolve().rglob("*")) if p.is_file() and str(p) not in held]
    path = options.output / "unlabelled.txt"
    path.write_text("".join(f"{image}\n" for image in images))
    return str(path), bank, val


def knn(backbone: Backbone, bank: str, val: str, size: int, baselines: bool = False) -> _rows.Row:
    """Return the accuracy of the class token, if any, and of the average; with baselines also that of raw pixels."""
    names = ["class", "average"] if backbone.spec.class_token else ["average"]
    found = dense.evaluate(
        backbone, val, "knn", train=bank, resize=size, crop=size, readout=names, holdout=0, baselines=baselines,
        workers=0,
    )  # fmt: skip
    best, numbers = "top1 k=20", found.numbers
    scores = numbers.get("scores") or {f"{names[0]}, {best}": numbers[best]}  # of one alone
    scores = {k: v for k, v in scores.items() if k.endswith(best)}
    names += ["pixels"] * baselines
    return {name: next(v for k, v in scores.items() if k.startswith(name)) for name in names}


def changes(options: argparse.Namespace, bank: str, val: str, **more: Any) -> dict[str, Any]:
    """Return the options of a run: its length, and k-NN along it."""
    given = {
        "model.steps": options.steps, "model.seed": options.seed, "data.seed": options.seed,
        "trainer.precision": "32-true", "knn.train": bank, "knn.val": val,
        "knn.every_steps": max(options.steps // options.points, 1),
    }  # fmt: skip
    return given | dict(pair.split("=", 1) for pair in options.set) | more


def curve(folder: Path) -> list[tuple[int, float]]:
    """Return k-NN along a run."""
    steps, values = read_metrics(folder / "metrics.csv")["knn"]
    return [(int(s), float(v)) for s, v in zip(steps, values, strict=True)]


def trained(options: argparse.Namespace, name: str, size: int = SIZE, **more: Any) -> _rows.Row:
    """Pretrain on CIFAR-10 and return k-NN of the result and along the run."""
    root, bank, val = lists_of(options)
    folder = options.output / name
    backbone = dense.pretrain(RECIPE, data=root, output=folder, **changes(options, bank, val, **more))
    return {"what": name, "curve": curve(folder)} | knn(backbone, bank, val, size)


def cifar10(options: argparse.Namespace) -> list[_rows.Row]:
    row = trained(options, "DINO")
    _, bank, val = lists_of(options)
    fresh = randomly_initialised(dense.load_backbone(options.output / "DINO/backbone"), options.seed)
    return [{"what": "random initialisation"} | knn(fresh, bank, val, SIZE, baselines=True), row]


def objectives(options: argparse.Namespace) -> list[_rows.Row]:
    return [
        trained(options, f"ViT, {name}", 32, **VIT | more)
        for name, more in (("DINO", {}), ("DINO + iBOT + KoLeo", MASKED))
    ]


class Peer(pl.Callback):
    """Trains lightly's head, loss and moving average on the batches of a run, from its student's initialisation."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        recipe = pl_module.recipe
        head, teacher, dim = recipe.head, recipe.teacher, pl_module.student.backbone.spec.dim
        torch.manual_seed(recipe.seed)
        sizes = (dim, head.hidden_dim, head.bottleneck_dim, head.out_dim, head.batch_norm)
        self.student, self.teacher = (
            nn.ModuleList([copy.deepcopy(pl_module.student.backbone), DINOProjectionHead(*sizes)]).train()
            for _ in range(2)
        )
        self.teacher.requires_grad_(False).load_state_dict(self.student.state_dict())
        self.loss = DINOLoss(head.out_dim, teacher.temperature, teacher.temperature, 0, center_momentum=0.9)
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        others = [p for p in self.student.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        from lightly.models.utils import update_momentum

        step, plan, clip = trainer.global_step, pl_module.schedules, pl_module.recipe.optim.clip
        with torch.no_grad():
            targets = [_project(self.teacher, view) for view in batch.views[:2]]
        loss = self.loss(targets, [_project(self.student, view) for view in batch.views], epoch=0)
        self.optimizer.param_groups[0]["weight_decay"] = plan.weight_decay(step)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.lr(step)
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                nn.utils.clip_grad_norm_(parameter, clip)
        self.optimizer.step()
        update_momentum(self.student, self.teacher, plan.momentum(step))
        self.losses.append(float(loss.detach()))


def _project(network: Any, images: torch.Tensor) -> torch.Tensor:
    backbone, head = network
    return head(backbone.image_feature(backbone.normalise(images)))


def lightly(options: argparse.Namespace) -> list[_rows.Row]:
    try:
        import lightly as package
    except ImportError:
        print("lightly is absent: no peer (pip install --target FOLDER lightly, and FOLDER in PYTHONPATH)")
        return []
    root, bank, val = lists_of(options)
    folder = options.output / "centred"
    more = {"model.teacher.centering": "center", "knn.train": None, "knn.val": None, "trainer.precision": "32-true"}
    given = {"data.root": root, "output": folder} | changes(options, bank, val, **more)
    opened, peer = open_run(arguments_of(RECIPE, given)), Peer()
    opened.trainer.callbacks.append(peer)  # type: ignore[attr-defined]
    run(*opened)
    _, ours = read_metrics(folder / "metrics.csv")["loss"]  # of some steps alone
    rows: list[_rows.Row] = []
    for what, backbone, losses in (
        ("DINO, centred", opened.model.backbone, ours),
        (f"lightly {package.__version__}", peer.teacher[0].eval(), peer.losses),
    ):
        tail = losses[-max(len(losses) // 10, 1) :]
        loss = [float(losses[0]), float(sum(tail) / len(tail))]
        rows.append({"what": what, "loss": loss} | knn(backbone, bank, val, SIZE))
    return rows


def continued(options: argparse.Namespace) -> list[_rows.Row]:
    """Continue the published backbone on two narrow domains."""
    _, bank, val = lists_of(options)
    images = [p for name in ("camvid", "kitchen") for p in sorted((options.data / name / "train/images").glob("*"))]
    root = options.output / "narrow.txt"
    root.write_text("".join(f"{image.resolve()}\n" for image in images))
    folder, camvid = options.output / "continued", options.data / "camvid"
    before = dense.load_backbone(options.backbone, options.weights, frozen=True)
    own = {
        "model.backbone": {
            "name": options.backbone, "arguments": {}, "init_from": options.weights,
            "head_warmup_steps": options.steps // 5,
            "drop_path": 0.0,
        },
        "model.optim.lr": 1e-4, "model.optim.warmup_epochs": 0.2, "data.batch_size": 8, "data.workers": 1,
        "model.teacher.momentum": 0.99, "data.views.global_size": 112, "data.views.local_size": 56,
        "data.views.local_crops": 2, "knn.resize": 112, "knn.crop": 112,
    }  # fmt: skip
    after = dense.pretrain("pretrain/small_data_dinov2", data=root, output=folder, **changes(options, bank, val, **own))
    return [
        {"what": what, "camvid": labelled(b, camvid, "miou", 224, options.seed)["last"]} | more | knn(b, bank, val, 112)
        for what, b, more in (("DINOv2-S", before, {}), ("continued", after, {"curve": curve(folder)}))
    ]


def measured(options: argparse.Namespace, part: Any) -> _rows.Row:
    return {"rows": [row | {"bank": options.bank} for row in part(options)]}


def kept(options: argparse.Namespace) -> dict[tuple[str, int], list[_rows.Row]]:
    """Return the rows of all parts in --output, of this call and of earlier ones with other --steps."""
    found = {}
    for path in (options.output / "rows").glob("*.json"):
        part, _, steps = path.stem.rpartition("-")
        found[part, int(steps)] = json.loads(path.read_text())["rows"]
    return dict(sorted(found.items(), key=lambda item: (PARTS.index(item[0][0]), item[0][1])))


def markdown(found: dict[tuple[str, int], list[_rows.Row]], options: argparse.Namespace) -> str:
    """The table of docs/results.md."""
    lines = []
    for (part, steps), rows in found.items():
        for row in rows:
            along = ", ".join(f"{value:.3f} ({step})" for step, value in row.get("curve", ()))
            loss = " to ".join(f"{value:.2f}" for value in row.get("loss", ()))
            more = [f"along {along}" if along else "", f"loss {loss}" if loss else ""]
            more += [
                f"{words} {row[key]:.3f}"
                for key, words in (("pixels", "raw pixels"), ("camvid", "CamVid linear mIoU"))
                if key in row
            ]
            scores = (f"{row[name]:.3f}" if name in row else "" for name in ("class", "average"))
            lines.append((part, str(steps), row["what"], f"{row['bank']:,}", *scores, "; ".join(filter(None, more))))
    words = f"k-NN of {options.val:,} images; bank: the images that it compares them with."
    along = "more; k-NN along the run with its step"
    header = ("part", "steps", "run", "bank", "k-NN, class token", "k-NN, average", along)
    return f"{words}\n\n{table(header, lines)}"


def draw_curves(found: dict[tuple[str, int], list[_rows.Row]], path: Path) -> None:
    """Draw k-NN along the runs."""
    curves = {
        f"{part}: {row['what']}": ([float(s) for s, _ in row["curve"]], [v for _, v in row["curve"]])
        for (part, _), rows in found.items()
        for row in rows
        if len(row.get("curve", ())) > 2
    }
    plot_curves(curves, list(curves), path, "k-NN of CIFAR-10 along training")


def main() -> int:
    parser = _rows.parser(__doc__, dict.fromkeys(PARTS))
    parser.add_argument("--steps", type=int, default=100, help="of every run")
    parser.add_argument("--points", type=int, default=4, help="k-NN measurements along a run")
    parser.add_argument("--bank", type=int, default=2000, help="images of CIFAR-10 in the bank of k-NN")
    parser.add_argument("--val", type=int, default=1000, help="images that it classifies")
    options = parser.parse_args()
    parts = {"cifar10": cifar10, "objectives": objectives, "lightly": lightly, "continued": continued}
    for name in options.rows or PARTS:
        row = _rows.once(options, f"{name}-{options.steps}", lambda own=parts[name]: measured(options, own))
        print(name, json.dumps(row["rows"]), flush=True)
    found = kept(options)
    if options.markdown:
        draw_curves(found, options.markdown.parent / "pretraining.png")
    return _rows.finish(options, "pretraining", markdown(found, options))


if __name__ == "__main__":
    raise SystemExit(main())
