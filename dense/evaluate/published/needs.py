"""What a published number needs: data in a layout, and the weights of a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from dense.backbone.load import check_weights, in_timm
from dense.console import voice
from dense.data.labelled.files import FileSource
from dense.data.labelled.layouts import LAYOUTS
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import DataError


class Data(NamedTuple):
    """A data set: its title, its layout for `dense train`, and what its folder holds, as patterns of names.

    folders: each of these below the root holds all of that.
    targets: as of `open_labelled`.
    size: number of images or clips of published measurements; 0 where it is not known.
    """

    title: str
    layout: str
    inside: tuple[str, ...]
    folders: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("labels", "depth")
    size: int = 0

    @property
    def words(self) -> str:
        """The title and what the folder holds."""
        each = f" in each of {', '.join(self.folders)}" if self.folders else ""
        return f"{self.title} with {', '.join(self.inside)}{each}"


MVTEC = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip
MASKED = ("capsule", "hazelnut", "pill", "screw", "toothbrush")  # of MVTec AD, by AnomalyDINO
ADE20K = tuple(f"{kind}/{split}" for split in ("training", "validation") for kind in ("images", "annotations"))
CITYSCAPES = tuple(f"{kind}/{split}" for split in ("train", "val") for kind in ("leftImg8bit", "gtFine"))
COCO = tuple(f"{split}2017" for split in ("train", "val"))
VOC = ("JPEGImages", "ImageSets/Segmentation")
DATA = {
    "imagenet": Data("ImageNet-1k", "", ("train/n????????/*", "val/n????????/*"), size=50_000),
    "ade20k": Data("ADE20K", "ade20k", ADE20K, size=2_000),
    "voc2012": Data(
        "Pascal VOC 2012", "voc2012", (*VOC, "SegmentationClass", "SegmentationObject"), targets=("masks",), size=1_449
    ),
    "voc2012_aug": Data("Pascal VOC 2012", "voc2012_aug", (*VOC, "SegmentationClassAug"), size=1_449),
    "cityscapes": Data("Cityscapes", "cityscapes", CITYSCAPES, size=500),
    "nyuv2": Data(
        "NYUv2", "nyuv2", tuple(f"nyudepthv2_{split}_files_with_gt.txt" for split in ("train", "test")), size=654
    ),
    "kitti": Data(
        "KITTI, Eigen split",
        "kitti_eigen",
        tuple(f"eigen_{split}_files_with_gt.txt" for split in ("train", "test")),
        size=652,
    ),
    "coco": Data(
        "COCO 2017",
        "coco",
        (*COCO, *(f"annotations/instances_{split}.json" for split in COCO)),
        targets=("masks",),
        size=5_000,
    ),
    "coco_panoptic": Data(
        "COCO 2017 panoptic",
        "coco_panoptic",
        (*COCO, *(f"annotations/panoptic_{split}{end}" for split in COCO for end in ("", ".json"))),
        targets=("masks",),
        size=5_000,
    ),
    "davis": Data(
        "DAVIS-2017", "", ("JPEGImages/480p/*/*.jpg", "Annotations/480p/*/*.png", "ImageSets/2017/val.txt"), size=30
    ),
    "roxford5k": Data("Revisited Oxford", "", ("jpg/*.jpg", "gnd_roxford5k.pkl")),
    "rparis6k": Data("Revisited Paris", "", ("jpg/*.jpg", "gnd_rparis6k.pkl")),
    "copydays": Data("Copydays with distractors", "", ("original/*", "strong/*", "distractors/*", "whiten/*")),
    "mvtec": Data("MVTec AD", "", ("train/good/*", "test/*/*", "ground_truth/*/*"), MVTEC),
}


def missing(data: str, folder: Path | None, backbone: str | None, weights: str | None) -> list[str]:
    """Return everything that a row on this data and backbone needs and that is not there, or does not fit.

    backbone: whose published weights are needed, None for a row without weights.
    """
    lacks = []
    if folder is None:
        lacks.append(f"--data FOLDER: {DATA[data].words}")
    elif not folder.is_dir():
        lacks.append(f"--data {folder}: no such folder; expected {DATA[data].words}")
    else:
        lacks += _missing_data(DATA[data], folder)
    if backbone is None:
        return lacks
    published = f"published weights of {backbone}"
    download = ", or timm to download them" if in_timm(backbone) else ""
    if weights is None:
        lacks.append(f"--weights FILE: {published}{download}")
    elif weights == "hub":
        lacks.append(f"--weights hub: of a Hugging Face id, and the row has {backbone}; give a file{download}")
    elif weights == "timm":
        if not in_timm(backbone):
            lacks.append(f"--weights timm: timm has no {published}; give their file")
    elif not Path(weights).exists():
        lacks.append(f"--weights {weights}: no such file; expected {published}")
    else:
        try:
            check_weights(backbone, weights)
        except (OSError, ValueError) as error:
            lacks.append(f"--weights: {str(error).splitlines()[0].rstrip('.')}; expected {published}")
    return lacks


def _missing_data(data: Data, folder: Path) -> list[str]:
    """Return which places are not there, and what else is missing in each split of a layout, by names alone."""
    roots = [folder / part for part in (LAYOUTS[data.layout].folders if data.layout else ("",))]
    places = [f"{part}/{place}" if part else place for part in data.folders or ("",) for place in data.inside]
    places = [place for place in places if not any(any(root.glob(place)) for root in roots)]
    lacks = [f"{folder / place} ({data.title})" for place in places]
    for split in ("train", "val") if data.layout else ():
        try:
            with voice(quiet=True):
                source = open_labelled(folder, split, layout=data.layout, targets=data.targets)
            assert isinstance(source, FileSource)
            found = list(source.problems)
        except DataError as error:
            found = list(error.problems[1:] or error.problems)  # the first is that no sample is left
        except (ValueError, OSError) as error:
            found = [str(error)]
        others = [line for line in found if not any(place in line for place in places)]
        if others:
            count = f" (the first of {len(others)} problems of {split})" if len(others) > 1 else ""
            lacks.append(f"{others[0]}{count}")
    return lacks
