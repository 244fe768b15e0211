"""Features equal Hugging Face's modules with the same random initialisation, through our loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dense.backbone import Backbone, load_backbone
from tests.backbone.conftest import randomise

transformers = pytest.importorskip("transformers")

COMMON = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTModel", {"image_size": 64, "patch_size": 16, "intermediate_size": 80}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {"image_size": 70, "patch_size": 14}),
    "dinov2_swiglu": ("Dinov2Config", "Dinov2Model", {"image_size": 70, "patch_size": 14, "use_swiglu_ffn": True}),
    "dinov2_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"image_size": 70, "patch_size": 14}),
    "dinov2_registers_swiglu": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {"image_size": 70, "patch_size": 14, "use_swiglu_ffn": True},
    ),
    "dinov3": (
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        {"image_size": 64, "num_register_tokens": 4, "intermediate_size": 80},
    ),
    "dinov3_gated": (
        "DINOv3ViTConfig",
        "DINOv3ViTModel",
        {
            "image_size": 64,
            "num_register_tokens": 4,
            "intermediate_size": 80,
            "use_gated_mlp": True,
            "hidden_act": "silu",
        },
    ),
}


def make(name: str) -> Any:
    """A tiny random Hugging Face model."""
    config, model, options = MODELS[name]
    torch.manual_seed(0)
    module = getattr(transformers, model)(getattr(transformers, config)(**COMMON, **options)).eval()
    randomise(module)
    return module


def compare(backbone: Backbone, module: Any, size: tuple[int, int]) -> None:
    """Each layer, with and without the final norm, and the prefix tokens, to 1e-5 relative."""
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        theirs = module(images, output_hidden_states=True)
        raw, normed = (backbone(images, layers=(0, 1, 2), norm=n) for n in (False, True))
    prefix = backbone.spec.prefix
    for mine, tokens, hidden in zip(raw.maps, raw.prefix, theirs.hidden_states[1:], strict=True):
        scale = float(hidden.abs().max())
        torch.testing.assert_close(mine.flatten(2).transpose(1, 2), hidden[:, prefix:], rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(tokens, hidden[:, :prefix], rtol=1e-5, atol=1e-5 * scale)
    last = theirs.last_hidden_state
    torch.testing.assert_close(
        normed.maps[-1].flatten(2).transpose(1, 2), last[:, prefix:], rtol=1e-5, atol=1e-5 * float(last.abs().max())
    )


@pytest.mark.parametrize("name", MODELS)
def test_directory(name: str, tmp_path: Path) -> None:
    """A directory written by transformers opens by its path alone, with its own architecture, eps and periods."""
    module = make(name)
    module.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.report.complete
    assert backbone.spec.norm_eps == module.config.layer_norm_eps
    size = module.config.image_size
    compare(backbone, module, (size, size))
    if name.startswith("dinov3"):
        assert backbone.spec.rope_periods == "float32"
        compare(backbone, module, (80, 112))


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2_registers", "dinov3"])
def test_state_dict(name: str) -> None:
    """A bare state dict with the modules' own names loads into a named architecture."""
    module = make(name)
    names = {
        "vit": "vit_base_patch16_224",
        "dinov2": "dinov2_vitb14",
        "dinov2_registers": "dinov2_vitb14_reg",
        "dinov3": "dinov3_vitb16",
    }
    ratio = {"mlp_ratio": 2.5} if name in ("vit", "dinov3") else {}
    size = module.config.image_size
    backbone = load_backbone(
        names[name], module.state_dict(), embed_dim=32, depth=3, num_heads=4, img_size=size, **ratio
    )
    assert backbone.report.layout.startswith("hf_")
    compare(backbone, module, (size, size))


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers"])
def test_mask_token(name: str) -> None:
    """Masked patches take the mask token as in transformers."""
    module = make(name)
    registers = {"reg_tokens": 4} if name.endswith("registers") else {}
    alias = "dinov2_vitb14_reg" if registers else "dinov2_vitb14"
    backbone = load_backbone(alias, module.state_dict(), embed_dim=32, depth=3, num_heads=4, img_size=70)
    images, masks = torch.randn(2, 3, 70, 70), torch.rand(2, 25) > 0.5
    with torch.no_grad():
        theirs = module(images, bool_masked_pos=masks).last_hidden_state
        mine = backbone(images, layers="last", norm=True, masks=masks).maps[0]
    torch.testing.assert_close(mine.flatten(2).transpose(1, 2), theirs[:, backbone.spec.prefix :], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov3"])
def test_attention(name: str, tmp_path: Path) -> None:
    """Class attention equals the eager softmax of transformers."""
    module = make(name)
    module.set_attn_implementation("eager")
    module.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    size = module.config.image_size
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        theirs = module(images, output_attentions=True).attentions[-1][:, :, 0, backbone.spec.prefix :]
        mine = backbone.attention(images).flatten(2)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_published_names(tmp_path: Path) -> None:
    """The older names of the published files (query, key, value; weights_in) load as well."""
    module = make("dinov2")
    old = {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }
    state = {}
    for key, tensor in module.state_dict().items():
        for new, published in old.items():
            key = key.replace(f"attention.{new}", f"attention.{published}")
        state[f"dinov2.{key}"] = tensor
    backbone = load_backbone("dinov2_vitb14", state, embed_dim=32, depth=3, num_heads=4, img_size=70)
    compare(backbone, module, (70, 70))


def test_a_directory_of_another_kind(tmp_path: Path) -> None:
    """An unsupported model is named."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' model; backbones are read from vit"):
        load_backbone(tmp_path)


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    """A config whose activation timm's model does not have is an error, not a silent difference."""
    config = transformers.DINOv3ViTConfig(**COMMON, use_gated_mlp=True, hidden_act="gelu")
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"hidden_act 'gelu'.*expected 'silu'"):
        load_backbone(tmp_path)
