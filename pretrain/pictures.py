"""Pictures become views: the data set of pretraining, which no damaged file stops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.utils.data import Dataset

from dense.data.images import ImageError
from dense.data.pictures import Pictures
from dense.data.sampler import permute
from pretrain.mixed import MixedCrops
from pretrain.processes import is_distributed

Views = Callable[[NDArray[np.uint8], tuple[int, int, int]], list[Tensor]]
ATTEMPTS = 100


class Sample(NamedTuple):
    """Views of one picture, and which pictures could not be read on the way to it."""

    views: list[Tensor]  # each (3, S, S) uint8
    picture: int  # index of the one that was read
    bad: list[int]
    gram: list[Tensor]  # each (3, S', S') uint8: what a Gram teacher sees, if anything


class Batch(NamedTuple):
    """What `collate` makes of samples."""

    views: list[Tensor]  # each (B, 3, S, S) uint8
    pictures: Tensor  # B, indices
    bad: Tensor  # any number of indices
    gram: list[Tensor]  # each (B, 3, S', S') uint8


class ViewsOf(Dataset[Sample]):
    """``dataset[epoch, index, step]``: the views of a picture, a pure function of (seed, epoch, index).

    The optimiser step, which may be left out, chooses among crops of mixed sizes.
    A picture that cannot be read is replaced by another, chosen by the same three numbers, and reported in `bad`.
    """

    def __init__(self, pictures: Pictures, views: Views, seed: int = 0) -> None:
        self.pictures, self.views, self.seed = pictures, views, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, draw: int | tuple[int, ...]) -> Sample:
        epoch, index, step = (0, draw, 0) if isinstance(draw, int) else (*draw, 0)[:3]
        crops = self.views.of_step(step, self.seed) if isinstance(self.views, MixedCrops) else self.views
        bad: list[int] = []
        for chosen in self._candidates(epoch, index):
            try:
                image = self.pictures.read(chosen)
            except ImageError as error:
                bad.append(chosen)
                reason = str(error)
            else:
                views = crops(image, (self.seed, epoch, index))
                split = len(views) - getattr(crops, "gram_crops", 0)
                return Sample(views[:split], chosen, bad, views[split:])
        raise ImageError(f"none of {len(bad)} pictures, tried one after the other, could be read; the last: {reason}")

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """The picture itself, then up to `ATTEMPTS` others in random order."""
        yield index
        for place in range(min(ATTEMPTS, len(self))):
            other = int(permute(np.array([place]), len(self), (self.seed, epoch, index))[0])
            if other != index:
                yield other


def collate(samples: list[Sample]) -> Batch:
    """Stack views by their place: crop-major lists, as the losses want them."""
    views, pictures, bad, gram = zip(*samples, strict=True)
    return Batch(
        views=[torch.stack(crops) for crops in zip(*views, strict=True)],
        pictures=torch.tensor(pictures),
        bad=torch.tensor([i for some in bad for i in some], dtype=torch.int64),
        gram=[torch.stack(crops) for crops in zip(*gram, strict=True)],
    )


class BadPictures:
    """Collects what could not be read, in the main process, and tells about it at the end."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self.indices: set[int] = set()

    def add(self, indices: Iterable[int] | Tensor) -> None:
        """Note the `bad` of a batch."""
        self.indices.update(indices.tolist() if isinstance(indices, Tensor) else indices)

    def gather(self) -> None:
        """Add what the other processes noted; every process takes part."""
        if is_distributed():
            found: list[list[int]] = [[]] * distributed.get_world_size()
            distributed.all_gather_object(found, sorted(self.indices))
            for indices in found:
                self.add(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def report(self, most: int = 20) -> str:
        """A line that counts them and one for each of the first `most`, with its reason; empty if there are none."""
        if not self.indices:
            return ""
        lines = [f"{len(self)} of {len(self.pictures)} pictures could not be read and were replaced by others:"]
        lines += [f"  {self._reason(index)}" for index in sorted(self.indices)[:most]]
        if len(self) > most:
            lines.append(f"  and {len(self) - most} more")
        return "\n".join(lines)

    def _reason(self, index: int) -> str:
        try:
            self.pictures.read(index)
        except ImageError as error:
            return str(error)
        return f"{self.pictures.name(index)} could not be read during training, but can be now"
