"""From decoder to image: sizes, padding, modes, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from heads import DPT, Bins, Classes, DenseHead, LinearHead, Regression
from heads.layers import to_image_size
from tests.heads.conftest import features_of, randomise

CHANNELS = (16, 16, 16, 16)


def joint() -> DenseHead:
    """Depth, bins and labels on one neck."""
    torch.manual_seed(0)
    neck = DPT(CHANNELS, width=8, reassemble=(2, 4, 8, 16))
    return neck.with_outputs(depth=Regression("softplus"), bins=Bins(4, logits=True), labels=Classes(3, auxiliary=True))


def test_keys_by_mode() -> None:
    """Extra maps appear in training alone, at the same size."""
    head, features = joint(), features_of((4, 5), image=(50, 61))
    assert set(head.eval()(features)) == {"depth", "bins", "labels"}
    out = head.train()(features)
    assert set(out) == {"depth", "bins", "bins.bins", "labels", "labels.auxiliary"}
    assert {tuple(v.shape[-2:]) for v in out.values()} == {(50, 61)}
    assert out["bins.bins"].shape[1] == 4
    assert out["labels.auxiliary"].shape[1] == 3


def test_padding_does_not_shift() -> None:
    """The output of a padded image is the middle of that of the whole padded image."""
    features = features_of((4, 5), image=(50, 61))
    whole = replace(features, image_size=features.padded_size, padding=(0, 0, 0, 0))
    head = joint().eval()
    (top, _, left, _), out, frame = features.padding, head(features), head(whole)
    for name, value in out.items():
        assert torch.equal(value, frame[name][..., top : top + 50, left : left + 61])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("image", [(56, 70), (50, 61), (60, 73)])
@pytest.mark.parametrize("resized", [False, True])
def test_a_coarser_size_covers_the_image(align_corners: bool, image: tuple[int, int], resized: bool) -> None:
    """A plane x + y of the padded image stays that plane of the image at every size."""
    features = features_of((4, 5), image=image)
    if resized:
        features = replace(features, padding=(0, 0, 0, 0), resized=True)
    height, width = features.padded_size
    rows = torch.arange(height) + 0.5 if align_corners else (torch.arange(4 * height) + 0.5) / 4
    columns = torch.arange(width) + 0.5 if align_corners else (torch.arange(4 * width) + 0.5) / 4
    plane = (rows[:, None] + 2 * columns)[None, None]
    size = (8, 10)
    top, _, left, _ = features.padding
    scale = (height / image[0], width / image[1]) if resized else (1, 1)
    y = (torch.arange(size[0]) + 0.5) * image[0] / size[0] * scale[0] + top
    x = (torch.arange(size[1]) + 0.5) * image[1] / size[1] * scale[1] + left
    expected = y[:, None] + 2 * x
    torch.testing.assert_close(
        to_image_size(plane, features, size, align_corners)[0, 0], expected, rtol=1e-4, atol=1e-3
    )


def test_half_precision_does_not_shift() -> None:
    """Positions in a large padded image are exact in bf16 too."""
    features = features_of((40, 40), (1,), image=(555, 551), batch=1)
    ramp = (torch.arange(40) % 2).float().expand(1, 1, 40, 40)
    exact = to_image_size(ramp, features, (160, 160), False)
    torch.testing.assert_close(
        to_image_size(ramp.bfloat16(), features, (160, 160), False).float(), exact, rtol=0, atol=4e-3
    )


def test_a_coarser_size() -> None:
    """At four times the grid, as for a loss, the output is a coarser version of the full one."""
    head, features = joint().eval(), features_of((4, 5))
    coarse, full = head(features, size=(16, 20)), head(features)
    for name, value in coarse.items():
        assert value.shape[-2:] == (16, 20)
        near = F.interpolate(full[name], size=(16, 20), mode="area")
        assert torch.corrcoef(torch.stack([near.flatten(), value.flatten()]))[0, 1] > 0.9
    with pytest.raises(ValueError, match="size=\\(0, 3\\)"):
        head(features, size=(0, 3))


def test_cropped_and_resized_features() -> None:
    """The backbone's other two policies end at the image's size too."""
    head = joint().eval()
    for changes in ({"padding": (-2, -3, -1, -4), "image_size": (61, 75)}, {"resized": True, "image_size": (50, 90)}):
        features = replace(features_of((4, 5)), **changes)
        for size in (None, (16, 20)):
            out = head(features, size=size)["depth"]
            assert out.shape[-2:] == (size or features.image_size)
            assert torch.isfinite(out).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Autocast and plain casts stay near fp32; depth comes out in fp32."""
    features = features_of((4, 5))
    linear = LinearHead(CHANNELS, {"depth": Bins(8), "labels": Classes(3)}, class_token=True)
    for head in (joint().eval(), randomise(linear).eval()):
        with torch.no_grad():
            exact = head(features)
            with torch.autocast("cpu", dtype):
                near = head(features)
            cast = head.to(dtype)(features.map(lambda t: t.to(dtype)))
        assert near["depth"].dtype == cast["depth"].dtype == torch.float32
        assert cast["labels"].dtype == dtype
        for name, value in exact.items():
            tolerance = 0.05 * float(value.abs().max())
            torch.testing.assert_close(near[name].float(), value, rtol=0, atol=tolerance)
            torch.testing.assert_close(cast[name].float(), value, rtol=0, atol=tolerance)


def test_training_under_autocast() -> None:
    """Gradients are finite in bf16."""
    head = joint()
    with torch.autocast("cpu", torch.bfloat16):
        out = head(features_of((4, 5)), size=(16, 20))
    sum(o.float().mean() for o in out.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("name", ["a.b", "two words", "type", ""])
def test_names_of_outputs(name: str) -> None:
    """A name is a plain word."""
    with pytest.raises(ValueError, match="expected a plain word"):
        DPT(CHANNELS).with_outputs(**{name: Regression()})


def test_no_outputs() -> None:
    """A head needs one, and of a known kind."""
    with pytest.raises(ValueError, match="at least one output"):
        DPT(CHANNELS).with_outputs()
    with pytest.raises(TypeError, match=r"expected an output such as Regression\(\), got str"):
        DPT(CHANNELS).with_outputs(depth="relu")  # type: ignore[arg-type]
