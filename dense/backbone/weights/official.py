"""Conversion between the official layouts of DINO, iBOT, DINOv2 and DINOv3 and the layout of our adapters."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import timm.models.convnext
import torch
from safetensors.torch import save_file
from torch import Tensor

from dense.backbone.positions import PERIODS, periods_of
from dense.backbone.weights.report import WeightsError
from dense.files import replacing

if TYPE_CHECKING:
    from dense.backbone.base import Backbone

State = dict[str, Tensor]

_SWIGLU_V2 = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}
_SWIGLU_V3 = {"mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x.", "mlp.w3.": "mlp.fc2."}
_SCALE_V3 = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}


def _rename(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def unchunk(state: State) -> State:
    """Rename blocks.{chunk}.{block} of FSDP-chunked DINOv2 checkpoints to blocks.{block}."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in state.items()}


# ---- official -> (state dict of the adapter, unused tensors)


def from_dino(state: State) -> tuple[State, State]:
    """Convert DINO v1, or any plain ViT with timm's names; iBOT's `masked_embed` is the mask token."""
    rename = {"masked_embed": "mask_token"}
    return {_adapter_name(rename.get(k, k)): v for k, v in state.items()}, {}


def from_dinov2(state: State) -> tuple[State, State]:
    """Convert DINOv2; with registers, the class token's position moves out of the table."""
    state, adapter = unchunk(state), {}
    if "register_tokens" in state:
        table = state.pop("pos_embed")
        adapter["class_position"] = table[:, :1].clone()
        adapter["model.pos_embed"] = table[:, 1:].clone()
        adapter["model.reg_token"] = state.pop("register_tokens")
    adapter |= {_adapter_name(_rename(k, _SWIGLU_V2)): v for k, v in state.items()}
    return adapter, {}


def from_dinov3(state: State) -> tuple[State, State]:
    """Convert DINOv3: fused biases become those of query and value; the key's, periods and masks are unused."""
    adapter: State = {}
    unused: State = {}
    for name, tensor in state.items():
        if name.endswith("bias_mask") or name.startswith(("local_cls_norm.", PERIODS)):
            unused[name] = tensor
        elif name.endswith("attn.qkv.bias"):
            query, key, value = tensor.chunk(3)
            adapter[_adapter_name(name.replace("qkv.bias", "q_bias"))] = query.clone()
            adapter[_adapter_name(name.replace("qkv.bias", "v_bias"))] = value.clone()
            unused[name.replace("qkv.bias", "k_bias")] = key.clone()
        elif name == "storage_tokens":
            adapter["model.reg_token"] = tensor
        else:
            adapter[_adapter_name(_rename(name, _SWIGLU_V3 | _SCALE_V3))] = tensor
    return adapter, unused


def from_convnext(state: State, backbone: Backbone) -> tuple[State, State]:
    """Convert ConvNeXt in Meta's layout; `norms.*` repeat the final norm and are unused."""
    unused = {k: v for k, v in state.items() if k.startswith("norms.")}
    renamed = timm.models.convnext.checkpoint_filter_fn(dict(state), backbone.model)
    return {f"model.{k}": v for k, v in renamed.items()}, unused


def _adapter_name(name: str) -> str:
    return name if name == "mask_token" else f"model.{name}"


# ---- adapter -> official


def export_official(backbone: Backbone, path: str | Path | None = None) -> State:
    """Return the state dict of a backbone in its release's layout, and write it to `path` if given."""
    family = backbone.spec.family
    if family not in EXPORTS:
        raise WeightsError(
            f"there is no official layout for {backbone.spec.name} (family {family}); "
            f"load it with family={', '.join(repr(f) for f in EXPORTS)} or use save_pretrained"
        )
    adapter = {k: v.detach().cpu() for k, v in backbone.state_dict().items()}
    state = {k: v.contiguous() for k, v in EXPORTS[family](adapter, backbone).items()}
    if path is not None:
        path = Path(path)
        if path.suffix not in (".pth", ".pt", ".safetensors"):
            raise ValueError(f"write official weights to a .pth or .safetensors file, not {path.name!r}")
        with replacing(path, sum(tensor.nbytes for tensor in state.values())) as file:
            if path.suffix == ".safetensors":
                save_file(state, file)
            else:
                torch.save(state, file)
    return state


def _timm_names(adapter: State) -> State:
    return {k.removeprefix("model."): v for k, v in adapter.items() if k.startswith("model.")}


def to_dino(adapter: State, backbone: Backbone) -> State:
    """Convert to DINO v1 or ResNet, which have no mask token."""
    return _timm_names(adapter)


def to_ibot(adapter: State, backbone: Backbone) -> State:
    """Convert to iBOT, which calls the mask token `masked_embed`."""
    return {"masked_embed": adapter["mask_token"]} | _timm_names(adapter)


def to_dinov2(adapter: State, backbone: Backbone) -> State:
    """Convert to DINOv2; with registers, the class token's position returns to the head of the table."""
    state = {_rename(k, _inverse(_SWIGLU_V2)) if _packed(adapter) else k: v for k, v in _timm_names(adapter).items()}
    state["mask_token"] = adapter["mask_token"]
    if "class_position" in adapter:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat((adapter["class_position"], state["pos_embed"]), dim=1)
    return state


def _packed(adapter: State) -> bool:
    """Whether the MLP is a packed SwiGLU, whose first layer has twice the channels that the second reads."""
    return adapter["model.blocks.0.mlp.fc1.weight"].shape[0] == 2 * adapter["model.blocks.0.mlp.fc2.weight"].shape[1]


def to_dinov3(adapter: State, backbone: Backbone) -> State:
    """Convert to DINOv3; unused tensors of the original file are written back, or else their neutral values."""
    unused, state = dict(backbone.unused_tensors), {}
    gated = "model.blocks.0.mlp.fc1_g.weight" in adapter
    table = _inverse(_SCALE_V3 | (_SWIGLU_V3 if gated else {}))
    for name, tensor in _timm_names(adapter).items():
        if name.endswith(".q_bias"):
            stem = name.removesuffix("q_bias")
            key = unused.pop(f"{stem}k_bias", torch.zeros_like(tensor))
            state[f"{stem}qkv.bias"] = torch.cat((tensor, key.to(tensor), adapter[f"model.{stem}v_bias"]))
            ones = torch.ones_like(tensor)
            state[f"{stem}qkv.bias_mask"] = torch.cat((ones, torch.zeros_like(tensor), ones))
        elif not name.endswith(".v_bias"):
            state["storage_tokens" if name == "reg_token" else _rename(name, table)] = tensor
    state["mask_token"] = adapter["mask_token"]
    state[PERIODS] = periods_of(backbone.model).cpu()
    return state | unused


def to_convnext(adapter: State, backbone: Backbone) -> State:
    """Convert to ConvNeXt in Meta's layout."""
    state = {}
    for name, tensor in _timm_names(adapter).items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d+)\.downsample\.(\d+)", r"downsample_layers.\1.\2", name)
        name = re.sub(r"^stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm", "norm")
        state[name] = tensor.flatten(1) if "pwconv" in name and tensor.ndim == 4 else tensor
    return state | backbone.unused_tensors


EXPORTS: dict[str, Callable[[State, Backbone], State]] = {
    "dino": to_dino,
    "ibot": to_ibot,
    "dinov2": to_dinov2,
    "dinov2_registers": to_dinov2,
    "dinov3": to_dinov3,
    "resnet": to_dino,
    "convnext": to_convnext,
}
