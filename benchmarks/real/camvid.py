"""Semantic segmentation of street scenes: CamVid, 11 classes, 480x360 pixels, frozen features of a DINO backbone.

The data are those of the SegNet tutorial repository, arranged as train/images, train/masks, val/images, val/masks and
classes.yaml. Settings are chosen on the validation images; the published numbers are of the test images.

    python benchmarks/real/camvid.py CAMVID --weights dinov2_vits14.pth --output runs/camvid

Rows: small_data as it is; the best recipe and its alternatives; a linear head, DPT and mask queries (eomt) in equal
minutes, of which there are --minutes with everything that a run does; a curve over 10, 30, 100 and all training images
with three draws; and two peers with the same images, segmentation-models-pytorch's U-Net and scikit-learn's logistic
regression on features of transformers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import _rows
import numpy as np
from _measure import once, table

RECIPE = "segmentation/small_data"
BEST: dict[str, Any] = {"data.resize": 504, "data.copies": 2, "model.steps": 600}
DPT: dict[str, Any] = {
    "model.head": {
        "name": "dpt",
        "width": 48,
        "resample": "bilinear",
        "input_norm": True,
        "reassemble": [48] * 4,
        "outputs": {"labels": {"name": "classes"}},
    },
}
TRAININGS: dict[str, dict[str, Any]] = {  # name -> overrides of the recipe, and another recipe
    "small_data": {},
    "dpt": DPT,
    "size_252": {"data.resize": 252},
    "size_364": {"data.resize": 364},
    "size_448": {"data.resize": 448},
    "best": BEST,
    "cross_entropy": {"model.loss": {"cross_entropy": 1.0}},
    "last_blocks": {**BEST, "model.tune.unfreeze": 2, "model.tune.lr_scale": 0.1, "data.cache": None},
    "lora": {**BEST, "model.tune.lora_rank": 8, "model.tune.lr_scale": 0.2, "data.cache": None},
}
EQUAL: dict[str, dict[str, Any]] = {  # in equal minutes
    "linear": {},
    "dpt": DPT,
    "eomt": {
        "recipe": "instance/small_data",
        "model.kind": "semantic",
        "data.targets": ["labels"],
        "model.head.queries": 50,
    },
}
FEW, DRAWS = (10, 30, 100), 3
PUBLISHED = {"SegNet": 46.4, "FCN-8": 57.0, "DeepLab-LFOV": 61.6, "Dilation8": 65.3, "FC-DenseNet103": 66.9}
PEERS = ("unet", "logistic")


def main() -> int:
    every = [*TRAININGS, "equal", "few", *PEERS]
    parser = _rows.parser(__doc__, every)
    parser.add_argument("--minutes", type=float, default=15, help="of each run of the row equal")
    options = parser.parse_args()
    names = options.rows or every
    lines = []
    for name in names:
        if name in TRAININGS:
            row = _rows.train(options, name, **{"recipe": RECIPE} | TRAININGS[name])
            lines.append((name, *numbers(row)))
        elif name == "equal":
            lines += [equal(options, head) for head in EQUAL]
        elif name == "few":
            lines += [few(options, count) for count in FEW]
        else:
            lines.append((name, *numbers(once(options, name, lambda name=name: PEER[name](options)))))
    lines += [(f"{name}, published, test images", f"{score / 100:.3f}", "", "") for name, score in PUBLISHED.items()]
    header = ("", "mIoU", "pixel accuracy", "minutes")
    return _rows.finish(options, "CamVid", table(header, lines))


def numbers(row: dict[str, Any]) -> tuple[str, str, str]:
    """Return a row's cells."""
    accuracy = row["val/aacc"]
    return f"{row['val/miou']:.3f}", f"{accuracy:.3f}", f"{row['minutes']:.1f}"


def equal(options: argparse.Namespace, head: str) -> tuple[str, ...]:
    """Return the row of a head that is trained for as many steps as fit into the minutes.

    Two short runs on few images tell the time of a step, and one on all images that of all else.
    """

    def train(steps: int, **more: Any) -> dict[str, Any]:
        name = f"equal-{head}-{steps}{'-few' * bool(more)}"
        return _rows.train(options, name, **{"recipe": RECIPE} | EQUAL[head] | {"model.steps": steps} | more)

    images = {"data.train_images": 24}
    step = (train(22, **images)["minutes"] - train(2, **images)["minutes"]) / 20
    steps = 2 + max(0, round((options.minutes - train(2)["minutes"]) / step))
    row = train(steps)
    return (f"{head}, {steps} steps in equal minutes", *numbers(row))


def few(options: argparse.Namespace, count: int) -> tuple[str, ...]:
    """Return the row of `count` training images: mean, least and largest mIoU of three draws."""
    rows = [
        _rows.train(options, f"few-{count}-{draw}", RECIPE, **{"data.train_images": count, "data.seed": draw})
        for draw in range(DRAWS)
    ]
    scores = [row["val/miou"] for row in rows]
    spread = f"{statistics.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
    return f"{count} training images, {DRAWS} draws", spread, "", f"{statistics.mean(r['minutes'] for r in rows):.1f}"


# ---- peers


def labelled(options: argparse.Namespace, split: str) -> tuple[list[Any], list[Any], int]:
    """Return images (H, W, 3), labels (H, W) and the number of classes."""
    from dense.data.labelled.open import open_labelled

    source = open_labelled(options.data, split)
    samples = [source.read(i) for i in range(len(source))]
    return [s.image for s in samples], [s.labels for s in samples], len(source.classes or ())


def score(predict: Any, images: list[Any], labels: list[Any], classes: int) -> dict[str, float]:
    """Return mIoU and accuracy of a function from an image to labels of its size."""
    import torch

    from dense.metrics import SegmentationMetrics

    metric = SegmentationMetrics(classes)
    for image, truth in zip(images, labels, strict=True):
        metric.update(torch.from_numpy(predict(image))[None].long(), torch.from_numpy(truth)[None].long())
    found = metric.compute()
    return {f"val/{name}": float(value) for name, value in found.items() if not isinstance(value, dict)}


def unet(options: argparse.Namespace) -> dict[str, Any]:
    """Train segmentation-models-pytorch's U-Net (ResNet-18) for as many minutes as small_data took.

    The encoder starts at random where the weights of ImageNet cannot be downloaded; the row says so.
    """
    import segmentation_models_pytorch as smp
    import torch
    import torch.nn.functional as F

    minutes = _rows.train(options, "small_data", RECIPE)["minutes"]
    images, labels, classes = labelled(options, "train")
    torch.manual_seed(options.seed)
    try:
        net, start = smp.Unet("resnet18", encoder_weights="imagenet", classes=classes), "ImageNet"
    except Exception:  # no network
        net, start = smp.Unet("resnet18", encoder_weights=None, classes=classes), "random initialisation"
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def tensor(image: Any) -> Any:
        x = (torch.from_numpy(image).float() / 255 - mean) / std
        x = x.permute(2, 0, 1)[None]
        height, width = image.shape[:2]
        return F.pad(x, (0, -width % 32, 0, -height % 32), mode="replicate")

    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    rng, begin, steps = np.random.default_rng(options.seed), time.monotonic(), 0
    while (share := (time.monotonic() - begin) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * share))
        chosen = rng.integers(0, len(images), 8)
        flips = rng.integers(0, 2, 8).astype(bool)
        batch = torch.cat(
            [tensor(images[i][:, ::-1].copy() if f else images[i]) for i, f in zip(chosen, flips, strict=True)]
        )
        truth = torch.stack(
            [
                torch.from_numpy((labels[i][:, ::-1] if f else labels[i]).astype(np.int64))
                for i, f in zip(chosen, flips, strict=True)
            ]
        )
        logits = net(batch)[..., : truth.shape[1], : truth.shape[2]]
        loss = F.cross_entropy(logits, truth, ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    net.eval()

    @torch.inference_mode()
    def predict(image: Any) -> Any:
        return net(tensor(image))[0, :, : image.shape[0], : image.shape[1]].argmax(0).numpy()

    images, labels, classes = labelled(options, "val")
    return {"encoder": start, "steps": steps} | score(predict, images, labels, classes)


def logistic(options: argparse.Namespace, side: int = 364, most: int = 60_000) -> dict[str, Any]:
    """Fit scikit-learn's logistic regression on patch features of transformers' DINOv2, with the same weights."""
    import cv2
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import Dinov2Config, Dinov2Model

    from dense.backbone import load_backbone
    from dense.backbone.weights.huggingface import to_huggingface

    backbone, folder = load_backbone(options.backbone, options.weights), options.output / "transformers"
    spec = backbone.spec
    Dinov2Config(
        hidden_size=spec.dim, num_hidden_layers=spec.depth, num_attention_heads=spec.dim // 64, patch_size=spec.patch,
        image_size=spec.image_size[0],
    ).save_pretrained(folder)  # fmt: skip
    save_file(
        {k: v.contiguous() for k, v in to_huggingface(backbone.state_dict()).items()}, folder / "model.safetensors"
    )
    net = Dinov2Model.from_pretrained(folder).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    @torch.inference_mode()
    def features(image: Any) -> Any:
        height, width = image.shape[:2]
        size = (side, round(side * width / height / spec.patch) * spec.patch)
        x = torch.from_numpy(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)).float() / 255
        tokens = net(((x - mean) / std).permute(2, 0, 1)[None]).last_hidden_state[0, 1:]
        return tokens.view(size[0] // spec.patch, size[1] // spec.patch, -1)

    images, labels, classes = labelled(options, "train")
    rng, rows, targets = np.random.default_rng(options.seed), [], []
    for image, truth in zip(images, labels, strict=True):
        f = features(image)
        small = cv2.resize(truth, (f.shape[1], f.shape[0]), interpolation=cv2.INTER_NEAREST).reshape(-1)
        known = np.flatnonzero(small < classes)
        known = rng.permutation(known)[: most // len(images) + 1]
        rows.append(f.reshape(-1, f.shape[-1])[known].numpy())
        targets.append(small[known])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    model.fit(np.concatenate(rows), np.concatenate(targets))

    def predict(image: Any) -> Any:
        f = features(image)
        scores = model.decision_function(f.reshape(-1, f.shape[-1]).numpy()).reshape(*f.shape[:2], -1)
        maps = torch.from_numpy(scores).float().permute(2, 0, 1)[None]
        known = F.interpolate(maps, size=image.shape[:2], mode="bilinear")[0].argmax(0).numpy()
        return model[-1].classes_[known]

    images, labels, classes = labelled(options, "val")
    return score(predict, images, labels, classes)


PEER = {"unet": unet, "logistic": logistic}

if __name__ == "__main__":
    sys.exit(main())
