"""The rows of published numbers: what each was measured by, as commands, and the tolerance around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dense.evaluate.published import numbers as published
from dense.evaluate.published.needs import DATA, MASKED, missing
from dense.suggest import as_question, did_you_mean

Command = tuple[str, ...]  # words after `dense`; {data}, {weights} and {output} are replaced


@dataclass(frozen=True)
class Row:
    """A published number.

    Args:
        name: MEASURE/DATA/BACKBONE.
        published: the number as it was printed.
        tolerance: a difference that other weights of the head, another order of images or rounding explain.
        commands: what measures it, in order; the last one writes {output}/result/results.json.
        key: the number in that file, a path of names.
        factor: from that number to the published unit.
        protocol: its constants in words.
        source: where it was published.
    """

    name: str
    published: str
    tolerance: float
    commands: tuple[Command, ...]
    key: tuple[str, ...]
    factor: float
    protocol: str
    source: str

    @property
    def measure(self) -> str:
        return self.name.split("/")[0]

    @property
    def data(self) -> str:
        return self.name.split("/")[1]

    @property
    def backbone(self) -> str:
        return self.name.split("/")[2]

    @property
    def has_weights(self) -> bool:
        """Whether its backbone is trained, not at its random initialisation."""
        return any("{weights}" in command for command in self.commands)

    @property
    def value(self) -> float:
        return float(self.published)

    def like_published(self, value: float) -> str:
        """Return a value with as many digits as were published."""
        return f"{value:.{len(self.published.partition('.')[2])}f}"

    def other_size(self, measured_on: str) -> str:
        """Return in words where a protocol names another number of images or clips than the published one."""
        found, size = re.search(r"\b(\d+) (images|clips)\b", measured_on), DATA[self.data].size
        if found is None or not size or int(found[1]) == size:
            return ""
        return f"not comparable: {int(found[1]):,} {found[2]} instead of {size:,}"

    def missing(self, data: Path | None, weights: str | None) -> list[str]:
        """Return everything that this row needs and that is not there."""
        return missing(self.data, data, self.backbone if self.has_weights else None, weights)

    def filled(self, **places: str) -> list[list[str]]:
        """Return the commands with {data}, {weights} and {output} replaced."""

        def whole(word: str) -> str:
            for place, value in places.items():
                word = word.replace(f"{{{place}}}", value)
            return word

        return [[whole(word) for word in command] for command in self.commands]


def rows() -> dict[str, Row]:
    """Return all rows by name."""
    trained = (*_classification(), *_segmentation(), *_masks(), *_depth())
    return {row.name: row for row in (*trained, *_without_training(), *_retrieval(), *_memories())}


def find_row(name: str) -> Row:
    """Return a row by its name, or raise with the nearest ones."""
    known = rows()
    if name not in known:
        hint = did_you_mean(name, known) or as_question([row for row in known if name.lower() in row][:3])
        raise ValueError(f"unknown row {name!r}.{hint} `dense reproduce` lists all")
    return known[name]


def _evaluated(what: str, name: str, *options: str, weights: bool = True) -> tuple[Command]:
    """Return the command that measures a backbone, with its weights or at its random initialisation."""
    chosen = ("--backbone", name, *(("--weights", "{weights}") if weights else ()))
    return (("evaluate", what, *chosen, *options, "--output", "{output}/result"),)


def _trained(config: str, name: str, *options: str) -> Command:
    chosen = ("--model.backbone.name", name, "--model.backbone.weights", "{weights}")
    whole = ("--data.val_ratio", "0")  # published results are of all training images and of the last step
    return ("train", "--config", config, "--data.root", "{data}", *chosen, *options, *whole, "--output", "{output}/run")


def _tested(what: str, layout: str, *options: str) -> Command:
    """Return the command that measures the model that was trained before."""
    place = ("{output}/run/model", "--data", "{data}", "--layout", layout)
    return ("evaluate", what, *place, *options, "--output", "{output}/result")


def _classification() -> Iterator[Row]:
    train_val = ("--train", "{data}/train", "--val", "{data}/val")
    words = "class token, k 20, temperature 0.07, shorter side 256, crop 224"
    for source, values in published.KNN.items():
        for name, value in values.items():
            command = _evaluated("knn", name, *train_val)
            described = words.replace("class token", "average of patches") if "resnet" in name else words
            yield Row(f"knn/imagenet/{name}", value, 0.3, command, ("top1 k=20",), 100, described, source)
    for name, value in published.KNN_22K.items():
        command = _evaluated("knn", name, *train_val)
        yield Row(f"knn_22k/imagenet/{name}", value, 0.3, command, ("top1 k=20",), 100, words, "iBOT on ImageNet-22k")
    dino = "rate 0.001 per 256 images, batches of 128; class tokens of the last four blocks up to width 384, "
    dino += "class token and average above, the average of ResNet-50"
    recipes = {
        "DINO": ("dino", f"100 epochs of SGD, {dino}"),
        "iBOT": ("dino", f"DINO's 100 epochs of SGD, {dino}; iBOT's own sweeps the learning rate"),
        "DINOv2": ("dinov2", "13 rates x 4 readouts, 12,500 steps of 8 x 128 images, best on val"),
    }
    for source, values in published.LINEAR.items():
        recipe, words = recipes[source]
        for name, value in values.items():
            batch = ("--batch-size", "1024") if recipe == "dinov2" else ()
            command = _evaluated("linear", name, "--recipe", recipe, *batch, *train_val)
            yield Row(f"linear/imagenet/{name}", value, 0.4, command, ("top1",), 100, words, source)
    for name, value in published.LINEAR_22K.items():
        command, source = _evaluated("linear", name, "--recipe", "dino", *train_val), "iBOT on ImageNet-22k"
        yield Row(f"linear_22k/imagenet/{name}", value, 0.4, command, ("top1",), 100, recipes["iBOT"][1], source)


def _segmentation() -> Iterator[Row]:
    def row(measure: str, data: str, name: str, value: str, train: Command, test: Command, words: str) -> Row:
        source = "DINOv3" if measure == "segmentation_v3" else "DINOv2"
        return Row(f"{measure}/{data}/{name}", value, 1.0, (train, test), ("miou",), 100, words, source)

    for data, values in published.SEGMENTATION.items():
        layout = DATA[data].layout
        for name, value in values.items():
            own = name in published.V2  # the others are of patch 8 and 16
            side = "518" if own else "512"
            config = "segmentation/linear_dinov2" if own else "segmentation/linear_dino"
            train = _trained(config, name, "--data.layout", layout)
            size: Command = ("--window", side, "--resize", side) if own else ()
            test = _tested("segmentation", layout, "--protocol", "slide_512", *size)
            words = f"linear, last layer, 40,000 steps of 16, rate 1e-3, crops {side}, windows {side}"
            yield row("segmentation", data, name, value, train, test, words)
    for data, values in published.SEGMENTATION_MS.items():
        layout = DATA[data].layout
        for name, value in values.items():
            own = name in published.V2
            side = "644" if own else "640"
            config = "segmentation/linear_dinov2" if own else "segmentation/linear_dino"
            options: Command = ("--data.layout", layout, "--model.backbone.layers", "last4", "--data.crop_size", side)
            words = f"linear, last four layers, crops {side}, five scales and the mirror image, windows 640"
            test = _tested("segmentation", layout, "--protocol", "dinov2_ms")
            yield row("segmentation_ms", data, name, value, _trained(config, name, *options), test, words)
    for data, values in published.SEGMENTATION_V3.items():
        layout = DATA[data].layout
        for name, value in values.items():
            side, options, size = "512", ("--data.layout", layout), ()
            if name in published.V2R:  # 1,024 patches as well
                side, size = "448", ("--window", "448", "--resize", "448", "--stride", "298")
                windows = {"resize": "448", "window": "448", "stride": "298"}
                options = (*options, "--data.crop_size", "448")
                options += tuple(word for key in windows for word in (f"--model.inference.{key}", windows[key]))
            train = _trained("segmentation/linear_dinov3", name, *options)
            test = _tested("segmentation", layout, "--protocol", "slide_512", *size)
            words = f"linear, last layer, dropout 0.1, batch norm, crops {side}, windows {side}"
            yield row("segmentation_v3", data, name, value, train, test, words)


def _masks() -> Iterator[Row]:
    words = {
        "segmentation": "mIoU, 39,120 steps of 16 at 512 pixels, windows 512",
        "panoptic": "PQ, 88,700 steps of 16 at 640 pixels, longer side 640",
        "instance": "mask AP, 88,700 steps of 16 at 640 pixels, longer side 640",
    }
    keys = {"segmentation": "miou", "panoptic": "pq", "instance": "ap"}
    for (kind, data), values in published.EOMT.items():
        for name, value in values.items():
            blocks = 4 if "vitl" in name else 3
            options: Command = ("--data.layout", DATA[data].layout)
            options += () if blocks == 4 else ("--model.head.blocks", "3")
            train = _trained(f"{kind}/eomt_dinov2", name, *options)
            protocol = "plain" if kind == "segmentation" else "eomt_640"
            test = _tested(kind, DATA[data].layout, "--protocol", protocol)
            described = f"{words[kind]}; queries in the last {blocks} blocks, patches of 16 resampled from 14"
            yield Row(f"{kind}_eomt/{data}/{name}", value, 1.0, (train, test), (keys[kind],), 100, described, "EoMT")


BINS_TO_80_M = (
    "{depth: {name: bins, count: 256, min_depth: 0.001, max_depth: 80.0, spacing: linear, normalisation: linear}}"
)
CROPS = {"nyuv2": {14: (420, 546), 16: (416, 544)}, "kitti": {14: (350, 700), 16: (352, 704)}}  # by patch
WIDTHS = {"s": 48, "b": 96, "l": 128, "g": 192}  # the first of DPT, an eighth of the backbone's


def _kitti(patch: int, bins: bool) -> Command:
    """Return what turns a recipe of NYUv2 into one of KITTI."""
    crop = str([*CROPS["kitti"][patch]])
    options: Command = ("--data.kb_crop", "true", "--data.crop_size", crop, "--model.target.max_depth", "80")
    options += ("--model.evaluation.cap", "[0.001, 80.0]")
    return (*options, "--model.head.outputs", BINS_TO_80_M) if bins else options


def _depth() -> Iterator[Row]:
    def row(measure: str, data: str, name: str, value: str, train: Command, head: str, patch: int) -> Row:
        layout = DATA[data].layout
        crop = ("--kb-crop",) if data == "kitti" else ()
        test = _tested("depth", layout, "--protocol", layout, *crop)
        height, width = CROPS[data][patch]
        words = f"{head}, 38,400 steps of 16 crops of {height}x{width}, rate 3e-4; RMSE to "
        words += "10 m, Eigen crop, mirror image" if data == "nyuv2" else "80 m, Garg crop, mirror image"
        tolerance = 0.02 * float(value)
        source = "DINOv3" if measure == "depth_v3" else "DINOv2"
        return Row(f"{measure}/{data}/{name}", value, tolerance, (train, test), ("rmse",), 1, words, source)

    heads = {"depth_linear1": "linear, one layer", "depth_linear4": "linear, four layers", "depth_dpt": "DPT"}
    for (measure, data), values in published.DEPTH.items():
        for name, value in values.items():
            patch, dpt = (14 if name in published.V2 else 16), measure == "depth_dpt"
            options: Command = ("--data.layout", DATA[data].layout)
            if data == "kitti":
                options += _kitti(patch, bins=not dpt)
            if patch != 14:  # recipes of DINO have the final norm, and a linear head of one layer
                options += ("--model.backbone.norm", "false")
            if measure == "depth_linear1":
                options += ("--model.backbone.layers", "last")
            elif patch != 14:
                layers = "[4, 11, 17, 23]" if "vitl" in name else "default"  # as DINOv2 measured ViT-L
                options += ("--model.backbone.layers", layers)
            if dpt:
                width = WIDTHS[name.partition("_vit")[2][0]]
                options += ("--model.head.reassemble", f"[{width}, {2 * width}, {4 * width}, {8 * width}]")
            config = f"depth/{'dpt' if dpt else 'linear'}_{'dinov2' if patch == 14 else 'dino'}"
            yield row(measure, data, name, value, _trained(config, name, *options), heads[measure], patch)
    for data, values in published.DEPTH_V3.items():
        for name, value in values.items():
            patch = 14 if name in published.V2R else 16
            options = ("--data.layout", DATA[data].layout)
            if data == "kitti":
                options += _kitti(patch, bins=True)
            elif patch == 14:
                options += ("--data.crop_size", str([*CROPS[data][patch]]))
            train = _trained("depth/linear_dinov3", name, *options)
            yield row("depth_v3", data, name, value, train, "linear, last layer, batch norm, 256 bins", patch)


def _without_training() -> Iterator[Row]:
    key, data = ("j_and_f",), ("--data", "{data}")
    words = "480 pixels, 7 frames, square neighbourhood 12, top 5, temperature 0.1"
    for name, value in published.DAVIS_V1.items():
        command = _evaluated("video", name, *data, "--protocol", "v1")
        yield Row(f"tracking/davis/{name}", value, 0.5, command, key, 100, words, "DINO")
    for measure, (patches, values) in published.DAVIS_V3.items():
        words = f"{patches} patches, 7 frames, round neighbourhood 12, top 5, temperature 0.2"
        for name, value in values.items():
            size = ("--size", str(patches * (14 if "14" in name else 16))) if patches != 60 else ()
            command = _evaluated("video", name, *data, "--protocol", "v3", *size)
            yield Row(f"{measure}/davis/{name}", value, 0.5, command, key, 100, words, "DINOv3")
    words = "class attention, 60 % of its sum, images at their own size; best head of each object "
    words += "of SegmentationObject, however small; mean over objects, then images"
    options: Command = ("--method", "attention", *data, "--layout", "voc2012", "--least", "0")
    for name, value in published.JACCARD.items():
        command = _evaluated("discovery", name, *options)
        yield Row(f"jaccard/voc2012/{name}", value, 1.0, command, ("attention", "jaccard"), 100, words, "DINO")
    words = f"randomly initialised, seed 0; {words}"
    for name, value in published.JACCARD_RANDOM.items():
        command = _evaluated("discovery", name, *options, weights=False)
        yield Row(f"jaccard_random/voc2012/{name}", value, 1.0, command, ("attention", "jaccard"), 100, words, "DINO")
    words = "AUROC of images, 1 good image in 8 rotations, shorter side 448, masks in five categories; seed 0 of the "
    words += "published mean of three"
    options = ("--layout", "mvtec", "--shots", "1", "--rotations", "8", "--foreground", "10", "--foreground-of")
    for name, value in published.ANOMALY.items():
        command = _evaluated("anomaly", name, *data, *options, *MASKED)
        yield Row(f"anomaly_1/mvtec/{name}", value, 1.0, command, ("auroc",), 100, words, "AnomalyDINO")


def _retrieval() -> Iterator[Row]:
    for (source, level, data), values in published.RETRIEVAL.items():
        scales = ("--multi-scale",) if source == "DINO" else ()
        words = "longer side 512, scales 1, 0.71, 0.5" if source == "DINO" else "longer side 224"
        card = "card" in source  # whose number of a backbone is another than the paper's
        words = f"mAP of class tokens{', protocol unknown, here' if card else ','} {words}, queries cropped"
        measure = f"retrieval_{level}{'_card' * card}"
        for name, value in values.items():
            command = _evaluated("retrieval", name, "--data", "{data}", "--layout", data, *scales)
            yield Row(f"{measure}/{data}/{name}", value, 1.5, command, (level, "map"), 100, words, source)
    words = "mAP of strong copies, class token and GeM of patches, whitened, 320 px"
    other = ("--whiten", "{data}/whiten", "--distractors", "{data}/distractors", "--readout", "class_gem")
    for name, value in published.COPIES.items():
        command = _evaluated("retrieval", name, "--data", "{data}", "--layout", "copydays", *other)
        yield Row(f"copies/copydays/{name}", value, 1.5, command, ("map",), 100, words, "DINO")


def _memories() -> Iterator[Row]:
    def row(measure: str, data: str, name: str, value: str, patches: int, temperature: float) -> Row:
        unknown = "new" if data == "ade20k" else "0"  # of VOC it is the background
        side = "504" if "14" in name else "512"
        options: Command = ("--layers", "last", "--square", "--resize", side, "--augment", "2", "--unknown", unknown)
        options += ("--hungarian", "--score-at", "input", "--patches", str(patches))
        if temperature != 0.02:
            options += ("--temperature", f"{temperature}")
        command = _evaluated("in-context", name, "--data", "{data}", "--layout", data, *options)
        words = f"mIoU, {patches:,} patches, k 30, temperature {temperature}, {side} px squares, 2 views, matched"
        words += "; 151 classes in memory and in the mean" if data == "ade20k" else ""
        source = "open-hummingbird" if temperature == 0.02 else "DIP"
        return Row(f"{measure}/{data}/{name}", value, 2.0, command, ("miou_hungarian",), 100, words, source)

    for patches, values in published.IN_CONTEXT.items():
        for name, value in values.items():
            yield row(f"in_context_{patches}", "voc2012_aug", name, value, patches, 0.02)
    for data, values in published.IN_CONTEXT_WARM.items():
        for name, value in values.items():
            yield row("in_context_warm", data, name, value, 10_240_000, 0.07)
