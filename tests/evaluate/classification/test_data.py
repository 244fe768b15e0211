"""Views against torchvision, and sets of images that agree, or say why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from dense.evaluate.classification.data import AsItIs, CenterCrop, Examples, RandomCrop, open_examples
from tests.evaluate.images import folder


@pytest.mark.parametrize("size", [(300, 401), (517, 256), (256, 256), (90, 61)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (65, 64), (48, 48)])
def test_center_crop_is_torchvisions(size: tuple[int, int], resize: int, crop: int) -> None:
    """Pixel for pixel, landscape and portrait, odd margins, enlarging and shrinking."""
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    theirs = tv.Compose([tv.Resize(resize, tv.InterpolationMode.BICUBIC), tv.CenterCrop(crop)])(Image.fromarray(image))
    assert np.array_equal(CenterCrop(resize, crop)(image), np.asarray(theirs))
    with pytest.raises(ValueError, match="does not fit"):
        CenterCrop(100, 101)


def test_random_crop_draws_as_torchvision() -> None:
    """The same distribution of boxes: mean area, shape and place, and their spread."""
    view, height, width = RandomCrop(), 120, 200
    rng = np.random.default_rng(0)
    mine = np.array([view.box(rng, height, width) for _ in range(4000)], float)
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    theirs = np.array([tv.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], float)
    for a, b in ((mine, theirs), (mine[:, 2] * mine[:, 3], theirs[:, 2] * theirs[:, 3])):
        error = np.sqrt((a.var(0) + b.var(0)) / 4000)
        assert (np.abs(a.mean(0) - b.mean(0)) < 4.5 * error).all()
        assert (np.abs(a.std(0) / b.std(0) - 1) < 0.08).all()
    thin = RandomCrop().box(rng, 4, 300)
    assert thin[2] == 4
    assert thin[3] <= 5


def test_random_crop_is_a_function_of_its_draw() -> None:
    """Same numbers, same crop; another epoch, another; half of them mirrored."""
    image = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (64, 1, 3))
    view = RandomCrop(32)
    assert np.array_equal(view(image, (0, 1, 2)), view(image, (0, 1, 2)))
    assert not np.array_equal(view(image, (0, 1, 2)), view(image, (0, 2, 2)))
    mirrored = [int(crop[0, 0, 0]) > int(crop[0, -1, 0]) for crop in (view(image, (0, 0, i)) for i in range(300))]
    assert 0.4 < np.mean(mirrored) < 0.6


def test_damaged_images_are_skipped_and_counted(tmp_path: Path) -> None:
    """All others arrive in order with the right labels, also from workers."""
    train, val = folder(tmp_path / "train", 3), folder(tmp_path / "val", 2)
    (train / "green" / "1.png").write_bytes(b"")
    (train / "lonely.png").write_bytes(b"not in a class")
    first, second = open_examples(str(train), str(val))
    assert first.classes == second.classes == ("blue", "green", "red")
    assert (len(first), len(second)) == (9, 6)
    for workers in (0, 2):
        first.skipped.clear()
        batches = list(first.batches(CenterCrop(32, 32), 4, workers=workers))
        assert torch.cat([b.labels for b in batches]).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
        assert [reason.split("/")[-1] for reason in first.skipped] == ["1.png is empty (0 bytes)"]
        for batch in batches:
            means = batch.images.float().mean((2, 3))
            assert means.argmax(1).tolist() == [{0: 2, 1: 1, 2: 0}[int(label)] for label in batch.labels]


def test_training_order(tmp_path: Path) -> None:
    """Each pass shows every image once, in another order, in whole batches; the global random state stays."""
    folder(tmp_path / "train", 4)
    folder(tmp_path / "val", 1)
    train, _ = open_examples(str(tmp_path / "train"), str(tmp_path / "val"))
    state = torch.get_rng_state()
    labels = [b.labels.tolist() for b in train.batches(CenterCrop(32, 32), 6, seed=1, epochs=range(2))]
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(batch) for batch in labels] == [6] * 4
    assert sorted(labels[0] + labels[1]) == sorted(labels[2] + labels[3]) == [0] * 4 + [1] * 4 + [2] * 4
    assert labels[:2] != labels[2:]
    assert [len(b.labels) for b in train.batches(CenterCrop(32, 32), 5, epochs=[0])] == [5, 5]
    assert [len(b.labels) for b in train.batches(CenterCrop(32, 32), 50, epochs=[0])] == [12]


def test_classes_must_agree(tmp_path: Path) -> None:
    """A class that only val has is named; one that val lacks keeps the numbers of train."""
    train = folder(tmp_path / "train", 1)
    (folder(tmp_path / "odd", 1, classes=("red",)) / "red").rename(tmp_path / "odd" / "gren")
    with pytest.raises(ValueError, match=r"1 of 1 classes that train .* lacks: gren; .*Did you mean green"):
        open_examples(str(train), str(tmp_path / "odd"))
    _, val = open_examples(str(train), str(folder(tmp_path / "val", 2, classes=("green", "red"))))
    assert val.labels.tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="its own target"):
        open_examples(str(train), str(tmp_path / "val" / ".." / "train"))
    with pytest.raises(ValueError, match="have no classes"):
        open_examples(str(train / "red"), str(tmp_path / "val"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_examples(str(train), str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="a single class"):
        open_examples(str(folder(tmp_path / "one", 1, classes=("red",))), str(folder(tmp_path / "uno", 1, 1, ("red",))))


def test_scenes_have_all_solids_as_classes() -> None:
    """However few scenes there are, both sets number the solids alike."""
    train, val = open_examples("scenes:train", "scenes:val", scenes=(3, 2), size=32)
    assert isinstance(train, Examples)
    assert len(train.classes) == 12
    assert train.classes[0] == "sphere"
    wanted = train.images.labels
    assert wanted is not None
    assert train.labels.tolist() == (wanted - 2).tolist()
    assert next(val.batches(AsItIs(), 8)).images.shape == (2, 3, 32, 32)
