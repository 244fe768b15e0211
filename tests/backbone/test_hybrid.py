"""ViTs on a ResNet: layers 0 and 1 are stages, the others blocks; equal to timm's own forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dense.backbone import Backbone, load_backbone
from tests.backbone.conftest import randomise

TINY = {"img_size": 64, "embed_dim": 32, "depth": 4, "num_heads": 4}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    made = load_backbone("vit_base_r50_s16_384", **TINY)
    randomise(made)
    return made


@torch.no_grad()
def test_equals_timm(backbone: Backbone) -> None:
    """Blocks equal timm's forward, stages its convolutional network's, also at another size."""
    for size in ((64, 64), (80, 112)):
        images = torch.randn(2, 3, *size)
        features = backbone(images, layers=(0, 1, 2, 3), norm=True)
        assert [tuple(m.shape[1:]) for m in features.maps[:2]] == [
            (c, size[0] // s, size[1] // s) for c, s in ((256, 4), (512, 8))
        ]
        assert features.strides == (4, 8, 16, 16)
        assert [p.shape[1] for p in features.prefix] == [0, 0, 1, 1]
        theirs = backbone.model.forward_features(images)
        torch.testing.assert_close(features.maps[3].flatten(2).mT, theirs[:, 1:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(backbone(images, layers="last").maps[0], features.maps[3])
        stages = backbone.model.patch_embed.backbone.forward_intermediates(images, intermediates_only=True)
        for mine, stage in zip(features.maps, stages[1:3], strict=False):
            torch.testing.assert_close(mine, stage, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_use(backbone: Backbone, tmp_path: Path) -> None:
    """Odd sizes, attention, the class token and saved directories as of every ViT."""
    images = torch.randn(1, 3, 70, 90)
    assert backbone.attention(images).shape == (1, 4, 5, 6)
    assert backbone.image_feature(images).shape == (1, 32)
    assert [m.shape[-2:] for m in backbone(images, layers=(0, 1), norm=False).maps] == [(20, 24), (10, 12)]
    backbone.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.spec == backbone.spec
    torch.testing.assert_close(
        again(images, layers=(1, 3)).maps, backbone(images, layers=(1, 3)).maps, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="2 blocks"):
        load_backbone("vit_base_r50_s16_384", **(TINY | {"depth": 2}))


STEM = {"patch_size": 2, "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4}


@torch.no_grad()
def test_convolutional_stem(tmp_path: Path) -> None:
    """A ViT behind convolutions without stages: equal to timm's forward, of every size, and saved as every ViT."""
    torch.manual_seed(0)
    backbone = load_backbone("vit_tiny_r_s16_p8_224", **STEM)
    randomise(backbone)
    assert (backbone.spec.kind, backbone.spec.patch, backbone.spec.widths) == ("vit", 8, ())
    images = torch.randn(2, 3, 32, 32)
    theirs = backbone.model.forward_features(images)
    torch.testing.assert_close(backbone(images, layers="last", norm=True).maps[0].flatten(2).mT, theirs[:, 1:])
    assert backbone(torch.randn(1, 3, 50, 70), layers="last").maps[0].shape == (1, 32, 7, 9)
    backbone.save_pretrained(tmp_path)
    torch.testing.assert_close(
        load_backbone(tmp_path)(images, layers=(0, 1)).maps, backbone(images, layers=(0, 1)).maps
    )


@pytest.mark.parametrize("name, options", [("vit_tiny_r_s16_p8_224", STEM), ("vit_base_r50_s16_384", TINY)])
@torch.no_grad()
def test_masked_pixels_do_not_leak(name: str, options: dict[str, int]) -> None:
    """Convolutions reach beyond a patch; masked pixels do not change neighbouring patches either."""
    backbone = load_backbone(name, **options)
    randomise(backbone)
    side, patch = options["img_size"], backbone.spec.patch
    images = torch.randn(1, 3, side, side)
    masks = torch.zeros(1, side // patch, side // patch, dtype=torch.bool)
    masks[0, 1, 1:3] = True
    others = images.clone()
    others[..., patch : 2 * patch, patch : 3 * patch] = torch.randn(1, 3, patch, 2 * patch)
    last = backbone.spec.depth - 1
    shown = [backbone(i, layers=(last,), masks=masks).maps[0] for i in (images, others)]
    assert torch.equal(*shown)
    assert not torch.equal(shown[0], backbone(images, layers=(last,)).maps[0])


@pytest.mark.parametrize("name, options", [("vit_tiny_r_s16_p8_224", STEM), ("vit_base_r50_s16_384", TINY)])
def test_masks_of_another_grid_raise(name: str, options: dict[str, int]) -> None:
    """The error is that of every ViT."""
    side = options["img_size"]
    with pytest.raises(ValueError, match=r"masks of shape \(1, 3, 3\) do not fit a batch of 1 with a grid of"):
        load_backbone(name, **options)(torch.randn(1, 3, side, side), masks=torch.zeros(1, 3, 3, dtype=torch.bool))
