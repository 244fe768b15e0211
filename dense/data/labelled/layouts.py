"""Layouts of published data sets: where images and targets lie, how they are stored, and the names of the classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dense.data.labelled.formats import DepthFormat, LabelFormat
from dense.data.labelled.segments import Kind, SegmentFormat

WHAT = {  # a pattern -> what it names
    "image": "image", "labels": "mask", "depth": "depth map", "clean": "clean image", "segments": "instance map",
}  # fmt: skip

ADE20K = tuple(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest
    of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool
    table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
    bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus,
    towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track,
    apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer
    belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle,
    oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board,
    shower, radiator, glass, clock, flag"""
    .replace("\n    ", " ").split(", ")
)  # fmt: skip

ADE20K_STUFF = frozenset(
    """wall, building, sky, floor, tree, ceiling, road, grass, sidewalk, earth, mountain, plant, water, house, sea, rug,
    field, rock, base, sand, skyscraper, grandstand, path, runway, stairway, river, bridge, blind, hill, bar, hovel,
    tower, dirt track, land, escalator, buffet, poster, stage, conveyer belt, canopy, swimming pool, waterfall, tent,
    cradle, tank, lake, blanket, pier, crt screen, shower"""
    .replace("\n    ", " ").split(", ")
)  # fmt: skip

VOC2012 = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

CITYSCAPES = (  # name, value in labelIds
    ("road", 7), ("sidewalk", 8), ("building", 11), ("wall", 12), ("fence", 13), ("pole", 17), ("traffic light", 19),
    ("traffic sign", 20), ("vegetation", 21), ("terrain", 22), ("sky", 23), ("person", 24), ("rider", 25), ("car", 26),
    ("truck", 27), ("bus", 28), ("train", 31), ("motorcycle", 32), ("bicycle", 33),
)  # fmt: skip
CITYSCAPES_THINGS = 11  # the first class of countable objects, and all after it


@dataclass(frozen=True)
class Layout:
    """Where the images and targets of a data set lie, as patterns of paths below its root, and how they are stored.

    image, labels, depth, clean, segments: patterns with ``{split}`` and ``{id}``, such as
        ``images/{split}/{id}.jpg``. Ids may contain folders; the ending ``.*`` stands for any extension that can be
        read. `clean` is of paired images, `segments` of maps of objects
    annotations: COCO's JSON file of a split, which lists images and segments: `image` is then a pattern of its file
        names, and `segments` of those of panoptic PNG files
    splits: name of a split -> what replaces ``{split}``. Where val is test, training holds out a fraction of train
    split_by: the images of which that fraction keeps together, see `fraction`
    ids: pattern of a text file that lists the samples of a split; None takes every file that matches the patterns
    columns: what a line of that file holds; patterns may name columns other than ``id``. A line in which a column is
        "None" is dropped
    folders: folders below the root in which all this may lie, tried in order
    label_format, depth_format, segment_format: how masks, depth and segments are stored
    evaluation_crop, depth_range: the protocol of published results: the pixels, and the metres, that are evaluated
    image_size: height and width of all images
    kb_crop: height and width of the crop that `open_labelled(kb_crop=True)` takes
    """

    name: str
    image: str
    labels: str | None = None
    depth: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "val": "val", "test": "test"})
    ids: str | None = None
    columns: tuple[str, ...] = ("id",)
    folders: tuple[str, ...] = ("",)
    label_format: LabelFormat | None = None
    depth_format: DepthFormat | None = None
    evaluation_crop: str = "none"
    depth_range: tuple[float, float] | None = None
    image_size: tuple[int, int] | None = None
    kb_crop: tuple[int, int] | None = None
    clean: str | None = None
    split_by: str | None = None
    segments: str | None = None
    segment_format: SegmentFormat | None = None
    annotations: str | None = None

    @property
    def val_is_test(self) -> bool:
        """Whether the images of `val` are those on which published results are measured."""
        return "val" in self.splits and self.splits["val"] == self.splits.get("test")

    def __post_init__(self) -> None:
        known = {"split", *self.columns}
        for what, pattern in self.patterns:
            names = set(re.findall(r"{(\w*)}", pattern))
            if wrong := sorted(names - known):
                raise ValueError(f"{what}={pattern!r} names {{{wrong[0]}}}: expected {{{'}, {'.join(sorted(known))}}}")
            if pattern.count("{id}") > 1 and (self.ids is None or pattern.endswith(".*")):
                raise ValueError(f"{what}={pattern!r}: expected {{id}} once where files are searched for")
            if not names - {"split"}:
                raise ValueError(
                    f"{what}={pattern!r}: expected {{{self.columns[0]}}} somewhere, since all samples would be one"
                )
        if self.columns != ("id",) and self.ids is None:
            raise ValueError(f"columns={self.columns}: expected ids, the file that has them")
        if self.labels is not None and self.label_format is None:
            raise ValueError(f"label_format is missing: declare what the values in {self.labels} mean")
        if self.depth is not None and self.depth_format is None:
            raise ValueError(f"depth_format is missing: declare how depth is stored in {self.depth}")
        if self.segments is not None and self.segment_format is None and self.annotations is None:
            raise ValueError(f"segment_format is missing: declare how segments are stored in {self.segments}")

    @property
    def patterns(self) -> Iterator[tuple[str, str]]:
        """The fields and patterns of everything that a sample has."""
        for what in WHAT:
            if (pattern := getattr(self, what)) is not None:
                yield what, pattern


def _cityscapes() -> LabelFormat:
    used = [value for _, value in CITYSCAPES]
    unused = (*(value for value in range(34) if value not in used), 255)
    return LabelFormat(tuple(name for name, _ in CITYSCAPES), tuple((value,) for value in used), unused)


def _segments(kind: Kind, classes: tuple[str, ...], stuff: Collection[str]) -> SegmentFormat:
    return SegmentFormat(kind, classes, tuple(name not in stuff for name in classes))


VOC = Layout(
    "voc2012",
    image="JPEGImages/{id}.jpg",
    labels="SegmentationClass/{id}.png",
    segments="SegmentationObject/{id}.png",
    segment_format=_segments("numbers", VOC2012, ("background",)),
    ids="ImageSets/Segmentation/{split}.txt",
    splits={"train": "train", "val": "val", "test": "val", "trainval": "trainval"},
    folders=("", "VOC2012", "VOCdevkit/VOC2012"),
    label_format=LabelFormat.numbered(VOC2012),
)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "ade20k",
            image="images/{split}/{id}.jpg",
            labels="annotations/{split}/{id}.png",
            segments="annotations_instance/{split}/{id}.png",
            segment_format=_segments("ade20k", ADE20K, ADE20K_STUFF),
            splits={"train": "training", "val": "validation", "test": "validation"},
            folders=("", "ADEChallengeData2016"),
            label_format=LabelFormat.numbered(ADE20K, zero_label=True, ignored=()),
        ),
        VOC,
        replace(
            VOC,
            name="voc2012_aug",
            labels="SegmentationClassAug/{id}.png",
            segments=None,
            splits={"train": "trainaug", "val": "val", "test": "val"},
        ),
        Layout(
            "cityscapes",
            image="leftImg8bit/{split}/{id}_leftImg8bit.png",
            labels="gtFine/{split}/{id}_gtFine_labelIds.png",
            segments="gtFine/{split}/{id}_gtFine_instanceIds.png",
            segment_format=_segments("cityscapes", _cityscapes().classes, _cityscapes().classes[:CITYSCAPES_THINGS]),
            splits={"train": "train", "val": "val", "test": "val"},
            label_format=_cityscapes(),
            split_by=r"([^/_]+)_[^/]*$",  # the city
        ),
        Layout(
            "coco",
            image="{split}2017/{id}",
            annotations="annotations/instances_{split}2017.json",
            splits={"train": "train", "val": "val", "test": "val"},
        ),
        Layout(
            "coco_panoptic",
            image="{split}2017/{id}",
            segments="annotations/panoptic_{split}2017/{id}",
            annotations="annotations/panoptic_{split}2017.json",
            splits={"train": "train", "val": "val", "test": "val"},
        ),
        Layout(
            "nyuv2",
            image="{image}",
            depth="{depth}",
            ids="{split}.txt",
            columns=("image", "depth", "focal"),
            splits={
                "train": "nyudepthv2_train_files_with_gt",
                "val": "nyudepthv2_test_files_with_gt",
                "test": "nyudepthv2_test_files_with_gt",
            },
            folders=("", "sync", "official_splits/test", "train_test_inputs"),
            depth_format=DepthFormat("metric", scale=1000),
            evaluation_crop="nyu_eigen",
            depth_range=(1e-3, 10.0),
            image_size=(480, 640),
            split_by=r"(?:([^/]*\d|[^/]+)[a-z]?/)?[^/]+$",  # the scene: kitchen_0028 of kitchen_0028b/rgb_00045.jpg
        ),
        Layout(
            "kitti_eigen",
            image="{image}",
            depth="{depth}",
            ids="{split}.txt",
            columns=("image", "depth", "focal"),
            splits={
                "train": "eigen_train_files_with_gt",
                "val": "eigen_test_files_with_gt",
                "test": "eigen_test_files_with_gt",
            },
            folders=(
                "", "raw", "raw_data", "gts", "data_depth_annotated", "data_depth_annotated/train",
                "data_depth_annotated/val", "train_test_inputs",
            ),
            depth_format=DepthFormat("metric", scale=256),
            evaluation_crop="garg",
            depth_range=(1e-3, 80.0),
            kb_crop=(352, 1216),
            split_by=r"(?:([^/]+)/image_0\d/.*/)?[^/]+$",  # the drive
        ),
    )
}  # fmt: skip
