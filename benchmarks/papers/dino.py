"""The experiments of DINO (Caron et al., 2021) at the scale of this machine, or at full scale with the same command.

    python benchmarks/papers/dino.py --markdown docs/methods/dino.md
    python benchmarks/papers/dino.py teacher crops --data IMAGENET/train --config pretrain/dino_vits16 \\
        --knn IMAGENET/train IMAGENET/val --steps 250000 --seeds 1 --output runs/dino \\
        --set trainer.devices=8 trainer.precision=bf16-mixed

teacher: EMA, the previous epoch's student, a copy of the student, and k-NN of teacher and student along the training.
patch: size against k-NN and images per second, on crops of the nearest multiple of it. crops: two global crops alone to
ten local ones, with time and memory. prototypes, head, temperature, length: one option after the other; one temperature
is warmed up. batch: several sizes with as many images in all; of several devices each has a batch of that size.
--values replaces the values of prototypes, head, temperature, batch or crops. collapse: without centring, without
sharpening, and both, with one seed and without batch norm in the head; the entropies and the divergence are drawn as in
the paper. momentum: with and without local crops. In all of these the targets are centred unless --set says otherwise,
whatever the recipe has. masks: attention of a supervised and of a self-supervised ViT against masks, the Jaccard index
of 60 % of the mass. It needs no pretraining: it compares --backbone with --supervised, or with the same network
fine-tuned on the classes of embedded scenes from random initialisation.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _options import add_pretraining, at_least, belong, parse, parser, training_parts
from _study import (
    Made,
    compare,
    device,
    need_weights,
    once,
    pretrain,
    pretrained,
    read,
    recipe_of,
    run,
    short,
    spread,
    table,
    trained_backbone,
    with_weights,
)

if TYPE_CHECKING:
    from dense.backbone import Backbone

VALUES: dict[str, tuple[float, ...]] = {  # part -> what --values replaces
    "crops": (2, 6, 10),  # local ones, beside none
    "prototypes": (64, 256, 1024, 4096),
    "head": (1, 2, 3, 4),  # layers
    "temperature": (0.02, 0.04, 0.06, 0.08),
    "batch": (16, 32, 64, 128),
}
SCALE = "data.views.init_args.global_scale"
ALONE = [0.14, 1.0]  # published for global crops without local ones


def number(word: str) -> float:
    """Return a positive number as it was typed: 1024 is no float."""
    value = float(word) if "." in word else int(word)
    if not value > 0:
        raise ValueError(word)
    return value


def values_of(options: argparse.Namespace, part: str, quick: int = 2) -> tuple[float, ...]:
    """Return the values that a part compares."""
    return tuple(options.values or VALUES[part])[: quick if options.quick else None]


def teacher(options: argparse.Namespace) -> Made:
    """Compare the three rules, and print teacher and student along the first seed's run."""
    modes = {mode: {"model.teacher.mode": mode} for mode in ("ema", "previous_epoch", "student_copy")}
    final = compare(options, "teacher", modes)
    row = pretrain(options, "teacher ema", **modes["ema"])
    lines = [
        (f"{step:.0f}", f"{mine:.3f}", f"{other:.3f}")
        for step, mine, other in zip(row["steps"], row["knn"], row["student"], strict=True)
    ]
    along = table(("step, seed 0", "k-NN, teacher", "k-NN, student"), lines)
    return final._replace(table=f"{final.table}\n\n{along}")


def patch(options: argparse.Namespace) -> Made:
    """Pretrain with several patch sizes, and count the images per second of the network."""
    from dense.backbone import load_backbone

    lines, key = [], "data.views.init_args"
    views = recipe_of(options)["data"].get("views", {}).get("init_args", {})
    if max(options.patches) > (most := views.get("global_size", 224)):
        raise ValueError(f"--patches {max(options.patches)}: crops of {options.config} have {most} pixels")
    for size in options.patches[: 2 if options.quick else None]:
        name = f"patch {size}"
        large, small = (
            max(1, round(views.get(side, usual) / size)) * size
            for side, usual in (("global_size", 224), ("local_size", 96))
        )
        changes = {"model.backbone.arguments.patch_size": size, "model.backbone.arguments.img_size": large}
        changes |= {f"{key}.global_size": large, f"{key}.local_size": small}
        rows = [pretrain(options, name, seed, **changes) for seed in range(options.seeds)]
        backbone = load_backbone(f"{rows[0]['folder']}/backbone", frozen=True)
        rate = images_per_second(backbone, 0.2 if options.quick else 3)
        knn = spread([row["knn"][-1] for row in rows])
        lines.append((str(size), f"{large}, {small}", knn, f"{rate:.0f}"))
    return Made(table(("patch", "crops, px", "k-NN", "images per second"), lines), pretrained(options))


def images_per_second(backbone: Backbone, seconds: float, batch: int = 16) -> float:
    """Return the throughput of a network, on an accelerator if there is one."""
    import torch

    place = device()
    backbone, images = backbone.to(place), torch.randn(batch, 3, *backbone.spec.image_size, device=place)
    with torch.inference_mode():
        float(backbone(images).maps[-1].sum())  # loads kernels
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            float(backbone(images).maps[-1].sum())  # waits for the result
            count += batch
    return count / (time.perf_counter() - start)


def crops(options: argparse.Namespace) -> Made:
    """Compare numbers of local crops on equal steps; without any, global crops have the published scale."""
    key = "data.views.init_args"
    variants: dict[str, dict[str, Any]] = {
        f"2 global, {n} local": {f"{key}.local_crops": n} for n in values_of(options, "crops", quick=1)
    }
    alone = {f"{key}.local_crops": 0, SCALE: ALONE}
    return compare(options, "crops", {"2 global": alone, **variants}, cost=True)


def one_by_one(part: str, title: str, key: str) -> Any:
    """Return an experiment that changes one option."""
    return lambda options: compare(options, title, {str(v): {key: v} for v in values_of(options, part)})


def batch(options: argparse.Namespace) -> Made:
    """Batches of several sizes, with as many images in all as --steps batches of the recipe have."""
    images = options.steps * recipe_of(options)["data"]["batch_size"]
    sizes = values_of(options, "batch")
    steps = {size: max(1, round(images / size)) for size in sizes}
    variants = {f"{size}, {steps[size]} steps": {"data.batch_size": size, "model.steps": steps[size]} for size in sizes}
    return compare(options, "batch", variants)


def temperature(options: argparse.Namespace) -> Made:
    """Constant temperatures, and the published warm-up, which a run of fewer epochs does not finish."""
    key = "model.teacher"
    keys = (f"{key}.warmup_temperature", f"{key}.temperature")
    variants: dict[str, dict[str, Any]] = {str(v): dict.fromkeys(keys, v) for v in values_of(options, "temperature")}
    warm = dict(zip(keys, (0.04, 0.07), strict=True)) | {f"{key}.temperature_moves": "epoch"}
    variants["0.04 to 0.07 over 30 epochs"] = warm | {f"{key}.warmup_temperature_epochs": 30}
    return compare(options, "temperature", variants)


def length(options: argparse.Namespace) -> Made:
    """Three times the steps, as 300 against 100 epochs."""
    return compare(
        options, "length", {f"{n} x {options.steps} steps": {"model.steps": n * options.steps} for n in (1, 3)}
    )


def momentum(options: argparse.Namespace) -> Made:
    """An average or a copy as teacher, with and without local crops."""
    key = "data.views.init_args.local_crops"
    variants = {
        f"{mode}, {n} local crops": {"model.teacher.mode": mode, key: n} | ({} if n else {SCALE: ALONE})
        for mode in ("ema", "student_copy")
        for n in (0, 6)
    }
    return compare(options, "momentum", variants)


def collapse(options: argparse.Namespace) -> Made:
    """Train without centring, without sharpening and with both; draw entropy and divergence along the runs."""
    usual = {"model.health.every": max(1, options.steps // 40), "model.head.batch_norm": False}
    flat = dict.fromkeys(("model.teacher.warmup_temperature", "model.teacher.temperature"), 0.1)
    variants = {
        "both": usual,
        "sharpening alone": usual | {"model.teacher.center_momentum": 1.0},
        "centring alone": usual | flat,
    }
    lines, curves = [], {}
    for name, changes in variants.items():
        row = pretrain(options, f"collapse {name}", **changes)
        found = read(Path(row["folder"]) / "metrics.csv", "health/teacher_entropy", "health/kl")
        entropy, divergence = found["health/teacher_entropy"], found["health/kl"]
        curves[name] = (found["step"], entropy, divergence)
        lines.append((name, f"{entropy[-1]:.2f}", f"{divergence[-1]:.2f}", f"{row['knn'][-1]:.3f}"))
    text = table(("", "entropy of targets, nats", "divergence, nats", "k-NN"), lines)
    said = f"{pretrained(options, seeds=1)}, no batch norm in the head"
    return Made(text, said, draw=partial(draw, options.figure, curves) if options.figure else None)


def draw(path: Path, curves: dict[str, Any]) -> None:
    """Draw entropy and divergence of the runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, place, title in zip(axes, (1, 2), ("entropy of the targets", "divergence"), strict=True):
        for name, found in curves.items():
            axis.plot(found[0], found[place], label=name)
        axis.set(title=title, xlabel="step", ylabel="nats")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def masks(options: argparse.Namespace) -> Made:
    """Measure attention against masks, of a self-supervised, a supervised and a random network."""
    import torch

    from dense.backbone import Backbone, load_backbone
    from dense.data.labelled.open import open_labelled
    from dense.discover.methods import source_of
    from dense.evaluate.discovery import measure_discovery
    from dense.evaluate.objects import ObjectTargets

    images = 8 if options.quick else 200
    layout = "folder" if options.masks == "scenes" else options.layout
    source = open_labelled(options.masks, "val", layout=layout, targets=("labels",), length=images, size=96, seed=0)
    targets = ObjectTargets(source, least=0.0)  # objects of any size, as published

    def jaccard(backbone: Backbone) -> float:
        sources = {"attention": source_of(backbone.spec, "attention")}
        result = measure_discovery(backbone.to(device()), targets, {"attention": {"share": 0.6}}, sources)
        return float(result.numbers["attention"]["jaccard"])

    def supervised() -> Backbone:
        if options.supervised:
            return load_backbone(options.supervised, options.supervised_weights, frozen=True)
        from dense.cli import main as verb

        folder, fresh = options.output / "runs" / "supervised", options.output / "runs" / "random"
        Backbone.from_spec(mine.spec).save_pretrained(fresh)
        sizes = ("40", "20", "1") if options.quick else ("2000", "500", "12")
        words = ["--train", "scenes:train", "--val", "scenes:val", "--backbone", str(fresh), "--lr", "2e-3"]
        words += ["--workers", "0", "--device", device()] + [
            word for pair in zip(("--train-scenes", "--val-scenes", "--epochs"), sizes, strict=True) for word in pair
        ]
        if verb(["evaluate", "finetune", *words, "--output", str(folder)]):
            raise SystemExit("masks: the supervised network could not be trained")
        return load_backbone(folder / "backbone", frozen=True)

    torch.manual_seed(0)
    options = trained_backbone(options)
    mine = load_backbone(options.backbone, options.weights, frozen=True)
    other = "fine-tuned from random initialisation"
    if options.supervised:
        given = argparse.Namespace(backbone=options.supervised, weights=options.supervised_weights)
        other = with_weights(given)
    networks = {
        f"self-supervised: {short(options.backbone)}": lambda: mine,
        f"supervised: {other}": supervised,
        "random initialisation": lambda: Backbone.from_spec(mine.spec).freeze(),
    }
    names = ("weights", "masks", "layout", "supervised", "supervised_weights", "quick")
    used = {name: getattr(options, name) for name in names} | {"least": targets.least}
    lines = []
    for name, make in networks.items():
        found = once(options, f"masks {name}", lambda make=make: {"jaccard": jaccard(make())}, used)
        lines.append((name, f"{found['jaccard']:.3f}"))
    text = table(("attention, 60 % of its mass, best head", "Jaccard"), lines)
    return Made(text, f"{with_weights(options)}, {len(source)} images of {short(options.masks)}", options.backbone)


PARTS = {
    "teacher": teacher, "patch": patch, "crops": crops,
    "prototypes": one_by_one("prototypes", "prototypes", "model.head.out_dim"),
    "head": one_by_one("head", "head layers", "model.head.layers"),
    "temperature": temperature, "batch": batch,
    "length": length, "collapse": collapse, "momentum": momentum, "masks": masks,
}  # fmt: skip


def main() -> int:
    of_script = parser(__doc__, list(PARTS), "scenes:train", measuring=("masks",))
    add_pretraining(of_script)
    words = "patch sizes of the part patch"
    of_script.add_argument("--patches", nargs="+", type=at_least(1), default=[16, 8, 5], help=words)
    words = f"instead of a part's own values, of one part alone: {', '.join(VALUES)}"
    of_script.add_argument("--values", nargs="+", type=number, metavar="VALUE", help=words)
    of_script.add_argument("--figure", type=Path, help="file for the curves of the part collapse; beside --markdown")
    of_script.add_argument("--masks", default="scenes", help="folder with masks for the part masks")
    of_script.add_argument("--layout", default="voc2012", help="of that folder")
    of_script.add_argument("--supervised", help="a supervised ViT, such as vit_small_patch16_224.augreg_in1k")
    of_script.add_argument("--supervised-weights", help="its weights: a file, or timm to download")
    belong(of_script, VALUES, "values")
    belong(of_script, ["patch"], "patches")
    belong(of_script, ["collapse"], "figure")
    belong(of_script, ["masks"], "masks", "layout", "supervised", "supervised_weights")
    belong(of_script, training_parts(of_script), "data", "knn")
    options = parse(of_script)
    if options.supervised_weights and not options.supervised:
        of_script.error("--supervised-weights belongs to --supervised NAME")
    if options.values and (len(options.parts) > 1 or options.parts[0] not in VALUES):
        of_script.error(f"--values belong to one part: {', '.join(VALUES)}")
    if options.supervised:
        advice = "add --supervised-weights FILE, or timm to download them"
        need_weights(options.supervised, options.supervised_weights, f"--supervised {options.supervised}", advice)
    if not any(pair.startswith("model.teacher.centering=") for pair in options.set):
        options.set = ["model.teacher.centering=center", *options.set]  # whatever the recipe has
    if options.figure is None and options.markdown:
        options.figure = options.markdown.parent / "collapse.png"  # a folder that `parse` found to be writable
    return run(options, "papers_dino", PARTS)


if __name__ == "__main__":
    raise SystemExit(main())
