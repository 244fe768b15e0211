"""Any size: padding, cropping and resizing, odd grids, and the images that must be refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dense.backbone import Backbone, load_backbone
from dense.backbone.base import pad_to_multiple
from tests.backbone.conftest import tiny

SIZES = [(224, 224), (250, 333), (15 * 16, 17 * 16), (14, 29), (16, 16), (518, 140), (97, 61)]


@pytest.mark.parametrize("size", SIZES)
def test_any_size(token_backbone: Backbone, size: tuple[int, int]) -> None:
    """The grid covers the padded image and the padding leads back to the given size."""
    patch = token_backbone.spec.patch
    if min(size) < patch:
        pytest.skip("smaller than a patch of this model")
    with torch.no_grad():
        features = token_backbone(torch.randn(1, 3, *size), layers="even4")
    grid = (-(-size[0] // patch), -(-size[1] // patch))
    assert features.image_size == size
    assert features.padded_size == (grid[0] * patch, grid[1] * patch)
    assert all(m.shape == (1, 32, *grid) for m in features.maps)
    assert all(p.shape == (1, token_backbone.spec.prefix, 32) for p in features.prefix)
    assert features.to_image(torch.zeros(1, 2, *features.padded_size)).shape == (1, 2, *size)


@pytest.mark.parametrize("name", ["dino_vits8", "dinov2_vits14", "dinov3_vits16"])
def test_an_impulse_stays_at_its_place(name: str) -> None:
    """A white dot at the centre of a 250x333 image is found in the centre after padding, decoding and cropping back."""
    backbone = load_backbone(name, **{"embed_dim": 32, "depth": 1, "num_heads": 4})
    image = torch.zeros(1, 1, 250, 333)
    image[..., 125, 166] = 1.0
    padded, borders, _ = pad_to_multiple(image, backbone.spec.patch, "pad")
    features = backbone(image.expand(1, 3, -1, -1))
    assert borders == features.padding
    back = features.to_image(padded)
    assert tuple(back.shape[-2:]) == (250, 333)
    assert back.flatten().argmax().item() == 125 * 333 + 166


def test_padding_is_central() -> None:
    """An odd remainder puts the extra pixel after, and the mean colour (zero) around."""
    padded, borders, resized = pad_to_multiple(torch.ones(1, 3, 30, 33), 16, "pad")
    assert borders == (1, 1, 7, 8)
    assert not resized
    assert padded.shape[-2:] == (32, 48)
    assert float(padded.sum()) == 3 * 30 * 33


@pytest.mark.parametrize(
    ("policy", "padded"),
    [("pad", (252, 336)), ("crop", (238, 322)), ("resize", (252, 336)), ("floor", (238, 322))],
)
def test_policies(policy: Any, padded: tuple[int, int]) -> None:
    """Each policy is in the spec, and its maps come back to the image's size."""
    backbone = tiny("dinov2_vits14", padding=policy)
    features = backbone(torch.randn(1, 3, 250, 333))
    assert backbone.spec.padding == policy
    assert features.padded_size == padded
    dense = torch.arange(padded[0] * padded[1], dtype=torch.float32).reshape(1, 1, *padded)
    assert features.to_image(dense).shape == (1, 1, 250, 333)
    assert features.resized == (policy in ("resize", "floor"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((224, 448), (224, 448)), ((100, 130), (224, 280)), ((239, 223), (238, 224)), ((13, 13), (224, 224))],
)
def test_floor(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The largest multiple that is not above the size, once the shorter side has at least 224 pixels."""
    image, borders, resized = pad_to_multiple(torch.rand(1, 3, *size), 14, "floor")
    assert tuple(image.shape[-2:]) == expected
    assert borders == (0, 0, 0, 0)
    assert resized == (size != expected)


def test_floor_does_not_enlarge_a_strip() -> None:
    """It would have tens of thousands of patches."""
    with pytest.raises(
        ValueError, match=r"would enlarge an image of 20x3000 to 224x33600.*4096 at most; crop the image"
    ):
        pad_to_multiple(torch.rand(1, 3, 20, 3000), 14, "floor")
    assert pad_to_multiple(torch.rand(1, 3, 224, 6000), 14, "floor")[0].shape[-1] == 5992  # as large as it was


def test_batches_and_layouts_agree(token_backbone: Backbone) -> None:
    """Batch 1 equals its row of a batch; a non-contiguous image equals its contiguous copy."""
    images = torch.randn(3, 3, 112, 96)
    transposed = images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert not transposed.is_contiguous()
    with torch.no_grad():
        whole, one, other = token_backbone(images), token_backbone(images[1:2]), token_backbone(transposed)
    torch.testing.assert_close(one.maps[-1][0], whole.maps[-1][1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.maps[-1], whole.maps[-1], rtol=1e-4, atol=1e-4)


def test_refused(token_backbone: Backbone) -> None:
    """Four channels, too small, uint8, no batch: one clear error each."""
    patch = token_backbone.spec.patch
    with pytest.raises(ValueError, match=r"expected 3 channels.*got 4"):
        token_backbone(torch.randn(1, 4, 64, 64))
    with pytest.raises(ValueError, match=f"smaller than one patch of {patch}x{patch}"):
        token_backbone(torch.randn(1, 3, patch - 1, 64))
    with pytest.raises(ValueError, match="normalise"):
        token_backbone(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        token_backbone(torch.randn(3, 64, 64))


def test_nan_passes_through(token_backbone: Backbone) -> None:
    """A NaN is neither hidden nor spread to other images."""
    images = torch.randn(2, 3, 64, 64)
    images[0, 0, 20, 20] = float("nan")
    with torch.no_grad():
        maps = token_backbone(images).maps[-1]
    assert maps[0].isnan().any()
    assert not maps[1].isnan().any()


def test_layers() -> None:
    """Named layers, explicit and negative ones, the published choice of ViT-L, and errors."""
    backbone = tiny("dino_vits16", depth=12)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert backbone(images, layers="last").layers == (11,)
        assert backbone(images, layers="last4").layers == (8, 9, 10, 11)
        assert backbone(images, layers="even4").layers == backbone(images).layers == (2, 5, 8, 11)
        assert backbone(images, layers=(-4, -1)).layers == (8, 11)
        every = backbone(images, layers=tuple(range(12)), norm=False)
        some = backbone(images, layers=(3, 7), norm=False)
        assert torch.equal(every.maps[7], some.maps[1])
    assert tiny("dinov2_vits14", depth=24).spec.layers == (4, 11, 17, 23)
    assert tiny("dino_vits16", depth=24).spec.layers == (5, 11, 17, 23)
    for wrong, message in (
        ((12,), "does not exist"),
        ((5, 3), "shallow to deep"),
        ("lats4", "Did you mean"),
        ((), "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            backbone(images, layers=wrong)


def test_norm_is_explicit() -> None:
    """True norms every layer, "last" only the deepest, False none; the choice is recorded."""
    backbone = tiny("dinov2_vits14")
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        normed, raw, last = (backbone(images, layers=(1, 3), norm=n) for n in (True, False, "last"))
        by_hand = backbone.model.norm(raw.maps[0].flatten(2).transpose(1, 2))
    torch.testing.assert_close(normed.maps[0].flatten(2).transpose(1, 2), by_hand)
    assert torch.equal(last.maps[0], raw.maps[0])
    assert torch.equal(last.maps[1], normed.maps[1])
    assert (normed.norm, raw.norm, last.norm) == (True, False, "last")
    with pytest.raises(ValueError, match="norm must be"):
        backbone(images, norm="first")


def test_pyramids_pad_to_their_deepest_stride() -> None:
    """A convolutional backbone pads to its deepest stride and returns its strides."""
    backbone = load_backbone("resnet18")
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 70, 101))
    assert features.padded_size == (96, 128)
    assert features.strides == (4, 8, 16, 32)
    for m, stride in zip(features.maps, features.strides, strict=True):
        assert tuple(m.shape[-2:]) == (96 // stride, 128 // stride)
    with pytest.raises(ValueError, match="norm=False"):
        backbone(torch.randn(1, 3, 64, 64), norm=True)
    with pytest.raises(ValueError, match="no attention"):
        backbone.attention(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="no mask token"):
        backbone(torch.randn(1, 3, 64, 64), masks=torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="no class token"):
        _ = features.class_token
