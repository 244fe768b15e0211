"""Discovery with backbones of every family, refinement, PCA and similarity."""

from __future__ import annotations

import colorsys

import pytest
import torch

import dense
from dense.backbone import Backbone, load_backbone
from dense.discover import (
    LOST,
    PCA,
    Attention,
    MaskCut,
    Objects,
    Regions,
    Source,
    TokenCut,
    default_source,
    discover,
    feature_at,
    guided_filter,
    on_grid,
    refine,
    similarity,
)
from dense.discover.attention import salience
from dense.discover.methods import source_of, suited
from dense.discover.refine import grab_cut
from dense.discover.source import centred
from dense.model.guided import box_mean
from tests.backbone.conftest import tiny, token_backbone  # noqa: F401
from tests.discover.features import blobs


def images_of_size(batch: int = 2, height: int = 50, width: int = 75) -> torch.Tensor:
    """Return normalised images whose sides are no multiples of a patch."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_every_family(token_backbone: Backbone) -> None:  # noqa: F811
    """Masks at the images' size, boxes, scores, grids of patch tokens only; a batch equals single images."""
    images = images_of_size()
    patch = token_backbone.spec.patch
    grid = (round(50 / patch), round(75 / patch))
    assert default_source(token_backbone.spec)(token_backbone, images).shape == (2, 32, *grid)
    found = dense.discover.tokencut(token_backbone, images)
    assert found.masks.shape == (2, 1, 50, 75)
    assert found.boxes.shape == (2, 1, 4)
    assert found.maps.shape == (2, 1, *grid)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    rows = Attention().rows(token_backbone, images)
    assert rows.shape == (2, 4, *grid)
    torch.testing.assert_close(rows.sum((-2, -1)), torch.ones(2, 4))
    assert dense.discover.attention(token_backbone, images, mode="heads").masks.shape == (2, 4, 50, 75)
    assert dense.discover.lost(token_backbone, images).masks.shape == (2, 1, 50, 75)
    assert dense.discover.maskcut(token_backbone, images, count=2).masks.shape == (2, 2, 50, 75)
    assert dense.discover.kmeans(token_backbone, images, count=3).labels.shape == (2, 50, 75)
    assert dense.discover.spectral(token_backbone, images, count=3).labels.shape == (2, 50, 75)
    alone = dense.discover.tokencut(token_backbone, images[1:])
    torch.testing.assert_close(alone.maps[0].abs(), found.maps[1].abs(), atol=2e-4, rtol=1e-3)


def test_attention_equals_the_backbones(token_backbone: Backbone) -> None:  # noqa: F811
    """Renormalised over patches, for the resized image."""
    images = torch.randn(1, 3, 56, 112, generator=torch.Generator().manual_seed(0))
    if token_backbone.spec.patch == 16:
        images = images[..., :48, :112]
    rows = token_backbone.attention(images)
    torch.testing.assert_close(Attention().rows(token_backbone, images), rows / rows.sum((-2, -1), keepdim=True))


def test_sources() -> None:
    """Keys for DINO, centred tokens elsewhere; changes replace the default; centring and norms have their effect."""
    dino, dinov2 = tiny("dino_vits16"), tiny("dinov2_vits14_reg")
    assert default_source(dino.spec) == Source("key")
    assert default_source(dinov2.spec) == Source("token", norm=True, centre=True)
    assert source_of(dinov2.spec, "tokencut", what="key", layer=2) == Source("key", layer=2, centre=True)
    assert source_of(dinov2.spec, "tokencut", centre=False).centre is False
    plain = tiny("dinov2_vits14").spec
    assert [source_of(plain, name).centre for name in ("tokencut", "lost", "kmeans")] == [False, False, True]
    assert default_source(dinov2.spec, across=True) == Source("token", norm=True, centre=False)
    features = Source("token", centre=True)(dinov2, images_of_size())
    torch.testing.assert_close(features.mean((-2, -1)), torch.zeros(2, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        Source("token", norm=True)(dinov2, torch.zeros(1, 3, 28, 28)),
        dinov2(torch.zeros(1, 3, 28, 28), layers="last", norm=True).maps[0],
    )
    noise = torch.full((1, 4, 3, 3), 0.1) + 1e-8 * torch.randn(1, 4, 3, 3)
    assert (centred(noise) == 0).all()
    with pytest.raises(ValueError, match="expected one of key, query"):
        Source("keys")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm=True is for tokens"):
        Source("key", norm=True)


def test_convolutional_backbones() -> None:
    """Features work; attention raises."""
    backbone = load_backbone("resnet10t")
    images = torch.randn(1, 3, 96, 64)
    assert discover(backbone, images, TokenCut()).resized((96, 64)).labels.shape == (1, 96, 64)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no attention"):
        discover(backbone, images, Attention())


def test_attention_chooses_the_side() -> None:
    """Masks are those of features with the class token's attention; without one, of features with the interior."""
    images = images_of_size(2, 48, 80)
    for backbone, method in ((tiny("dino_vits16"), TokenCut()), (tiny("dinov2_vits14"), MaskCut(2, tau=0.3))):
        features = default_source(backbone.spec, cuts=True)(backbone, images)
        found = on_grid(backbone, images, method)
        same = method(features, Attention().rows(backbone, images).mean(1))
        assert isinstance(found, Objects)
        assert torch.equal(found.masks, same.masks)
        torch.testing.assert_close(found.scores, same.scores)
    inside = salience(load_backbone("resnet10t"), images, (3, 5))
    assert inside.tolist() == [[[0] * 5, [0, 1, 1, 1, 0], [0] * 5]] * 2


def test_thresholds_suit_the_features() -> None:
    """The published ones, except for DINOv2's tokens with their mean; one that is given stays."""
    dino, plain = tiny("dino_vits16").spec, tiny("dinov2_vits14").spec
    for method, published in ((TokenCut(), 0.2), (MaskCut(), 0.15)):
        assert suited(method, dino, source_of(dino, "tokencut")).tau == published
        assert suited(method, plain, source_of(plain, "tokencut", centre=True)).tau == published
        assert suited(method, plain, source_of(plain, "tokencut")).tau == 0.6
    assert suited(TokenCut(tau=0.3), plain, source_of(plain, "tokencut")).tau == 0.3
    features = blobs((6, 8), [(1, 4, 1, 5)])[0]
    assert torch.equal(TokenCut()(features).maps, TokenCut(tau=0.2)(features).maps)


def test_a_small_image() -> None:
    """An image of one patch, and one smaller than a patch, which is resized to it, give finite scores."""
    backbone = tiny("dino_vits16")
    for size in ((16, 16), (16, 64), (9, 12)):
        found = dense.discover.tokencut(backbone, torch.randn(1, 3, *size))
        assert found.masks.shape[-2:] == size
        assert found.scores.isfinite().all()


def test_box_means() -> None:
    """Compare with direct sums, with squares cut at the borders."""
    values = torch.rand(2, 3, 7, 9, dtype=torch.float64)
    found = box_mean(values, 2)
    for y, x in ((0, 0), (3, 4), (6, 8)):
        part = values[..., max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        torch.testing.assert_close(found[..., y, x], part.mean((-2, -1)))
    torch.testing.assert_close(box_mean(values, 50), values.mean((-2, -1), keepdim=True).expand_as(values))


def test_guided_filter() -> None:
    """A linear function of colour and a constant are unchanged."""
    guide = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    linear = guide[:, :1] * 2 - guide[:, 2:] + 0.5
    for step in (1, 2):
        torch.testing.assert_close(guided_filter(guide, linear, 4, 1e-9, step), linear, atol=1e-4, rtol=0)
    flat = torch.full((1, 2, 20, 24), 0.7)
    torch.testing.assert_close(guided_filter(guide, flat, 3), flat)
    with pytest.raises(ValueError, match="differ in number or size"):
        guided_filter(guide, flat[..., :-1], 3)


@pytest.mark.parametrize("refinement", ["guided", "grabcut", "none"])
def test_refined_masks_follow_the_edge(refinement: str) -> None:
    """The mask of a disc is closer to it than that on the grid."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disc = (y - 50) ** 2 + (x - 44) ** 2 < 27**2
    noise = torch.randint(0, 40, (96, 96, 3), generator=torch.Generator().manual_seed(0))
    image = torch.where(disc[..., None], torch.tensor([200, 60, 40]), torch.tensor([40, 120, 180])) + noise
    pixels = image.clamp(0, 255).to(torch.uint8).permute(2, 0, 1)[None]
    cells = torch.nn.functional.avg_pool2d(disc[None, None].float(), 12)
    coarse = Objects(cells > 0.5, torch.ones(1, 1), cells)
    fine = refine(coarse, pixels, refinement)  # type: ignore[arg-type]
    assert isinstance(fine, Objects)
    iou = {
        k: float((m & disc).sum() / (m | disc).sum())
        for k, m in (("fine", fine.masks[0, 0]), ("coarse", coarse.resized((96, 96)).masks[0, 0]))
    }
    assert iou["fine"] == iou["coarse"] if refinement == "none" else iou["fine"] > max(0.97, iou["coarse"])
    empty = Objects(torch.zeros_like(coarse.masks), torch.zeros(1, 1), cells)
    assert not refine(empty, pixels, refinement).masks.any()  # type: ignore[arg-type, union-attr]
    if refinement != "grabcut":
        regions = refine(Regions((cells > 0.5)[:, 0].byte(), 2), pixels, refinement)  # type: ignore[arg-type]
        assert isinstance(regions, Regions)
        assert (regions.labels[0].bool() == fine.masks[0, 0]).float().mean() > 0.98
    else:
        with pytest.raises(ValueError, match="guided for regions"):
            refine(Regions((cells > 0.5)[:, 0].byte(), 2), pixels, "grabcut")


@pytest.mark.parametrize("refinement", ["guided", "grabcut"])
def test_small_objects_are_not_refined_away(refinement: str) -> None:
    """One patch on a uniform background keeps its mask: a score above 0 has a box."""
    cells = torch.zeros(1, 2, 7, 9)
    cells[0, 0, 3, 4] = 1
    pixels = torch.full((1, 3, 56, 72), 128, dtype=torch.uint8)
    fine = refine(Objects(cells > 0, torch.tensor([[0.9, 0.0]]), cells), pixels, refinement)  # type: ignore[arg-type]
    assert isinstance(fine, Objects)
    assert fine.boxes.tolist() == [[[32, 24, 40, 32], [0, 0, 0, 0]]]


def test_grabcut_of_one_colour() -> None:
    """Without colours to separate, the mask is unchanged."""
    image = torch.zeros(20, 20, 3, dtype=torch.uint8).numpy()
    mask = torch.zeros(20, 20, dtype=torch.bool).numpy()
    assert not grab_cut(image, mask, 2).any()
    mask[5:15, 5:15] = True
    assert grab_cut(image, mask, 2).any()


def test_resized_masks_are_not_refined() -> None:
    """Refinement needs masks on the grid."""
    found = LOST()(blobs((6, 6), [(1, 4, 1, 4)])[0]).resized((24, 24))
    with pytest.raises(ValueError, match="resized already"):
        refine(found, torch.zeros(1, 3, 24, 24, dtype=torch.uint8))


def test_pca() -> None:
    """Three kinds of patches, three colours; the foreground alone; shared colours for a set."""
    features, numbers = blobs((12, 14), [(3, 9, 3, 7), (3, 9, 8, 12)], noise=0.01)
    pca = PCA.fit([features])
    colours = pca(features)
    assert colours.shape == (1, 3, 12, 14)
    means = torch.stack([colours[0][:, numbers == n].mean(-1) for n in range(3)])
    assert torch.pdist(means).min() > 0.3
    cut = PCA.fit([features], foreground=True)
    inside = cut.inside(features)[0, 0]
    assert torch.equal(inside, numbers > 0)
    assert (cut(features)[0][:, numbers == 0] == 0).all()
    assert pca(features, "hsv", size=(120, 140), smooth=True).shape == (1, 3, 120, 140)
    torch.testing.assert_close(pca(features, size=(24, 28))[..., ::2, ::2], colours)
    hue = PCA.fit([features], colours="hue")
    values = hue.scores(features)[0]
    assert values.flatten(1).amin(1).max() < 1e-5
    assert values.flatten(1).amax(1).min() > 1 - 1e-5  # from the least to the largest value
    for y, x in ((0, 0), (5, 5), (5, 9)):
        expected = colorsys.hsv_to_rgb(float(values[0, y, x]), 0.8, float(values[1, y, x]))
        torch.testing.assert_close(hue(features, "hue")[0, :, y, x], torch.tensor(expected), rtol=0, atol=1e-5)
    other = torch.cat([features, features.flip(-1)], dim=-1)
    shared = PCA.fit([features, other])
    torch.testing.assert_close(shared(other)[..., :14], shared(features))
    flat = PCA.fit([torch.ones(1, 8, 3, 3)])(torch.ones(1, 8, 3, 3))
    assert flat.isfinite().all()
    assert PCA.fit([torch.randn(1, 2, 3, 3)])(torch.randn(1, 2, 3, 3)).shape == (1, 3, 3, 3)
    assert PCA.fit([torch.ones(1, 5, 1, 1)], foreground=True)(torch.ones(1, 5, 1, 1)).isfinite().all()
    with pytest.raises(ValueError, match="expected one of rgb, hsv, hue"):
        pca(features, "cmyk")  # type: ignore[arg-type]


def test_similarity() -> None:
    """The feature at a point of an object is similar to that object in every image; x comes before y."""
    features, numbers = blobs((10, 15), [(2, 6, 9, 14)], noise=0.01)
    query = feature_at(features[0], (115.0, 39.0), (100, 150))  # row 3, column 11
    heat = similarity(torch.cat([features, features.flip(-1)]), query)
    assert torch.equal(heat[0] > 0.5, numbers == 1)
    assert torch.equal(heat[1].flip(-1) > 0.5, numbers == 1)
    assert similarity(features, torch.stack([query, query])).shape == (1, 2, 10, 15)
    with pytest.raises(ValueError, match="outside the image, which is 150 wide and 100 high"):
        feature_at(features[0], (39.0, 115.0), (100, 150))


def test_predictions_record_no_gradients() -> None:
    backbone = tiny("dino_vits16")
    found = on_grid(backbone, torch.randn(1, 3, 32, 32), TokenCut())
    assert isinstance(found, Objects)
    assert not found.maps.requires_grad
