"""Sliding windows and test-time augmentation, against a plain accumulation over the whole image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dense.model.inference import Edges, Maps, augmented, slid, slide, starts


def network(images: Tensor) -> Maps:
    """Something that depends on the window: its pixels and where they are in it."""
    height, width = images.shape[-2:]
    ramp = torch.linspace(0, 1, height)[:, None] * torch.linspace(1, 2, width)
    return {"labels": torch.cat([images, images[:, :1] * ramp], 1), "depth": images.mean(1, keepdim=True) + ramp}


def naive(image: Tensor, window: int, stride: int, edges: Edges) -> Maps:
    """Sums and counts of the whole image."""
    height, width = image.shape[-2:]
    tall, wide = min(window, height), min(window, width)
    total, count = {}, torch.zeros(height, width)
    for y in starts(height, tall, stride, edges):
        for x in starts(width, wide, stride, edges):
            count[y : y + tall, x : x + wide] += 1
            for name, values in network(image[None, :, y : y + tall, x : x + wide]).items():
                total.setdefault(name, torch.zeros(values.shape[1], height, width))
                total[name][:, y : y + tall, x : x + wide] += values[0]
    return {name: values / count for name, values in total.items()}


@pytest.mark.parametrize("edges", ["even", "inward"])
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((50, 70), 16, 11),
        ((33, 17), 16, 4),
        ((16, 40), 16, 16),
        ((9, 100), 16, 5),
        ((7, 9), 16, 16),
        ((31, 31), 30, 29),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_slide_is_the_mean_over_windows(
    size: tuple[int, int], window: int, stride: int, edges: Edges, batch: int
) -> None:
    image = torch.rand(3, *size)
    expected, found = naive(image, window, stride, edges), slid(network, window, stride, edges, batch)(image[None])
    for name, values in expected.items():
        torch.testing.assert_close(found[name][0], values, atol=1e-5, rtol=1e-5)


def test_blocks_tile_the_image_once() -> None:
    seen = torch.zeros(61, 83)

    def finish(name: str, values: Tensor, top: int, left: int) -> None:
        if name == "depth":
            seen[top : top + values.shape[1], left : left + values.shape[2]] += 1

    slide(network, torch.rand(3, 61, 83), 24, 10, finish)
    assert (seen == 1).all()


def test_starts() -> None:
    assert starts(10, 16, 8) == [0]
    assert starts(17, 16, 8) == [0, 1]
    assert starts(100, 40, 30, "inward") == [0, 30, 60]
    assert starts(101, 40, 30, "inward") == [0, 30, 60, 61]
    assert starts(101, 40, 30) == [0, 20, 41, 61]


def test_flip_makes_a_network_mirror_alike() -> None:
    images = torch.rand(2, 3, 8, 12)
    run = augmented(network, flip=True)
    there, back = run(images), run(images.flip(-1))
    torch.testing.assert_close(there["labels"].flip(-1), back["labels"])
    assert not torch.allclose(network(images)["labels"].flip(-1), network(images.flip(-1))["labels"])


def test_scales_average_logits() -> None:
    images = torch.rand(1, 3, 20, 30)
    one, two = augmented(network, (1.0,))(images), augmented(network, (0.5,))(images)
    both = augmented(network, (1.0, 0.5))(images)
    torch.testing.assert_close(both["labels"], (one["labels"] + two["labels"]) / 2)
    with pytest.raises(ValueError, match="positive"):
        augmented(network, ())
