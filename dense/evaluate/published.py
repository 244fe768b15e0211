"""Published numbers, and the commands that measure them here, given the data and the weights.

Sources: the papers and model cards of DINO (2021), DINOv2 (2023), registers (2023) and DINOv3 (2025); of memories
the reproduction of Hummingbird and DIP (2025). Values are in
percent, root mean squared errors in metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dense.data.labelled.layouts import LAYOUTS
from dense.suggest import did_you_mean

Command = tuple[str, ...]  # words after `dense`; {data}, {weights} and {output} are replaced

DATA = {  # name -> (title, layout of `dense train`, what lies in its folder)
    "imagenet": ("ImageNet-1k", "", ("train", "val")),
    "ade20k": ("ADE20K", "ade20k", ("images/training", "annotations/training", "images/validation")),
    "voc2012": ("Pascal VOC 2012", "voc2012", ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")),
    "voc2012_aug": ("Pascal VOC 2012", "voc2012_aug", ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation")),
    "cityscapes": ("Cityscapes", "cityscapes", ("leftImg8bit/train", "gtFine/train", "leftImg8bit/val")),
    "nyuv2": ("NYUv2", "nyuv2", ()),
    "kitti": ("KITTI, Eigen split", "kitti_eigen", ()),
    "davis": ("DAVIS-2017", "", ("JPEGImages/480p", "Annotations/480p", "ImageSets/2017")),
    "roxford5k": ("Revisited Oxford", "", ("jpg", "gnd_roxford5k.pkl")),
    "rparis6k": ("Revisited Paris", "", ("jpg", "gnd_rparis6k.pkl")),
    "copydays": ("Copydays with distractors", "", ("original", "strong", "distractors", "whiten")),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A published number.

    Args:
        name: MEASURE/DATA/BACKBONE.
        value: as published.
        tolerance: a difference that other weights of the head, another order of images or rounding explain.
        commands: what measures it, in order; the last one writes {output}/result/results.json.
        key: the number in that file, a path of names.
        factor: from that number to the published unit.
        protocol: its constants in words.
        source: where it was published.
    """

    name: str
    value: float
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

    def missing(self, data: Path | None, weights: str | None) -> list[str]:
        """Return everything that this row needs and that is not there."""
        title, layout, inside = DATA[self.data]
        lacks = []
        if data is None:
            lacks.append(f"--data FOLDER: {title}{' with ' + ', '.join(inside) if inside else ''}")
        elif not data.is_dir():
            lacks.append(f"--data {data}: no such folder; expected {title}")
        else:
            roots = [data / folder for folder in (LAYOUTS[layout].folders if layout else ("",))]
            lacks += [f"{data / place} ({title})" for place in inside if not any((r / place).exists() for r in roots)]
        if weights is None:
            lacks.append(f"--weights FILE: published weights of {self.backbone}, or timm to download them")
        elif weights not in ("timm", "hub") and not Path(weights).exists():
            lacks.append(f"--weights {weights}: no such file")
        return lacks

    def filled(self, **places: str) -> list[list[str]]:
        """Return the commands with {data}, {weights} and {output} replaced."""

        def whole(word: str) -> str:
            for place, value in places.items():
                word = word.replace(f"{{{place}}}", value)
            return word

        return [[whole(word) for word in command] for command in self.commands]


def _backbone(name: str) -> Command:
    return ("--backbone", name, "--weights", "{weights}")


def _trained(config: str, name: str, *options: str) -> Command:
    chosen = ("--model.backbone.name", name, "--model.backbone.weights", "{weights}")
    return ("train", "--config", config, "--data.root", "{data}", *chosen, *options, "--output", "{output}/run")


def _measured(what: str, layout: str, *options: str) -> Command:
    place = ("{output}/run/model", "--data", "{data}", "--layout", layout)
    return ("evaluate", what, *place, *options, "--output", "{output}/result")


BINS_TO_80_M = (
    "{depth: {name: bins, count: 256, min_depth: 0.001, max_depth: 80.0, spacing: linear, normalisation: linear}}"
)
V2 = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
V2R = tuple(f"{name}_reg" for name in V2)
V3 = ("dinov3_vits16", "dinov3_vits16plus", "dinov3_vitb16", "dinov3_vitl16", "dinov3_vith16plus", "dinov3_vit7b16")
CNN = tuple(f"dinov3_convnext_{size}" for size in ("tiny", "small", "base", "large"))
V1 = ("dino_resnet50", "dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8")


def _named(names: tuple[str, ...], *values: float) -> dict[str, float]:
    return dict(zip(names, values, strict=True))


def _classification() -> Iterator[Row]:
    train_val = ("--train", "{data}/train", "--val", "{data}/val", "--output", "{output}/result")
    knn = {
        "DINO": _named(V1, 67.5, 74.5, 78.3, 76.1, 77.4),
        "iBOT": _named(("ibot_vits16", "ibot_vitb16", "ibot_vitl16"), 75.2, 77.1, 78.0),
        "DINOv2": _named(V2, 79.0, 82.1, 83.5, 83.5) | _named(V2R, 79.1, 82.0, 83.8, 83.7),
    }
    for source, values in knn.items():
        for name, value in values.items():
            words = "class token, k 20, temperature 0.07, shorter side 256, crop 224"
            command = ("evaluate", "knn", *_backbone(name), *train_val)
            yield Row(f"knn/imagenet/{name}", value, 0.3, (command,), ("top1 k=20",), 100, words, source)
    linear = {
        "DINO": ("dino", _named(V1, 75.3, 77.0, 79.7, 78.2, 80.1)),
        "iBOT": ("dino", _named(("ibot_vits16", "ibot_vitb16", "ibot_vitl16"), 77.9, 79.5, 81.0)),
        "DINOv2": ("dinov2", _named(V2, 81.1, 84.5, 86.3, 86.5) | _named(V2R, 80.9, 84.6, 86.7, 87.1)),
    }
    for source, (recipe, values) in linear.items():
        for name, value in values.items():
            words = {"dino": "100 epochs of SGD", "dinov2": "13 rates x 4 readouts, 12,500 steps, best on val"}[recipe]
            command = ("evaluate", "linear", *_backbone(name), "--recipe", recipe, *train_val)
            yield Row(f"linear/imagenet/{name}", value, 0.4, (command,), ("top1",), 100, words, source)


def _segmentation() -> Iterator[Row]:
    single = {
        "ade20k": _named(V2, 44.3, 47.3, 47.7, 49.0),
        "cityscapes": _named(V2, 66.6, 69.4, 70.3, 71.3),
        "voc2012_aug": _named(V2, 81.1, 82.5, 82.1, 83.0),
    }
    several = {
        "ade20k": _named(V2, 47.2, 51.3, 53.1, 53.0),
        "cityscapes": _named(V2, 77.1, 80.0, 80.9, 81.0),
        "voc2012_aug": _named(V2, 82.6, 84.9, 86.0, 86.2),
    }
    for data, values in single.items():
        layout = DATA[data][1]
        for name, value in values.items():
            train = _trained("segmentation/linear_dinov2", name, "--data.layout", layout)
            test = _measured("segmentation", layout, "--protocol", "slide_512", "--window", "518", "--resize", "518")
            words = "linear, last layer, 40,000 steps of 16, crops 518, windows 518"
            yield Row(f"segmentation/{data}/{name}", value, 1.0, (train, test), ("miou",), 100, words, "DINOv2")
    for data, values in several.items():
        layout = DATA[data][1]
        for name, value in values.items():
            options = ("--data.layout", layout, "--model.backbone.layers", "last4", "--data.crop_size", "644")
            train = _trained("segmentation/linear_dinov2", name, *options)
            words = "linear, last four layers, crops 644, five scales and the mirror image, windows 640"
            test = _measured("segmentation", layout, "--protocol", "dinov2_ms")
            yield Row(f"segmentation_ms/{data}/{name}", value, 1.0, (train, test), ("miou",), 100, words, "DINOv2")
    third = _named((*V3, *CNN), 47.0, 48.8, 51.8, 54.9, 54.8, 55.9, 42.7, 44.8, 46.3, 47.8)
    third |= _named(V2R, 45.5, 48.4, 48.8, 49.5)
    for name, value in third.items():
        train = _trained("segmentation/linear_dinov3", name)
        test = _measured("segmentation", "ade20k", "--protocol", "slide_512")
        words = "linear, last layer, dropout 0.1, batch norm, crops 512, windows 512"
        row = f"segmentation_v3/ade20k/{name}"
        yield Row(row, value, 1.0, (train, test), ("miou",), 100, words, "DINOv3")


def _depth() -> Iterator[Row]:
    published = {
        ("depth_linear4", "nyuv2"): _named(V2, 0.417, 0.362, 0.333, 0.298),
        ("depth_linear4", "kitti"): _named(V2, 2.86, 2.59, 2.50, 2.35),
        ("depth_linear1", "nyuv2"): _named(V2, 0.449, 0.399, 0.384, 0.344),
        ("depth_linear1", "kitti"): _named(V2, 3.10, 2.90, 2.78, 2.62),
        ("depth_dpt", "nyuv2"): _named(V2, 0.356, 0.317, 0.293, 0.279),
        ("depth_dpt", "kitti"): _named(V2, 2.34, 2.23, 2.14, 2.11),
    }
    widths = {"s": 48, "b": 96, "l": 128, "g": 192}  # an eighth of the backbone's
    for (measure, data), values in published.items():
        layout = DATA[data][1]
        for name, value in values.items():
            config = "depth/dpt_dinov2" if measure == "depth_dpt" else "depth/linear_dinov2"
            options = ["--data.layout", layout]
            if data == "kitti":
                kitti = "[0.001, 80.0]"
                options += [
                    "--data.kb_crop",
                    "true",
                    "--data.crop_size",
                    "[350, 700]",
                    "--model.target.max_depth",
                    "80",
                ]
                options += ["--model.evaluation.cap", kitti]
                if measure != "depth_dpt":
                    options += ["--model.head.outputs", BINS_TO_80_M]
            if measure == "depth_linear1":
                options += ["--model.backbone.layers", "last"]
            if measure == "depth_dpt":
                width = widths[name[10]]
                options += ["--model.head.reassemble", f"[{width}, {2 * width}, {4 * width}, {8 * width}]"]
                options += ["--model.backbone.layers", "default" if name[10] != "g" else "9,19,29,39"]
            train = _trained(config, name, *options)
            kb = ("--kb-crop",) if data == "kitti" else ()
            test = _measured("depth", layout, "--protocol", layout, *kb)
            head = {"depth_linear1": "linear, one layer", "depth_linear4": "linear, four layers", "depth_dpt": "DPT"}
            words = f"{head[measure]}; RMSE, {'Eigen' if data == 'nyuv2' else 'Garg'} crop, mirror image"
            yield Row(f"{measure}/{data}/{name}", value, 0.02 * value, (train, test), ("rmse",), 1, words, "DINOv2")
    third = _named((*V3, *CNN), 0.403, 0.399, 0.373, 0.352, 0.352, 0.309, 0.448, 0.432, 0.420, 0.403)
    for name, value in third.items():
        commands = (_trained("depth/linear_dinov3", name), _measured("depth", "nyuv2", "--protocol", "nyuv2"))
        words = "linear, last layer, 256 bins; RMSE, Eigen crop, mirror image"
        yield Row(f"depth_v3/nyuv2/{name}", value, 0.02 * value, commands, ("rmse",), 1, words, "DINOv3")


def _without_training() -> Iterator[Row]:
    davis = {
        "v1": ("DINO", _named(V1[1:], 61.8, 69.9, 62.3, 71.4), "480 pixels, 7 frames, neighbourhood 12, top 5"),
        "v3": (
            "DINOv3",
            _named((*V3, *V2R[:3]), 72.7, 75.5, 77.2, 79.9, 79.3, 79.7, 73.6, 72.9, 73.4),
            "60 patches, 7 frames, neighbourhood 12, top 5, temperature 0.2",
        ),
    }
    for protocol, (source, values, words) in davis.items():
        for name, value in values.items():
            tail = ("--data", "{data}", "--protocol", protocol, "--output", "{output}/result")
            command = ("evaluate", "video", *_backbone(name), *tail)
            yield Row(f"tracking/davis/{name}", value, 0.5, (command,), ("j_and_f",), 100, words, source)
    place = ("--data", "{data}", "--layout", "voc2012", "--output", "{output}/result")
    for name, value in _named(V1[1:3], 45.9, 44.7).items():
        words = "class attention, 60 % of its sum, best head"
        command = ("evaluate", "discovery", *_backbone(name), "--method", "attention", *place)
        yield Row(f"jaccard/voc2012/{name}", value, 1.0, (command,), ("attention", "jaccard"), 100, words, "DINO")


def _retrieval() -> Iterator[Row]:
    published = {
        ("DINO", "medium", "roxford5k"): {"dino_vits16": 41.8},
        ("DINO", "hard", "roxford5k"): {"dino_vits16": 13.7},
        ("DINO", "medium", "rparis6k"): {"dino_vits16": 63.1},
        ("DINO", "hard", "rparis6k"): {"dino_vits16": 34.4},
        ("DINOv3", "hard", "roxford5k"): {"dinov2_vitg14_reg": 58.2, "dinov3_vit7b16": 60.7},
        ("DINOv3", "hard", "rparis6k"): {"dinov2_vitg14_reg": 84.6, "dinov3_vit7b16": 87.1},
    }
    for (source, level, data), values in published.items():
        scales = ("--multi-scale",) if source == "DINO" else ()
        words = "longer side 512, scales 1, 0.71, 0.5" if source == "DINO" else "longer side 224"
        words = f"mAP of class tokens, {words}, queries cropped"
        tail = ("--data", "{data}", "--layout", data, *scales, "--output", "{output}/result")
        for name, value in values.items():
            command = ("evaluate", "retrieval", *_backbone(name), *tail)
            yield Row(f"retrieval_{level}/{data}/{name}", value, 1.5, (command,), (level, "map"), 100, words, source)
    words = "mAP of strong copies, class token and GeM of patches, whitened, 320 px"
    other = ("--whiten", "{data}/whiten", "--distractors", "{data}/distractors", "--readout", "class_gem")
    tail = ("--data", "{data}", "--layout", "copydays", *other, "--output", "{output}/result")
    for name, value in {"dino_vitb16": 81.7, "dino_vitb8": 85.5}.items():
        command = ("evaluate", "retrieval", *_backbone(name), *tail)
        yield Row(f"copies/copydays/{name}", value, 1.5, (command,), ("map",), 100, words, "DINO")


def _memories() -> Iterator[Row]:
    published = {
        "102400": (37.2, 44.9, 70.2, 69.1, 64.6, 62.3),
        "1024000": (43.1, 50.8, 74.9, 74.6, 71.7, 69.9),
        "10240000": (46.6, 55.7, 77.0, 76.9, 74.8, 73.6),
    }
    names = ("dino_vits16", "dino_vitb16", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
    both = ("--layers", "last", "--square", "--resize", "504", "--augment", "2", "--unknown", "0", "--hungarian")
    tail = ("--data", "{data}", "--layout", "voc2012_aug", *both)
    words = "mIoU, {} patches, k 30, temperature {}, 504 px squares, 2 views, matched"
    for patches, values in published.items():
        for name, value in _named(names, *values).items():
            command = ("evaluate", "in-context", *_backbone(name), *tail, "--patches", patches)
            command = (*command, "--output", "{output}/result")
            said = words.format(f"{int(patches):,}", 0.02)
            yield Row(
                f"in_context_{patches}/voc2012_aug/{name}", value, 2.0, (command,), ("miou_hungarian",), 100, said,
                "open-hummingbird",
            )  # fmt: skip
    command = ("evaluate", "in-context", *_backbone("dinov2_vits14_reg"), *tail, "--patches", "10240000")
    command = (*command, "--temperature", "0.07", "--output", "{output}/result")
    said = words.format("10,240,000", 0.07)
    yield Row(
        "in_context_warm/voc2012_aug/dinov2_vits14_reg", 79.4, 2.0, (command,), ("miou_hungarian",), 100, said, "DIP"
    )


def rows() -> dict[str, Row]:
    """Return all rows by name."""
    every = (*_classification(), *_segmentation(), *_depth(), *_without_training(), *_retrieval(), *_memories())
    return {row.name: row for row in every}


def find_row(name: str) -> Row:
    """Return a row by its name, or raise with the nearest ones."""
    known = rows()
    if name not in known:
        raise ValueError(f"unknown row {name!r}.{did_you_mean(name, known)} `dense reproduce` lists all")
    return known[name]


def markdown() -> str:
    """Return the rows as tables, one per measure and data, with the commands of the first row of each."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows().values():
        groups.setdefault((row.measure, row.data, row.source), []).append(row)
    parts: list[str] = []
    for (measure, data, source), inside in groups.items():
        commands = inside[0].filled(data="DATA", weights="FILE", output="RUN")
        unit = "percent" if inside[0].factor == 100 else "metres"
        parts += [
            f"### {measure}/{data}, {source}", "", f"{DATA[data][0]}, in {unit}: {inside[0].protocol}.", "", "```text",
            *(_wrapped(["dense", *command]) for command in commands), "```", "",
            "| backbone | published | measured here |", "|---|---|---|",
            *(f"| {row.backbone} | {row.value:g} | not run: needs {DATA[data][0]} |" for row in inside), "",
        ]  # fmt: skip
    return "\n".join(parts)


def _wrapped(words: list[str], width: int = 118) -> str:
    """Return a command on lines that end in a backslash."""
    lines, line = [], ""
    for word in (f'"{w}"' if " " in w else w for w in words):
        if line and len(line) + len(word) + 3 > width:
            lines.append(f"{line} \\")
            line = " "
        line = f"{line} {word}" if line else word
    return "\n".join([*lines, line])
