"""Linear heads equal their naive form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from heads import Bins, Classes, LinearHead, Regression
from heads.outputs import Output
from tests.heads.conftest import features_of, pyramid_of, randomise

OUTPUTS: dict[str, Output] = {"depth": Bins(8, 0.1, 10), "labels": Classes(3)}


def naive(head: LinearHead, features: Any, name: str) -> torch.Tensor:
    """Concatenate the class token with every patch, enlarge, and only then multiply."""
    pieces = []
    for x, tokens in zip(features.maps, features.prefix, strict=True):
        pieces.append(x)
        if head.class_token:
            pieces.append(tokens[:, :1].transpose(1, 2)[..., None].expand_as(x))
    x = torch.cat(pieces, 1)
    x = x if head.norm is None else head.norm(x)
    if head.upsample > 1:
        x = F.interpolate(x, scale_factor=head.upsample, mode="bilinear")
    return head.branches[name](x)


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("upsample", [1, 4])
def test_equals_the_naive_form(layers: int, class_token: bool, batch_norm: bool, upsample: int) -> None:
    """The split product is the product."""
    features = features_of((5, 7), channels=(16,) * layers)
    head = LinearHead((16,) * layers, OUTPUTS, class_token, batch_norm, upsample=upsample)
    randomise(head).eval()
    with torch.no_grad():
        for name, value in head.logits(features, None).items():
            torch.testing.assert_close(value, naive(head, features, name), rtol=1e-6, atol=1e-5)
        out = head(features)
    assert out["depth"].shape == (2, 1, *features.image_size)
    assert out["labels"].shape == (2, 3, *features.image_size)


@pytest.mark.parametrize("class_token", [True, False])
def test_every_parameter_has_a_gradient(class_token: bool) -> None:
    """And dropout drops whole channels in training."""
    head = LinearHead((16,) * 4, OUTPUTS, class_token, batch_norm=True, dropout=0.1)
    sum((o * torch.randn_like(o)).sum() for o in head(features_of()).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() for p in head.parameters())


def test_dropout() -> None:
    """Training is random, evaluation is not."""
    head, features = LinearHead((16,), {"labels": Classes(3)}, True, dropout=0.5), features_of(channels=(16,))
    assert not torch.equal(head(features)["labels"], head(features)["labels"])
    head.eval()
    assert torch.equal(head(features)["labels"], head(features)["labels"])


def test_pyramid() -> None:
    """Maps of several sizes meet at the finest."""
    features = pyramid_of()
    head = LinearHead((8, 12, 16, 24), {"depth": Regression()})
    assert head.logits(features, None)["depth"].shape[-2:] == (16, 24)


def test_one_number_of_channels() -> None:
    """A single layer needs no tuple; keys are those a published file is renamed to."""
    head = LinearHead(16, {"depth": Bins(8)}, class_token=True)
    assert {k: tuple(v.shape) for k, v in head.state_dict().items()} == {
        "branches.depth.weight": (8, 32, 1, 1),
        "branches.depth.bias": (8,),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": ()}, r"in_channels=\(\): expected some values, one per map"),
        ({"in_channels": (0,)}, "in_channels"),
        ({"upsample": 0}, "upsample=0: expected an integer"),
        ({"dropout": -1}, "dropout=-1: expected a number"),
        ({"outputs": {}}, "at least one output"),
        ({"outputs": {"labels": Classes(2, auxiliary=True)}}, "a linear head has no auxiliary head"),
    ],
)
def test_absurd_options(options: dict[str, Any], message: str) -> None:
    """Errors name the value and what was expected."""
    with pytest.raises(ValueError, match=message):
        LinearHead(**({"in_channels": 16, "outputs": OUTPUTS} | options))


def test_wrong_features() -> None:
    """Features of another layout are refused."""
    with pytest.raises(ValueError, match="expected maps of"):
        LinearHead(8, OUTPUTS)(features_of())
    with pytest.raises(ValueError, match="use class_token=False"):
        LinearHead((16,) * 4, OUTPUTS, class_token=True)(features_of(class_token=False))
