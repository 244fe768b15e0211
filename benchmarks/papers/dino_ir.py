"""The premise and the parts of DINO-IR (Lin et al., 2023), on photographs or on embedded scenes.

    python benchmarks/papers/dino_ir.py premise quality --data PHOTOS --backbone dinov2_vits14 --weights FILE \\
        --markdown docs/methods/dino_ir.md
    python benchmarks/papers/dino_ir.py tasks parts --data PHOTOS --backbone dinov2_vits14 --weights FILE --steps 1500

premise: the distance between features of an image and of its degraded copy, over the mean distance between different
images, per layer and degradation, patch by patch, and the same for the pixels of a patch; below 1 a degraded image is
nearer to itself than to others. Features are those that guide: behind the final norm. quality: whether a linear map of
a layer's mean patch tells the kind of degradation and, of each kind, its level (correlation with the order of the
levels, mean over kinds), beside simple statistics of the pixels (mean and deviation of each channel, differences of
neighbours at four scales). A map is fitted on one half of the images; chance is one over the kinds, and no correlation.
tasks: PSNR of noise when one, two and four kinds are learnt at once, with and without guidance. parts: plain body,
addition, D-R attention and, with it, the DPC loss on layers 2 and 6 of 12, at levels that were seen in training and at
others; nothing else has that loss, whatever the recipe has. With restoration/scenes_tiny the guiding layers are even4,
and the patches of 96 pixels; another --config has its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from _options import add_backbone, add_training, at_least, belong, parse, parser
from _study import (
    Made,
    device,
    once,
    refuse_set,
    run,
    seconds_of,
    short,
    spread,
    table,
    trained,
    trained_backbone,
    trained_on,
    with_weights,
)

RECIPE = "restoration/scenes_tiny"
FOUR = ("noise", "rain", "motion", "defocus")  # none of them needs depth
SIDE = 224
NO_DPC = {"model.perception.weight": 0.0, "model.perception.layers": "even4"}
TINY = {"dim": 8, "blocks": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "refinement": 1}  # a body that runs in seconds


def images(options: argparse.Namespace, least: int) -> list[Any]:
    """Return central squares (S, S, 3) of the images; raise for fewer than a part needs."""
    from dense.data.labelled.open import open_labelled
    from dense.media.draw import fit

    layout, most, found = "folder" if options.data == "scenes" else "images", options.images, list[Any]()
    source = open_labelled(options.data, "all" if layout == "images" else "val", layout=layout, length=most, size=SIDE)
    for index in np.linspace(0, len(source) - 1, min(most, len(source))).astype(int):
        image = source.read(int(index)).image
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        found.append(fit(image[top : top + side, left : left + side], SIDE))
    if len(found) < least:
        raise ValueError(f"this part compares {least} images or more, and has {len(found)} of {options.data}")
    return found


def degradations() -> Any:
    """Return the four kinds with their levels, of which the images get one after the other."""
    from dense.data.degrade import Degrade

    return Degrade({kind: [] for kind in FOUR}, unseen={})


def features(options: argparse.Namespace, squares: Sequence[Any]) -> dict[str, Any]:
    """Return layer -> (images, kinds + 1, dim, h, w), and images of the same grid; the clean images come first."""
    import torch
    import torch.nn.functional as F

    from dense.backbone import load_backbone
    from dense.data.degrade import degrade

    backbone = load_backbone(options.backbone, options.weights, frozen=True).to(device())
    plan = degradations()
    layers = list(range(backbone.spec.depth))
    rows: dict[str, list[Any]] = {}
    for number, image in enumerate(squares):
        copies = [image]
        for kind in FOUR:
            levels = plan.kinds[kind]
            copies.append(degrade(image, {kind: levels[number % len(levels)]}, (0, number)))
        batch = torch.from_numpy(np.stack(copies))
        found = backbone(backbone.normalise(batch.to(device())), layers=layers, norm=True)
        for layer, patches in zip(layers, found.maps, strict=True):
            rows.setdefault(f"layer {layer}", []).append(patches.cpu())
        rows.setdefault("pixels", []).append(F.pixel_unshuffle(batch.permute(0, 3, 1, 2).float(), backbone.spec.patch))
    return {name: torch.stack(values) for name, values in rows.items()}


def measured(
    options: argparse.Namespace, part: str, least: int, numbers: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    """Return numbers of the features of each layer, and in words what they depend on; least: images that they need."""
    squares = images(options, least)
    used = {name: getattr(options, name) for name in ("weights", "data", "quick")} | {"images": len(squares)}

    def make() -> dict[str, Any]:
        return {"layers": numbers(features(options, squares))}

    found = once(options, f"{part} {options.backbone}", make, used)["layers"]
    said = f"{with_weights(options)}, {len(squares)} images of {short(options.data)}, squares of {SIDE} px"
    return found, said


def premise(options: argparse.Namespace) -> Made:
    """Relate the change by a degradation to the difference between images, patch by patch."""

    def numbers(layers: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, maps in layers.items():
            clean = maps[:, 0]  # images, dim, h, w
            between = (clean - clean.roll(1, 0)).norm(dim=1).mean()
            found[name] = [float((maps[:, 1 + k] - clean).norm(dim=1).mean() / between) for k in range(len(FOUR))]
        return found

    found, said = measured(options, "premise", 2, numbers)
    lines = [(name, *(f"{v:.2f}" for v in row)) for name, row in found.items()]
    return Made(table((short(options.backbone), *FOUR), lines), said, options.backbone)


def quality(options: argparse.Namespace) -> Made:
    """Tell kind and level of a degradation from the mean patch of each layer, by a map that half the images fitted."""

    def numbers(layers: dict[str, Any]) -> dict[str, Any]:
        import torch

        plan = degradations()
        found = {}
        for name, maps in layers.items():
            x = (statistics(maps) if name == "pixels" else maps.mean((-2, -1))).double()  # images, kinds, dim
            half, kinds = len(x) // 2, torch.arange(x.shape[1]).expand(x.shape[:2])
            truth = torch.nn.functional.one_hot(kinds[:half].flatten())
            guess = fitted(x[:half].flatten(0, 1), truth, x[half:].flatten(0, 1)).argmax(1)
            levels = []
            for k, kind in enumerate(FOUR):
                order = torch.arange(len(x)).double() % len(plan.kinds[kind])
                predicted = fitted(x[:half, 1 + k], order[:half, None], x[half:, 1 + k])[:, 0]
                levels.append(torch.corrcoef(torch.stack((predicted, order[half:])))[0, 1])
            kind_told = (guess == kinds[half:].flatten()).double().mean()
            found[name] = [float(kind_told), float(torch.stack(levels).mean())]
        return found

    found, said = measured(options, "quality", 4, numbers)
    lines = [(name, f"{kind:.2f}", f"{level:.2f}") for name, (kind, level) in found.items()]
    header = (
        short(options.backbone),
        f"kind: accuracy; chance {1 / (1 + len(FOUR)):.2f}",
        "level: correlation; chance 0",
    )
    return Made(table(header, lines), said, options.backbone)


def fitted(rows: Any, targets: Any, others: Any) -> Any:
    """Return what a ridge regression of targets on rows says of others."""
    import torch

    targets = targets.double()
    mean, scale, middle = rows.mean(0), rows.std(0) + 1e-8, targets.mean(0)
    rows, others = (rows - mean) / scale, (others - mean) / scale
    ridge = rows.T @ rows + 0.1 * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    return others @ torch.linalg.solve(ridge, rows.T @ (targets - middle)) + middle


def statistics(patches: Any) -> Any:
    """Return mean and deviation of each channel, and the logarithm of differences of neighbours at four scales."""
    import torch
    import torch.nn.functional as F

    side = round((patches.shape[2] / 3) ** 0.5)
    x = F.pixel_shuffle(patches, side)  # images, kinds, 3, H, W
    found = [x.mean((-2, -1)), x.std((-2, -1))]
    for scale in (1, 2, 4, 8):
        y = F.avg_pool2d(x.flatten(0, 1), scale).unflatten(0, x.shape[:2])
        for axis in (-2, -1):
            found.append(y.diff(dim=axis).abs().mean((-3, -2, -1))[..., None].add(1e-3).log())
    return torch.cat(found, dim=2)


def train(options: argparse.Namespace, name: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Train a restoration model and measure it at seen and unseen levels."""
    refuse_set(options, changes)
    given: dict[str, Any] = {
        "model.seed": seed, "data.seed": seed, "model.steps": options.steps, "val_every": options.steps,
        "trainer.precision": "32-true", "trainer.accelerator": "auto",
    }  # fmt: skip
    if options.data != "scenes":
        given |= {"data.layout": "images", "data.val_ratio": 0.1}
    given |= {"data.scenes": [4, 2], "data.scene_size": 32} if options.data == "scenes" and options.quick else {}
    given |= {"model.head.body": TINY} if options.quick else {}
    given |= own(options) | changes | dict(pair.split("=", 1) for pair in options.set)
    return trained(options, name, seed, given)


def own(options: argparse.Namespace) -> dict[str, Any]:
    """Return the layers and patches that differ from those of the recipe."""
    usual = {"model.backbone.layers": "even4", "data.patches": [[0, 96, 8]]} if options.config == RECIPE else {}
    return usual | ({"data.patches": [[0, 32, 2]]} if options.quick else {})


def restored(options: argparse.Namespace, text: str) -> Made:
    """Return a table of trained models."""
    given = {pair.split("=", 1)[0] for pair in options.set}
    words = [f"{key}={value}" for key, value in own(options).items() if key not in given]
    said = (f"{options.config} with {with_weights(options)} on {trained_on(options)}", *words)
    return Made(text, ", ".join(said), options.backbone)


def psnr(row: dict[str, Any], kind: str, unseen: bool = False) -> float:
    """Return the PSNR of a kind at levels of training, or at others."""
    return float(row["numbers"][f"val/psnr/{kind}{'_unseen' * unseen}"])


def learnt(options: argparse.Namespace, kinds: Sequence[str], guidance: str, **more: Any) -> list[dict[str, Any]]:
    """Learn these kinds at once with every seed; what both parts compare is trained once."""
    changes = {"data.degrade": {"kinds": {kind: [] for kind in kinds}}, "model.head.guidance": guidance}
    given = options.config == RECIPE or any(pair.startswith("model.perception.") for pair in options.set)
    changes |= more or ({} if given else NO_DPC)
    name = f"{' '.join(kinds)} {guidance}{' dpc' if more else ''}"
    return [train(options, name, seed, **changes) for seed in range(options.seeds)]


def tasks(options: argparse.Namespace) -> Made:
    """Learn noise alone, with a second kind, and with three more."""
    guidance = {"plain body": "none", "D-R attention": "channels"}
    lines = []
    for kinds in (FOUR[:1], FOUR[:2], FOUR):
        rows = [learnt(options, kinds, how) for how in guidance.values()]
        cells = [spread([psnr(row, "noise") for row in of_seeds]) for of_seeds in rows]
        lines.append((f"{len(kinds)}: {', '.join(kinds)}", *cells))
    return restored(options, table(("kinds at once", *(f"PSNR of noise, {name}" for name in guidance)), lines))


def parts(options: argparse.Namespace) -> Made:
    """Guide by addition or by D-R attention, and add the DPC loss to the latter; never on the deepest layer."""
    from dense.backbone.load import spec_of
    from dense.backbone.spec import resolve_layers

    spec = spec_of(options.backbone)
    layers = resolve_layers(options.shallow or [spec.depth // 6, spec.depth // 2], spec)
    if spec.depth - 1 in layers:
        raise ValueError(f"--shallow {spec.depth - 1}: the DPC loss never reads the deepest layer")
    shallow = {"model.perception.weight": 0.01, "model.perception.layers": list(layers)}
    refuse_set(options, shallow)  # before the first of them is trained
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "plain body": ("none", {}),
        "addition": ("addition", {}),
        "D-R attention": ("channels", {}),
        "D-R attention + DPC loss": ("channels", shallow),
    }
    lines = []
    for name, (guidance, more) in variants.items():
        rows = learnt(options, FOUR, guidance, **more)
        means = [[np.mean([psnr(row, k, unseen) for k in FOUR]) for row in rows] for unseen in (False, True)]
        cells = [spread(values) for values in means]
        lines.append((name, *cells, seconds_of(rows)))
    return restored(options, table(("", "PSNR, seen levels", "PSNR, unseen levels", "seconds"), lines))


PARTS = {"premise": premise, "quality": quality, "tasks": tasks, "parts": parts}


def main() -> int:
    of_script = parser(__doc__, list(PARTS), measuring=("premise", "quality"))
    of_script.add_argument("--images", type=at_least(1), default=64, help="of premise and quality")
    words = "layers of the DPC loss; 2 and 6 of 12 if left out"
    of_script.add_argument("--shallow", nargs="+", type=at_least(0), help=words)
    add_training(of_script, RECIPE, 1200, "RestorationTask")
    belong(of_script, ["premise", "quality"], "images")
    belong(of_script, ["parts"], "shallow")
    add_backbone(of_script, "trained; frozen in trainings")
    options = trained_backbone(parse(of_script))
    options.images = 6 if options.quick else options.images
    return run(options, "papers_dino_ir", PARTS)


if __name__ == "__main__":
    raise SystemExit(main())
