"""Discovery on real photographs (imagenet-sample-images) with real weights, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dense.backbone import load_backbone
from dense.data.image import read_image
from dense.discover import Objects, TokenCut, on_grid
from dense.media.inputs import resize_for_backbone, stack_normalised
from dense.metrics.discovery import box_iou

REAL = Path(os.environ.get("DENSE_REAL", "nowhere"))
BOXES = {  # left, top, right, bottom as shares of the image, drawn by hand
    "n01818515_macaw": (0.41, 0.2, 0.88, 1.0),
    "n02002556_white_stork": (0.11, 0.1, 0.9, 0.9),
    "n02058221_albatross": (0.1, 0.15, 1.0, 1.0),
    "n02085620_Chihuahua": (0.24, 0.03, 0.84, 0.9),
    "n02094258_Norwich_terrier": (0.04, 0.01, 0.97, 1.0),
    "n02099712_Labrador_retriever": (0.12, 0.0, 0.9, 1.0),
    "n02408429_water_buffalo": (0.02, 0.17, 0.73, 0.88),
    "n02606052_rock_beauty": (0.05, 0.16, 0.87, 0.8),
}


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "photos").is_dir(), reason="DENSE_REAL names no folder with photos/")
def test_the_object_of_photographs() -> None:
    """TokenCut finds at least seven of eight animals, portraits included, and is surer of them than of nothing."""
    backbone = load_backbone("dinov2_vits14", weights=REAL / "dinov2_vits14.pth", frozen=True)
    overlaps = []
    for name, box in BOXES.items():
        image = resize_for_backbone(read_image(REAL / "photos" / f"{name}.jpg"), Path(name), 224, backbone.spec.patch)
        found = on_grid(backbone, stack_normalised([image], backbone), TokenCut())
        assert isinstance(found, Objects)
        height, width = found.masks.shape[-2:]
        drawn = torch.tensor(box) * torch.tensor([width, height, width, height])
        overlaps.append(float(box_iou(found.boxes[0], drawn[None].round().long())))
        assert found.scores > 0.2
    assert sum(overlap > 0.5 for overlap in overlaps) >= 7, dict(zip(BOXES, overlaps, strict=True))
