"""Gram anchoring: the similarities between patches stay those of an earlier teacher."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Level = Literal["image", "batch"]
Negatives = Literal["keep", "teacher", "both"]


class GramLoss(nn.Module):
    """Mean squared difference between the cosine similarities of patches in student and Gram teacher.

    With rows of X and Y the unit-length patch features of student and Gram teacher: ``mean (X X^T - Y Y^T)^2``. The
    features themselves may rotate freely; only the similarities between patches are held.
    Simeoni et al., "DINOv3", 2025, section 4.

    level: "image" compares the patches of each image, "batch" those of all images together. negatives: "keep" all
    similarities; "both" sets negative ones to 0 in teacher and student; "teacher" sets them to 0 in the teacher, and in
    the student only where both are negative.

    >>> value = GramLoss()(torch.randn(2, 49, 64), torch.randn(2, 49, 384))
    """

    def __init__(self, level: Level = "image", negatives: Negatives = "keep") -> None:
        super().__init__()
        for name, value, valid in (("level", level, get_args(Level)), ("negatives", negatives, get_args(Negatives))):
            if value not in valid:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(valid)}")
        self.level, self.negatives = level, negatives

    def forward(self, features: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar in fp32, of features (B, N, D) and targets (B, N, D').

        mask (B, N) is true for patches that count.
        """
        if features.shape[:2] != targets.shape[:2] or features.ndim != 3:
            raise ValueError(
                f"features {tuple(features.shape)}, targets {tuple(targets.shape)}: expected the same (B, N)"
            )
        with torch.autocast(features.device.type, enabled=False):
            x, y = (F.normalize(f.float(), dim=-1) for f in (features, targets.detach()))
            if self.level == "batch":
                x, y = (f.flatten(0, 1)[None] for f in (x, y))  # 1, B*N, D
                mask = None if mask is None else mask.flatten()[None]
            ours, theirs = x @ x.mT, y @ y.mT  # B, N, N
            if self.negatives == "teacher":
                ours = ours.masked_fill(
                    (ours < 0) & (theirs < 0), 0
                )  # a student similarity that rises above 0 still costs
            elif self.negatives == "both":
                ours = ours.clamp(min=0)
            if self.negatives != "keep":
                theirs = theirs.clamp(min=0)
            squares = (ours - theirs).square()
            if mask is None:
                return squares.mean()
            pairs = mask[:, :, None] & mask[:, None, :]
            return (squares * pairs).sum() / pairs.sum().clamp(min=1)

    def extra_repr(self) -> str:
        return f"level={self.level}, negatives={self.negatives}"
