"""Objects followed through videos, measured as in DAVIS-2017: `dense evaluate video`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import tee
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dense.backbone import Backbone
from dense.cli.backbone_options import open_backbone
from dense.cli.discover_options import SETTINGS_OF_TRACKING, add_features, add_tracking, tracking_source_of
from dense.cli.evaluate_options import add_common
from dense.cli.parser import Parser
from dense.console import progress
from dense.data.video import UNKNOWN, Clip, davis, objects_of, scene_clips
from dense.discover import Source, Tracking, track, tracking
from dense.evaluate.discovery import table
from dense.evaluate.protocol import Protocol
from dense.metrics.video import contour_accuracy, mean_recall_decay, region_similarity

NAMES = ("j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")


class Score:
    """Sums up J and F of clips, each object of the first frame by itself; the first and the last frame do not count.

    ``j_mean``, ``j_recall``, ``j_decay`` and the same of F: means over all objects of all clips. ``j_and_f``: the mean of
    the two means. Objects that come later are background, unknown pixels count nowhere.
    """

    def __init__(self) -> None:
        self.objects: dict[str, list[list[float]]] = {}

    def add(self, name: str, predictions: Iterable[Tensor], ground_truths: Iterable[NDArray[np.uint8]]) -> None:
        """Numbers of objects (H, W) frame by frame, as followed and as they are."""
        frames: list[Tensor] = []
        numbers = torch.empty(0)
        for predicted, given in zip(predictions, ground_truths, strict=True):
            ground_truth = torch.from_numpy(given)
            if not len(numbers):
                numbers = torch.tensor(objects_of(given), dtype=torch.uint8)[:, None, None]
            masks, objects = predicted.cpu() == numbers, ground_truth == numbers
            valid = (ground_truth != UNKNOWN) | (numbers == UNKNOWN).any()
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
        """Means over objects."""
        means = np.mean([values for objects in self.objects.values() for values in objects], 0).tolist()
        found = dict(zip(NAMES, means, strict=True))
        return {"j_and_f": (found["j_mean"] + found["f_mean"]) / 2} | found

    def clips(self) -> dict[str, float]:
        """J&F of every clip."""
        return {
            name: float(np.mean([(values[0] + values[3]) / 2 for values in objects]))
            for name, objects in self.objects.items()
        }


def evaluate_video(backbone: Backbone, clips: Sequence[Clip], how: Tracking, source: Source | None = None) -> Score:
    """Follow the objects of the first frame of every clip; a clip is read once, frame by frame."""
    score = Score()
    for clip in progress(clips, "clips"):
        images, masks, first = tee(clip, 3)
        mask = next(first)[1]
        del first  # tee keeps what the slowest has not seen
        followed = track(backbone, (image for image, _ in images), mask, source=source, **asdict(how))
        score.add(clip.name, followed, (ground_truth for _, ground_truth in masks))
    return score


def repeat_first(clips: Sequence[Clip]) -> Score:
    """What it is worth to leave the first mask where it is."""
    score = Score()
    for clip in clips:
        score.add(clip.name, _first_mask(clip), (ground_truth for _, ground_truth in clip))
    return score


def _first_mask(clip: Clip) -> Iterator[Tensor]:
    mask = torch.from_numpy(next(iter(clip))[1])
    for _ in range(len(clip)):
        yield mask


def run(parser: Parser, argv: Sequence[str]) -> tuple[Any, Namespace]:
    """The sub-verb."""
    from dense.cli.evaluate import Outcome

    add_options(parser)
    options = parser.parse_args(argv)
    scenes = options.data == "scenes"
    if scenes:
        clips = scene_clips(options.split, options.clips, options.frames, options.side, options.seed)
        options.size = 0 if options.size is None else options.size
    else:
        clips = davis(options.data, options.split)
    backbone = open_backbone(options, frozen=True)
    changes = {name: getattr(options, name) for name in SETTINGS_OF_TRACKING}
    how = tracking(options.protocol, backbone.spec.patch, **changes)
    source = tracking_source_of(backbone.spec, options)
    score = evaluate_video(backbone, clips, how, source)
    rows = {"": score.numbers()}
    if options.baselines:
        torch.manual_seed(options.seed)
        random = Backbone.from_spec(backbone.spec).freeze().to(options.device)
        rows["random initialisation"] = evaluate_video(random, clips, how, source).numbers()
        rows["first mask"] = repeat_first(clips).numbers()
        print(table({name or "backbone": numbers for name, numbers in rows.items()}))
    numbers: dict[str, Any] = {f"{name} {key}".strip(): v for name, found in rows.items() for key, v in found.items()}
    numbers["clips"] = score.clips()
    described = Protocol(
        name=f"video-{options.protocol}",
        train="nothing",
        val=f"{options.data} {options.split} ({len(clips)} clips, {sum(map(len, clips))} frames)",
        view=f"shorter side {how.size}, bicubic, whole patches" if how.size else "as they are, whole patches",
        resolution=how.size or (options.side if scenes else 0),
        features=", ".join(f"{k} {v}" for k, v in asdict(source).items()),
        norm=source.norm,
        statistics="of training (evaluation mode)",
        classes=sum(map(len, score.objects.values())),
        settings={k: v for k, v in asdict(how).items() if k != "size"}
        | {
            "objects": "of the first frame; those at no centre of a patch get the patch they cover most",
            "frames": "all but the first and the last",
            "f": "contours within 0.008 of the diagonal",
        },
    )
    return Outcome(described, numbers, backbone), options


def add_options(parser: Parser) -> None:
    """Which backbone, which videos, how objects are followed."""
    add_common(parser)
    parser.add_argument(
        "--data", required=True, help="folder of DAVIS-2017, or scenes for a camera that moves past them"
    )
    parser.add_argument("--split", default="val", help="train, val, or another list in ImageSets/2017")
    add_tracking(parser)
    add_features(parser)
    parser.add_argument(
        "--baselines", action="store_true", help="also random initialisation, and the first mask left in place"
    )
    parser.add_argument("--clips", type=int, default=20, help="how many embedded clips")
    parser.add_argument("--frames", type=int, default=24, help="their length")
    parser.add_argument("--side", type=int, default=128, help="their side in pixels")
