"""Pyramid necks equal the models of segmentation_models_pytorch, through their own encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from heads import Classes, PyramidHead
from tests.heads.conftest import pyramid_of, randomise

smp = pytest.importorskip("segmentation_models_pytorch")

MODELS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "linknet": "Linknet",
    "manet": "MAnet",
    "fpn": "FPN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
}


@pytest.mark.parametrize("name", MODELS)
def test_decoder(name: str) -> None:
    """With the decoder's own state dict, the same map."""
    torch.manual_seed(0)
    encoder = "mit_b0" if name == "segformer" else "resnet18"  # the paper's four stages, or five
    model = getattr(smp, MODELS[name])(encoder, encoder_weights=None, classes=2)
    randomise(model.decoder, 0.05)
    model.eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        theirs = model.encoder(images)
        maps = tuple(t for t in theirs[1:] if t.shape[1])
        channels, strides = tuple(m.shape[1] for m in maps), (2, 4, 8, 16, 32)[-len(maps) :]
        features = replace(pyramid_of(channels, strides, (64, 96)), maps=maps)
        head = PyramidHead(channels, {"labels": Classes(2)}, decoder=name, strides=strides).eval()
        head.neck.decoder.load_state_dict(model.decoder.state_dict(), strict=True)
        expected = model.decoder(list(theirs))
        torch.testing.assert_close(head.neck(features), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
