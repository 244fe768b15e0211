"""Which layer is best: linear and k-NN probes of the patches of labelled images, for every layer, norm and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dense.backbone import Backbone
from dense.backbone.spec import Layers, resolve_layers
from dense.console import progress
from dense.data import windows
from dense.data.labelled.files import FileSource
from dense.data.labelled.open import open_labelled
from dense.data.labelled.sample import IGNORE, Labelled, LabelledSource
from dense.data.levels import Reading
from dense.data.transforms import resize_sample, to_tensors
from dense.evaluate.classification.features import evaluating, final_norm, randomly_initialised, statistics
from dense.evaluate.classification.knn import TEMPERATURE, knn_classify, knn_regress
from dense.evaluate.patches import LinearClassifier, RidgeRegression, log_depths
from dense.evaluate.protocol import Protocol, Result
from dense.metrics import DepthMetrics, SegmentationMetrics

K = 30
SIZES = (224, 336)  # shorter sides in pixels
TARGETS = {"segmentation": "labels", "depth": "depth"}
BETTER = {"miou": max, "abs_rel": min}
Place = tuple[tuple[int, ...], bool]  # layers that are concatenated, and whether they are read after the final norm
Read = Callable[[Tensor], Mapping[Place, Tensor]]  # 3, H, W uint8 -> one layer's patches (h*w, C) for each


@dataclass(frozen=True)
class Patches:
    """Features and targets of patches that were drawn from images; every patch has a known pixel."""

    features: Mapping[Place, Tensor]  # n, C of single layers
    labels: Tensor | None  # n, p*p: classes of the pixels, IGNORE where unknown
    depth: Tensor | None  # n, p*p: metres, NaN where unknown

    def of(self, place: Place) -> Tensor:
        """Return the features of some layers, concatenated: (n, D)."""
        return torch.cat([self.features[(layer,), place[1]] for layer in place[0]], dim=1)


@dataclass(frozen=True)
class Drawing:
    """Which images of a set are read, and how many patches are drawn from each."""

    source: LabelledSource
    images: NDArray[np.int64]
    patches: int  # in all
    seed: int

    @classmethod
    def of(cls, source: LabelledSource, images: int, patches: int, seed: int) -> Drawing:
        """Draw at most so many images."""
        order = np.random.default_rng(seed).permutation(len(source))
        return cls(source, np.sort(order[:images]), patches, seed)

    def read(self, network: Read, patch: int, size: int, name: str) -> Patches:
        """Read the images at a shorter side of `size`, their sides rounded to whole patches, in one pass."""
        each = -(-self.patches // len(self.images))
        features: dict[Place, list[Tensor]] = {}
        labels, depths = [], []
        for index in progress(self.images, name):
            view = to_tensors(self._resized(int(index), patch, size))
            rows, columns = (side // patch for side in view.image.shape[-2:])
            own_labels = None if view.labels is None else cells(view.labels, patch)  # h*w, p*p
            own_depth = None if view.depth is None else cells(view.depth[0], patch)
            known = torch.zeros(rows * columns, dtype=torch.bool)
            if own_labels is not None:
                known |= (own_labels != IGNORE).any(1)
            if own_depth is not None:
                own_depth = own_depth.where(own_depth.isfinite() & (own_depth > 0), torch.nan)
                known |= own_depth.isfinite().any(1)
            rng = np.random.default_rng((self.seed, int(index)))
            drawn = torch.from_numpy(np.sort(rng.permutation(known.nonzero()[:, 0].numpy())[:each]))
            for place, tensor in network(view.image).items():
                features.setdefault(place, []).append(tensor[drawn])
            if own_labels is not None:
                labels.append(own_labels[drawn])
            if own_depth is not None:
                depths.append(own_depth[drawn])
        joined = {place: torch.cat(tensors) for place, tensors in features.items()}
        return Patches(joined, torch.cat(labels) if labels else None, torch.cat(depths) if depths else None)

    def _resized(self, index: int, patch: int, size: int) -> Labelled:
        """Return an image with its targets at a shorter side of about `size`; a large one is never read whole."""
        large = windows.large_image(self.source, index)
        sample = self.source.read(index) if large is None else None
        height, width = sample.image.shape[:2] if sample is not None else large.shape[:2]  # type: ignore[union-attr]
        tall, wide = (max(round(side * size / min(height, width) / patch), 1) * patch for side in (height, width))
        if sample is not None:
            return resize_sample(sample, (tall, wide))
        return windows.Targets(cast("FileSource", self.source), index).shrunk((tall, wide))


def cells(target: Tensor, patch: int) -> Tensor:
    """Return the pixels of every patch of a map (H, W): (h*w, p*p)."""
    return target.unflatten(1, (-1, patch)).unflatten(0, (-1, patch)).transpose(1, 2).flatten(0, 1).flatten(1)


def reader(backbone: Backbone, layers: Sequence[int], norms: Sequence[bool]) -> Read:
    """Return what reads the patches of an image from all of these layers, with and without the norm, in one pass."""
    device = next(backbone.parameters()).device

    def read(image: Tensor) -> dict[Place, Tensor]:
        with evaluating(backbone), torch.inference_mode():
            found = backbone(backbone.normalise(image[None].to(device)), layers=tuple(layers), norm=norms == [True])
            both = {norms[0]: found} if len(norms) == 1 else {False: found, True: backbone.after_norm(found)}
        grid = found.maps[-1].shape[-2:]
        rows: dict[Place, Tensor] = {}
        for normed, features in both.items():
            for layer, patches in zip(features.layers, features.maps, strict=True):
                if patches.shape[-2:] != grid:  # of a pyramid
                    patches = F.adaptive_avg_pool2d(patches, grid)
                rows[(layer,), normed] = patches[0].flatten(1).T.float().cpu()  # h*w, C
        return rows

    return read


def read_pixels(patch: int) -> Read:
    """Return what reads raw pixels in place of features."""
    place = ((0,), False)
    return lambda image: {place: F.unfold(image[None].float() / 255, patch, stride=patch)[0].T.contiguous()}


# ---- probes


class Targets:
    """What the patches of a training and a validation set have to predict, and how well they do."""

    def __init__(self, train: Patches, val: Patches, classes: int) -> None:
        self.train, self.val, self.classes = train, val, classes
        if train.labels is not None:
            counts = torch.stack([(train.labels == c).sum(1) for c in range(classes)], dim=1)  # n, K
            self.labels, self.with_label = counts.argmax(1), counts.sum(1) > 0
            self.most_frequent = counts.sum(0).argmax()
        if train.depth is not None:
            side = round(train.depth.shape[1] ** 0.5)
            mean, known = log_depths(train.depth.unflatten(1, (side, side)), side)
            self.depth, self.with_depth = mean.flatten(), known.flatten()

    def scores(self, place: Place) -> dict[str, float]:
        """Return the numbers of the linear probe and of k-NN."""
        train, val = self.train.of(place), self.val.of(place)
        found: dict[str, float] = {}
        if self.train.labels is not None:
            x, y = train[self.with_label], self.labels[self.with_label]
            found["linear miou"] = self.miou(LinearClassifier(x, y, self.classes)(val))
            found["knn miou"] = self.miou(knn_classify(x, y, val, (K,), TEMPERATURE, top=1)[K].predictions)
        if self.train.depth is not None:
            x, y = train[self.with_depth], self.depth[self.with_depth]
            found["linear abs_rel"] = self.abs_rel(RidgeRegression(x, y)(val))
            found["knn abs_rel"] = self.abs_rel(knn_regress(x, y, val, K, TEMPERATURE))
        return found

    def constant(self) -> dict[str, float]:
        """Return the numbers of the most frequent class and of the median depth, which every probe must beat."""
        n, found = len(next(iter(self.val.features.values()))), {}
        if self.train.labels is not None:
            found["miou"] = self.miou(self.most_frequent.expand(n))
        if self.train.depth is not None:
            found["abs_rel"] = self.abs_rel(self.depth[self.with_depth].median().expand(n))
        return found

    def miou(self, predicted: Tensor) -> float:
        """Return the mIoU of a class per patch, over the pixels of the patches."""
        assert self.val.labels is not None
        measure = SegmentationMetrics(self.classes, IGNORE)
        measure.update(
            predicted.view(-1, 1, 1).expand(-1, 1, self.val.labels.shape[1]), self.val.labels[:, None].long()
        )
        return float(measure.compute()["miou"])

    def abs_rel(self, predicted: Tensor) -> float:
        """Return the abs_rel of a log depth per patch, over the pixels of the patches."""
        assert self.val.depth is not None
        measure, target = DepthMetrics(cap=(1e-3, float("inf")), average="pixel"), self.val.depth[:, None, None]
        measure.update(predicted.exp().view(-1, 1, 1, 1).expand_as(target), target, target.isfinite())
        return float(measure.compute()["abs_rel"])


def measure_layers(
    backbone: Backbone,
    data: str,
    *,
    layout: str = "folder",
    split: str = "val",
    classes: Any = None,
    depth: Any = None,
    val_ratio: float = 0.1,
    split_by: str | None = None,
    layers: Sequence[Layers] | str = "all",
    norm: Sequence[bool] | bool | str = "all",
    size: Sequence[int] | int = SIZES,
    train: int = 100,
    val: int = 50,
    patches: int = 10_000,
    baselines: bool = False,
    seed: int = 0,
) -> Result:
    """Probe the patches of labelled images: classes, metric depth, or both, whatever the data have.

    layers: each is probed by itself; "all" is every single layer; several in one tuple, or a name such as "last4", are
    concatenated. norm: True, False or "all". size: shorter sides of the images in pixels. train, val: at most so many
    images. patches: training patches, drawn from them; half as many for validation. baselines: also raw pixels, and the
    same network with random initialisation.

    A linear probe and k-NN (cosine, k = 30, T = .07) of every patch by itself predict one class or log depth per patch,
    which is measured at all of its pixels that are known, so that sizes compare.
    """
    spec, sizes = backbone.spec, [size] if isinstance(size, int) else list(size)
    sources = {
        name: open_labelled(
            data, name, layout=layout, partial=True, classes=classes, depth=depth, val_ratio=val_ratio,
            split_by=split_by, length=count,
            seed=seed, reading=Reading.of_spec(spec),
        )
        for name, count in (("train", train), (split, val))
    }  # fmt: skip
    kind, names = sources["train"].depth_kind, sources["train"].classes
    if kind == "inverse_relative":
        raise ValueError(
            f"{data} holds inverse depth, and this probe measures abs_rel of metric depth; leave depth out"
        )
    entries = (
        [(index,) for index in range(spec.depth)]
        if layers in ("all", ["all"])
        else [layers]
        if isinstance(layers, str)
        else layers
    )
    chosen = list(dict.fromkeys(resolve_layers(entry, spec) for entry in entries))
    single = sorted({layer for entry in chosen for layer in entry})
    has_norm = final_norm(backbone) is not False
    wanted = (True, False) if norm in ("all", ["all"]) else (norm,) if isinstance(norm, bool) else norm
    norms = [n for n in (True, False) if n in wanted and (has_norm or not n)] or [False]
    drawings = [
        Drawing.of(sources["train"], train, patches, seed), Drawing.of(sources[split], val, patches // 2, seed)
    ]  # fmt: skip
    networks: dict[str, tuple[Read, list[Place]]] = {
        "": (reader(backbone, single, norms), [(entry, normed) for entry in chosen for normed in norms])
    }
    if baselines:
        fresh = randomly_initialised(backbone, seed)
        networks["random"] = (reader(fresh, single, norms), networks[""][1])
        networks["pixels"] = (read_pixels(spec.patch), [((0,), False)])
    rows: dict[tuple[str, int, Place], dict[str, float]] = {}
    numbers: dict[str, Any] = {}
    for shorter in sizes:
        for name, (network, places) in networks.items():
            about = f"{name} {shorter} px".strip()
            described, measured = (
                drawing.read(network, spec.patch, shorter, f"{about}, {part}")
                for drawing, part in zip(drawings, ("train", split), strict=True)
            )
            targets = Targets(described, measured, len(names or ()))
            for place in progress(places, f"{about}, probes"):
                rows[name, shorter, place] = targets.scores(place)
            if not name:
                numbers |= {f"constant/{shorter} px {key}": value for key, value in targets.constant().items()}
    best = {}
    for measure in next(iter(rows.values())):
        own = {key: row[measure] for key, row in rows.items() if not key[0]}
        best[measure] = BETTER[measure.split()[-1]](own, key=lambda key: own[key])
        numbers[measure], numbers[f"{measure} at"] = own[best[measure]], _words(*best[measure])
    numbers["scores"] = {f"{_words(*key)}: {measure}": v for key, row in rows.items() for measure, v in row.items()}
    protocol = Protocol(
        name="probe",
        train=f"{data} train ({len(drawings[0].images)} of {len(sources['train'])} images, {patches} patches)",
        val=f"{data} {split} ({len(drawings[1].images)} of {len(sources[split])} images, {patches // 2} patches)",
        view=f"shorter side {', '.join(map(str, sizes))}, sides rounded to multiples of {spec.patch}",
        resolution=max(sizes),
        features="patches, every layer by itself" if max(map(len, chosen)) == 1 else "patches",
        norm="both" if len(norms) > 1 else norms[0],
        statistics=statistics(backbone),
        classes=len(names or ()),
        settings={
            "segmentation": "logistic regression of patches, L-BFGS, weight decay 1e-3",
            "depth": "ridge regression of log depth, penalty 1e-3",
            "knn": f"cosine, k = {K}, T = {TEMPERATURE}",
            "measured": "one prediction per patch, at all known pixels of the resized targets",
            "choice": f"on the {split} images of the scores, which are slightly optimistic therefore",
        },
    )  # fmt: skip
    return Result(protocol, numbers, spec, table=_table(rows, numbers, best))


def _words(name: str, size: int, place: Place) -> str:
    if name == "pixels":
        return f"raw pixels at {size} px"
    layers, normed = place
    words = f"layer{'s' if len(layers) > 1 else ''} {'+'.join(map(str, layers))}"
    return f"{name} {words} {'after' if normed else 'before'} the final norm at {size} px".strip()


def _table(
    rows: Mapping[tuple[str, int, Place], Mapping[str, float]], numbers: Mapping[str, Any], best: Mapping[str, Any]
) -> str:
    """One row per size, layer and norm; the constant of each size; the best of each column."""
    measures = list(best)
    width = max(len(_words(*key)) for key in rows)
    lines = [f"{'features':<{width}}" + "".join(f"{measure:>16}" for measure in measures)]
    for size in dict.fromkeys(size for _, size, _ in rows):
        for key, row in rows.items():
            if key[1] == size:
                marks = ["*" if best[measure] == key else " " for measure in measures]
                cells = "".join(f"{row[m]:>15.4f}{mark}" for m, mark in zip(measures, marks, strict=True))
                lines.append(f"{_words(*key):<{width}}{cells}")
        constant = [numbers[f"constant/{size} px {measure.split()[-1]}"] for measure in measures]
        lines.append(f"{f'a constant at {size} px':<{width}}" + "".join(f"{value:>15.4f} " for value in constant))
    lines += [f"best {measure}: {_words(*key)}, {rows[key][measure]:.4f}" for measure, key in best.items()]
    return "\n".join(lines)
