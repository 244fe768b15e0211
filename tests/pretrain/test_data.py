"""From images to batches of views: damaged files never stop a run, and the number of workers changes nothing."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dense.cli import in_words
from dense.data.image import ImageError
from dense.data.loader import init_worker
from dense.data.sampler import IndexSampler
from dense.data.unlabelled import FolderImages
from pretrain.data import BadImages, PretrainData, ViewBatch, ViewsOf, collate
from pretrain.views import MultiCrop

VIEWS = MultiCrop(16, 8, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of several kinds; numbers 2, 5 and 9 cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(12):
        values = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
        image = Image.fromarray(values)
        if number == 1:
            image = image.convert("CMYK")
        if number == 3:
            image = Image.fromarray(values[..., 0].astype(np.uint16) * 256)
        if number == 4:
            image = image.convert("P")
        if number == 6:
            image = image.convert("LA")
        image.save(root / f"{number:02d}{'.jpg' if number in (0, 1) else '.png'}")
    (root / "02.png").write_bytes(b"")
    (root / "05.png").write_bytes((root / "07.png").read_bytes()[:300])
    (root / "09.png").write_text("not an image")
    return root


def batches(folder: Path, workers: int, start: int = 0, count: int = 12) -> list[ViewBatch]:
    """Batches of five of the folder."""
    loader = DataLoader(
        ViewsOf(FolderImages(folder), VIEWS, seed=3),
        batch_sampler=IndexSampler(12, 5, seed=3, start_step=start),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=init_worker,
    )
    return list(islice(loader, count))


def same(a: ViewBatch, b: ViewBatch) -> bool:
    """Return whether two batches are equal in every byte."""
    views = all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
    return views and torch.equal(a.images, b.images) and torch.equal(a.bad, b.bad)


def test_batches(folder: Path) -> None:
    """Crop-major uint8 stacks, and only images that can be read."""
    whole = batches(folder, 0)
    for batch in whole:
        assert [tuple(v.shape) for v in batch.views] == [(5, 3, 16, 16)] * 2 + [(5, 3, 8, 8)] * 2
        assert all(v.dtype == torch.uint8 for v in batch.views)
        assert not set(batch.images.tolist()) & {2, 5, 9}
    assert set(torch.cat([b.bad for b in whole]).tolist()) == {2, 5, 9}
    assert set(torch.cat([b.images for b in whole]).tolist()) == set(range(12)) - {2, 5, 9}


def test_workers_and_late_starts_change_nothing(folder: Path) -> None:
    """With 0 and 2 workers, from the start and from the middle of an epoch."""
    whole = batches(folder, 0)
    assert all(same(a, b) for a, b in zip(batches(folder, 2), whole, strict=True))
    assert all(same(a, b) for a, b in zip(batches(folder, 2, start=3, count=9), whole[3:], strict=True))
    assert not same(whole[0], whole[1])


def test_views_differ_between_epochs(folder: Path) -> None:
    """In the next epoch an image has other views, and an unreadable one another replacement."""
    data = ViewsOf(FolderImages(folder), VIEWS)
    first, again, other = data[0, 4], data[0, 4], data[1, 4]
    assert torch.equal(first.views[0], again.views[0])
    assert not torch.equal(first.views[0], other.views[0])
    assert torch.equal(data[4].views[0], first.views[0])  # a plain index is the first epoch
    assert (first.image, first.bad) == (4, [])
    assert len({data[epoch, 2].image for epoch in range(30)}) > 5
    assert all(data[epoch, 2].bad[0] == 2 for epoch in range(30))
    assert not torch.equal(ViewsOf(FolderImages(folder), VIEWS, seed=1)[0, 4].views[0], first.views[0])


def test_two_bad_images_in_a_batch_do_not_give_twins() -> None:
    """Their views differ even if one image replaces both."""

    class One:
        """Only the last image can be read."""

        labels = None

        def __len__(self) -> int:
            return 3

        def name(self, index: int) -> str:
            return str(index)

        def read(self, index: int) -> np.ndarray:
            if index < 2:
                raise ImageError(f"{index} is bad")
            return np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)

    data = ViewsOf(One(), VIEWS)
    a, b = data[0, 0], data[0, 1]
    assert a.image == b.image == 2
    assert set(a.bad) <= {0, 1}
    assert not torch.equal(a.views[0], b.views[0])


def test_nothing_can_be_read(tmp_path: Path) -> None:
    """The search ends with an explanation."""
    for number in range(150):
        (tmp_path / f"{number}.jpg").touch()
    views = ViewsOf(FolderImages(tmp_path), VIEWS)
    with pytest.raises(ImageError, match=r"none of 10\d images, tried one after the other, could be read; .* is empty"):
        views[0, 0]
    with pytest.raises(ImageError) as caught:  # of a worker process, with its traceback
        next(iter(DataLoader(views, num_workers=1, collate_fn=collate)))
    assert in_words(caught.value).startswith("none of 10") and "\n" not in in_words(caught.value)
    with pytest.raises(ValueError, match=r"none of 32 images, evenly spread .* is empty"):
        PretrainData(str(tmp_path), VIEWS)
    for number in range(150):
        (tmp_path / f"{number}.jpg").unlink()
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 40, 40), np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match=r"a.tif has 5 channels, .* --channels 5 \(--data.channels 5\)"):
        PretrainData(str(tmp_path), VIEWS)


def test_errors_of_the_views_are_raised(folder: Path) -> None:
    """Only unreadable images are replaced."""

    def broken(image: np.ndarray, seed: tuple[int, ...]) -> list[torch.Tensor]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ViewsOf(FolderImages(folder), broken)[0, 0]


def test_settings_of_older_checkpoints() -> None:
    """Their names of settings and their description of the images are understood; other settings are refused."""
    data = PretrainData("scenes:train", VIEWS, batch_size=4, workers=0, scenes=8, scene_size=32)
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1)  # type: ignore[assignment]
    state = data.state_dict()
    settings = state["settings"]
    settings["pictures a step, over all processes"] = settings.pop("images per step, over all processes")
    settings["pictures"], settings["which"] = settings.pop("images"), settings["which"].replace("images", "pictures")
    data.load_state_dict(state)
    settings["pictures"] = 9
    with pytest.raises(ValueError, match="images: 8 now, 9 then"):
        data.load_state_dict(state)


def test_the_report(folder: Path) -> None:
    """Each unreadable image is counted once and named with its reason; without one the report is empty."""
    bad = BadImages(FolderImages(folder))
    assert bad.report() == ""
    for batch in batches(folder, 0):
        bad.add(batch.bad)
    assert len(bad) == 3
    lines = bad.report().splitlines()
    assert lines[0] == "3 of 12 images could not be read and were replaced by others:"
    assert "02.png is empty" in lines[1]
    assert "05.png is damaged or truncated" in lines[2]
    assert "09.png is not an image" in lines[3]
    assert bad.report(most=1).splitlines()[2:] == ["  and 2 more"]
    bad.add([0])
    assert "00.jpg could not be read during training, but can be now" in bad.report()
