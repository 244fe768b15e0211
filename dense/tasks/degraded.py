"""Clean images as tasks of restoration: degraded on the fly, at random to train on and one by one to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from dense.data.degrade import Degradation, Degrade, degrade
from dense.data.degrade.kinds import known
from dense.data.degrade.plan import PAIRED
from dense.data.labelled.sample import LabelledSource
from dense.data.sampler import IndexSampler
from dense.data.transforms import Augment, EvalTransform, Sample, TrainTransform

OTHERS = 10**6  # passes over the data that a stage may take


class Stage(NamedTuple):
    """From an optimiser step on, patches of a side in batches of a size."""

    step: int
    side: int
    batch_size: int


class Patch(NamedTuple):
    """One patch of a batch."""

    epoch: int
    image: int
    side: int


class StagedSampler(IndexSampler):
    """Batches of `Patch`, whose side and number change with the step."""

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
                yield [Patch(number * OTHERS + draw.epoch, draw.image, stage.side) for draw in draws]
            step += 1


def check_stages(stages: Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    """Stages of progressive training in their order, or ValueError."""
    if any(len(stage) != 3 for stage in stages):
        raise ValueError(f"data.patches={stages}: expected [from step, side, batch size] of each stage")
    found = tuple(Stage(*stage) for stage in stages)
    steps = [stage.step for stage in found]
    if steps[0] != 0 or steps != sorted(set(steps)) or min(min(s.side, s.batch_size) for s in found) < 1:
        raise ValueError(
            f"data.patches={[list(s) for s in found]}: expected steps that begin with 0 and grow, sides and batch sizes of "
            "at least 1"
        )
    return found


class DegradedPatches(Dataset[Sample]):
    """``dataset[draw]``: a random patch with random degradation, a pure function of (seed, epoch, image, side).

    plan: None for images that come with their degradation.
    """

    def __init__(
        self,
        source: LabelledSource,
        augment: Augment,
        sides: Sequence[int | tuple[int, int] | None],
        plan: Degrade | None,
        seed: int,
    ) -> None:
        self.source, self.plan, self.seed = source, plan, seed
        self.transforms = {side: TrainTransform(augment, side, source.depth_kind) for side in sides}
        self.side = sides[0]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Patch | tuple[int, int]) -> Sample:
        epoch, index = draw[:2]
        side = draw.side if isinstance(draw, Patch) else self.side
        seed = (self.seed, epoch, index)
        whole = self.source.read(index)
        degradations = {} if self.plan is None else self.plan.draw(seed)
        if "haze" in degradations and whole.depth is not None:  # a patch may lie where no depth is known
            whole = replace(whole, depth=known(whole.depth))
        sample = self.transforms[side](whole, seed)
        if sample.depth is not None and sample.depth.isnan().all():
            degradations.pop("haze", None)  # a patch that was turned out of its image
        if self.plan is None:
            return sample._replace(labels=None, depth=None, degradation=PAIRED)
        return degraded(sample, degradations, seed)


class DegradedImages(Dataset[Sample]):
    """``dataset[index]``: whole images, each with every kind of degradation, one by one.

    every: at every level; else the levels of a kind take turns from image to image.
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
        """Which image, and what is done to it."""
        image, number = divmod(index, len(self.groups))
        group = self.groups[number]
        return image, group[image % len(group)]

    def __getitem__(self, index: int) -> Sample:
        image, degradation = self.degradation(index)
        sample = self.transform(self.source.read(image))
        if self.plan is None:
            return sample._replace(labels=None, depth=None, degradation=PAIRED)
        seed = (image, round(1000 * degradation.level))
        return degraded(sample, {degradation.kind: degradation.level}, seed)._replace(degradation=degradation.label)

    def sample(self, index: int, copy: int = 0) -> Sample:
        """One of them."""
        return self[index]


def degraded(sample: Sample, degradations: dict[str, float], seed: tuple[int, ...]) -> Sample:
    """A sample whose image is degraded and whose target is the image."""
    clean = sample.image if sample.clean is None else sample.clean
    depth = None if sample.depth is None else sample.depth[0].numpy()
    image = degrade(clean.permute(1, 2, 0).numpy(), degradations, seed, depth)
    pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return Sample(pixels, None, None, sample.name, clean, "+".join(degradations))


def check_plan(plan: Degrade | None, source: LabelledSource, layout: str) -> None:
    """Raise where images cannot be degraded so."""
    if layout == "paired" and plan is not None:
        raise ValueError("layout 'paired' brings its own degradation; leave degrade out, or use layout 'images'")
    if plan is not None and plan.needs_depth and source.depth_kind != "metric":
        raise ValueError(
            "haze needs metric depth, which these images lack; name the other kinds, such as "
            "degrade.kinds={rain: [], noise: [], motion: [], defocus: []}, or use data with depth"
        )
