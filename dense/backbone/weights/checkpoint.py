"""Read a weight file without running code in it, find the backbone inside, and recognise its layout."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dense.backbone.positions import PERIODS
from dense.backbone.weights.huggingface import is_huggingface, layout_of
from dense.backbone.weights.report import WeightsError
from dense.suggest import did_you_mean

Branch = Literal["teacher", "student"]
StateDict = dict[str, Tensor]

# the only classes that a checkpoint may name besides tensors: DINO v1 saves its arguments and a few NumPy numbers
_NUMBERS = [np.float64, np.float32, np.int64, np.int32, np.bool_]
SAFE_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *_NUMBERS,
    *(type(np.dtype(number)) for number in _NUMBERS),
    multiarray.scalar,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),  # its name in files of NumPy 1
]

KINDS = {
    b"\xff\xd8": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"\x1f\x8b": "a gzip archive",
    b"\x80": "a plain pickle",
}

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
_HEADS = re.compile(
    r"^(head|dino_head|ibot_head|fc|classifier|pooler|lm_head|local_head|projectors)\.|^(vit|dinov2)\.pooler\."
)


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Return the contents of a .pth, .pt, .bin, .ckpt or .safetensors file: plain data and tensors.

    mmap: read the numbers of a tensor when they are used, which takes no time where its shape alone is.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path} is a directory without config.json; expected a weight file or a saved model")
    if not path.is_file():
        raise FileNotFoundError(f"no such weight file: {path}")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise WeightsError(f"{path} is empty (0 bytes); download or copy it again")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a whole safetensors file ({error}); it may be truncated") from None
    _refuse_text(path, head)
    if head[:2] == b"PK" and not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path} is truncated: it begins as a PyTorch file but its end is missing; download it again"
        )
    try:
        with torch.serialization.safe_globals(SAFE_CLASSES), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapped = mmap and zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported global:?)\s+(?:GLOBAL\s+)?`?([\w.]+)", str(error))
        if found:
            raise WeightsError(
                f"{path} was refused: it asks to run {found.group(1)!r}, which no weight file needs. "
                "Weight files hold tensors; ask its author for a safetensors or plain state dict"
            ) from None
        kind = next((f" but {words}" for start, words in KINDS.items() if head.startswith(start)), ", or is corrupt")
        raise WeightsError(
            f"{path} is not a PyTorch weight file{kind}; expected a .safetensors file, or tensors that torch.save wrote"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, IndexError, TypeError) as error:
        raise WeightsError(f"{path} is corrupt or is not a PyTorch weight file ({_first_line(error)})") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a state dict or a training checkpoint")
    return dict(content)


def _first_line(error: Exception) -> str:
    """Return the first line of an error that is not torch's advice to unpickle the file."""
    lines = str(error).strip().splitlines()
    return next((line for line in lines if "weights_only" not in line), type(error).__name__)[:200]


def _refuse_text(path: Path, head: bytes) -> None:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return
        text = head[: error.start].decode("utf-8")
    if text.isprintable() or ("\n" in text and all(c.isprintable() or c.isspace() for c in text)):
        hint = (
            " It is a web page: the download link has expired or asks for a login." if "<html" in text.lower() else ""
        )
        raise WeightsError(f"{path} is a text file that begins {text[:60]!r}, not weights.{hint}")


def backbone_state(
    checkpoint: Mapping[str, Any], branch: Branch = "teacher", source: str = "the file"
) -> tuple[StateDict, list[str], str]:
    """Find the backbone's tensors inside a bare state dict or a training checkpoint.

    branch: which network to take from a checkpoint that holds a teacher and a student. Returns the tensors without the
    prefixes of wrappers, the names of ignored tensors, and where in the checkpoint the tensors were.
    """
    if branch not in get_args(Branch):
        raise ValueError(f"branch={branch!r}: expected teacher or student.{did_you_mean(branch, get_args(Branch))}")
    other = "student" if branch == "teacher" else "teacher"
    missing = f"{source} holds a {other} and no {branch}; use branch={other!r}"
    where: list[str] = []
    while True:
        nested = {k: v for k, v in checkpoint.items() if isinstance(v, Mapping) and v}
        order = [branch, "model_ema", "state_dict_ema", "state_dict", "model", "module", "encoder"]
        key = next((k for k in order if k in nested), None)
        if key is None:
            break
        where.append(key)
        checkpoint = nested[key]
    tensors = {k: v for k, v in checkpoint.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        if other in nested:
            raise WeightsError(missing)
        found = ", ".join(str(k) for k in list(checkpoint)[:8]) or "nothing"
        raise WeightsError(
            f"{source} holds no weights: found {found}; expected a state dict, or one under 'teacher', 'model' or "
            "'state_dict'"
        )
    for prefix in (f"{branch}.network.", f"{branch}.", f"model.{branch}."):  # Lightning keeps both in one state dict
        inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if inside:
            where.append(branch)
            tensors = inside
            break
    else:
        if any(k.startswith((f"{other}.", f"model.{other}.")) for k in tensors):
            raise WeightsError(missing)
    tensors = {_unwrapped(k): v for k, v in tensors.items()}
    inside = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    ignored = []
    if inside:
        ignored = [k for k in tensors if not k.startswith("backbone.")]
        tensors = {_unwrapped(k): v for k, v in inside.items()}
    heads = [k for k in tensors if _HEADS.match(k) and not k.startswith("head.norm.")]
    ignored += heads
    return {k: v for k, v in tensors.items() if k not in set(heads)}, ignored, ".".join(where) or "bare"


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name.replace("._orig_mod.", ".").replace("._fsdp_wrapped_module.", ".")


def recognise(state: StateDict) -> str:
    """Return the layout of a backbone's state dict, recognised by its names."""
    names = set(state)
    if any(k.startswith("model.") for k in names) and (
        "mask_token" in names or any(k.startswith("model.stages") for k in names)
    ):
        return "own"
    if is_huggingface(state):
        return layout_of(state)
    if "storage_tokens" in names or any(k.endswith("attn.qkv.bias_mask") or k == PERIODS for k in names):
        return "dinov3"
    if "register_tokens" in names:
        return "dinov2_registers"
    if "masked_embed" in names:
        return "ibot"
    if any(k.startswith("downsample_layers.") for k in names):
        return "convnext"
    if "mask_token" in names and any(".ls1.gamma" in k or ".mlp.w12." in k for k in names):
        return "dinov2"
    if (
        {"cls_token", "patch_embed.proj.weight"} <= names
        and "reg_token" not in names
        and not any("gamma" in k for k in names)
    ):
        return "dino"
    if any(k.startswith(("blocks.", "layer1.", "stem.", "stages.")) for k in names):
        return "timm"
    raise WeightsError(
        f"the names {', '.join(sorted(names)[:6])}, ... belong to no known layout (DINO, iBOT, DINOv2, DINOv3, timm, "
        "Hugging Face ViT/Dinov2/DINOv3ViT, or a directory of this project)"
    )
