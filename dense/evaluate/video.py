"""Objects followed through videos, measured as in DAVIS-2017."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import tee
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.backbone import Backbone
from dense.console import progress
from dense.data.video import UNKNOWN, Clip, objects_of
from dense.discover import Source, Tracking, track
from dense.evaluate.discovery import table
from dense.evaluate.protocol import Protocol, Result
from dense.metrics.video import contour_accuracy, mean_recall_decay, region_similarity

NAMES = ("j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")


class Score:
    """Accumulate J and F of each object over clips; the first and the last frame of a clip are not counted.

    ``j_mean``, ``j_recall``, ``j_decay`` and the same of F: means over all objects of all clips. ``j_and_f``: the mean
    of the two means. Objects that come later are background, unknown pixels count nowhere.
    """

    def __init__(self) -> None:
        self.objects: dict[str, list[list[float]]] = {}

    def add(self, name: str, predictions: Iterable[Tensor], targets: Iterable[NDArray[np.uint8]]) -> None:
        """Add a clip: predicted and annotated object numbers (H, W) of each frame."""
        frames: list[Tensor] = []
        numbers = torch.empty(0)
        for predicted, given in zip(predictions, targets, strict=True):
            target = torch.from_numpy(given)
            if not len(numbers):
                numbers = torch.tensor(objects_of(given), dtype=torch.uint8)[:, None, None]
            masks, objects = predicted.cpu() == numbers, target == numbers
            valid = (target != UNKNOWN) | (numbers == UNKNOWN).any()
            frames.append(
                torch.stack([region_similarity(masks, objects, valid), contour_accuracy(masks, objects, valid)])
            )
        if len(frames) < 3:
            raise ValueError(
                f"{name} has {len(frames)} frames: expected 3 or more, for the first and last do not count"
            )
        values = torch.stack(frames[1:-1], -1)  # 2, M, T
        self.objects[name] = [
            [*mean_recall_decay(j), *mean_recall_decay(f)] for j, f in zip(values[0], values[1], strict=True)
        ]

    def numbers(self) -> dict[str, float]:
        """Return the means over all objects."""
        means = np.mean([values for objects in self.objects.values() for values in objects], 0).tolist()
        found = dict(zip(NAMES, means, strict=True))
        return {"j_and_f": (found["j_mean"] + found["f_mean"]) / 2} | found

    def clips(self) -> dict[str, float]:
        """Return J&F per clip, as the mean over its objects."""
        return {
            name: float(np.mean([(values[0] + values[3]) / 2 for values in objects]))
            for name, objects in self.objects.items()
        }


def evaluate_video(
    backbone: Backbone, clips: Sequence[Clip], settings: Tracking, source: Source | None = None
) -> Score:
    """Follow the objects of the first frame of each clip; a clip is read once, frame by frame."""
    score = Score()
    for clip in progress(clips, "clips"):
        images, masks, first = tee(clip, 3)
        mask = next(first)[1]
        del first  # an unread iterator would make tee buffer the whole clip
        followed = track(backbone, (image for image, _ in images), mask, source=source, **asdict(settings))
        score.add(clip.name, followed, (target for _, target in masks))
    return score


def repeat_first(clips: Sequence[Clip]) -> Score:
    """Score the first mask of each clip, left in place, as a baseline."""
    score = Score()
    for clip in clips:
        score.add(clip.name, _first_mask(clip), (target for _, target in clip))
    return score


def _first_mask(clip: Clip) -> Iterator[Tensor]:
    mask = torch.from_numpy(next(iter(clip))[1])
    for _ in range(len(clip)):
        yield mask


def measure_video(
    backbone: Backbone,
    clips: Sequence[Clip],
    settings: Tracking,
    source: Source,
    *,
    baselines: bool = False,
    seed: int = 0,
    names: Mapping[str, Any] = {},
) -> Result:
    """Measure tracking on clips. names: "data", "split", "protocol", and "side" of embedded clips, to describe them."""
    score = evaluate_video(backbone, clips, settings, source)
    rows = {"": score.numbers()}
    if baselines:
        torch.manual_seed(seed)
        fresh = Backbone.from_spec(backbone.spec).freeze().to(next(backbone.parameters()).device)
        rows["random weights"] = evaluate_video(fresh, clips, settings, source).numbers()
        rows["first mask"] = repeat_first(clips).numbers()
    numbers: dict[str, Any] = {f"{name} {key}".strip(): v for name, found in rows.items() for key, v in found.items()}
    numbers["clips"] = score.clips()
    protocol = Protocol(
        name=f"video-{names.get('protocol', '')}",
        train="nothing",
        val=f"{names.get('data', '')} {names.get('split', '')} ({len(clips)} clips, {sum(map(len, clips))} frames)",
        view=f"shorter side {settings.size}, bicubic, multiples of the patch"
        if settings.size
        else "as they are, multiples of the patch",
        resolution=settings.size or names.get("side", 0),
        features=", ".join(f"{k} {v}" for k, v in asdict(source).items()),
        norm=source.norm,
        statistics="of training (evaluation mode)",
        classes=sum(map(len, score.objects.values())),
        settings={k: v for k, v in asdict(settings).items() if k != "size"}
        | {
            "objects": "of the first frame; one that covers no centre of a patch gets the patch it covers most",
            "frames": "all but the first and the last",
            "f": "contours within 0.008 of the diagonal",
        },
    )
    shown = table({name or "backbone": numbers for name, numbers in rows.items()}) if baselines else ""
    return Result(protocol, numbers, backbone.spec, table=shown)
