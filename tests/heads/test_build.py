"""Heads from plain data and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

import heads
from heads import DPT, Bins, Classes, DenseHead, LinearHead, PyramidHead, Regression

CHANNELS = (16, 16, 16, 16)
HEADS: dict[str, DenseHead] = {
    "dpt": DPT(CHANNELS, 8, (2, 4, 8, 16), readout="project", batch_norm=True, project=True).with_outputs(
        depth=Regression("sigmoid", max_depth=10.0), labels=Classes(3, auxiliary=True, names=("a", "b", "c"))
    ),
    "dpt pyramid": DPT((8, 12, 16, 24), 8, strides=(4, 8, 16, 32)).with_outputs(depth=Bins(8, spacing="log")),
    "pyramid": PyramidHead(
        16, {"labels": Classes(3)}, decoder="deeplabv3plus", width=8, decoder_options={"atrous_rates": (1, 2, 3)}
    ),
    "linear": LinearHead(CHANNELS, {"depth": Bins(8), "labels": Classes(3)}, True, True, 0.1, 4),
}


@pytest.mark.parametrize("name", HEADS)
def test_round_trip(name: str) -> None:
    """Through JSON, the same outputs and the same parameters."""
    head = HEADS[name]
    again = heads.build(json.loads(json.dumps(head.spec())))
    assert again.outputs == head.outputs
    assert again.spec() == head.spec()
    shapes = {k: v.shape for k, v in head.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    again.load_state_dict(head.state_dict())


def test_short_spec() -> None:
    """Options that are left out have their defaults."""
    head = heads.build(
        {"name": "dpt", "in_channels": [16] * 4, "width": 8, "outputs": {"depth": {"name": "regression"}}}
    )
    assert head.outputs == {"depth": Regression()}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "dtp"}, "head: unknown name 'dtp'; expected one of anomaly, dpt, eomt, insid3, linear"),
        ({"name": "dpt", "widht": 8}, "head 'dpt': unknown option 'widht'; expected some of in_channels, width"),
        ({"name": "dpt"}, "option 'in_channels' is missing"),
        ({"name": "dpt", "outputs": {}}, "outputs={}: expected one or several"),
        (
            {"name": "dpt", "in_channels": CHANNELS, "outputs": {"depth": {"name": "bin"}}},
            "output 'depth': unknown name",
        ),
        (
            {"name": "dpt", "in_channels": CHANNELS, "outputs": {"depth": {"name": "bins", "counts": 3}}},
            "unknown option 'counts'; expected some of count, min_depth",
        ),
        ({"name": "dpt", "in_channels": CHANNELS, "outputs": {"labels": {"name": "classes"}}}, "'count' is missing"),
        ({"name": "dpt", "in_channels": CHANNELS, "outputs": {"depth": "bins"}}, "expected its name and options"),
    ],
)
def test_mistakes(spec: dict[str, Any], message: str) -> None:
    """What does not exist is named, with what does."""
    with pytest.raises(ValueError, match=message):
        heads.build({"outputs": {"depth": {"name": "regression"}}} | spec)


@pytest.mark.parametrize(
    ("spec", "current"),
    [
        ({"name": "dpt", "width": 8, "outputs": {"depth": {"name": "regression", "upsample": "picture"}}}, "upsample"),
        ({"name": "restoration", "body": "tiny", "width": 8, "outputs": {"restored": {"name": "picture"}}}, "name"),
    ],
)
def test_the_former_name_of_image(spec: dict[str, Any], current: str) -> None:
    """Configs and saved models of version 0.1 say "picture"; they build the same head, which is saved as "image"."""
    with pytest.warns(FutureWarning, match=f"{current} 'picture' is now called 'image'"):
        head = heads.build({"in_channels": CHANNELS} | spec)
    (saved,) = head.spec()["outputs"].values()
    assert saved[current] == "image"
    assert heads.build(head.spec()).spec() == head.spec()
