"""The DINO perception contrastive loss: formula, direction, and gradients through a frozen backbone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dense.backbone import load_backbone
from dense.losses import PerceptionContrast
from tests.predict.models import BACKBONE


def test_formula_in_numpy() -> None:
    torch.manual_seed(0)
    ours, clean, degraded = ([torch.randn(2, 4, 3, 5), torch.randn(2, 6, 2, 2)] for _ in range(3))
    expected = 0.0
    for weight, r, c, d in zip((2.0, 0.5), ours, clean, degraded, strict=True):
        r, c, d = (t.numpy() for t in (r, c, d))
        ratios = [np.abs(r[i] - c[i]).mean() / (np.abs(r[i] - d[i]).mean() + 0.3) for i in range(2)]
        expected += weight * np.mean(ratios)
    assert float(PerceptionContrast((2.0, 0.5), floor=0.3)(ours, clean, degraded)) == pytest.approx(expected, rel=1e-5)


def test_pulls_to_the_clean_and_pushes_from_the_degraded() -> None:
    loss, clean, degraded = PerceptionContrast(), [torch.zeros(1, 1, 2, 2)], [torch.ones(1, 1, 2, 2)]
    values = [float(loss([torch.full((1, 1, 2, 2), share)], clean, degraded)) for share in (0.0, 0.25, 0.5, 1.0)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] == pytest.approx(10)  # the degraded image itself: finite, by the floor


def test_gradients_flow_through_a_frozen_backbone() -> None:
    """To the restored image, and to nothing else."""
    backbone = load_backbone("vit_tiny_patch16_224", **BACKBONE).freeze()
    images = [torch.randn(2, 3, 32, 32, requires_grad=True) for _ in range(3)]
    maps = [backbone(p, layers=(0, 1), norm=True).maps for p in images]
    PerceptionContrast()(*maps).backward()
    assert images[0].grad is not None
    assert float(images[0].grad.abs().sum()) > 0
    assert images[1].grad is None
    assert images[2].grad is None
    assert all(p.grad is None for p in backbone.parameters())


def test_errors() -> None:
    with pytest.raises(ValueError, match="floor=0"):
        PerceptionContrast(floor=0)
    with pytest.raises(ValueError, match="none negative"):
        PerceptionContrast((-1.0,))
    maps = [torch.zeros(1, 1, 1, 1)]
    with pytest.raises(ValueError, match="expected one for each of the 1 layers"):
        PerceptionContrast((1.0, 2.0))(maps, maps, maps)
