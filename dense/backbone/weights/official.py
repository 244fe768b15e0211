"""Official layouts of DINO, iBOT, DINOv2 and DINOv3, to the adapters' layout and back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import timm.models.convnext
import torch
from safetensors.torch import save_file
from torch import Tensor

from dense.backbone.base import Backbone
from dense.backbone.positions import PERIODS, periods_of
from dense.backbone.weights.report import WeightsError

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
    """blocks.{chunk}.{block}.rest -> blocks.{block}.rest, as FSDP-chunked DINOv2 checkpoints need."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", k): v for k, v in state.items()}


# ---- in: official -> (adapter's state, carried)


def from_dino(state: State) -> tuple[State, State]:
    """DINO v1, and any plain ViT with timm's names; iBOT's `masked_embed` is the mask token."""
    rename = {"masked_embed": "mask_token"}
    return {_own(rename.get(k, k)): v for k, v in state.items()}, {}


def from_dinov2(state: State) -> tuple[State, State]:
    """DINOv2; with registers, the class token's position moves out of the table."""
    state, own = unchunk(state), {}
    if "register_tokens" in state:
        table = state.pop("pos_embed")
        own["class_position"] = table[:, :1].clone()
        own["model.pos_embed"] = table[:, 1:].clone()
        own["model.reg_token"] = state.pop("register_tokens")
    own |= {_own(_rename(k, _SWIGLU_V2)): v for k, v in state.items()}
    return own, {}


def from_dinov3(state: State) -> tuple[State, State]:
    """DINOv3: fused biases fall apart into query and value (the key's is masked), periods and masks are carried."""
    own: State = {}
    carried: State = {}
    for name, tensor in state.items():
        if name.endswith("bias_mask") or name.startswith(("local_cls_norm.", PERIODS)):
            carried[name] = tensor
        elif name.endswith("attn.qkv.bias"):
            query, key, value = tensor.chunk(3)
            own[_own(name.replace("qkv.bias", "q_bias"))] = query.clone()
            own[_own(name.replace("qkv.bias", "v_bias"))] = value.clone()
            carried[name.replace("qkv.bias", "k_bias")] = key.clone()
        elif name == "storage_tokens":
            own["model.reg_token"] = tensor
        else:
            own[_own(_rename(name, _SWIGLU_V3 | _SCALE_V3))] = tensor
    return own, carried


def from_convnext(state: State, backbone: Backbone) -> tuple[State, State]:
    """ConvNeXt in Meta's layout; `norms.*` repeat the final norm and are carried."""
    carried = {k: v for k, v in state.items() if k.startswith("norms.")}
    renamed = timm.models.convnext.checkpoint_filter_fn(dict(state), backbone.model)
    return {f"model.{k}": v for k, v in renamed.items()}, carried


def _own(name: str) -> str:
    return name if name == "mask_token" else f"model.{name}"


# ---- out: adapter -> official


def export_official(backbone: Backbone, path: str | Path | None = None) -> State:
    """The state dict of a backbone in its release's layout, written to `path` when one is given."""
    family = backbone.spec.family
    if family not in EXPORTS:
        raise WeightsError(
            f"there is no official layout for {backbone.spec.name} (family {family}); "
            f"load it with family={', '.join(repr(f) for f in EXPORTS)} or use save_pretrained"
        )
    own = {k: v.detach().cpu() for k, v in backbone.state_dict().items()}
    state = {k: v.contiguous() for k, v in EXPORTS[family](own, backbone).items()}
    if path is not None:
        path = Path(path)
        if path.suffix not in (".pth", ".pt", ".safetensors"):
            raise ValueError(f"write official weights to a .pth or .safetensors file, not {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
    return state


def _bare(own: State) -> State:
    return {k.removeprefix("model."): v for k, v in own.items() if k.startswith("model.")}


def to_dino(own: State, backbone: Backbone) -> State:
    """DINO v1 has no mask token."""
    return _bare(own)


def to_ibot(own: State, backbone: Backbone) -> State:
    """iBOT calls the mask token `masked_embed`."""
    return {"masked_embed": own["mask_token"]} | _bare(own)


def to_dinov2(own: State, backbone: Backbone) -> State:
    """DINOv2; with registers, the class token's position returns to the head of the table."""
    state = {_rename(k, _inverse(_SWIGLU_V2)) if _packed(own) else k: v for k, v in _bare(own).items()}
    state["mask_token"] = own["mask_token"]
    if "class_position" in own:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat((own["class_position"], state["pos_embed"]), dim=1)
    return state


def _packed(own: State) -> bool:
    """Whether the first MLP layer is twice as wide as the second one expects: a packed SwiGLU."""
    return own["model.blocks.0.mlp.fc1.weight"].shape[0] == 2 * own["model.blocks.0.mlp.fc2.weight"].shape[1]


def to_dinov3(own: State, backbone: Backbone) -> State:
    """DINOv3; what the file once carried returns as it was, otherwise its neutral value is written."""
    carried, state = dict(backbone.carried), {}
    gated = "model.blocks.0.mlp.fc1_g.weight" in own
    table = _inverse(_SCALE_V3 | (_SWIGLU_V3 if gated else {}))
    for name, tensor in _bare(own).items():
        if name.endswith(".q_bias"):
            stem = name.removesuffix("q_bias")
            key = carried.pop(f"{stem}k_bias", torch.zeros_like(tensor))
            state[f"{stem}qkv.bias"] = torch.cat((tensor, key.to(tensor), own[f"model.{stem}v_bias"]))
            ones = torch.ones_like(tensor)
            state[f"{stem}qkv.bias_mask"] = torch.cat((ones, torch.zeros_like(tensor), ones))
        elif not name.endswith(".v_bias"):
            state["storage_tokens" if name == "reg_token" else _rename(name, table)] = tensor
    state["mask_token"] = own["mask_token"]
    state[PERIODS] = periods_of(backbone.model).cpu()
    return state | carried


def to_convnext(own: State, backbone: Backbone) -> State:
    """ConvNeXt in Meta's layout."""
    state = {}
    for name, tensor in _bare(own).items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d+)\.downsample\.(\d+)", r"downsample_layers.\1.\2", name)
        name = re.sub(r"^stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.norm", "norm")
        state[name] = tensor.flatten(1) if "pwconv" in name and tensor.ndim == 4 else tensor
    return state | backbone.carried


EXPORTS: dict[str, Callable[[State, Backbone], State]] = {
    "dino": to_dino,
    "ibot": to_ibot,
    "dinov2": to_dinov2,
    "dinov2_registers": to_dinov2,
    "dinov3": to_dinov3,
    "resnet": to_dino,
    "convnext": to_convnext,
}
