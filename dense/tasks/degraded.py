"""Clean images for restoration: randomly degraded patches for training, and every degradation for measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dense.data.degrade import Degradation, Degrade, degrade
from dense.data.degrade.kinds import known
from dense.data.degrade.plan import PAIRED
from dense.data.labelled.sample import LabelledSource, Sample
from dense.data.large import Windows
from dense.data.sampler import IndexSampler
from dense.data.transforms import Augment, EvalTransform, TrainTransform
from dense.data.windows import Targets, read_in_epoch

BLOCK, BLOCKS = 1024, 64  # side of the blocks of a large image that are degraded one by one, and how many are kept
EPOCHS = 10**6  # more than the epochs of any stage; keeps the epochs of two stages apart


class Stage(NamedTuple):
    """A stage of progressive training: from `step` on, batches of `batch_size` patches of `side` pixels."""

    step: int
    side: int
    batch_size: int


class Patch(NamedTuple):
    """What `StagedSampler` yields for one patch of a batch."""

    epoch: int
    image: int
    side: int


class StagedSampler(IndexSampler):
    """Endless batches of `Patch`; the stage of the optimiser step decides their side and number."""

    def __init__(self, length: int, batch_size: int, seed: int = 0, *, stages: Sequence[Stage], **options: int) -> None:
        super().__init__(length, batch_size, seed, **options)
        options.pop("start_step", None)
        self.stages = tuple(stages)
        self.samplers = [IndexSampler(length, stage.batch_size, seed, **options) for stage in stages]

    def __iter__(self) -> Iterator[list[Patch]]:  # type: ignore[override]
        step = self.start_step
        while True:
            number = max(n for n, stage in enumerate(self.stages) if stage.step <= step)
            stage = self.stages[number]
            for micro in range(self.accumulate):
                draws = self.samplers[number].batch(step - stage.step, micro)
                yield [Patch(number * EPOCHS + draw.epoch, draw.image, stage.side) for draw in draws]
            step += 1


def check_stages(stages: Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    """Return the stages of progressive training, or raise ValueError."""
    if any(len(stage) != 3 for stage in stages):
        raise ValueError(f"data.patches={stages}: expected [from step, side, batch size] for each stage")
    found = tuple(Stage(*stage) for stage in stages)
    steps = [stage.step for stage in found]
    if steps[0] != 0 or steps != sorted(set(steps)) or min(min(s.side, s.batch_size) for s in found) < 1:
        raise ValueError(
            f"data.patches={[list(s) for s in found]}: expected steps that begin with 0 and increase, and sides and "
            "batch sizes of at least 1"
        )
    return found


class DegradedPatches(Dataset[Sample]):
    """``dataset[draw]``: a random patch with random degradation, a pure function of (seed, epoch, image, side).

    plan: None for pairs, which are degraded already.
    """

    def __init__(
        self,
        source: LabelledSource,
        augment: Augment,
        sides: Sequence[int | tuple[int, int] | None],
        plan: Degrade | None,
        seed: int,
        colours: bool = True,
    ) -> None:
        self.source, self.plan, self.seed = source, plan, seed
        self.transforms = {side: TrainTransform(augment, side, source.depth_kind, None, colours) for side in sides}
        self.side = sides[0]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Patch | tuple[int, int]) -> Sample:
        epoch, index = draw[:2]
        side = draw.side if isinstance(draw, Patch) else self.side
        seed = (self.seed, epoch, index)
        whole = read_in_epoch(self.source, index, epoch)
        degradations = {} if self.plan is None else self.plan.draw(seed)
        if "haze" in degradations and whole.depth is not None:  # the patch may lie where no depth is known
            whole = replace(whole, depth=known(whole.depth))
        sample = self.transforms[side](whole, seed)
        if sample.depth is not None and sample.depth.isnan().all():
            degradations.pop("haze", None)  # rotation moved the patch outside its image
        if self.plan is None:
            return sample._replace(labels=None, depth=None, degradation=kind_of(self.source, index))
        return degraded(sample, degradations, seed)


class DegradedImages(Dataset[Sample]):
    """``dataset[index]``: whole images, each with one kind of degradation after the other.

    every: use every level of a kind; else successive images use successive levels.
    """

    def __init__(self, source: LabelledSource, plan: Degrade | None, every: bool = False) -> None:
        self.source, self.plan, self.transform = source, plan, EvalTransform()
        self.groups: list[list[Degradation]] = [[Degradation(PAIRED, 0)]]
        if plan is not None:
            several = plan.degradations()
            self.groups = (
                [[d] for d in several] if every else [[d for d in several if d.label == n] for n in plan.labels()]
            )

    def __len__(self) -> int:
        return len(self.source) * len(self.groups)

    def degradation(self, index: int) -> tuple[int, Degradation]:
        """Return the index of the image and its degradation."""
        image, number = divmod(index, len(self.groups))
        group = self.groups[number]
        return image, group[image % len(group)]

    def __getitem__(self, index: int) -> Sample:
        image, degradation = self.degradation(index)
        sample = self.transform(self.source.read(image))
        if self.plan is None:
            return sample._replace(labels=None, depth=None, degradation=kind_of(self.source, image))
        seed = (image, round(1000 * degradation.level))
        return degraded(sample, {degradation.kind: degradation.level}, seed)._replace(degradation=degradation.label)

    def sample(self, index: int, copy: int = 0) -> Sample:
        """Return a sample, which has a single version."""
        return self[index]


class DegradedWindows(Windows):
    """A clean image read in windows, of which blocks are degraded one by one, each as an image with its own seed.

    A block of which no depth is known has no haze.
    """

    def __init__(self, targets: Targets, degradation: Degradation, seed: tuple[int, ...]) -> None:
        assert targets.windows is not None
        super().__init__(targets.windows.images, targets.source.reading)
        self.targets, self.degradation, self.seed = targets, degradation, seed
        self._block = lru_cache(BLOCKS)(self._degraded)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        result = np.empty((height, width, self.shape[2]), np.uint8)
        for row in range(top // BLOCK, -(-(top + height) // BLOCK)):
            for column in range(left // BLOCK, -(-(left + width) // BLOCK)):
                y, x, block = row * BLOCK - top, column * BLOCK - left, self._block(row, column)
                part = block[max(-y, 0) : height - y, max(-x, 0) : width - x]
                result[max(y, 0) : max(y, 0) + part.shape[0], max(x, 0) : max(x, 0) + part.shape[1]] = part
        return result

    def _degraded(self, row: int, column: int) -> NDArray[np.uint8]:
        top, left = row * BLOCK, column * BLOCK
        box = (top, left, min(BLOCK, self.shape[0] - top), min(BLOCK, self.shape[1] - left))
        clean, depth = super().read(*box), None
        if self.degradation.kind == "haze":
            depth = self.targets.read(box).depth
            if depth is None or np.isnan(depth).all():
                return clean
        return degrade(clean, {self.degradation.kind: self.degradation.level}, (*self.seed, row, column), depth)


def kind_of(source: LabelledSource, index: int) -> str:
    """Return the kind of degradation of a paired image: that of its folder, or "paired"."""
    kinds = getattr(source, "kinds", None)
    return PAIRED if kinds is None else kinds[index]


def paired_kinds(*sources: LabelledSource) -> tuple[str, ...]:
    """Return the kinds of degradation of paired images."""
    return tuple(sorted({kind for source in sources for kind in getattr(source, "kinds", None) or (PAIRED,)}))


def degraded(sample: Sample, degradations: dict[str, float], seed: tuple[int, ...]) -> Sample:
    """Return a sample with a degraded image, and the undegraded one as `clean`."""
    clean = sample.image if sample.clean is None else sample.clean
    depth = None if sample.depth is None else sample.depth[0].numpy()
    image = degrade(clean.permute(1, 2, 0).numpy(), degradations, seed, depth)
    pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return Sample(pixels, None, None, sample.name, clean, degradation="+".join(degradations))


def check_plan(plan: Degrade | None, source: LabelledSource, layout: str) -> None:
    """Raise where these images cannot be degraded as planned."""
    if layout == "paired" and plan is not None:
        raise ValueError(
            "the images of layout 'paired' are degraded already; leave degrade out (--data.degrade null, if a recipe "
            "has it), or use layout 'images'"
        )
    if plan is not None and plan.needs_depth and source.depth_kind != "metric":
        raise ValueError(
            "haze needs metric depth, which these images lack; choose other kinds, such as "
            "degrade.kinds={rain: [], noise: [], motion: [], defocus: []}, or use data with depth"
        )
