"""Probes: against scikit-learn, on targets that are known, and end to end on a few scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from dense.backbone import Backbone
from dense.data.scenes import CLASSES, Scenes
from dense.evaluate import SceneProbe, measure_probe
from dense.evaluate.patches import LinearClassifier, RidgeRegression, log_depths, shares
from dense.evaluate.probe import Described, RenderedScenes, dominant_classes, histogram


def test_shares_and_depths_by_loops() -> None:
    """Every patch of an image that is not square, counted one by one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 8, 12))
    depth = rng.uniform(1, 9, (2, 8, 12)).astype(np.float32)
    depth[0, :4, :4] = np.inf  # nothing
    depth[1, :4, 4:8].flat[:8] = np.inf  # half
    depth[1, 4:, 8:].flat[:9] = np.inf  # less than half
    found = shares(torch.from_numpy(labels), 4, 3)
    mean, counts = log_depths(torch.from_numpy(depth), 4)
    assert found.shape == (2, 2, 3, 3)
    for b, i, j in np.ndindex(2, 2, 3):
        cell = (b, slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
        np.testing.assert_allclose(found[b, i, j], np.bincount(labels[cell].flat, minlength=3) / 16)
        values = depth[cell][np.isfinite(depth[cell])]
        assert bool(counts[b, i, j]) == (len(values) >= 8)
        if len(values):
            assert float(mean[b, i, j]) == pytest.approx(np.log(values).mean(), abs=1e-5)
    with pytest.raises(ValueError, match="no multiple of the patch"):
        shares(torch.zeros(1, 9, 8), 4, 3)


def noisy(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of very different scales, one of them constant, and labels that depend on them."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=rng) * torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 0.0]) + 3
    y = (x[:, 0] + x[:, 1] / 60 + torch.randn(n, generator=rng)).gt(4.8).long() + (x[:, 2] > 3.005).long()
    return x, y


def test_linear_classifier_is_logistic_regression() -> None:
    """Same predictions and weights as scikit-learn's on standardised features."""
    x, y = noisy(600, 0)
    mine = LinearClassifier(x, y, 3, decay=1e-3)
    standard = mine.standardise(x)
    torch.testing.assert_close(standard[:, :5].std(0, correction=0), torch.ones(5), rtol=1e-3, atol=1e-3)
    assert not standard[:, 5].any()
    theirs = LogisticRegression(C=1 / (600 * 1e-3), max_iter=1000, tol=1e-8).fit(standard.numpy(), y.numpy())
    other, _ = noisy(400, 1)
    assert (mine(other).numpy() == theirs.predict(mine.standardise(other).numpy())).mean() > 0.995
    np.testing.assert_allclose(mine.weight.numpy(), theirs.coef_.T, atol=5e-3)
    with torch.inference_mode():
        torch.testing.assert_close(LinearClassifier(x, y, 3, decay=1e-3).weight, mine.weight)


def test_ridge_is_ridge() -> None:
    """Same predictions as scikit-learn's, within the range seen in training."""
    x, _ = noisy(500, 0)
    target = x[:, 0] + x[:, 1] / 50 + torch.randn(500, generator=torch.Generator().manual_seed(5))
    mine = RidgeRegression(x, target, penalty=0.1)
    theirs = Ridge(alpha=0.1 * 500).fit(mine.standardise(x).numpy(), target.numpy())
    wanted = theirs.predict(mine.standardise(x).numpy()).clip(float(target.min()), float(target.max()))
    np.testing.assert_allclose(mine(x).numpy(), wanted, atol=1e-3)
    assert float(mine(x * 1000).max()) <= float(target.max())


def test_dominant_classes_and_histogram() -> None:
    """The scenes' own target, and a histogram whose squares are shares."""
    assert (
        dominant_classes(RenderedScenes.render("val", 20, 40, 3)).tolist() == Scenes("val", 20, 40, 3).labels.tolist()
    )
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    images[0, 0, :2] = 255
    found = histogram(images).square()[0]
    assert found.sum() == pytest.approx(1)
    assert sorted(found[found > 0].tolist()) == pytest.approx([0.5, 0.5])


def test_perfect_features_score_perfectly() -> None:
    """Features that hold the targets reach them on held-out scenes; shuffled targets do not."""
    probe = SceneProbe(40, 20, 48)
    described, shuffled = {}, {}
    for name, targets in probe.splits.items():
        share = shares(targets.semantic, 8, len(CLASSES)).flatten(1, 2)
        depth, counts = log_depths(targets.depth, 8)
        features = torch.cat((share, torch.where(counts, depth, 0.0).flatten(1).unsqueeze(-1)), dim=2)
        described[name] = Described(features, probe._pooled(features[..., 2:-1], targets, 8))
        order = torch.randperm(features.shape[0] * features.shape[1], generator=torch.Generator().manual_seed(0))
        shuffled[name] = Described(features.flatten(0, 1)[order].view_as(features), {})
    found, worse = probe._measure(described), probe._measure(shuffled)
    assert found["segmentation_miou"] > 0.8
    assert found["depth_abs_rel"] < 0.02
    assert found["knn_object"] > 0.85
    assert worse["segmentation_miou"] < 0.15
    assert worse["depth_abs_rel"] > 0.2


def test_probe_scenes_end_to_end(vit: Backbone) -> None:
    """All numbers are there and repeat; modes and the random state stay; sizes that do not fit name one that does."""
    vit.train()
    torch.rand(7)  # a state that no seed leads to directly
    state = torch.get_rng_state()
    found = measure_probe(vit, train=16, val=8, size=32, baselines=True).numbers
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in vit.modules())
    kinds = ("segmentation_miou", "depth_abs_rel", "knn_class", "knn_average", "knn_object")
    wanted = [*kinds, *(f"random/{k}" for k in kinds), "pixels/segmentation_miou", "pixels/depth_abs_rel"]
    wanted += ["pixels/knn_average", "pixels/knn_object", "histogram/knn_average"]
    assert sorted(found) == sorted(wanted)
    assert all(np.isfinite(v) for v in found.values())
    assert found["segmentation_miou"] != found["random/segmentation_miou"]
    again = measure_probe(vit, train=16, val=8, size=32).numbers
    assert all(again[k] == found[k] for k in kinds)
    deeper = measure_probe(vit, train=16, val=8, size=32, layers="last4").numbers
    assert deeper["segmentation_miou"] != found["segmentation_miou"]
    with pytest.raises(ValueError, match="use 48"):
        measure_probe(vit, train=4, val=2, size=50)


def test_pyramids_are_probed_too(resnet: Backbone) -> None:
    """One coarse grid, no class token."""
    found = measure_probe(resnet, train=8, val=4, size=64).numbers
    assert "knn_class" not in found
    assert 0 <= found["segmentation_miou"] <= 1
