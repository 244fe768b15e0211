"""A certificate that a published file gives here what its own library makes of it: the same images through both."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from dense._version import __version__
from dense.backbone import Backbone, WeightsError
from dense.backbone.positions import periods_of, set_periods
from dense.backbone.weights.checkpoint import backbone_state, read_checkpoint
from dense.model.network import DenseModel
from dense.published.export import export_huggingface
from dense.published.family import Published
from heads.features import Size
from heads.outputs import Bins, Regression

LIMIT = 1e-4  # of the largest value
CLASSES = {  # of transformers, that open the directories of a family
    "hf_depth_anything": "DepthAnythingForDepthEstimation",
    "hf_dpt_depth": "DPTForDepthEstimation",
    "hf_dpt_segmentation": "DPTForSemanticSegmentation",
}
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Certificate:
    """What was compared with what, and the largest difference at each size, as a share of the peer's largest value."""

    file: str
    sha256: str
    model: str
    peer: str
    compared: str
    differences: dict[str, float]  # "518x518" -> share
    limit: float
    equal: bool
    versions: dict[str, str]

    def save(self, path: str | Path) -> Path:
        """As JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        return path

    def __str__(self) -> str:
        rows = [f"  {size:>9}  {share:.1e} of the largest value" for size, share in self.differences.items()]
        verdict = "equal" if self.equal else f"NOT EQUAL: more than {self.limit:g}"
        return "\n".join([f"{self.file}: {self.model} against {self.peer}, {self.compared}: {verdict}", *rows])


def certify(path: str | Path, model: DenseModel | Backbone) -> Certificate:
    """Compare a model or a backbone that was loaded from `path` with an independent implementation of the same weights.

    Images are random; sizes are the native one and, where both read positions by one rule, others.
    """
    path = Path(path)
    if isinstance(model, Backbone):
        mine, theirs, peer, compared, sizes = _of_backbone(path, model)
    else:
        mine, theirs, peer, compared, sizes = _of_head(path, model)
    differences: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for height, width in sizes:
            images = torch.randn(1, 3, height, width, generator=generator)
            ours, other = mine(images), theirs(images)
            if ours.shape != other.shape:
                raise WeightsError(f"{path}: outputs are {tuple(ours.shape)} here and {tuple(other.shape)} in {peer}")
            if not (ours.any() or other.any()):  # a dead ReLU: zeros are equal whatever the weights
                continue
            largest = float(other.abs().max()) or 1.0
            differences[f"{height}x{width}"] = float((ours - other).abs().max()) / largest
    if not differences:
        raise WeightsError(f"{path}: both give zero everywhere for random images, which verifies nothing")
    backbone = model if isinstance(model, Backbone) else model.backbone
    name = (
        backbone.spec.name
        if isinstance(model, Backbone)
        else f"{model.facts.get('published', 'model')} on {backbone.spec.name}"
    )
    equal = all(share <= LIMIT for share in differences.values())  # false for NaN
    versions = {"dense": __version__, "python": platform.python_version(), "torch": torch.__version__}
    versions[peer.split()[0]] = peer.split()[1]
    return Certificate(path.name, _digest(path), name, peer, compared, differences, LIMIT, equal, versions)


def _of_head(path: Path, model: DenseModel) -> tuple[Network, Network, str, str, list[Size]]:
    """A head and its backbone against transformers or segmentation_models_pytorch."""
    family = model.facts.get("published", "")
    output = next(iter(model.outputs.values()))
    network = model
    if family == "smp_dpt":
        library = _library("segmentation_models_pytorch", path)
        if not (path / "model.safetensors").is_file():
            raise WeightsError(
                f"{path}: segmentation_models_pytorch opens a directory with model.safetensors; give that"
            )
        peer: Any = library.from_pretrained(str(path)).eval()
        theirs: Network = peer
        free, square = bool(Published.read(path).config.get("dynamic_img_size")), False
    else:
        library = _library("transformers", path)
        free, square = model.backbone.spec.kind != "hybrid", model.backbone.spec.family == "timm"
        if family in CLASSES:
            peer = getattr(library, CLASSES[family]).from_pretrained(path).eval()
        else:
            network = _plain(path, model)
            with tempfile.TemporaryDirectory() as folder:
                name = export_huggingface(network, folder)
                peer = getattr(library, name).from_pretrained(folder).eval()

        def theirs(images: Tensor) -> Tensor:
            found = peer(images)
            maps = found.logits if "logits" in found else found.predicted_depth[:, None]
            size = (images.shape[-2], images.shape[-1])
            if tuple(maps.shape[-2:]) == size:
                return maps
            return F.interpolate(maps, size=size, mode="bilinear", align_corners=output.align_corners is not False)

    free = free and network.backbone.spec.positions != "official"  # which transformers does not have
    step = 2 * model.backbone.spec.patch
    native = model.backbone.spec.image_size
    small = max(step, native[0] // 2 // step * step)
    others = [(small, small)] if square else [(small, small), (small, small + step)]
    what = f"{'depth' if 'depth' in model.outputs else 'logits'} of the whole network"
    if network.backbone.spec.positions != model.backbone.spec.positions:
        what += ", with positions read by transformers' rule"
    sizes = [native, *others] if free else [native]
    return network, theirs, _version(library), what, sizes


def _plain(path: Path, model: DenseModel) -> DenseModel:
    """The same network with what transformers lacks left out, as exact as it is: limits, and inverse depth's scale."""
    outputs = dict(model.outputs)
    depth = outputs.get("depth")
    if isinstance(depth, Bins) or model.head.spec()["name"] != "dpt":
        raise WeightsError(
            f"{path}: no installed library computes {model.facts.get('published')}, so there is nothing to verify it with"
        )
    if isinstance(depth, Regression) and depth.activation == "relu":
        kind = "inverse_relative" if depth.inverse else depth.kind
        outputs["depth"] = replace(depth, inverse=None, min_depth=0.0, max_depth=None, kind=kind)
    head = type(model)(model.backbone, _with(model.head, outputs), model.layers, model.norm, model.task, model.classes)
    if model.backbone.spec.family == "dinov2":
        backbone = Backbone.from_spec(replace(model.backbone.spec, positions="size"))
        backbone.load_state_dict(model.backbone.state_dict())
        head.backbone = backbone
    return head.eval()


def _with(head: Any, outputs: dict[str, Any]) -> Any:
    """The same head with outputs of other limits; the layers are shared."""
    changed = copy.copy(head)
    changed.outputs = outputs
    return changed


def _of_backbone(path: Path, backbone: Backbone) -> tuple[Network, Network, str, str, list[Size]]:
    """A backbone against transformers, for its directories, or timm."""
    spec = backbone.spec
    native = spec.image_size
    library: Any
    peer: Any
    if path.is_dir():
        library = _library("transformers", path)
        peer = library.AutoModel.from_pretrained(path).eval()
        sizes = [native, (native[0], native[1] + 2 * spec.patch)] if spec.positions == "rope" else [native]

        def theirs(images: Tensor) -> Tensor:
            return peer(images).last_hidden_state[:, spec.prefix :]

    else:
        if spec.kind == "pyramid":
            raise WeightsError(f"{path}: {spec.name} is verified against timm by tests alone; --verify is for ViTs")
        library = timm
        options = {"num_classes": 0, "dynamic_img_size": True} | dict(spec.arguments)
        peer = timm.create_model(spec.name, **options).eval()
        module = importlib.import_module(type(peer).__module__)
        state, _, _ = backbone_state(read_checkpoint(path), source=str(path))
        missing = peer.load_state_dict(module.checkpoint_filter_fn(state, peer), strict=False).missing_keys
        if left := [k for k in missing if not k.startswith(("head", "fc_norm"))]:
            raise WeightsError(f"{path}: timm's {spec.name} finds no {left[0]} in it")
        for norm in (m for m in peer.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.eps = norm.eps if spec.norm_eps is None else spec.norm_eps
        if spec.rope_periods is not None:
            set_periods(peer, periods_of(backbone.model))
        sizes = (
            [native, (native[0], native[1] + 2 * spec.patch)]
            if spec.positions in ("rope", "official_registers")
            else [native]
        )

        def theirs(images: Tensor) -> Tensor:
            return peer.forward_features(images)[:, spec.prefix :]

    def mine(images: Tensor) -> Tensor:
        return backbone(images, layers="last", norm=True).maps[0].flatten(2).mT

    return mine, theirs, _version(library), "patch tokens after the final norm", sizes


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise WeightsError(f"{path} is verified against {name}, which is not installed; pip install {name}") from None


def _version(library: Any) -> str:
    return f"{library.__name__} {library.__version__}"


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the weight files of a directory one after another."""
    found = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin")) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()
