"""Options of a head's training, with the defaults of the published linear probes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class BackboneOptions:
    """The features that the head gets.

    Args:
        name: a timm name, an official name or a saved directory.
        weights: timm, a file or a directory; null for random initialisation, or for a saved directory.
        layers: block indices, last, last4, even4, default, or auto for those that suit the head.
        norm: apply the final norm to every layer (true), to none (false) or to the last block alone (last).
        arguments: changes of the backbone's spec, such as img_size.
        channels: of the images, their number or their names; null for those that are saved, or red, green and blue.
        channels_from: how weights for other channels become those of the first layer, mean, copy, random or each, see
            `load_backbone`; null for mean, or as saved.
    """

    name: str = "vit_small_patch14_dinov2"
    weights: str | None = None
    layers: str | list[int] = "last"
    norm: bool | Literal["last"] = True
    arguments: dict[str, Any] = field(default_factory=dict)
    channels: int | list[str] | None = None
    channels_from: Literal["mean", "copy", "random", "each"] | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What `load_backbone` changes of the named backbone."""
        given = {"channels": self.channels, "channels_from": self.channels_from}
        return {k: v for k, v in given.items() if v is not None} | self.arguments


@dataclass(frozen=True)
class TuneOptions:
    """How much of the backbone is trained; by default nothing.

    Args:
        unfreeze: none, all, or the number of last blocks that are trained, with the final norm.
        layer_decay: factor of the learning rate from each block to the block before it.
        lr_scale: learning rate of the backbone as a fraction of the head's.
        lora_rank: rank of low-rank adaptation; 0 for none.
        lora_alpha: scale of low-rank adaptation, divided by its rank.
        lora_targets: names of the linear layers that are adapted.
        warmup_steps: steps of the backbone's own warm-up, which begins where the head's ends; until then the backbone
            does not change. 0 for the head's schedule.
        patch_steps: first steps of a run, in which of the backbone the patch embedding alone is trained, for images of
            new channels; then the other options hold. 0 for none.
    """

    unfreeze: Literal["none", "all"] | int = "none"
    layer_decay: float = 1.0
    lr_scale: float = 1.0
    lora_rank: int = 0
    lora_alpha: float = 8.0
    lora_targets: tuple[str, ...] = ("qkv", "proj")
    warmup_steps: int = 0
    patch_steps: int = 0

    def __post_init__(self) -> None:
        if self.patch_steps < 0:
            raise ValueError(f"patch_steps={self.patch_steps}: expected 0 or more")
        counted = isinstance(self.unfreeze, int) and not isinstance(self.unfreeze, bool)
        if self.unfreeze not in ("none", "all") and not (counted and self.unfreeze >= 1):  # type: ignore[operator]
            raise ValueError(f"unfreeze={self.unfreeze!r}: expected none, all or a number of blocks of at least 1")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: expected more than 0 and at most 1")
        if self.lora_rank and self.unfreeze != "none":
            raise ValueError("lora_rank and unfreeze exclude one another; choose one")

    @property
    def frozen(self) -> bool:
        """Whether no weight of the backbone changes."""
        return self.unfreeze == "none" and not self.lora_rank and not self.patch_steps


@dataclass(frozen=True)
class PasteOptions:
    """Objects of other images of the batch that are pasted into an image, see `dense.data.copy_paste`.

    Args:
        probability: of an image to get some; 0 for none.
        scale: range of their size, as a factor.
    """

    probability: float = 0.0
    scale: tuple[float, float] = (0.3, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"copy_paste.probability={self.probability}, scale={self.scale}: expected a probability, and a range "
                "of at most 1"
            )


@dataclass(frozen=True)
class OptimOptions:
    """AdamW and its learning-rate schedule, over optimiser steps.

    Args:
        lr: peak learning rate of the head, not scaled by the batch size; auto for one that suits the head.
        weight_decay: weight decay.
        betas: decay of the two moments.
        schedule: poly, (1 - t)^power; cosine, to zero; or constant; each after a linear warm-up.
        power: of the polynomial.
        warmup_steps: steps of the warm-up, at most a third of the run.
        clip: largest norm of all gradients; 0 for no clipping.
    """

    lr: float | Literal["auto"] = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.lr == "auto" or self.lr <= 0:
            raise ValueError(f"optim.lr={self.lr}: expected a positive number")
        if self.warmup_steps < 0 or self.clip < 0:
            raise ValueError(f"optim.warmup_steps={self.warmup_steps}, clip={self.clip}: expected 0 or more")
        if self.schedule not in ("poly", "cosine", "constant"):
            raise ValueError(f"optim.schedule={self.schedule!r}: expected poly, cosine or constant")

    def warmup(self, steps: int) -> int:
        """Return the steps of the warm-up in a run of `steps`; the limit keeps a shortened recipe useful."""
        return min(self.warmup_steps, steps // 3)

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of every learning rate at `step` of `steps`."""
        warmup = self.warmup(steps)
        if step < warmup:
            return (step + 1) / warmup
        t = min((step - warmup) / max(steps - warmup, 1), 1.0)
        if self.schedule == "poly":
            return (1 - t) ** self.power
        return 0.5 * (1 + math.cos(math.pi * t)) if self.schedule == "cosine" else 1.0


@dataclass(frozen=True)
class TargetOptions:
    """Where the loss is computed.

    Args:
        size: image, or grid4 for four times the grid of tokens, which is several times cheaper.
        min_depth: smallest depth that counts in training; null for no bound.
        max_depth: largest depth that counts in training; null for no bound.
    """

    size: str = "image"
    min_depth: float | None = None
    max_depth: float | None = None

    def __post_init__(self) -> None:
        if self.size == "picture":
            warnings.warn("target.size: picture is now called image", FutureWarning, stacklevel=1)
            object.__setattr__(self, "size", "image")
        if self.size not in ("image", "grid4"):
            raise ValueError(f"target.size={self.size!r}: expected image or grid4")
        if self.min_depth is not None and self.max_depth is not None and self.min_depth >= self.max_depth:
            raise ValueError(
                f"target.min_depth={self.min_depth} and max_depth={self.max_depth}: no depth lies between them"
            )


@dataclass(frozen=True)
class DepthEvaluation:
    """How depth is measured on the validation images, see `dense.metrics.DepthMetrics`.

    Args:
        cap: smallest and largest depth in metres that count, or auto for the range of the training images.
        crop: region that counts; layout for the region that is published for the layout of the data, if any.
        alignment: alignment of each prediction to its ground truth before it is compared.
    """

    cap: tuple[float, float] | Literal["auto"] = (1e-3, 80.0)
    crop: Literal["none", "nyu_eigen", "garg", "eigen_kitti", "layout"] = "none"
    alignment: Literal["none", "median", "lsq"] = "none"

    def with_layout(self, crop: Any) -> DepthEvaluation:
        """Return the evaluation with `crop` where the layout of the data decides; a cap of auto raises."""
        if self.cap == "auto":
            raise ValueError("evaluation.cap=auto is a value of recipes, which dense train chooses; give two depths")
        return replace(self, crop=crop) if self.crop == "layout" else self


@dataclass(frozen=True)
class PerceptionOptions:
    """The DINO perception contrastive loss beside L1, see `dense.losses.PerceptionContrast`.

    Args:
        weight: weight of the loss; 0 for none.
        layers: layers of the backbone; shallow ones distinguish image quality.
        norm: apply the final norm to each of them.
        layer_weights: one weight per layer; null for equal weights.
        floor: smallest denominator of the contrast.
    """

    weight: float = 0.0
    layers: str | list[int] = "even4"
    norm: bool = True
    layer_weights: list[float] | None = None
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"perception.weight={self.weight}: expected 0 or more")
