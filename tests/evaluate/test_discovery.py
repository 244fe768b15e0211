"""Metrics of what is found without labels, on predictions known by hand, and the verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dense.cli import main
from dense.data.labelled.open import open_labelled
from dense.discover import Objects, TokenCut
from dense.evaluate.discovery import Score
from dense.evaluate.objects import ObjectTarget, ObjectTargets
from dense.metrics.discovery import HungarianIoU, Saliency, box_iou, jaccard
from tests.cli.test_evaluate import BACKBONE


def box(top: int, bottom: int, left: int, right: int, size: tuple[int, int] = (10, 12)) -> torch.Tensor:
    """A mask of one rectangle."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_jaccard() -> None:
    """The best mask of each object; unknown pixels do not count."""
    objects = torch.stack([box(0, 4, 0, 4), box(5, 9, 5, 9)])
    masks = torch.stack([box(0, 4, 0, 2), box(0, 4, 0, 4), box(5, 9, 5, 11)])
    assert jaccard(masks, objects).amax(1).tolist() == [1.0, pytest.approx(16 / 24)]
    assert jaccard(masks, objects, ~box(0, 10, 9, 12))[1, 2] == 1
    assert (jaccard(torch.zeros(1, 10, 12, dtype=torch.bool), objects) == 0).all()
    with pytest.raises(ValueError, match="resize the masks"):
        jaccard(masks[..., :5], objects)


def test_box_iou() -> None:
    """Half, all and nothing."""
    found = box_iou(
        torch.tensor([[0, 0, 4, 4], [0, 0, 0, 0]]), torch.tensor([[0, 0, 4, 4], [0, 0, 4, 2], [5, 5, 6, 6]])
    )
    assert found.tolist() == [[1, 0.5, 0], [0, 0, 0]]


def test_saliency_against_scikit_learn() -> None:
    """Precision and recall at a threshold, and their best F; an image of pure ground truth scores 1."""
    metrics = pytest.importorskip("sklearn.metrics")
    soft, target = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)), box(4, 15, 6, 20, (20, 30))
    soft = soft + target * 0.4
    mask = soft > 0.8
    saliency = Saliency()
    saliency.update(soft, mask, target)
    found = saliency.compute()
    assert found["iou"] == pytest.approx(metrics.jaccard_score(target.flatten(), mask.flatten()))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(target.flatten(), mask.flatten()))
    precision, recall, _ = metrics.precision_recall_curve(target.flatten(), soft.flatten())
    assert found["max_f"] == pytest.approx(
        (1.3 * precision * recall / (0.3 * precision + recall + 1e-12)).max(), abs=0.01
    )
    perfect = Saliency()
    perfect.update(target.float(), target, target)
    assert perfect.compute() == {"max_f": 1.0, "iou": 1.0, "accuracy": 1.0}


def test_hungarian_matching() -> None:
    """Numbers of regions do not matter; a class without a region counts 0; ignored pixels do not count."""
    labels = torch.tensor([[[0, 0, 1, 1, 2, 2, 255, 255]]])
    matching = HungarianIoU(3, 4)
    matching.update(torch.tensor([[[2, 2, 0, 0, 1, 1, 1, 0]]]), labels)
    assert matching.compute() == {"miou": 1.0, "accuracy": 1.0}
    fewer = HungarianIoU(2, 4)
    fewer.update(torch.tensor([[[1, 1, 0, 0, 0, 0, 0, 0]]]), labels)
    assert fewer.compute()["miou"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_scores_of_a_known_prediction() -> None:
    """A mask on one of two objects: Jaccard of both, a hit, and what saliency makes of it."""
    objects = torch.stack([box(1, 5, 1, 5), box(6, 9, 6, 11)])
    labels = objects.any(0).to(torch.uint8).numpy()
    target = ObjectTarget(np.zeros((10, 12, 3), np.uint8), objects.numpy(), labels)
    score = Score(TokenCut(), 2)
    score.add(Objects(objects[None, :1], torch.ones(1, 1), objects[None, :1].float()), target)
    numbers = score.numbers()
    assert numbers["jaccard"] == 0.5
    assert numbers["corloc"] == 1
    assert numbers["iou"] == pytest.approx(16 / 31)
    nothing = Score(TokenCut(), 2)
    nothing.add(
        Objects(torch.zeros(1, 1, 10, 12, dtype=torch.bool), torch.zeros(1, 1), torch.zeros(1, 1, 5, 6)), target
    )
    assert nothing.numbers()["corloc"] == nothing.numbers()["jaccard"] == 0


def voc(root: Path, instances: bool) -> Path:
    """One image in VOC's layout, with two objects of one class that touch."""
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "JPEGImages/a.jpg")
    classes, numbers = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    classes[5:15, 5:25], numbers[5:15, 5:15], numbers[5:15, 15:25] = 3, 1, 2
    classes[4, :], numbers[4, :] = 255, 255
    Image.fromarray(classes).save(root / "SegmentationClass/a.png")
    if instances:
        Image.fromarray(numbers).save(root / "SegmentationObject/a.png")
    return root


def test_target(tmp_path: Path) -> None:
    """Instances where VOC has them, else what hangs together; scenes bring theirs; small objects are left out."""
    exact = ObjectTargets(open_labelled(voc(tmp_path / "a", True), "val", layout="voc2012"))
    assert exact.objects == "instances"
    assert exact[0].objects.sum((1, 2)).tolist() == [100, 100]
    assert (~exact[0].valid).sum() == 30
    parts = ObjectTargets(open_labelled(voc(tmp_path / "b", False), "val", layout="voc2012"))
    assert parts.objects == "parts, without background"
    assert parts[0].objects.sum((1, 2)).tolist() == [200]
    for place in ("JPEGImages/b.jpg", "SegmentationClass/b.png"):  # an image more, without its instances
        shutil.copy(tmp_path / "a" / place.replace("b.", "a."), tmp_path / "a" / place)
    (tmp_path / "a/ImageSets/Segmentation/val.txt").write_text("a\nb\n")
    with pytest.raises(FileNotFoundError, match=r"SegmentationObject/b\.png: no such file, one of 1 .* of 2 masks"):
        ObjectTargets(open_labelled(tmp_path / "a", "val", layout="voc2012"))
    scenes = open_labelled("scenes", "val", length=2, size=48)
    assert ObjectTargets(scenes)[0].objects.sum((1, 2)).min() >= 0.002 * 48 * 48
    assert len(ObjectTargets(scenes, least=1.0)[0].objects) == 0
    with pytest.raises(ValueError, match="Did you mean sky"):
        ObjectTargets(scenes, ["skie"])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of methods, the same for random initialisation, and a protocol that is saved."""
    command = ["evaluate", "discovery", *BACKBONE, "--data", "scenes", "--scenes", "2", "--side", "50"]
    assert (
        main([*command, "--method", "all", "--baselines", "--count", "3", "--steps", "20", "--output", str(tmp_path)])
        == 0
    )
    text = capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    methods = ["attention", "lost", "tokencut", "maskcut", "spectral", "kmeans", "cocluster", "stego"]
    assert list(found["numbers"]) == [*methods, *(f"random {name}" for name in methods)]
    assert set(found["numbers"]["tokencut"]) == {"jaccard", "corloc", "max_f", "iou", "accuracy", "miou"}
    assert set(found["numbers"]["kmeans"]) == {"jaccard", "miou"}
    assert all(0 <= value <= 1 for numbers in found["numbers"].values() for value in numbers.values())
    assert found["protocol"]["settings"]["methods"]["maskcut"]["count"] == 3
    assert "instances, at least 0.002 of the image" in text
    assert "random lost" in text
    with pytest.raises(SystemExit):
        main([*command, "--method", "lost", "--tau", "0.1"])
    assert "--tau is for tokencut, maskcut, spectral, not for lost" in capsys.readouterr().err


def test_only_masks_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Depth without depth.yaml is ignored; a folder without masks raises."""
    for folder, mode, name in (("images", "RGB", "a.png"), ("masks", "L", "a.png"), ("depth", "I;16", "a.png")):
        path = tmp_path / folder / "val" / name
        path.parent.mkdir(parents=True)
        Image.new(mode, (32, 32), 1 if mode == "L" else 0).save(path)
    (tmp_path / "classes.yaml").write_text("[background, thing]\n")
    command = ["evaluate", "discovery", *BACKBONE, "--data", str(tmp_path), "--method", "kmeans", "--count", "2"]
    assert main(command) == 0, capsys.readouterr().err
    (tmp_path / "masks").rename(tmp_path / "drawn")
    assert main(command) == 1
    assert "masks" in capsys.readouterr().err
