"""EoMT: checkpoints of its own repository, directories of transformers, and the way back to transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dense.backbone import Backbone, WeightsError
from dense.backbone.weights.huggingface import describe_config, mlp_ratio
from dense.model.network import DenseModel, Inference, before_blocks
from dense.published.assemble import HEAD_DIM, assemble, class_names, inverted, load_named, renamed
from dense.published.family import Family, Published, State, choose
from dense.published.huggingface import statistics
from heads.outputs import MaskKind

HEAD = {
    r"^query\.weight": "query",
    r"^class_predictor\.": "class_head.",
    r"^mask_head\.fc1\.": "mask_head.0.",
    r"^mask_head\.fc2\.": "mask_head.2.",
    r"^mask_head\.fc3\.": "mask_head.4.",
    r"^upscale_block\.block\.(\d+)\.layernorm2d\.": r"upscale.\1.norm.",
    r"^upscale_block\.block\.(\d+)\.": r"upscale.\1.",
}
HEAD_NAMES = r"^(query|class_predictor|mask_head|upscale_block)\."
OF_ENCODER = "network.encoder.backbone."
KINDS = {
    "instance": "for objects that may overlap",
    "panoptic": "for objects and regions that divide the image",
    "semantic": "for one region per class",
}
THINGS = {133: 80}  # of COCO's panoptic classes, the first ones
COUNTS: dict[int, MaskKind] = {133: "panoptic", 80: "instance"}  # classes of COCO
OWN_KIND, OWN_THINGS = "dino_dense_kind", "dino_dense_things"  # keys of config.json, beside those of transformers
DIFFERENCE = 0.05  # mean weight of a norm, below which weights are differences to others
DEFAULTS: dict[str, Any] = {  # of EomtConfig and EomtDinov3Config; config.json may omit them
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_act": "gelu", "image_size": 640,
    "patch_size": 16, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "use_swiglu_ffn": False, "num_register_tokens": 4,
    "num_blocks": 4, "num_queries": 200, "intermediate_size": 4096, "use_gated_mlp": False, "query_bias": True,
    "qkv_bias": True,
}  # fmt: skip


def build_checkpoint(
    file: Published,
    kind: str | None = None,
    classes: Sequence[str] | None = None,
    things: Sequence[int] | None = None,
    blocks: int | None = None,
) -> DenseModel:
    """Return a checkpoint of the repository: `network.*`, with a backbone under the names of timm or transformers.

    things: indices of the classes whose objects are counted. blocks: that the queries run through; by default as many
    as the file has probabilities of masked attention, else 4 of ViT-L and larger models, 3 of smaller ones.
    """
    tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in file.tensors.items()}
    inner = {k.removeprefix(OF_ENCODER): v for k, v in tensors.items() if k.startswith(OF_ENCODER)}
    refuse_differences(file, inner)
    backbone = repository_backbone(file, inner, tensors)
    probabilities = tensors.get("network.attn_mask_probs")
    if blocks is None:
        blocks = (3 if backbone.spec.dim < 1024 else 4) if probabilities is None else len(probabilities)
    state = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    head = {
        "query" if k == "q.weight" else k: v
        for k, v in state.items()
        if k.startswith(("q.", "class_head.", "mask_head.", "upscale."))
    }
    masking = [0.0] * blocks if probabilities is None else probabilities.tolist()
    return join(file, "eomt", backbone, head, masking, kind, classes, things)


def refuse_differences(file: Published, inner: State) -> None:
    """Raise for a file that holds the differences to the weights of DINOv3, whose licence forbids to publish them."""
    norms = [v for k, v in inner.items() if re.search(r"(^|\.)(norm|layernorm|norm1|norm2)\.weight$", k)]
    if norms and max(float(v.float().abs().mean()) for v in norms) < DIFFERENCE:
        raise WeightsError(
            f"{file.path} holds differences to the weights of its backbone (delta weights of DINOv3), not weights: its "
            "norms are near zero. Add the published backbone's weights to it with EoMT's own script, and give that file"
        )


def repository_backbone(file: Published, inner: State, tensors: State) -> Backbone:
    """Return the backbone of a checkpoint, whose architecture follows from the shapes."""
    facts: dict[str, Any] = {
        key: tuple(tensors[name].flatten().tolist())
        for key in ("mean", "std")
        if (name := f"network.encoder.pixel_{key}") in tensors
    }
    patches = inner.get("patch_embed.proj.weight", inner.get("embeddings.patch_embeddings.weight"))
    if patches is None:
        raise WeightsError(f"{file.path} holds no patch embedding under {OF_ENCODER}; expected timm's or transformers'")
    dim, blocks = patches.shape[0], {m[1] for k in inner if (m := re.search(r"(?:blocks|layer)\.(\d+)\.", k))}
    facts |= {"embed_dim": dim, "depth": len(blocks), "patch_size": patches.shape[-1]}
    facts["num_heads"] = max(dim // HEAD_DIM, 1)
    if "pos_embed" in inner:
        registers = "reg_token" in inner
        count = inner["pos_embed"].shape[1] - (not registers)
        swiglu = inner["blocks.0.mlp.fc1.weight"].shape[0] == 2 * inner["blocks.0.mlp.fc2.weight"].shape[1]
        facts |= {"img_size": round(count**0.5) * patches.shape[-1]}
        facts |= {"mlp_ratio": mlp_ratio(inner["blocks.0.mlp.fc1.weight"].shape[0], dim)}
        size = "giant" if swiglu else "base"
        return load_named(file, f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", inner, **facts)
    gated = any(k.endswith(("mlp.fc1_g.weight", "mlp.gate_proj.weight")) for k in inner)
    hidden = next(
        v for k, v in inner.items() if k.endswith(("0.mlp.fc1_g.weight", "0.mlp.fc1.weight", "0.mlp.up_proj.weight"))
    )
    facts |= {"mlp_ratio": mlp_ratio(hidden.shape[0], dim), "swiglu_mlp": gated, "swiglu_align_to": int(gated)}
    facts |= {"qkv_bias": any(k.endswith(("0.attn.q_bias", "0.attention.q_proj.bias")) for k in inner)}
    unused = [k for k in inner if k.startswith("rope")]  # periods, which the architecture determines
    inner = {k: v for k, v in inner.items() if k not in unused}
    return load_named(file, "vit_base_patch16_dinov3", inner, rope_periods="float32", **facts)


def build_transformers(file: Published, kind: str | None = None, things: Sequence[int] | None = None) -> DenseModel:
    """Return EomtForUniversalSegmentation or EomtDinov3ForUniversalSegmentation; things: see `build_checkpoint`."""
    config = DEFAULTS | {k: v for k, v in file.config.items() if v is not None}
    tensors = {re.sub(r"^(model\.)?(encoder\.)?", "", name): tensor for name, tensor in file.tensors.items()}
    head = renamed({k: v for k, v in tensors.items() if re.match(HEAD_NAMES, k)}, HEAD)
    inner = {
        k.replace("attention.out_proj", "attention.o_proj"): v
        for k, v in tensors.items()
        if not re.match(HEAD_NAMES, k) and k not in ("attn_mask_probs", "criterion.empty_weight")
    }
    rope = config["model_type"] == "eomt_dinov3"
    plain = config | {"model_type": "dinov3_vit"}
    if rope:
        plain["rope_theta"] = (config.get("rope_parameters") or {}).get("rope_theta", 100.0)
    else:
        registers = inner.get("embeddings.register_tokens")
        if registers is not None and not registers.shape[1]:
            del inner["embeddings.register_tokens"]
        plain["model_type"] = "dinov2_with_registers" if "embeddings.register_tokens" in inner else "dinov2"
        # the table has no position of the class token: zero stands for it
        table = inner.pop("embeddings.position_embeddings.weight")[None]
        inner["embeddings.position_embeddings"] = torch.cat((torch.zeros_like(table[:, :1]), table), 1)
    name, arguments = describe_config(plain)
    backbone = load_named(file, name, inner, **(arguments | statistics(file, None)))
    masking = tensors.get("attn_mask_probs", torch.ones(config["num_blocks"])).tolist()
    names = config.get("id2label") or {}
    count = head["class_head.weight"].shape[0] - 1
    classes = [names.get(str(i), str(i)) for i in range(count)] if names else None
    kind = kind or config.get(OWN_KIND)
    if things is None and kind == config.get(OWN_KIND):
        things = config.get(OWN_THINGS)
    if kind is None and file.preprocessor.get("do_split_image"):
        kind = "semantic"
    family = f"hf_{config['model_type']}"
    side, activation = config["image_size"], config["hidden_act"]
    return join(file, family, backbone, head, masking, kind, classes, things, side, activation)


def join(
    file: Published,
    family: str,
    backbone: Backbone,
    head: State,
    masking: Sequence[float],
    kind: str | None,
    classes: Sequence[str] | None,
    things: Sequence[int] | None,
    side: Any = None,
    activation: str = "gelu",
) -> DenseModel:
    """Return the model of a backbone and a head's tensors under our names."""
    count = head["class_head.weight"].shape[0] - 1
    kind = choose(file, "kind", kind or COUNTS.get(count), KINDS)
    if things is None and kind == "panoptic":
        if count not in THINGS:
            raise WeightsError(
                f"{file.path} does not record which of its {count} classes are countable objects, so give their "
                "indices: things=[0, 1] (--set things=[0,1])"
            )
        things = range(THINGS[count])
    if things is not None and not all(0 <= i < count for i in things):
        raise WeightsError(f"things={list(things)}: expected indices of the {count} classes of {file.path}")
    spec = {
        "name": "eomt",
        "in_channels": [backbone.spec.dim],
        "queries": len(head["query"]),
        "blocks": len(masking),
        "upscales": len({k.split(".")[1] for k in head if k.startswith("upscale.")}),
        "activation": activation,
        "masking": [min(max(float(p), 0.0), 1.0) for p in masking],
        "outputs": {
            "masks": {
                "name": "masks",
                "count": count,
                "kind": kind,
                "things": None if things is None else [i in set(things) for i in range(count)],
            }
        },
    }
    side = side if isinstance(side, int) else backbone.spec.image_size[0]
    inference = Inference(side, side, side) if kind == "semantic" else Inference(longer=side, square=True)
    layers = (before_blocks(backbone.spec, len(masking)),)
    names = class_names(file, count, classes)
    return assemble(file, family, backbone, spec, head, layers, False, names, inference)


# ---- the way back


def to_transformers(model: DenseModel, spec: Mapping[str, Any]) -> tuple[dict[str, Any], State]:
    """Return the content of config.json and the tensors of transformers' EoMT, for images of the working size."""
    backbone: Any = model.backbone  # a ViT, as its family shows
    own = backbone.state_dict()
    facts, rope = backbone.spec, backbone.spec.positions == "rope"
    first = next(
        (own[k] for k in ("model.blocks.0.mlp.fc1_g.weight", "model.blocks.0.mlp.fc1.weight") if k in own), None
    )
    if facts.family not in ("dinov2", "dinov2_registers", "dinov3") or first is None:
        raise WeightsError(
            f"transformers' EoMT stands on DINOv2 or DINOv3 and this model on {facts.name} ({facts.family}); it can be "
            "written as this project's directory or with dense export alone"
        )
    side = working_side(model)
    output = spec["outputs"]["masks"]
    things = output["things"] or ([True] * output["count"] if output["kind"] == "panoptic" else None)
    names = model.classes or tuple(map(str, range(output["count"])))
    hidden = own["model.blocks.0.mlp.fc2.weight"].shape[1]
    packed = not rope and first.shape[0] == 2 * hidden
    if not rope and hidden != ((facts.dim * 4 * 2 // 3 + 7) // 8 * 8 if packed else hidden // facts.dim * facts.dim):
        raise WeightsError(
            f"transformers' EoMT has MLPs of whole multiples of the width {facts.dim}, or a SwiGLU of 8/3 of it; "
            f"{facts.name} has {hidden}"
        )
    config: dict[str, Any] = {
        "architectures": [f"Eomt{'Dinov3' if rope else ''}ForUniversalSegmentation"],
        "model_type": "eomt_dinov3" if rope else "eomt",
        "hidden_size": facts.dim,
        "num_hidden_layers": facts.depth,
        "num_attention_heads": facts.heads,
        "patch_size": facts.patch,
        "image_size": side,
        "layer_norm_eps": facts.norm_eps,
        "hidden_act": spec["activation"],
        "num_blocks": spec["blocks"],
        "num_queries": spec["queries"],
        "num_upscale_blocks": spec["upscales"],
        "num_register_tokens": facts.registers,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        OWN_KIND: output["kind"],
        OWN_THINGS: None if things is None else [i for i, thing in enumerate(things) if thing],
    }
    if rope:
        gated = "model.blocks.0.mlp.fc1_g.weight" in own
        if spec["activation"] != (expected := "silu" if gated else "gelu"):
            raise WeightsError(
                f"transformers' EoMT has one activation for backbone and head, here {expected}, and this head has "
                f"{spec['activation']}"
            )
        bias = "model.blocks.0.attn.q_bias" in own
        theta = float(facts.arguments.get("rope_temperature", 100.0))
        config |= {"intermediate_size": hidden, "query_bias": bias, "value_bias": bias, "use_gated_mlp": gated}
        config |= {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        config |= {"hidden_act": expected}
    else:
        config |= {"mlp_ratio": 4 if packed else hidden // facts.dim, "use_swiglu_ffn": packed}
    state: State = {}
    for name, tensor in own.items():
        if block := re.match(r"^model\.blocks\.(\d+)\.(.+)$", name):
            state |= {f"layers.{block[1]}.{k}": v for k, v in _block(block[2], tensor, packed, rope).items()}
    zeros = torch.zeros(1, 1, facts.dim)
    class_token = own["model.cls_token"]
    grid = (side // facts.patch, side // facts.patch)
    with torch.no_grad():
        before, patches = backbone.position_tables(grid, torch.float32)  # before: the class token's, without registers
    if patches is not None:
        class_token = class_token + (own.get("class_position", zeros) if before is None else before)
        state["embeddings.position_embeddings.weight"] = patches[0]
    patch = "embeddings.patch_embeddings" if rope else "embeddings.patch_embeddings.projection"
    state |= {
        "embeddings.cls_token": class_token,
        "embeddings.register_tokens": own.get("model.reg_token", zeros[:, :0]),
        f"{patch}.weight": own["model.patch_embed.proj.weight"],
        f"{patch}.bias": own["model.patch_embed.proj.bias"],
        "layernorm.weight": own["model.norm.weight"],
        "layernorm.bias": own["model.norm.bias"],
        "attn_mask_probs": torch.tensor([float(p >= 0.5) for p in spec["masking"]]),
        "criterion.empty_weight": torch.tensor([1.0] * output["count"] + [0.1]),
    }
    return config, state | renamed(model.head.state_dict(), inverted(HEAD))


def working_side(model: DenseModel) -> int:
    """Return the side of the squares that transformers' EoMT reads: the working size, in whole patches."""
    inference, facts = model.inference, model.backbone.spec
    size = inference.longer or inference.resize or inference.window or facts.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise WeightsError(
            f"transformers' EoMT reads squares and this model images of {height}x{width}; give it a working size "
            f"first, such as model.inference = Inference(longer={max(height, width)})"
        )
    return -(-height // facts.patch) * facts.patch


def how_opened(model: DenseModel) -> str:
    """Return a sentence on the images that transformers' EoMT reads, which has one size and interpolates nothing."""
    side = working_side(model)
    how = "cut into such squares" if model.task == "segmentation" else "shrunk to fit and padded"
    return f"transformers' EoMT opens {side}x{side} only; images are {how}, so that outputs may differ from ours"


def _block(name: str, tensor: torch.Tensor, packed: bool, rope: bool) -> State:
    """Return the tensors of transformers' layer for one of timm's block."""
    stem, _, kind = name.rpartition(".")
    if stem == "attn.qkv":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"attention.{part}_proj.{kind}": piece.clone() for part, piece in parts}
    if name in ("attn.q_bias", "attn.v_bias"):
        return {f"attention.{name[5]}_proj.bias": tensor}
    if name in ("gamma_1", "gamma_2", "ls1.gamma", "ls2.gamma"):
        return {f"layer_scale{'1' if '1' in name else '2'}.lambda1": tensor}
    if packed and stem == "mlp.fc1":
        gate, up = tensor.chunk(2)
        return {f"mlp.gate_proj.{kind}": gate.clone(), f"mlp.up_proj.{kind}": up.clone()}
    table = {"attn.proj": f"attention.{'o' if rope else 'out'}_proj"}
    if packed or rope:
        table |= {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
        table |= {"mlp.fc1_g": "mlp.gate_proj", "mlp.fc1_x": "mlp.up_proj"}
    return {f"{table.get(stem, stem)}.{kind}": tensor}


def preprocessor(model: DenseModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of preprocessor_config.json."""
    semantic, side = model.task == "segmentation", config["image_size"]
    return {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side, "longest_edge": None if semantic else side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.backbone.spec.mean),
        "image_std": list(model.backbone.spec.std),
        "do_split_image": semantic,
        "do_pad": not semantic,
    }


OF_TRANSFORMERS = (
    r"^(model\.)?(encoder\.)?query\.weight$",
    r"^(model\.)?class_predictor\.weight$",
    r"^(model\.)?mask_head\.fc3\.weight$",
    r"^(model\.)?upscale_block\.block\.0\.conv1\.weight$",
)
FAMILIES = (
    Family(
        "eomt",
        "EoMT of its own repository",
        (r"^network\.q\.weight$", r"^network\.class_head\.weight$", r"^network\.encoder\.backbone\."),
        build_checkpoint,
    ),
    Family("hf_eomt", "EomtForUniversalSegmentation of transformers", OF_TRANSFORMERS, build_transformers, "eomt"),
    Family(
        "hf_eomt_dinov3",
        "EomtDinov3ForUniversalSegmentation of transformers",
        OF_TRANSFORMERS,
        build_transformers,
        "eomt_dinov3",
    ),
)
