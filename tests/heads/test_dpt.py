"""The DPT neck: any grid, every variant, no parameter without a use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from heads import DPT, Bins, Classes, Features, Regression
from tests.heads.conftest import features_of, pyramid_of, randomise

CHANNELS = (16, 16, 16, 16)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dpt": {"readout": "project"},
    "dpt segmentation": {"readout": "project", "batch_norm": True, "bias": False},
    "added readout": {"readout": "add"},
    "dinov2": {"readout": "project", "bias": False, "project": True},
    "dinov3": {"readout": "project", "batch_norm": True, "input_norm": True, "project": True},
    "vggt": {"residual": "activated"},
    "smp": {"batch_norm": True, "bias": False, "deepest_unit": True},
}


def neck_of(**options: Any) -> DPT:
    """A small neck."""
    torch.manual_seed(0)
    return DPT(CHANNELS, width=8, reassemble=(2, 4, 8, 16), **options)


@pytest.mark.parametrize("grid", [(15, 17), (1, 6), (6, 1), (1, 1), (2, 3), (4, 9)])
def test_any_grid(grid: tuple[int, int]) -> None:
    """The fused map has eight times the grid, and the output is the image's size."""
    neck = neck_of()
    features = features_of(grid)
    assert neck(features).shape == (2, 8, 8 * grid[0], 8 * grid[1])
    head = neck.with_outputs(depth=Regression(), labels=Classes(3)).eval()
    out = head(features)
    assert out["depth"].shape == (2, 1, *features.image_size)
    assert out["labels"].shape == (2, 3, *features.image_size)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    """Every variant uses all of its parameters."""
    head = neck_of(**VARIANTS[name]).with_outputs(
        depth=Regression("softplus"),
        bins=Bins(4, normalisation="softmax"),
        labels=Classes(3, dropout=0, auxiliary=True),
    )
    out = head(features_of((5, 7)))
    sum((o * torch.randn_like(o)).sum() for o in out.values()).backward()
    dead = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # a bias in front of BatchNorm, and one in front of the softmax of all bins, are shifts that cancel
    assert not [n for n in dead if not (n.endswith("bias") and "batch_norm" in VARIANTS[name])]


def test_shallower_path() -> None:
    """The auxiliary path is the fused map of the level before."""
    fused, shallower = neck_of().paths(features_of((5, 7)))
    assert fused.shape[-2:] == (40, 56)
    assert shallower.shape[-2:] == (20, 28)


def test_only_the_class_token_is_read() -> None:
    """Registers change nothing; the class token does, where it is read."""
    features = features_of(registers=3)
    for readout in ("ignore", "add", "project"):
        neck = randomise(neck_of(readout=readout))
        with torch.no_grad():
            plain = neck(features)
            registers = neck(features.map(lambda t: torch.cat([t[:, :1], t[:, 1:] + 1], 1) if t.ndim == 3 else t))
            tokens = neck(features.map(lambda t: torch.cat([t[:, :1] + 1, t[:, 1:]], 1) if t.ndim == 3 else t))
        assert torch.equal(plain, registers)
        assert torch.equal(plain, tokens) == (readout == "ignore")


def test_readout_project_is_the_product_with_both_tokens() -> None:
    """Split or concatenated, the product is the same."""
    neck = randomise(neck_of(readout="project"))
    features = features_of()
    block = neck.reassemble[0]
    x, token = features.maps[0], features.prefix[0][:, 0]
    patches = x.flatten(2).transpose(1, 2)
    naive = block.readout(torch.cat([patches, token[:, None].expand_as(patches)], -1))
    naive = torch.nn.functional.gelu(naive).transpose(1, 2).unflatten(2, x.shape[-2:])
    torch.testing.assert_close(block(x, token), block.adapt(block.resize(block.project(naive))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("readout", ["add", "project"])
def test_readout_without_a_class_token(readout: str) -> None:
    """Asking for a token that is not there names what to do."""
    with pytest.raises(ValueError, match="use readout='ignore'"):
        neck_of(readout=readout)(features_of(class_token=False))


def test_activated_residual() -> None:
    """With a ReLU in place, as published, the residual connection carries relu(x)."""
    plain, activated = neck_of().fusion[0].unit1, neck_of(residual="activated").fusion[0].unit1
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(activated(x) - plain(x), x.relu() - x)


def test_the_input_is_not_changed() -> None:
    """Nothing writes into the features."""
    features = features_of()
    before = [m.clone() for m in features.maps]
    neck_of(readout="add", residual="activated").with_outputs(depth=Regression()).eval()(features)
    assert all(torch.equal(a, b) for a, b in zip(before, features.maps, strict=True))


@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_pyramid(size: tuple[int, int]) -> None:
    """Maps of a convolutional backbone are fused at their own strides."""
    features = pyramid_of(size=size)
    neck = DPT((8, 12, 16, 24), width=8, strides=(4, 8, 16, 32))
    assert all(block.resize is None and block.project is None for block in neck.reassemble)
    height, width = features.maps[0].shape[-2:]
    assert neck(features).shape == (2, 8, 2 * height, 2 * width)
    assert neck.with_outputs(depth=Regression())(features)["depth"].shape == (2, 1, *size)


def test_pyramid_with_a_repeated_stride() -> None:
    """A map whose stride is not its level's is resampled by a convolution (DPT-Hybrid)."""
    features = pyramid_of((8, 12, 16, 16), (4, 8, 16, 16))
    neck = DPT((8, 12, 16, 16), width=8, strides=(4, 8, 16, 16), reassemble=(None, None, 8, 8))
    assert [block.resize is not None for block in neck.reassemble] == [False, False, False, True]
    assert neck(features).shape[-2:] == (32, 48)


def test_readout_of_each_level() -> None:
    """Only levels that read the class token have a layer for it; maps of others may come without one (DPT-Hybrid)."""
    channels, readout = (8, 12, 16, 16), ("ignore", "ignore", "project", "project")
    features = pyramid_of(channels, (4, 8, 16, 16))
    prefix = (*features.prefix[:2], torch.randn(2, 1, 16), torch.randn(2, 1, 16))
    features = replace(features, prefix=prefix, has_class_token=True)
    neck = DPT(channels, width=8, strides=(4, 8, 16, 16), reassemble=(None, None, 8, 8), readout=readout)
    assert [block.readout is not None for block in neck.reassemble] == [False, False, True, True]
    assert neck.options()["readout"] == list(readout)
    changed = replace(features, prefix=(*prefix[:3], prefix[3] + 1))
    assert not torch.equal(neck(features), neck(changed))


def test_doubled_fusion() -> None:
    """A fusion that doubles ends beyond eight times an odd grid; on even ones both ways agree."""
    level, double = (neck_of(fusion_size=size) for size in ("level", "double"))
    double.load_state_dict(level.state_dict())
    assert level(features_of((5, 7))).shape[-2:] == (40, 56)
    assert double(features_of((5, 7))).shape[-2:] == (48, 64)
    assert torch.equal(level(features_of((4, 6))), double(features_of((4, 6))))


def test_three_maps_are_read_as_four() -> None:
    """Of a backbone with three blocks, the deepest map makes both coarse levels."""
    features = features_of((5, 7))
    deepest = replace(
        features, maps=(*features.maps[:3], features.maps[2]), prefix=(*features.prefix[:3], features.prefix[2])
    )
    three = replace(features, maps=features.maps[:3], prefix=features.prefix[:3])
    torch.manual_seed(0)
    neck = DPT(CHANNELS[:3], width=8, reassemble=(2, 4, 8, 16), readout="project")
    assert torch.equal(neck(three), neck_of(readout="project")(deepest))
    assert DPT(**{k: v for k, v in neck.options().items() if k != "name"}).reads == (0, 1, 2, 2)


def test_channels_default_to_dinov2() -> None:
    """1/8, 1/4, 1/2 and all of the width."""
    assert DPT((384,) * 4).options()["reassemble"] == [48, 96, 192, 384]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": (8, 8)}, "expected 4 values, one per map"),
        ({"in_channels": 8}, "in_channels=8: expected a list of values"),
        ({"width": 0}, "width=0: expected an integer of at least 1"),
        ({"readout": "cls"}, "readout='cls': expected one of 'ignore', 'add', 'project'"),
        ({"readout": ("add", "add")}, "readout=.*one per map"),
        ({"fusion_size": "half"}, "fusion_size='half': expected one of 'level', 'double'"),
        ({"residual": "relu"}, "residual='relu': expected one of"),
        ({"bias": 1}, "bias=1: expected true or false"),
        ({"reassemble": (1, 2, 3)}, "reassemble=.*expected 4 values"),
        ({"strides": (4, 8, 16, 24)}, "24 is no whole multiple"),
    ],
)
def test_absurd_options(options: dict[str, Any], message: str) -> None:
    """Errors name the value and what was expected."""
    with pytest.raises(ValueError, match=message):
        DPT(**({"in_channels": CHANNELS} | options))


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (features_of(channels=(16, 16)), {}, "expected maps of .* got .16, 16."),
        (features_of(channels=(16, 16, 16, 8)), {}, "build the head with in_channels"),
        (pyramid_of(CHANNELS), {}, r"build the head with strides=\(4, 8, 16, 32\)"),
        (features_of(), {"strides": (4, 8, 16, 32)}, r"expected maps of strides \(4, 8, 16, 32\)"),
    ],
)
def test_wrong_features(features: Features, options: dict[str, Any], message: str) -> None:
    """Features of another layout are refused."""
    with pytest.raises(ValueError, match=message):
        DPT(CHANNELS, width=8, **options)(features)


def test_names_of_parameters() -> None:
    """Loaders of published heads rename to these."""
    neck = neck_of(readout="project", batch_norm=True, bias=False, input_norm=True, project=True)
    head = neck.with_outputs(depth=Regression(), labels=Classes(3, auxiliary=True))
    names = {n.rpartition(".")[0] for n, _ in head.named_parameters()}
    units = [f"unit{u}.{layer}{i}" for u in (1, 2) for layer in ("conv", "norm") for i in (1, 2)]
    expected = {f"neck.reassemble.{i}.{part}" for i in range(4) for part in ("norm", "readout", "project", "adapt")}
    expected |= {f"neck.reassemble.{i}.resize" for i in (0, 1, 3)} | {"neck.project"}
    expected |= {f"neck.fusion.{i}.{part}" for i in range(4) for part in [*units, "project"]}
    expected -= {f"neck.fusion.3.{part}" for part in units if part.startswith("unit1")}
    expected |= {f"branches.depth.conv{i}" for i in (1, 2, 3)}
    expected |= {f"{k}.labels.{part}" for k in ("branches", "auxiliary") for part in ("conv", "norm", "classifier")}
    assert names == expected


def test_export() -> None:
    """A head of one image size exports."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            neck = neck_of(readout="project")
            self.head = neck.with_outputs(depth=Regression(), bins=Bins(4), labels=Classes(3)).eval()

        def forward(self, a: torch.Tensor, b: torch.Tensor, token: torch.Tensor) -> dict[str, torch.Tensor]:
            features = features_of((3, 4), batch=1, maps=(a, b, a, b), prefix=(token,) * 4, image=(40, 50))
            return self.head(features)

    network = Network()
    inputs = (torch.randn(1, 16, 3, 4), torch.randn(1, 16, 3, 4), torch.randn(1, 1, 16))
    exported = torch.export.export(network, inputs).module()
    for name, value in network(*inputs).items():
        torch.testing.assert_close(exported(*inputs)[name], value)
