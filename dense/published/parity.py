"""A certificate that a published file gives the same outputs here as in its own library, for the same images."""

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
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from dense._version import __version__
from dense.backbone import Backbone, WeightsError
from dense.backbone.positions import periods_of, set_periods
from dense.backbone.weights.checkpoint import backbone_state, read_checkpoint
from dense.files import write
from dense.model.network import DenseModel
from dense.published.export import export_huggingface
from dense.published.family import Published
from heads.features import Size
from heads.outputs import Bins, Masks, Regression

LIMIT = 1e-4  # largest difference that counts as equal, relative to the largest value
CLASSES = {  # family -> class of transformers that opens its directories
    "hf_depth_anything": "DepthAnythingForDepthEstimation",
    "hf_dpt_depth": "DPTForDepthEstimation",
    "hf_dpt_segmentation": "DPTForSemanticSegmentation",
    "hf_eomt": "EomtForUniversalSegmentation",
    "hf_eomt_dinov3": "EomtDinov3ForUniversalSegmentation",
}
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Certificate:
    """What was compared, and the largest difference at each size, relative to the peer's largest value."""

    file: str
    sha256: str
    model: str
    peer: str
    compared: str
    differences: dict[str, float]  # "518x518" -> relative difference
    limit: float
    equal: bool
    versions: dict[str, str]

    def save(self, path: str | Path) -> Path:
        """Write the certificate as JSON."""
        return write(path, json.dumps(asdict(self), indent=2) + "\n")

    def __str__(self) -> str:
        rows = [f"  {size:>9}  {share:.1e} of the largest value" for size, share in self.differences.items()]
        verdict = "equal" if self.equal else f"NOT EQUAL: more than {self.limit:g}"
        return "\n".join([f"{self.file}: {self.model} against {self.peer}, {self.compared}: {verdict}", *rows])


class Comparison(NamedTuple):
    """Two implementations of the same weights, and the sizes of the images on which to compare them."""

    ours: Network
    theirs: Network
    library: Any
    compared: str  # which outputs
    sizes: list[Size]


def certify(path: str | Path, model: DenseModel | Backbone) -> Certificate:
    """Compare a model or a backbone that was loaded from `path` with an independent implementation of the same weights.

    Images are random. Their sizes are the native one and, where both interpolate positions by the same rule, others.
    """
    path = Path(path)
    backbone = model if isinstance(model, Backbone) else model.backbone
    comparison = _of_backbone(path, model) if isinstance(model, Backbone) else _of_model(path, model)
    library = comparison.library.__name__, comparison.library.__version__
    peer = " ".join(library)
    differences: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for height, width in comparison.sizes:
            images = torch.randn(1, 3, height, width, generator=generator)
            ours, theirs = comparison.ours(images), comparison.theirs(images)
            if ours.shape != theirs.shape:
                raise WeightsError(f"{path}: outputs are {tuple(ours.shape)} here and {tuple(theirs.shape)} in {peer}")
            if not (ours.any() or theirs.any()):  # a dead ReLU: zeros are equal whatever the weights
                continue
            largest = float(theirs.abs().max()) or 1.0
            differences[f"{height}x{width}"] = float((ours - theirs).abs().max()) / largest
    if not differences:
        raise WeightsError(f"{path}: both give zero everywhere for random images, which verifies nothing")
    name = backbone.spec.name
    if isinstance(model, DenseModel):
        name = f"{model.facts.get('published', 'model')} on {name}"
    equal = all(share <= LIMIT for share in differences.values())  # false for NaN
    versions = {"dense": __version__, "python": platform.python_version(), "torch": torch.__version__}
    versions |= dict([library])
    return Certificate(path.name, _digest(path), name, peer, comparison.compared, differences, LIMIT, equal, versions)


def _of_model(path: Path, model: DenseModel) -> Comparison:
    """Compare a head and its backbone with transformers or segmentation_models_pytorch."""
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
        any_size, square = bool(Published.read(path).config.get("dynamic_img_size")), False
    else:
        library = _library("transformers", path)
        any_size, square = model.backbone.spec.kind != "hybrid", model.backbone.spec.family == "timm"
        if family in CLASSES:
            peer = getattr(library, CLASSES[family]).from_pretrained(path).eval()
        else:
            network = model if isinstance(output, Masks) else _without_extras(path, model)
            with tempfile.TemporaryDirectory() as folder:
                name = export_huggingface(network, folder)
                peer = getattr(library, name).from_pretrained(folder).eval()

        if isinstance(output, Masks):

            def both(images: Tensor) -> Tensor:
                return torch.cat([values.flatten() for values in model.maps(images).values()])

            def of_peer(images: Tensor) -> Tensor:
                found = peer(images)
                return torch.cat((found.masks_queries_logits.flatten(), found.class_queries_logits.flatten()))

            side = peer.config.image_size
            return Comparison(both, of_peer, library, "masks and classes of all queries", [(side, side)])

        def theirs(images: Tensor) -> Tensor:
            found = peer(images)
            maps = found.logits if "logits" in found else found.predicted_depth[:, None]
            size = (images.shape[-2], images.shape[-1])
            if tuple(maps.shape[-2:]) == size:
                return maps
            return F.interpolate(maps, size=size, mode="bilinear", align_corners=output.align_corners is not False)

    any_size = any_size and network.backbone.spec.positions != "official"  # which transformers does not have
    step = 2 * model.backbone.spec.patch
    native = model.backbone.spec.image_size
    small = max(step, native[0] // 2 // step * step)
    others = [(small, small)] if square else [(small, small), (small, small + step)]
    compared = f"{'depth' if 'depth' in model.outputs else 'logits'} of the whole network"
    if network.backbone.spec.positions != model.backbone.spec.positions:
        compared += ", with positions read by transformers' rule"
    return Comparison(network, theirs, library, compared, [native, *others] if any_size else [native])


def _without_extras(path: Path, model: DenseModel) -> DenseModel:
    """Return the same network without what transformers lacks: limits of depth, and the scale of inverse depth."""
    outputs = dict(model.outputs)
    depth = outputs.get("depth")
    if isinstance(depth, Bins) or model.head.spec()["name"] != "dpt":
        family = model.facts.get("published")
        raise WeightsError(f"{path}: no installed library computes {family}, so there is nothing to verify it with")
    if isinstance(depth, Regression) and depth.activation == "relu":
        kind = "inverse_relative" if depth.inverse else depth.kind
        outputs["depth"] = replace(depth, inverse=None, min_depth=0.0, max_depth=None, kind=kind)
    head: Any = copy.copy(model.head)  # shares its layers
    head.outputs = outputs
    network = type(model)(model.backbone, head, model.layers, model.norm, model.task, model.classes)
    if model.backbone.spec.family == "dinov2":
        backbone = Backbone.from_spec(replace(model.backbone.spec, positions="size"))
        backbone.load_state_dict(model.backbone.state_dict())
        network.backbone = backbone
    return network.eval()


def _of_backbone(path: Path, backbone: Backbone) -> Comparison:
    """Compare the patch tokens of a backbone with transformers, for its directories, or timm."""
    spec = backbone.spec
    native = spec.image_size
    wider = (native[0], native[1] + 2 * spec.patch)
    library: Any
    peer: Any
    if path.is_dir():
        library = _library("transformers", path)
        peer = library.AutoModel.from_pretrained(path).eval()
        any_size = spec.positions == "rope"

        def theirs(images: Tensor) -> Tensor:
            return peer(images).last_hidden_state[:, spec.prefix :]

    else:
        if spec.kind == "pyramid":
            raise WeightsError(f"{path}: {spec.name} is verified against timm by tests alone; --verify is for ViTs")
        library, peer = timm, _timm_model(path, backbone)
        any_size = spec.positions in ("rope", "official_registers")

        def theirs(images: Tensor) -> Tensor:
            return peer.forward_features(images)[:, spec.prefix :]

    def ours(images: Tensor) -> Tensor:
        return backbone(images, layers="last", norm=True).maps[0].flatten(2).mT

    sizes = [native, wider] if any_size else [native]
    return Comparison(ours, theirs, library, "patch tokens after the final norm", sizes)


def _timm_model(path: Path, backbone: Backbone) -> Any:
    """Return timm's model of the same name with the weights of a file."""
    spec = backbone.spec
    options = {"num_classes": 0, "dynamic_img_size": True} | dict(spec.arguments)
    model: Any = timm.create_model(spec.name, **options).eval()
    module = importlib.import_module(type(model).__module__)
    state, _, _ = backbone_state(read_checkpoint(path), source=str(path))
    missing = model.load_state_dict(module.checkpoint_filter_fn(state, model), strict=False).missing_keys
    if left := [k for k in missing if not k.startswith(("head", "fc_norm"))]:
        raise WeightsError(f"{path}: timm's {spec.name} finds no {left[0]} in it")
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.eps = norm.eps if spec.norm_eps is None else spec.norm_eps
    if spec.rope_periods is not None:
        set_periods(model, periods_of(backbone.model))
    return model


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise WeightsError(f"{path} is verified against {name}, which is not installed; pip install {name}") from None


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the concatenated weight files of a directory."""
    found = hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin")) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()
