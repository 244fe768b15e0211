"""DPT of segmentation_models_pytorch: raw features of evenly spaced blocks of a timm ViT, BatchNorm throughout."""

from __future__ import annotations

from typing import Any

from dense.backbone import WeightsError
from dense.backbone.spec import Layers, resolve_layers
from dense.model.network import DenseModel
from dense.published.assemble import assemble, class_names, dpt_spec, label_branches, load_named, renamed
from dense.published.family import Family, Published

TABLE = {
    r"^decoder\.projection_blocks\.(\d)\.project\.0\.": r"neck.reassemble.\1.readout.",
    r"^decoder\.reassemble_blocks\.(\d)\.project_to_out_channel\.": r"neck.reassemble.\1.project.",
    r"^decoder\.reassemble_blocks\.(\d)\.upsample\.": r"neck.reassemble.\1.resize.",
    r"^decoder\.reassemble_blocks\.(\d)\.project_to_feature_dim\.": r"neck.reassemble.\1.adapt.",
    r"^decoder\.fusion_blocks\.(\d)\.project\.": r"neck.fusion.~\1.project.",
    r"^decoder\.fusion_blocks\.(\d)\.residual_conv_block(\d)\.conv_(\d)\.": r"neck.fusion.~\1.unit\2.conv\3.",
    r"^decoder\.fusion_blocks\.(\d)\.residual_conv_block(\d)\.batch_norm_(\d)\.": r"neck.fusion.~\1.unit\2.norm\3.",
} | label_branches(r"segmentation_head\.head")
READOUTS = ("add", "ignore")  # "cat" has tensors of its own


def build(
    file: Published,
    encoder: str | None = None,
    readout: str | None = None,
    layers: Layers | None = None,
    classes: list[str] | None = None,
    arguments: dict[str, Any] | None = None,
) -> DenseModel:
    """Return the model; encoder, readout and layers are those of config.json, or given for a file without it.

    arguments: of timm's model, for the encoder.
    """
    encoder = encoder or file.config.get("encoder_name")
    if encoder is None:
        raise WeightsError(
            f"{file.path} does not record its encoder, so give it: the encoder_name it was built with, such as "
            "encoder='tu-vit_large_patch16_384'"
        )
    name, options = encoder.removeprefix("tu-"), arguments or encoder_arguments(file)
    backbone = load_named(file, name, file.under("encoder.model."), **options)
    state = renamed({k: v for k, v in file.tensors.items() if not k.startswith("encoder.")}, TABLE)
    spec = dpt_spec(state, deepest_unit=True)
    if spec["readout"] == "ignore":
        readout = readout or file.config.get("decoder_readout")
        if readout not in READOUTS:
            raise WeightsError(
                f"{file.path} does not record its readout, so give it: readout='ignore' or 'add', as it was built with"
                + ("" if readout is None else f"; got {readout!r}")
            )
        spec["readout"] = readout
    if backbone.spec.patch != 16 or (spec["readout"] == "add" and backbone.spec.registers):
        raise WeightsError(
            f"{file.path} has the encoder {backbone.spec.name} (patch {backbone.spec.patch}, {backbone.spec.registers} "
            "registers); supported are patch 16 and, with readout='add', no registers, which the library averages with "
            "the class token"
        )
    count = state["branches.labels.classifier.weight"].shape[0]
    spec["outputs"] = {"labels": {"name": "classes", "count": count}}
    layers = file.config.get("encoder_output_indices") if layers is None else layers
    chosen = resolve_layers("even4" if layers is None else layers, backbone.spec)
    names = class_names(file, count, classes)
    return assemble(file, "smp_dpt", backbone, spec, state, chosen, False, names, unused=r"classification_head\.")


def encoder_arguments(file: Published) -> dict[str, Any]:
    """Return the arguments of timm's model among those in config.json."""
    known = {"aux_params", "activation", "in_channels", "dynamic_img_size"}
    return {
        k: v
        for k, v in file.config.items()
        if not k.startswith(("encoder_", "decoder_", "_")) and k not in known and k != "classes" and v is not None
    }


FAMILIES = (
    Family(
        "smp_dpt",
        "DPT of segmentation_models_pytorch",
        (
            r"^encoder\.model\.blocks\.",
            r"^decoder\.reassemble_blocks\.0\.project_to_feature_dim\.weight$",
            r"^segmentation_head\.head\.4\.weight$",
        ),
        build,
    ),
)
