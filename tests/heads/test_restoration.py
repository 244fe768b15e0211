"""The restoration head: the published body, and a guidance that starts at zero and learns."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import heads
from heads import Features, PixelSemanticFusion, RestorationHead, Restormer
from heads.restoration import ChannelFusion, WindowFusion
from heads.restoration.head import guide_image, guide_size
from heads.restoration.restormer import RestormerNorm, channel_attention
from tests.heads.conftest import randomise

OUTPUTS = {"restored": {"name": "image"}}
GUIDED = ("addition", "channels", "windows")


def head(guidance: str = "channels", **options: Any) -> RestorationHead:
    torch.manual_seed(0)
    spec = {"name": "restoration", "in_channels": [16, 16, 16], "body": "tiny", "width": 16, "guidance": guidance}
    built = heads.build(spec | {"outputs": OUTPUTS} | options)
    assert isinstance(built, RestorationHead)
    return built.eval()


def features(batch: int = 2) -> Features:
    maps = tuple(torch.randn(batch, 16, 3, 4) for _ in range(3))
    return Features(maps, (), (24, 32), (24, 32), (0, 0, 0, 0), (8, 8, 8), (0, 1, 2), True)


def test_published_size_and_names() -> None:
    body = Restormer()
    assert sum(p.numel() for p in body.parameters()) == 26_126_644  # the 26.1 M of the paper
    block = ["norm1.body.weight", "norm1.body.bias", "norm2.body.weight", "norm2.body.bias", "attn.temperature"]
    block += [f"attn.{n}.weight" for n in ("qkv", "qkv_dwconv", "project_out")]
    block += [f"ffn.{n}.weight" for n in ("project_in", "dwconv", "project_out")]
    stages = {"encoder_level1": 4, "encoder_level2": 6, "encoder_level3": 6, "latent": 8, "refinement": 4}
    stages |= {"decoder_level1": 4, "decoder_level2": 6, "decoder_level3": 6}
    names = {f"{stage}.{i}.{name}" for stage, count in stages.items() for i, name in product(range(count), block)}
    names |= {f"{n}.body.0.weight" for n in ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1")}
    names |= {f"{n}.weight" for n in ("patch_embed.proj", "reduce_chan_level3", "reduce_chan_level2", "output")}
    state = body.state_dict()
    assert set(state) == names
    shapes = {
        "patch_embed.proj.weight": (48, 3, 3, 3),
        "down1_2.body.0.weight": (24, 48, 3, 3),
        "up4_3.body.0.weight": (768, 384, 3, 3),
        "latent.0.attn.temperature": (8, 1, 1),
        "encoder_level1.0.ffn.project_in.weight": (254, 48, 1, 1),
        "decoder_level1.0.attn.qkv.weight": (288, 96, 1, 1),
        "output.weight": (3, 96, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_norm_equals_layer_norm() -> None:
    """Without a bias the norm only divides by the standard deviation."""
    x, norm = torch.randn(2, 6, 3, 5), RestormerNorm(6, True)
    randomise(norm, 0.1)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.body["weight"], norm.body["bias"], 1e-5)
    torch.testing.assert_close(norm(x), expected.permute(0, 3, 1, 2))
    free = RestormerNorm(6, False)
    torch.testing.assert_close(free(x), x / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt())


def test_channel_attention_by_hand() -> None:
    q, k, v = torch.randn(3, 1, 4, 2, 3)
    temperature = torch.tensor([2.0, 0.5]).view(2, 1, 1)
    out = channel_attention(q, k, v, temperature)
    for number in range(2):
        part = slice(2 * number, 2 * number + 2)
        a, b, c = (t[0, part].reshape(2, 6).numpy() for t in (q, k, v))
        cosines = torch.nn.functional.cosine_similarity(torch.tensor(a)[:, None], torch.tensor(b)[None], dim=-1)
        expected = (float(temperature[number]) * cosines).softmax(1) @ torch.tensor(c)
        torch.testing.assert_close(out[0, part].reshape(2, 6), expected)


@pytest.mark.parametrize("guidance", GUIDED)
@pytest.mark.parametrize("query", ["dino", "restoration"])
def test_untrained_guidance_is_the_body(guidance: str, query: str) -> None:
    """They are equal bit for bit; trained guidance changes the result."""
    built, images = head(guidance, query=query), torch.rand(2, 3, 37, 51)
    guide = features()
    with torch.no_grad():
        assert torch.equal(built(guide, images)["restored"], built.body(images))
        randomise(built.fusions, 0.1)
        assert not torch.allclose(built(guide, images)["restored"], built.body(images), atol=1e-3)


@pytest.mark.parametrize("guidance", GUIDED)
def test_everything_learns(guidance: str) -> None:
    """With no zero weights every parameter has a gradient."""
    built, guide, images = head(guidance), features(), torch.rand(2, 3, 16, 24)
    randomise(built, 0.1)
    (built(guide, images)["restored"] ** 2).mean().backward()
    assert [n for n, p in built.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8), (33, 50), (41, 16)])
def test_any_size(size: tuple[int, int]) -> None:
    built, images = head("windows"), torch.rand(1, 3, *size)
    randomise(built.fusions, 0.1)
    assert built(features(1), images)["restored"].shape == images.shape
    assert built(features(1), images, size=(5, 7))["restored"].shape == (1, 3, 5, 7)


def test_windows_mask_their_padding() -> None:
    """A window at the edge attends to the pixels of the image alone, as a smaller window does."""
    torch.manual_seed(0)
    large, small = WindowFusion(4, 8, 2, window=8), WindowFusion(4, 8, 2, window=5)
    q, k, v = torch.randn(3, 2, 8, 5, 5)
    torch.testing.assert_close(large.attend(q, k, v), small.attend(q, k, v))


def test_windows_are_independent() -> None:
    fusion = WindowFusion(4, 8, 2, window=4)
    q, k, v = torch.randn(3, 1, 8, 8, 12)
    out = fusion.attend(q, k, v)
    part = fusion.attend(q[..., 4:8, 8:12], k[..., 4:8, 8:12], v[..., 4:8, 8:12])
    torch.testing.assert_close(out[..., 4:8, 8:12], part)


def test_gate_weighs_experts() -> None:
    psf, guide = PixelSemanticFusion((16, 16, 16), 8), features()
    weights = psf.gate(guide.maps)
    assert weights.shape == (2, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    randomise(psf, 0.1)
    weights = psf.gate(guide.maps)
    experts = [expert(m) for expert, m in zip(psf.experts, guide.maps, strict=True)]
    expected = sum(w.view(-1, 1, 1, 1) * e for w, e in zip(weights.unbind(1), experts, strict=True))
    torch.testing.assert_close(psf(guide.maps), expected)
    assert not torch.allclose(weights[0], weights[1])  # another image, other weights


def test_the_backbone_reads_a_limited_number_of_patches() -> None:
    for size in ((64, 64), (2160, 3840), (17, 4000), (5, 5), (3000, 11)):
        rows, columns = guide_size(size, 14, 256)
        assert rows % 14 == columns % 14 == 0
        assert rows * columns <= 256 * 14**2
    assert guide_size((140, 280), 14, 256) == (140, 280)
    images = torch.rand(1, 3, 90, 131)
    shown = guide_image(images, 8, 50)
    expected = F.interpolate(images, size=shown.shape[-2:], mode="bilinear", antialias=True)
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=0)
    assert guide_image(images[..., :88, :128], 8, 10**6).equal(images[..., :88, :128])


def test_plain_data_and_back() -> None:
    built = head("windows", window=4, query="restoration", tokens=64)
    again = heads.build(built.spec())
    again.load_state_dict(built.state_dict())
    assert again.spec() == built.spec()
    images, guide = torch.rand(2, 3, 24, 16), features()
    assert torch.equal(again.eval()(guide, images)["restored"], built(guide, images)["restored"])


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match=r"guidance='attention': expected one of 'none', 'addition'"):
        head("attention")
    with pytest.raises(ValueError, match=r"body='large': expected one of restormer, tiny"):
        head(body="large")
    with pytest.raises(ValueError, match=r"body: unknown option 'depth'"):
        head(body={"depth": 3})
    with pytest.raises(ValueError, match=r"heads\[1\]=3 does not divide the 32 channels"):
        head(body={"dim": 16, "heads": [1, 3, 4, 8]})
    with pytest.raises(ValueError, match=r"blocks=\(1, 1\): expected 4 values, one per level"):
        head(body={"blocks": [1, 1]})
    with pytest.raises(ValueError, match="reads the images themselves"):
        head()(features())
    with pytest.raises(ValueError, match="guidance='channels' needs features"):
        head()(None, torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="'none' has no experts"):
        head("none").expert_weights(features())
    with pytest.raises(ValueError, match="needs the head 'restoration'"):
        heads.build({"name": "linear", "in_channels": [16], "outputs": OUTPUTS})
    with pytest.raises(ValueError, match="has one output, an image"):
        heads.build({"name": "restoration", "in_channels": [16], "outputs": {"depth": {"name": "regression"}}})
    with pytest.raises(ValueError, match=r"heads=3 does not divide"):
        ChannelFusion(8, 16, 3)
    with pytest.raises(ValueError, match=r"expected maps of \(16, 16\) channels"):
        PixelSemanticFusion((16, 16), 8)(features().maps)
