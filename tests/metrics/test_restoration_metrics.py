"""PSNR against torchmetrics, SSIM against SciPy's Gaussian filter and, far from borders, torchmetrics' map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dense.metrics import RestorationMetrics, psnr, ssim
from dense.metrics.restoration import luma, to_8_bits


def images(count: int = 3, size: tuple[int, int] = (32, 41)) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    clean = torch.nn.functional.avg_pool2d(torch.rand(count, 3, size[0] + 4, size[1] + 4), 5, 1)
    return (clean + 0.1 * torch.randn_like(clean)), clean


def ssim_map(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """One channel (H, W), without the five pixels at the border whose windows reach beyond it."""

    def mean(a: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(a, 1.5, truncate=3.5)[5:-5, 5:-5]

    covariance = np.array([mean(a * b) - mean(a) * mean(b) for a, b in ((x, x), (y, y), (x, y))])
    luminance = (2 * mean(x) * mean(y) + 2.55**2) / (mean(x) ** 2 + mean(y) ** 2 + 2.55**2)
    return luminance * (2 * covariance[2] + 7.65**2) / (covariance[0] + covariance[1] + 7.65**2)


def test_psnr_of_torchmetrics_and_ssim_of_scipy() -> None:
    restored, clean = (to_8_bits(t) for t in images())
    for a, b in ((restored, clean), (luma(restored), luma(clean))):
        ours, ours_ssim = psnr(a, b), ssim(a, b)
        for i in range(len(a)):
            theirs = peak_signal_noise_ratio(a[i : i + 1], b[i : i + 1], data_range=255.0)
            torch.testing.assert_close(ours[i], theirs, rtol=1e-5, atol=1e-4)
            channels = [ssim_map(x.double().numpy(), y.double().numpy()) for x, y in zip(a[i], b[i], strict=True)]
            assert ours_ssim[i] == pytest.approx(np.mean(channels), abs=1e-6)
            _, whole = structural_similarity_index_measure(
                a[i : i + 1].double(), b[i : i + 1].double(), data_range=255.0, return_full_image=True
            )
            np.testing.assert_allclose(whole[0, :, 5:-5, 5:-5], np.stack(channels), atol=1e-6)


def test_luma_by_hand() -> None:
    """Black is 16, white is 235, and the primaries as ITU-R BT.601 has them."""
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]).float()
    found = luma(colours[:, :, None, None]).flatten()
    np.testing.assert_allclose(found, [16, 235, 81.481, 144.553, 40.966], atol=1e-3)


def test_states_of_devices_without_fp64() -> None:
    metrics = RestorationMetrics(("noise",))
    metrics.update(*images(1), ["noise"])
    assert {metrics.totals.dtype, metrics.counts.dtype} == {torch.float32, torch.long}


def test_means_by_kind() -> None:
    restored, clean = images(4)
    metrics = RestorationMetrics(("noise", "rain", "haze"))
    metrics.update(restored[:3], clean[:3], ["noise", "rain", "noise"])
    metrics.update(restored[3:], clean[3:], ["rain"])
    found = metrics.compute()
    each = psnr(to_8_bits(restored), to_8_bits(clean)).tolist()
    assert found["psnr"] == pytest.approx(np.mean(each), abs=1e-4)
    assert found["per_degradation"]["noise"]["psnr"] == pytest.approx((each[0] + each[2]) / 2, abs=1e-4)
    assert found["per_degradation"]["rain"]["images"] == 2
    assert "haze" not in found["per_degradation"]


def test_images_count_as_they_are_saved() -> None:
    """Clamped, and rounded to 8 bits; equal images stay finite."""
    clean = torch.full((1, 3, 16, 16), 1.0)
    metrics = RestorationMetrics(("noise",))
    metrics.update(clean * 3 - 0.001, clean, ["noise"])
    found = metrics.compute()
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / 0.01), abs=1e-3)
    assert found["ssim"] == pytest.approx(1)


def test_small_images_and_errors() -> None:
    restored, clean = images(1, (4, 3))
    metrics = RestorationMetrics(("noise",))
    assert math.isnan(metrics.compute()["psnr"])
    metrics.update(restored, clean, ["noise"])
    assert math.isfinite(metrics.compute()["ssim"])
    with pytest.raises(ValueError, match="unknown kind of degradation 'snow'"):
        metrics.update(restored, clean, ["snow"])
    with pytest.raises(ValueError, match="differ in size"):
        metrics.update(restored, clean[..., :2], ["noise"])
    with pytest.raises(ValueError, match="at least one name"):
        RestorationMetrics(())
