"""Decoders of segmentation_models_pytorch on ViT and convolutional features of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from heads import Classes, PyramidHead, Regression
from heads.pyramid import DECODERS
from tests.heads.conftest import features_of, pyramid_of

SMALL: dict[str, dict[str, Any]] = {
    "unet": {},
    "unetplusplus": {},
    "linknet": {"prefinal_channels": 8},
    "manet": {"pab_channels": 4},
    "fpn": {"pyramid_channels": 8, "segmentation_channels": 32},
    "pan": {"decoder_channels": 8},
    "upernet": {"decoder_channels": 8},
    "segformer": {"segmentation_channels": 8},
    "deeplabv3plus": {"out_channels": 8, "atrous_rates": (1, 2, 3)},
    "deeplabv3": {"out_channels": 8, "atrous_rates": (1, 2, 3)},
    "pspnet": {"out_channels": 8},
}
ALL = [n for n, d in DECODERS.items() if d.reads == "all"]


def head_of(decoder: str, in_channels: Any, **options: Any) -> PyramidHead:
    """A small head with one output of each kind."""
    torch.manual_seed(0)
    small = dict(SMALL[decoder])
    if decoder in ("unet", "unetplusplus", "manet"):
        levels = len(in_channels) if "strides" in options else 4
        small["decoder_channels"] = (8, 8, 4, 4, 4)[: levels + (options.get("stride2") == "stem")]
    outputs = {"depth": Regression("softplus", hidden=4), "labels": Classes(3, dropout=0)}
    return PyramidHead(in_channels, outputs, decoder=decoder, width=8, decoder_options=small, **options)


def check(head: PyramidHead, features: Any, images: torch.Tensor | None = None) -> None:
    """Right sizes, and a use for every parameter."""
    out = head(features, images)
    assert out["depth"].shape == (2, 1, *features.image_size)
    assert out["labels"].shape == (2, 3, *features.image_size)
    sum((o * torch.randn_like(o)).sum() for o in out.values()).backward()
    unused = [n for n, p in head.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("layers", [1, 4])
def test_vit(decoder: str, layers: int) -> None:
    """One map or four, an odd grid and a padded image."""
    features = features_of((15, 17), (16,) * layers, patch=4, image=(57, 66))
    if decoder in ("deeplabv3", "pspnet"):
        layers, features = 1, features_of((15, 17), (16,), patch=4, image=(57, 66))
    check(head_of(decoder, (16,) * layers), features)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(256, 288), (243, 277)])
def test_convolutional(decoder: str, size: tuple[int, int]) -> None:
    """Maps at their own strides, of sizes that are no multiple of 32."""
    features = pyramid_of((8, 12, 16, 24), size=size)
    check(head_of(decoder, (8, 12, 16, 24), strides=(4, 8, 16, 32)), features)


@pytest.mark.parametrize("decoder", ALL)
def test_stem(decoder: str) -> None:
    """A stem that reads the image stands in for the level of stride 2."""
    features = features_of((5, 6), (16,), patch=8, image=(37, 45))
    head = head_of(decoder, (16,), stride2="stem", stem_width=4)
    images = torch.randn(2, 3, 37, 45)
    assert head.reads_pixels
    assert not head_of(decoder, (16,)).reads_pixels
    check(head, features, images)
    assert head.neck(features, images).shape[-2:] == (
        96,
        96,
    )  # 6 cells of the deepest level, four levels and the image's
    with pytest.raises(ValueError, match="call head"):
        head(features)
    with pytest.raises(ValueError, match="expected the images of these features"):
        head(features, images[..., 1:])


def test_stride_2_of_the_backbone() -> None:
    """Five maps, as segmentation_models_pytorch has them, end at the image's size."""
    features = pyramid_of((4, 8, 12, 16, 24), (2, 4, 8, 16, 32), (64, 96))
    head = head_of("unet", (4, 8, 12, 16, 24), strides=(2, 4, 8, 16, 32))
    assert head.neck(features).shape[-2:] == (64, 96)


def test_auxiliary() -> None:
    """An auxiliary head stands on the second deepest level."""
    head = PyramidHead(16, {"labels": Classes(3, auxiliary=True)}, decoder="upernet", width=8)
    assert "labels.auxiliary" in head(features_of((5, 6), (16,)))
    with pytest.raises(ValueError, match="no map for an auxiliary head"):
        PyramidHead(16, {"labels": Classes(3, auxiliary=True)}, decoder="pspnet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "u-net"}, "decoder='u-net': expected one of 'unet', 'unetplusplus'"),
        ({"stride2": "none"}, "stride2='none': expected one of 'drop', 'stem'"),
        ({"in_channels": (8, 8)}, "expected one map or four"),
        ({"decoder": "fpn", "stride2": "stem"}, "fpn reads no map of stride 2"),
        ({"in_channels": (8, 8), "strides": (4, 16)}, "expected each to be twice the one before"),
        ({"in_channels": (8, 8), "strides": (4,)}, "expected 2 values, one per map"),
        ({"in_channels": (8, 8), "strides": (4, 8), "decoder": "fpn"}, "fpn reads 4 to 5 maps"),
        ({"in_channels": (8, 8), "strides": (2, 4), "stride2": "stem"}, "have stride 2 already"),
        (
            {"decoder_options": {"depth": 3}},
            "decoder_options of unet: unknown option 'depth'; expected some of decoder_channels",
        ),
        ({"width": 0}, "width=0: expected an integer"),
    ],
)
def test_absurd_options(options: dict[str, Any], message: str) -> None:
    """Errors name the value and what was expected."""
    with pytest.raises(ValueError, match=message):
        PyramidHead(**({"in_channels": 8, "outputs": {"labels": Classes(2)}} | options))


def test_wrong_features() -> None:
    """Features of another layout, or too small for a decoder, are refused."""
    labels = {"labels": Classes(2)}
    with pytest.raises(ValueError, match="expected maps of"):
        PyramidHead(8, labels)(features_of(channels=(16,)))
    with pytest.raises(ValueError, match="build the head with strides"):
        PyramidHead((8, 12, 16, 24), labels)(pyramid_of())
    with pytest.raises(ValueError, match="choose those layers"):
        PyramidHead((16,) * 4, labels, strides=(4, 8, 16, 32))(features_of())
    with pytest.raises(ValueError, match="pan halves its deepest map three times and needs a grid of 15x15, got 5x7"):
        PyramidHead(16, labels, decoder="pan")(features_of(channels=(16,)))
