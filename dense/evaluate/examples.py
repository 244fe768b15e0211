"""Labelled pictures of a training and a validation set: opened, compared and loaded, damaged ones skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dense.data.images import ImageError
from dense.data.pictures import FolderPictures, Pictures, ScenePictures, open_pictures
from dense.data.workers import init_worker
from dense.evaluate.views import View
from dense.suggest import did_you_mean

Draw = tuple[int, int]  # epoch, index


class Batch(NamedTuple):
    """What a loader gives: pictures that could be read, and errors of those that could not."""

    images: Tensor  # B, 3, S, S uint8
    labels: Tensor  # B
    skipped: list[str]


@dataclass
class Examples:
    """Pictures of a set that have a label, and those that turned out to be unreadable."""

    source: str
    pictures: Pictures
    labels: NDArray[np.int64]  # len(pictures), 0 to number of classes - 1; -1 for a picture without a class
    classes: tuple[str, ...]
    skipped: set[str] = field(default_factory=set)  # why

    @property
    def indices(self) -> NDArray[np.int64]:
        """Of the labelled pictures."""
        return np.flatnonzero(self.labels >= 0)

    def __len__(self) -> int:
        return int((self.labels >= 0).sum())

    def share(self, rank: int, world: int) -> Examples:
        """Every `world`-th of the labelled pictures, from the `rank`-th on."""
        labels = np.full_like(self.labels, -1)
        own = self.indices[rank::world]
        labels[own] = self.labels[own]
        return replace(self, labels=labels)

    def batches(
        self, view: View, batch_size: int, *, workers: int = 0, seed: int = 0, epochs: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Batches in order, once; or shuffled and whole ones only, a pass for each of `epochs`."""
        draws = _Order(self.indices, batch_size, seed, epochs)
        loader = DataLoader(
            _Views(self, view, seed),
            batch_sampler=draws,
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=init_worker,
            generator=torch.Generator().manual_seed(seed),  # or the global one would move
        )
        for batch in loader:
            self.skipped.update(batch.skipped)
            yield batch


def open_examples(
    train: str, val: str, *, scenes: tuple[int, int] = (2000, 500), size: int = 96, seed: int = 0
) -> tuple[Examples, Examples]:
    """Training and validation pictures whose classes agree; see `open_pictures` for what may be named.

    scenes, size, seed: how many embedded scenes each set has, their side and their seed.
    """
    if train == val or (Path(train).exists() and Path(val).exists() and Path(train).samefile(val)):
        raise ValueError(f"train and val are both {train}; each picture would be its own answer")
    opened = [open_pictures(root, length=n, size=size, seed=seed) for root, n in zip((train, val), scenes, strict=True)]
    first, second = (_names(source, root) for source, root in zip(opened, (train, val), strict=True))
    unknown = [name for name in second.values() if name not in set(first.values())]
    if unknown:
        known = sorted(first.values())
        raise ValueError(
            f"val ({val}) has {len(unknown)} of {len(second)} classes that train ({train}) lacks: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; train has {', '.join(known[:5])}"
            f"{', ...' if len(known) > 5 else ''}.{did_you_mean(unknown[0], known)}"
        )
    if len(first) < 2:
        raise ValueError(f"train ({train}) has one class alone, {', '.join(first.values())}; expected two or more")
    numbers = {name: number for number, name in enumerate(first.values())}
    classes = tuple(numbers)
    return (
        Examples(train, opened[0], _renumber(opened[0], first, numbers), classes),
        Examples(val, opened[1], _renumber(opened[1], second, numbers), classes),
    )


def _names(pictures: Pictures, root: str) -> dict[int, str]:
    """Label -> name of each class that occurs."""
    labels = pictures.labels
    if labels is None:
        raise ValueError(
            f"the pictures of {root} have no classes; expected one folder a class, {root}/CLASS/picture.jpg"
        )
    if isinstance(pictures, ScenePictures):  # also those that a short series lacks
        return dict(enumerate(pictures.scenes.classes[2:], start=2))
    occurring = [int(label) for label in np.unique(labels) if label >= 0]
    if isinstance(pictures, FolderPictures):
        return {label: pictures.classes[label] for label in occurring}
    return {label: str(label) for label in occurring}


def _renumber(pictures: Pictures, names: dict[int, str], numbers: dict[str, int]) -> NDArray[np.int64]:
    labels = pictures.labels
    assert labels is not None
    table = np.full(max(names) + 2, -1, np.int64)  # the last entry serves label -1
    for label, name in names.items():
        table[label] = numbers[name]
    return table[labels]


class _Views(Dataset[tuple[NDArray[np.uint8] | str, int]]):
    """A picture's view and label, or why there is none."""

    def __init__(self, examples: Examples, view: View, seed: int) -> None:
        self.pictures, self.labels, self.view, self.seed = examples.pictures, examples.labels, view, seed

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8] | str, int]:
        epoch, index = draw
        try:
            image = self.pictures.read(index)
        except ImageError as error:
            return str(error), -1
        return self.view(image, (self.seed, epoch, index)), int(self.labels[index])


class _Order:
    """Batches of (epoch, index)."""

    def __init__(
        self, indices: NDArray[np.int64], batch_size: int, seed: int, epochs: Sequence[int] | None = None
    ) -> None:
        self.indices, self.batch_size, self.seed, self.epochs = indices, min(batch_size, len(indices)), seed, epochs

    def __iter__(self) -> Iterator[list[Draw]]:
        if self.epochs is None:
            for start in range(0, len(self.indices), self.batch_size):
                yield [(0, int(i)) for i in self.indices[start : start + self.batch_size]]
            return
        for epoch in self.epochs:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.indices)
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield [(epoch, int(i)) for i in order[start : start + self.batch_size]]


def _collate(samples: list[tuple[NDArray[np.uint8] | str, int]]) -> Batch:
    good = [(image, label) for image, label in samples if not isinstance(image, str)]
    bad = [image for image, _ in samples if isinstance(image, str)]
    if not good:
        return Batch(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), bad)
    images = torch.from_numpy(np.stack([image for image, _ in good])).permute(0, 3, 1, 2).contiguous()
    return Batch(images, torch.tensor([label for _, label in good]), bad)
