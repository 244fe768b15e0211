"""DPT of segmentation_models_pytorch: raw blocks of a timm ViT in even steps, BatchNorm throughout."""

from __future__ import annotations

from typing import Any

from dense.backbone import WeightsError, load_backbone
from dense.backbone.spec import Layers, resolve_layers
from dense.model.network import DenseModel
from dense.published.family import Family, Published
from dense.published.keys import assemble, class_names, dpt_spec, renamed

TABLE = {
    r"^decoder\.projection_blocks\.(\d)\.project\.0\.": r"neck.reassemble.\1.readout.",
    r"^decoder\.reassemble_blocks\.(\d)\.project_to_out_channel\.": r"neck.reassemble.\1.project.",
    r"^decoder\.reassemble_blocks\.(\d)\.upsample\.": r"neck.reassemble.\1.resize.",
    r"^decoder\.reassemble_blocks\.(\d)\.project_to_feature_dim\.": r"neck.reassemble.\1.adapt.",
    r"^decoder\.fusion_blocks\.(\d)\.project\.": r"neck.fusion.~\1.project.",
    r"^decoder\.fusion_blocks\.(\d)\.residual_conv_block(\d)\.conv_(\d)\.": r"neck.fusion.~\1.unit\2.conv\3.",
    r"^decoder\.fusion_blocks\.(\d)\.residual_conv_block(\d)\.batch_norm_(\d)\.": r"neck.fusion.~\1.unit\2.norm\3.",
    r"^segmentation_head\.head\.0\.": "branches.labels.conv.",
    r"^segmentation_head\.head\.1\.": "branches.labels.norm.",
    r"^segmentation_head\.head\.4\.": "branches.labels.classifier.",
}
READOUTS = {"add": "add", "ignore": "ignore"}  # "cat" shows in the tensors


def build(
    file: Published,
    encoder: str | None = None,
    readout: str | None = None,
    layers: Layers | None = None,
    classes: list[str] | None = None,
    arguments: dict[str, Any] | None = None,
) -> DenseModel:
    """config.json says encoder, readout and layers; of a bare file the caller does. arguments: timm's for the encoder."""
    encoder = encoder or file.config.get("encoder_name")
    if encoder is None:
        raise WeightsError(
            f"{file.path} cannot say its encoder, so you must: the encoder_name it was built with, such as "
            "encoder='tu-vit_large_patch16_384'"
        )
    encoder_state = file.under("encoder.model.")
    try:
        backbone = load_backbone(encoder.removeprefix("tu-"), encoder_state, **(arguments or own_arguments(file)))
    except WeightsError as error:
        raise WeightsError(f"{file.path}: {error}") from None
    state = renamed({k: v for k, v in file.tensors.items() if not k.startswith("encoder.")}, TABLE)
    spec = dpt_spec(state, deepest_unit=True)
    if spec["readout"] == "ignore":
        readout = readout or file.config.get("decoder_readout")
        if readout not in READOUTS:
            raise WeightsError(
                f"{file.path} cannot say its readout, so you must: readout='ignore' or 'add', as it was built with"
                + ("" if readout is None else f"; got {readout!r}")
            )
        spec["readout"] = READOUTS[readout]
    if backbone.spec.patch != 16 or (spec["readout"] == "add" and backbone.spec.registers):
        raise WeightsError(
            f"{file.path} stands on {backbone.spec.name} (patch {backbone.spec.patch}, {backbone.spec.registers} registers); "
            "supported are patch 16 and, where tokens are added, no registers, for the library averages these with the class token"
        )
    count = state["branches.labels.classifier.weight"].shape[0]
    spec["outputs"] = {"labels": {"name": "classes", "count": count}}
    layers = file.config.get("encoder_output_indices") if layers is None else layers
    chosen = resolve_layers("even4" if layers is None else layers, backbone.spec)
    names = class_names(file, count, classes)
    return assemble(file, "smp_dpt", backbone, spec, state, chosen, False, names, unused=r"classification_head\.")


def own_arguments(file: Published) -> dict[str, Any]:
    """Arguments of timm's model among those that the saved model was built with."""
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
