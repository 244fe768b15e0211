"""Depth Anything and DPT of transformers: directories whose config.json records nearly everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dense.backbone import Backbone, WeightsError
from dense.backbone.spec import Positions
from dense.backbone.weights.huggingface import describe_config, from_huggingface, mlp_ratio
from dense.model.network import DenseModel, Inference
from dense.published.assemble import assemble, depth_branch, dpt_spec, hidden, label_branches, load_named, renamed
from dense.published.dpt import HALF, hybrid_options
from dense.published.family import Family, Published, State, check_has_unit, choose, positive

NECK = {
    r"^neck\.reassemble_stage\.layers\.(\d)\.projection\.": r"neck.reassemble.\1.project.",
    r"^neck\.reassemble_stage\.layers\.(\d)\.resize\.": r"neck.reassemble.\1.resize.",
    r"^neck\.reassemble_stage\.readout_projects\.(\d)\.0\.": r"neck.reassemble.\1.readout.",
    r"^neck\.convs\.(\d)\.": r"neck.reassemble.\1.adapt.",
    r"^neck\.fusion_stage\.layers\.(\d)\.projection\.": r"neck.fusion.~\1.project.",
    r"^neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)\.": r"neck.fusion.~\1.unit\2.conv\3.",
    r"^neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.batch_norm(\d)\.": r"neck.fusion.~\1.unit\2.norm\3.",
}
DEPTH_ANYTHING = NECK | {r"^head\.conv(\d)\.": r"branches.depth.conv\1."}
DEPTH = NECK | {r"^head\.projection\.": "neck.project."} | depth_branch(r"head\.head")
LABELS = NECK | label_branches(r"head\.head", r"auxiliary_head\.head")
BIT = {
    r"^embeddings\.backbone\.bit\.embedder\.convolution\.": "patch_embed.backbone.stem.conv.",
    r"^embeddings\.backbone\.bit\.embedder\.norm\.": "patch_embed.backbone.stem.norm.",
    r"^embeddings\.backbone\.bit\.encoder\.stages\.(\d+)\.layers\.(\d+)\.": (
        r"patch_embed.backbone.stages.\1.blocks.\2."
    ),
    r"^embeddings\.projection\.": "embeddings.patch_embeddings.projection.",
}
FACTORS = [4, 2, 1, 0.5]
KINDS = {
    "relative": "for inverse depth without scale (Intel/dpt-large, Intel/dpt-hybrid-midas)",
    "metric": "for metres (facebook/dpt-dinov2-*-nyu, -kitti)",
}


def build_depth_anything(file: Published, positions: Positions = "size") -> DenseModel:
    """Return Depth Anything.

    positions: "size" is the rule of transformers, "official" that of the training, which differs away from the native
    size.
    """
    config = checked(file)
    backbone, layers, norm = on_backbone(file, config, positions=positions)
    state = renamed(head_of(file), DEPTH_ANYTHING)
    output: dict[str, Any] = {"name": "regression", "hidden": hidden(state), "upsample": "image"}
    if config.get("depth_estimation_type", "relative") == "metric":
        farthest = positive(file, "max_depth in config.json", config.get("max_depth"), "20 indoors or 80 outdoors")
        output |= {"activation": "sigmoid", "max_depth": farthest}
    else:
        output |= {"activation": "relu", "kind": "inverse_relative"}
    spec = dpt_spec(state, outputs={"depth": output})
    return assemble(file, "hf_depth_anything", backbone, spec, state, layers, norm, inference=resize(file))


def build_dpt_depth(
    file: Published, kind: str | None = None, max_depth: float | None = None, positions: Positions | None = None
) -> DenseModel:
    """Return DPT for depth of a `kind`, on its own ViT, on a hybrid or on a backbone that config.json describes."""
    kind = choose(file, "kind", kind, KINDS)
    check_has_unit(file, kind, max_depth)
    if max_depth is not None:
        max_depth = positive(file, "max_depth", max_depth, "10 for models of NYUv2, 80 for those of KITTI")
    backbone, spec, state, layers, norm = dpt(file, DEPTH, positions)
    meaning = "metric" if kind == "metric" else "inverse_relative"
    output = {
        "name": "regression",
        "activation": "relu",
        "kind": meaning,
        "max_depth": max_depth,
        "hidden": hidden(state),
    }
    spec["outputs"] = {"depth": output}
    return assemble(file, "hf_dpt_depth", backbone, spec, state, layers, norm, inference=resize(file))


def build_dpt_segmentation(file: Published, positions: Positions | None = None) -> DenseModel:
    """Return DPT for the classes named in config.json, with the auxiliary head if there is one."""
    backbone, spec, state, layers, norm = dpt(file, LABELS, positions)
    count = state["branches.labels.classifier.weight"].shape[0]
    auxiliary = "auxiliary.labels.classifier.weight" in state
    dropout = file.config.get("semantic_classifier_dropout", 0.1)
    spec["outputs"] = {"labels": {"name": "classes", "count": count, "auxiliary": auxiliary, "dropout": dropout}}
    given = file.config.get("id2label") or {}
    names = tuple(given.get(str(i), str(i)) for i in range(count))
    return assemble(file, "hf_dpt_segmentation", backbone, spec, state, layers, norm, names, resize(file))


def dpt(
    file: Published, table: Mapping[str, str], positions: Positions | None
) -> tuple[Backbone, dict[str, Any], State, tuple[int, ...], bool]:
    """Return backbone, spec of the neck, tensors of the head under our names, layers and norm of a DPT."""
    config = checked(file)
    hybrid = bool(config.get("is_hybrid"))
    if config.get("backbone_config") and not hybrid:
        backbone, layers, norm = on_backbone(file, config, positions=positions or "size")
    else:
        backbone, norm = own_vit(file, config, hybrid, positions or "bilinear"), False
        layers = tuple(sorted(config.get("backbone_out_indices") or (2, 5, 8, 11)))
        layers = (0, 1, *layers[2:]) if hybrid else layers
    state = renamed(head_of(file), table)
    spec = dpt_spec(state, fusion_size="double", **hybrid_options(backbone))
    if config.get("readout_type", "project") == "add":
        spec["readout"] = "add"
    return backbone, spec, state, layers, norm


def own_vit(file: Published, config: Mapping[str, Any], hybrid: bool, positions: Positions) -> Backbone:
    """Return the ViT of a DPT, plain or on a ResNet; where config.json omits dimensions, those of DPTConfig."""
    dim = config.get("hidden_size", 768)
    dimensions = {
        "embed_dim": dim,
        "depth": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "img_size": config.get("image_size", 384),
        "mlp_ratio": mlp_ratio(config.get("intermediate_size", 3072), dim),
        "qkv_bias": config.get("qkv_bias", True),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    } | ({} if hybrid else {"patch_size": config.get("patch_size", 16)})
    if config.get("hidden_act", "gelu") != "gelu":
        raise WeightsError(
            f"{file.path}: hidden_act {config['hidden_act']!r}; expected 'gelu', which timm's model computes"
        )
    state = renamed({k: v for k, v in file.under("dpt.").items() if not k.startswith("pooler.")}, BIT)
    resnet = {k: state.pop(k) for k in list(state) if k.startswith("patch_embed.backbone.")}
    blocks = {k.removeprefix("model."): v for k, v in from_huggingface(state).items()}
    name = "vit_base_r50_s16_384" if hybrid else "vit_base_patch16_384"
    facts = {"positions": positions, "padding": "resize"} | statistics(file, HALF)
    return load_named(file, name, blocks | resnet, **dimensions, **facts)


def on_backbone(
    file: Published, config: Mapping[str, Any], positions: Positions
) -> tuple[Backbone, tuple[int, ...], bool]:
    """Return the backbone that config.json describes, the layers of its maps, and whether they are normed."""
    inner = dict(config.get("backbone_config") or {})
    if inner.get("model_type") not in ("dinov2", "dinov2_with_registers"):
        raise WeightsError(
            f"{file.path} has a backbone of type {inner.get('model_type')!r}; supported are dinov2 and "
            "dinov2_with_registers"
        )
    inner = DINOV2_DEFAULTS | {k: v for k, v in inner.items() if v is not None}
    name, arguments = describe_config(inner)
    facts = {"padding": "pad" if file.preprocessor.get("do_pad") else "resize"} | statistics(file, None)
    if inner["model_type"] == "dinov2":
        facts["positions"] = positions
    backbone = load_named(file, name, file.under("backbone."), **(arguments | facts))
    indices = inner.get("out_indices") or [
        int(stage.removeprefix("stage")) for stage in inner.get("out_features") or []
    ]
    layers = tuple(i % (backbone.spec.depth + 1) - 1 for i in indices)
    if len(layers) != 4 or min(layers) < 0:
        raise WeightsError(
            f"{file.path}: config.json has out_indices {list(indices)}; expected 4 blocks, counted from 1"
        )
    return backbone, layers, inner.get("apply_layernorm", True)


DINOV2_DEFAULTS = {  # of Dinov2Config; config.json may omit them
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 14, "image_size": 224,
    "layer_norm_eps": 1e-6, "mlp_ratio": 4, "qkv_bias": True, "use_swiglu_ffn": False, "num_register_tokens": 4,
}  # fmt: skip


def checked(file: Published) -> Mapping[str, Any]:
    """Return config.json, or raise if it asks for what is not supported."""
    config = file.config
    factors = list(config.get("reassemble_factors") or FACTORS)
    first = 2 if config.get("is_hybrid") else 0  # the first two levels of a hybrid are never resized
    if factors[first:] != FACTORS[first:] or config.get("head_in_index", -1) != -1:
        raise WeightsError(
            f"{file.path}: config.json has reassemble_factors {config.get('reassemble_factors')} and head_in_index "
            f"{config.get('head_in_index', -1)}; expected {FACTORS} and -1"
        )
    return config


def head_of(file: Published) -> State:
    """Return the tensors of everything but the backbone."""
    return {k: v for k, v in file.tensors.items() if not k.startswith(("backbone.", "dpt."))}


def statistics(file: Published, default: tuple[float, ...] | None) -> dict[str, Any]:
    """Return mean and std of preprocessor_config.json for images in 0..1, or else `default`."""
    facts = file.preprocessor
    scale = 255 * facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 255
    if not facts.get("do_normalize", True):
        return {"mean": (0.0,) * 3, "std": (1 / scale,) * 3}
    found = {k: tuple(x / scale for x in facts[f"image_{k}"]) for k in ("mean", "std") if facts.get(f"image_{k}")}
    return ({} if default is None else {"mean": default, "std": default}) | found


def resize(file: Published) -> Inference:
    """Return the resize to the shorter side in preprocessor_config.json."""
    size = file.preprocessor.get("size") or {}
    sides = [size] if isinstance(size, int) else [v for v in size.values() if isinstance(v, int)]
    return Inference(resize=min(sides)) if sides and file.preprocessor.get("do_resize", True) else Inference()


PATTERNS = (r"^neck\.reassemble_stage\.layers\.3\.projection\.weight$", r"^neck\.fusion_stage\.layers\.0\.")
FAMILIES = (
    Family(
        "hf_depth_anything",
        "DepthAnythingForDepthEstimation of transformers",
        (*PATTERNS, r"^head\.conv3\.weight$"),
        build_depth_anything,
        "depth_anything",
    ),
    Family(
        "hf_dpt_depth",
        "DPTForDepthEstimation of transformers",
        (*PATTERNS, r"^head\.head\.2\.weight$"),
        build_dpt_depth,
        "dpt",
    ),
    Family(
        "hf_dpt_segmentation",
        "DPTForSemanticSegmentation of transformers",
        (*PATTERNS, r"^head\.head\.1\.running_mean$"),
        build_dpt_segmentation,
        "dpt",
    ),
)
