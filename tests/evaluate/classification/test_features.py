"""Extraction: right vectors, plain tensors, and a backbone left as it was found."""

from __future__ import annotations

import copy

import pytest
import torch

from dense.backbone import Backbone, load_backbone
from dense.evaluate import Pooled, evaluating, extract, statistics
from dense.evaluate.classification.features import Choice, choices_of, describe, layers_of
from tests.backbone.conftest import tiny


def test_readouts_are_what_the_backbone_says(vit: Backbone) -> None:
    """Every readout, assembled by hand from the backbone's own features, whatever the chunks."""
    images = torch.randn(7, 3, 48, 40)
    with torch.no_grad():
        features = vit.eval()(images, layers="last4", norm=True)
    tokens, average = [p[:, 0] for p in features.prefix], features.maps[-1].mean((-2, -1))
    expected = {
        "class": tokens[-1],
        "average": average,
        "class_average": torch.cat((tokens[-1], average), 1),
        "last4": torch.cat(tokens, 1),
        "last4_average": torch.cat((*tokens, average), 1),
    }
    for size in (1, 3, 64):
        pooled = extract(vit, images, blocks=4, batch_size=size)
        for kind, wanted in expected.items():
            torch.testing.assert_close(pooled.readout(kind), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(extract(vit, images).readout(), tokens[-1], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Did you mean last4"):
        pooled.readout("lats4")  # type: ignore[arg-type]


def test_registers_are_neither_class_nor_patch() -> None:
    """Class token and average leave registers out."""
    backbone = tiny("dinov2_vits14_reg", img_size=28).eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        backbone.class_position.zero_()  # timm has none
        tokens = backbone.model.forward_features(images)
    pooled = extract(backbone, images)
    assert tokens.shape[1] == 1 + 4 + 4
    torch.testing.assert_close(pooled.readout("class"), tokens[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled.readout("average"), tokens[:, 5:].mean(1), rtol=1e-4, atol=1e-4)


def test_pyramids_pool_their_deepest_map(resnet: Backbone) -> None:
    """Global average pooling, as timm's classifier sees it; a class token is refused by name."""
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        wanted = resnet.eval().model.forward_features(images).mean((-2, -1))
    pooled = extract(resnet, images, blocks=4)
    torch.testing.assert_close(pooled.readout(), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"needs a class token.*use 'average'"):
        pooled.readout("last4")


def test_modes_and_running_statistics_stay(resnet: Backbone, vit: Backbone) -> None:
    """A teacher whose batch norms alone are in training mode is found unchanged, also after an error."""
    for module in resnet.modules():
        module.training = isinstance(module, torch.nn.BatchNorm2d)
    modes = [module.training for module in resnet.modules()]
    before = copy.deepcopy(resnet.state_dict())
    images = torch.randn(4, 3, 64, 64)
    alone, together = extract(resnet, images[:1]).readout("average"), extract(resnet, images).readout("average")[:1]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)  # running statistics do not mix images
    with pytest.raises(RuntimeError), evaluating(resnet):
        raise RuntimeError
    assert [module.training for module in resnet.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert statistics(resnet) == "running"
    assert statistics(vit).startswith("none")


@pytest.mark.parametrize("name", ["dino_vits16", "dinov2_vits14_reg", "dinov3_vits16"])
def test_training_goes_on_after_extraction(name: str) -> None:
    """Nothing made in inference mode, interpolated positions for instance, is left where training would meet it."""
    backbone = tiny(name).train()
    images = torch.randn(2, 3, 56, 84)
    pooled = extract(backbone, images)
    assert backbone.training
    backbone(images).maps[-1].square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in backbone.parameters())
    backbone.freeze()
    extract(backbone, images)
    images.requires_grad_()
    backbone(images).maps[-1].square().mean().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    head = torch.nn.Linear(pooled.readout("average").shape[1], 2)
    head(pooled.readout("average")).sum().backward()
    assert head.weight.grad is not None


def test_batches_with_labels_and_bytes(vit: Backbone) -> None:
    """uint8 images are normalised, labels travel along, empty batches are passed over, none at all is an error."""
    images = torch.randint(0, 255, (5, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(5)
    batches = [(images[:2], labels[:2]), (images[:0], labels[:0]), (images[2:], labels[2:], ["more"])]
    pooled = extract(vit, batches)
    assert pooled.labels is not None
    assert pooled.labels.tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(pooled.readout("average"), extract(vit, vit.normalise(images)).readout("average"))
    assert not torch.allclose(pooled.readout("average"), extract(vit, images.float()).readout("average"))
    part = pooled[torch.tensor([3, 1])]
    assert part.labels is not None
    assert part.labels.tolist() == [3, 1]
    assert len(Pooled.cat([part, part])) == 4
    with pytest.raises(ValueError, match="no images"):
        extract(vit, [])


@pytest.mark.parametrize("name", ["dinov2_vits14_reg", "dinov3_vits16", "convnext_atto", "vit_base_r50_s16_224"])
def test_one_pass_gives_both_norms(name: str) -> None:
    """Features after the final norm, without a second pass, of every layer."""
    small = {"depth": 3, "embed_dim": 64, "num_heads": 4} if "r50" in name else {}
    backbone = load_backbone(name, **small) if "_reg" not in name and "dinov3" not in name else tiny(name)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        raw, wanted = (backbone.eval()(images, layers=tuple(range(backbone.spec.depth)), norm=n) for n in (False, True))
        found = backbone.after_norm(raw)
    for ours, theirs in zip((*found.maps, *found.prefix), (*wanted.maps, *wanted.prefix), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found.norm is True
    with pytest.raises(ValueError, match="read them with norm=False"):
        backbone.after_norm(wanted)


def test_choices_are_read_as_by_hand(vit: Backbone, resnet: Backbone) -> None:
    """Readouts of a layer in the middle, with and without the norm; what a backbone lacks is left out or refused."""
    choices = choices_of(vit, "all", "all", "all")
    assert len(choices) == len(set(choices)) == 6 * 2 * 5 - 3 * 2 * 2  # the first three layers lack four blocks
    assert layers_of([Choice("last4", 4, True)]) == (1, 2, 3, 4)
    images = torch.randn(2, 3, 32, 32)
    pooled = describe(vit.eval(), images, choices=choices)
    for normed in (True, False):
        with torch.no_grad():
            features = vit(images, layers=(1, 2, 3, 4), norm=normed)
        wanted = torch.cat([*(p[:, 0] for p in features.prefix), features.maps[-1].mean((-2, -1))], 1)
        found = pooled.readout(Choice("last4_average", 4, normed))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert choices_of(vit) == [Choice("class", 5, True)]
    assert choices_of(resnet, "all", "all", "all") == [Choice("average", layer, False) for layer in range(5)]
    for wrong, message in (
        ({"readout": "class"}, "use 'average'"), ({"norm": True}, "no final norm"), ({"layers": 9}, "does not exist"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            choices_of(resnet, **wrong)  # type: ignore[arg-type]
