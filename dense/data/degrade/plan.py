"""Which degradations a data set gets: random ones in training, one by one in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dense.data.degrade.kinds import KINDS, find_kind

PAPER = ("rain", "noise", "motion", "defocus", "haze")  # deraining, denoising, deblurring, dehazing
Levels = dict[str, list[float]]
PAIRED = "paired"  # the kind of degradation that came with the images


class Degradation(NamedTuple):
    """One degradation of an evaluation."""

    kind: str
    level: float
    seen: bool = True  # whether its level is one of training

    @property
    def label(self) -> str:
        """The name of its group of results, such as noise or noise_unseen."""
        return self.kind if self.seen else f"{self.kind}_unseen"


@dataclass(frozen=True)
class Degrade:
    """Kinds of degradation with their levels.

    kinds: name -> levels of training; an empty list stands for the usual levels of that kind, and an empty mapping for
        rain, noise, motion, defocus and haze
    unseen: levels used only in evaluation; [] means the defaults, and null the defaults of the kinds in `kinds`
    together: largest number of kinds in one training image; no kind occurs twice
    """

    kinds: Levels = field(default_factory=dict)
    unseen: Levels | None = None
    together: int = 1

    def __post_init__(self) -> None:
        kinds = {name: list(levels) or list(find_kind(name).seen) for name, levels in (self.kinds or usual()).items()}
        if self.unseen is None:
            unseen = {name: [n for n in find_kind(name).unseen if n not in levels] for name, levels in kinds.items()}
        else:
            unseen = {name: list(levels) or list(find_kind(name).unseen) for name, levels in self.unseen.items()}
        for name, levels in (*kinds.items(), *unseen.items()):
            for level in levels:
                find_kind(name).check(name, level)
        for name, levels in unseen.items():
            if again := sorted(set(levels) & set(kinds.get(name, ()))):
                raise ValueError(f"unseen {name}={again[0]:g} is a level of training too; leave it out of one of them")
        if not 1 <= self.together <= len(kinds):
            raise ValueError(f"together={self.together}: expected 1 to {len(kinds)}, the number of kinds")
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "unseen", unseen)

    @property
    def needs_depth(self) -> bool:
        """Whether haze is among the kinds."""
        return "haze" in self.kinds or "haze" in (self.unseen or {})

    def draw(self, seed: Sequence[int]) -> dict[str, float]:
        """Return random kinds and levels for a training image, from uniform distributions."""
        generator = np.random.default_rng((*seed, 1))
        count = int(generator.integers(1, self.together + 1))
        chosen = generator.permutation(list(self.kinds))[:count].tolist()
        return {name: float(generator.choice(self.kinds[name])) for name in chosen}

    def degradations(self) -> list[Degradation]:
        """Return every kind and level, one by one."""
        seen = [Degradation(name, level) for name, levels in self.kinds.items() for level in levels]
        return seen + [
            Degradation(name, level, False) for name, levels in (self.unseen or {}).items() for level in levels
        ]

    def labels(self) -> tuple[str, ...]:
        """Return the names of the groups of results."""
        return tuple(dict.fromkeys(degradation.label for degradation in self.degradations()))


def usual(kinds: Sequence[str] = PAPER) -> Levels:
    """Return the usual levels of training."""
    return {name: list(KINDS[name].seen) for name in kinds}
