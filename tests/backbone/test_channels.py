"""Backbones for images of any number of channels: construction, converted weights, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dense.backbone import Backbone, BackboneSpec, WeightsError, load_backbone
from dense.backbone.channels import input_layers
from dense.backbone.saved import CONFIG, WEIGHTS
from dense.backbone.spec import RGB
from tests.backbone import official_files
from tests.backbone.conftest import TINY, randomise

FIVE = ("dapi", "actin", "er", "dna", "golgi")
ADAPTERS: dict[str, dict[str, Any]] = {
    "dino_vits16": TINY | {"img_size": 64},
    "dinov2_vits14_reg": TINY | {"img_size": 56},
    "dinov3_vits16": TINY,
    "eva02_tiny_patch14_224": {"depth": 3},
    "vit_base_r50_s16_384": TINY | {"img_size": 64},
    "resnet18": {},
    "convnext_atto": {},
}
EXACT = [name for name in ADAPTERS if "_r50_" not in name]  # a hybrid standardises its filters


def pair(name: str, **options: Any) -> tuple[Backbone, Backbone]:
    """Return a random RGB backbone, and one of other channels with its weights."""
    torch.manual_seed(0)
    rgb = load_backbone(name, **ADAPTERS[name])
    randomise(rgb, 0.1)
    return rgb, load_backbone(name, weights_of(rgb), **ADAPTERS[name], **options)


def weights_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Return the weights in a layout that is recognised: a ResNet's bare file has timm's names."""
    state = backbone.state_dict()
    return {k.removeprefix("model."): v for k, v in state.items()} if backbone.spec.name == "resnet18" else state


def grey(count: int, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    """Return normalised images of equal channels."""
    torch.manual_seed(1)
    return torch.randn(2, 1, *size).expand(-1, count, -1, -1)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.detach().abs().amax()))


@pytest.mark.parametrize("name", ADAPTERS)
def test_rgb_by_names_is_rgb_bit_for_bit(name: str) -> None:
    """Three channels, or red, green and blue, give the same spec, weights and features as no channels."""
    rgb, named = pair(name, channels=RGB)
    counted = load_backbone(name, weights_of(rgb), channels=3, channels_from="mean", **ADAPTERS[name])
    images = torch.randint(0, 256, (1, 3, 64, 48), dtype=torch.uint8)
    expected = rgb(rgb.normalise(images), layers="last").maps[0]
    for other in (named, counted):
        assert other.spec == rgb.spec
        assert torch.equal(other(other.normalise(images), layers="last").maps[0], expected)


@pytest.mark.parametrize("rule", ["mean", "copy", "each"])
@pytest.mark.parametrize("name", EXACT)
def test_five_equal_channels_give_the_features_of_grey_rgb(name: str, rule: str) -> None:
    """By every rule, five equal channels give the features of three; mean and std agree, as those of RGB's mean."""
    rgb, five = pair(name, channels=FIVE, channels_from=rule)
    assert five.spec.channels == FIVE and len(five.spec.mean) == 5 and five.spec.each_channel == (rule == "each")
    with torch.no_grad():
        expected, found = (b(grey(n), layers=(1, 2), norm=False) for b, n in ((rgb, 3), (five, 5)))
        vectors = rgb.image_feature(grey(3)), five.image_feature(grey(5))
    assert all(close(a, b) for a, b in zip(found.maps, expected.maps, strict=True))
    assert close(vectors[1], vectors[0])


@pytest.mark.parametrize(
    ("name", "rule"), [(n, r) for n in ADAPTERS for r in ("mean", "random", "each") if r == "mean" or n in EXACT]
)
def test_every_adapter_is_saved_and_opened(name: str, rule: str, tmp_path: Path) -> None:
    """A saved directory opens with its channels, and gives the same features."""
    _, five = pair(name, channels=FIVE, channels_from=rule)
    five.save_pretrained(tmp_path)
    images = torch.randint(0, 256, (1, 5, 64, 48), dtype=torch.uint8)
    expected = five(five.normalise(images), layers="last").maps[0]
    for opened in (
        load_backbone(tmp_path),
        load_backbone(tmp_path, channels=5),
        load_backbone(name, tmp_path, **ADAPTERS[name], channels=FIVE),
    ):
        assert opened.spec == five.spec
        assert torch.equal(opened(opened.normalise(images), layers="last").maps[0], expected)


def test_channels_are_copied_by_name() -> None:
    """`copy` takes the filters of red, green and blue by name; any other channel gets their mean; all times 3 / N."""
    rgb, four = pair("dino_vits16", channels=("nir", "blue", "red", "green"), channels_from="copy")
    old, new = (b.model.patch_embed.proj.weight for b in (rgb, four))
    assert torch.allclose(new, torch.stack((old.mean(1), old[:, 2], old[:, 0], old[:, 1]), 1) * 0.75)
    assert torch.equal(four.model.patch_embed.proj.bias, rgb.model.patch_embed.proj.bias)
    assert four.spec.mean == pytest.approx((0.449, 0.406, 0.485, 0.456), abs=5e-4)


def test_statistics_of_channels() -> None:
    """One number is that of every channel, and another number of values than of channels is refused."""
    two = load_backbone("dino_vits16", channels=2, mean=0.5, std=[0.25, 0.2], **TINY)
    assert (two.spec.channels, two.spec.mean, two.spec.std) == (("ch1", "ch2"), (0.5, 0.5), (0.25, 0.2))
    with pytest.raises(ValueError, match=r"mean=.*expected 2 values.*ch1, ch2"):
        load_backbone("dino_vits16", channels=2, mean=[0.1, 0.2, 0.3], **TINY)
    with pytest.raises(ValueError, match="channels=4, or their names"):
        load_backbone("dino_vits16", in_chans=4, **TINY)
    with pytest.raises(ValueError, match="different names"):
        load_backbone("dino_vits16", channels=("a", "a"), **TINY)
    with pytest.raises(ValueError, match="mean, copy, random, each"):
        load_backbone("dino_vits16", channels=4, channels_from="copies", **TINY)


def test_each_channel_alone() -> None:
    """With `each`, tokens are the mean over channels of those of one-channel images, before the final norm."""
    _, three = pair("dinov2_vits14_reg", channels=3, channels_from="each")
    _, one = pair("dinov2_vits14_reg", channels=("any",))
    images = torch.randn(2, 3, 56, 42)
    with torch.no_grad():
        raw = three(images, layers=(1, 3), norm=False)
        parts = [one(images[:, i : i + 1], layers=(1, 3), norm=False) for i in range(3)]
        for layer in range(2):
            assert close(raw.maps[layer], torch.stack([p.maps[layer] for p in parts]).mean(0))
            assert close(raw.prefix[layer], torch.stack([p.prefix[layer] for p in parts]).mean(0))
        normed = three(images, layers=(1, 3), norm=True)
        assert all(close(a, b) for a, b in zip(three.after_norm(raw).maps, normed.maps, strict=True))
        assert close(three.image_feature(images), normed.class_token)
        mask = torch.zeros(2, 4, 3, dtype=torch.bool)
        mask[:, 1] = True
        vectors, patches = three.image_features([images, images[..., :28]], mask, patches=True)
        masked = three(images, layers="last", norm=True, masks=mask)
        assert close(vectors[:2], masked.class_token) and close(patches, masked.maps[0].flatten(2).mT)
        for query in ("class", (1, 2)):
            rows = torch.stack([one.attention(images[:, i : i + 1], query=query) for i in range(3)]).mean(0)
            assert close(three.attention(images, query=query), rows)
        keys = torch.stack([one.qkv(images[:, i : i + 1]) for i in range(3)]).mean(0)
        assert close(three.qkv(images), keys)
        tokens, rows = three.tokens_and_attention(images, norm=True)
        assert close(tokens, normed.maps[-1]) and rows.shape == (2, 4, 13, 12)


def test_each_reads_any_number_of_channels(tmp_path: Path) -> None:
    """A saved backbone that sees one channel at a time opens with another number of channels."""
    _, three = pair("dino_vits16", channels=3, channels_from="each")
    three.save_pretrained(tmp_path)
    five = load_backbone(tmp_path, channels=5)
    assert five.spec.each_channel and five.spec.channels[-1] == "ch5"
    assert torch.equal(five.model.patch_embed.proj.weight, three.model.patch_embed.proj.weight)
    joint = load_backbone(tmp_path, channels=5, channels_from="mean")
    assert close(joint(grey(5)).maps[0], five(grey(5)).maps[0])


def test_saved_channels_are_renamed_and_converted(tmp_path: Path) -> None:
    """Unnamed channels take names, named ones follow by name, and equal numbers keep what is saved."""
    _, four = pair("dino_vits16", channels=4)
    four.save_pretrained(tmp_path / "four")
    named = load_backbone(tmp_path / "four", channels=("a", "b", "c", "d"), mean=[0.1, 0.2, 0.3, 0.4])
    assert torch.equal(named.model.patch_embed.proj.weight, four.model.patch_embed.proj.weight)
    randomise(named)
    named.save_pretrained(tmp_path / "named")
    two = load_backbone(tmp_path / "named", channels=("c", "a"), channels_from="copy")
    assert torch.allclose(two.model.patch_embed.proj.weight, 2 * named.model.patch_embed.proj.weight[:, [2, 0]])
    assert two.spec.mean == (0.3, 0.1)


OFFICIAL = {
    "dino_vits16": official_files.dino(32, 4, 16, size=64),
    "dinov2_vits14": official_files.dinov2(32, 4, size=56),
    "dinov2_vits14_reg": official_files.dinov2(32, 4, registers=4, size=56),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_are_converted(name: str, tmp_path: Path) -> None:
    """Official files are recognised as ever; only the filters of the patch embedding are converted."""
    path = tmp_path / "official.pth"
    torch.save(OFFICIAL[name], path)
    shape = TINY | {"img_size": 64 if name == "dino_vits16" else 56}
    rgb, four = load_backbone(name, path, **shape), load_backbone(name, path, channels=4, **shape)
    old, new = rgb.state_dict(), four.state_dict()
    changed = "model.patch_embed.proj.weight"
    assert all(torch.equal(old[k], new[k]) for k in old if k != changed)
    assert torch.allclose(new[changed], old[changed].mean(1, keepdim=True).expand(-1, 4, -1, -1) * 0.75)
    assert four.report is not None and four.report.complete
    written = four.export_official(tmp_path / "four.pth")
    assert written["patch_embed.proj.weight"].shape[1] == 4
    again = load_backbone(name, tmp_path / "four.pth", channels=4, **shape)
    assert torch.equal(again.model.patch_embed.proj.weight, new[changed])
    with pytest.raises(WeightsError, match=r"reads images of 4 channels.*asked to read 3 \(red.*channels=4"):
        load_backbone(name, tmp_path / "four.pth", **shape)


def test_transformers_directories_name_their_channels(tmp_path: Path) -> None:
    """num_channels of a directory of transformers is followed, and its weights are converted to others."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, num_channels=4
    )
    theirs = transformers.Dinov2Model(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_backbone(tmp_path)
    assert len(ours.spec.channels) == 4
    images = torch.randn(1, 4, 56, 56)
    with torch.no_grad():
        assert close(ours(images, layers="last").maps[0].flatten(2).mT, theirs(images).last_hidden_state[:, 1:])
    assert len(load_backbone(tmp_path, channels=6).spec.mean) == 6


@pytest.mark.parametrize("rule", ["mean", "each"])
def test_other_images_are_refused(rule: str) -> None:
    """Images of another number of channels are refused with both numbers and the names, also as uint8."""
    _, five = pair("dino_vits16", channels=FIVE, channels_from=rule)
    for run in (lambda: five(torch.randn(1, 3, 64, 64)), lambda: five.normalise(torch.zeros(1, 3, 64, 64).byte())):
        with pytest.raises(ValueError, match=r"expected 5 channels \(dapi, actin.*got 3.*channels=3"):
            run()
    with pytest.raises(ValueError, match=r"expected 3 channels \(red, green, blue\), got 5.*channels=5"):
        load_backbone("dino_vits16", **TINY)(torch.randn(1, 5, 64, 64))
    assert five.normalise(torch.zeros(2, 8, 7, 5, dtype=torch.uint8)).shape == (2, 5, 8, 7)


def test_older_files_open(tmp_path: Path) -> None:
    """A pyramid's config.json that has its widths as `channels` opens."""
    backbone = load_backbone("resnet18")
    backbone.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    old = config["backbone"]
    old["channels"] = old.pop("widths")
    for name in ("each_channel", "reading"):
        del old[name]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    opened = load_backbone(tmp_path)
    assert opened.spec == backbone.spec and opened.spec.widths[-1] == 512
    vit = load_backbone("dino_vits16", **TINY).spec.to_dict() | {"channels": []}
    del vit["widths"]
    assert BackboneSpec.from_dict(json.loads(json.dumps(vit))).channels == RGB


def test_reading_is_kept(tmp_path: Path) -> None:
    """The spec carries how numbers are read, through a saved directory and a change of another field."""
    reading = {"channels": ["a", "b"], "black": [0.0], "white": [4095.0]}
    load_backbone("dino_vits16", channels=("a", "b"), reading=reading, **TINY).save_pretrained(tmp_path)
    assert load_backbone(tmp_path).spec.reading == reading
    assert load_backbone(tmp_path, norm=False).spec.reading == reading


def test_input_layers() -> None:
    """The convolution that reads the image is found in every adapter."""
    for name, layer in (
        ("dino_vits16", "patch_embed.proj"), ("vit_base_r50_s16_384", "patch_embed.backbone.stem.conv"),
        ("resnet18", "conv1"), ("convnext_atto", "stem.0"),
    ):  # fmt: skip
        assert input_layers(load_backbone(name, **ADAPTERS[name]).model) == [layer]


def test_a_training_file_keeps_its_channels(tmp_path: Path) -> None:
    """A bare file of this project with three channels is opened as three channels of any name."""
    _, own = pair("dino_vits16", channels=("a", "b", "c"))
    save_file(own.tensors(), tmp_path / WEIGHTS)
    opened = load_backbone("dino_vits16", tmp_path / WEIGHTS, channels=("a", "b", "c"), **ADAPTERS["dino_vits16"])
    assert torch.equal(opened.model.patch_embed.proj.weight, own.model.patch_embed.proj.weight)
