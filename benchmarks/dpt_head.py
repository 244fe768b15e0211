"""The DPT head of Depth Anything Small against its peers: time, memory, and equal predictions.

Peers, in the same run and with the same random initialisation, one image of 518 x 518 px (512 for patch 16):
- head: neck and head of transformers' DepthAnythingForDepthEstimation (ViT-S/14: width 64, reassemble
  48, 96, 192, 384);
- smp: decoder and segmentation head of segmentation_models_pytorch's DPT on a 32 x 32 grid of patch 16 (width 64,
  readout with the class token), the only geometry it supports;
- pipeline: all of DepthAnythingForDepthEstimation, from the image, against our backbone and head, both in fp32;
- bf16: the same, ours under bf16 autocast and theirs in fp32 (a gain only where the hardware computes in bf16).

Each number is the median of paired runs, alternating with ours; memory is the peak of resident memory during one call,
in a process of its own, beyond what was resident before it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from _claims import record, versioned  # noqa: E402
from _measure import alternate, arguments, last_number, median_ratio, peak_memory  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dense.backbone import load_backbone  # noqa: E402
from heads import DPT, Classes, DenseHead, Features, Regression  # noqa: E402

WIDTHS, WIDTH, DIM = (48, 96, 192, 384), 64, 384
PEERS = {
    "head": "transformers",
    "smp": "segmentation-models-pytorch",
    "pipeline": "transformers",
    "bf16": "transformers",
}
Call = Callable[[], Tensor]


def features_of(grid: tuple[int, int], patch: int, tokens: list[Tensor]) -> Features:
    """Return tokens (B, 1 + h * w, C) in the form that a backbone returns; maps are views."""
    size = (grid[0] * patch, grid[1] * patch)
    return Features(
        maps=tuple(t[:, 1:].transpose(1, 2).unflatten(2, grid) for t in tokens),
        prefix=tuple(t[:, :1] for t in tokens),
        image_size=size,
        padded_size=size,
        padding=(0, 0, 0, 0),
        strides=(patch,) * len(tokens),
        layers=(2, 5, 8, 11),
        norm=True,
        has_class_token=True,
    )


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Rename keys of a peer to ours; `~` marks fusion levels counted from the deepest."""
    result = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        result[re.sub(r"~(\d)", lambda m: str(3 - int(m[1])), name)] = tensor
    return result


def hugging_face() -> Any:
    """Return transformers' Depth Anything Small, random but with positive inputs to its last ReLU."""
    import transformers

    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=DIM,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        out_indices=[3, 6, 9, 12],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=DIM,
        patch_size=14,
        neck_hidden_sizes=list(WIDTHS),
        fusion_hidden_size=WIDTH,
        head_hidden_size=32,
    )
    model = transformers.DepthAnythingForDepthEstimation(config).eval()
    redraw(model.neck, model.head)
    nn.init.constant_(model.head.conv3.bias, 10)
    return model


def redraw(*modules: nn.Module) -> None:
    """Apply PyTorch's default initialisation, which keeps activations near one through the head."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                part.reset_parameters()


def depth_head(model: Any) -> DenseHead:
    """Return our head with the weights of transformers."""
    names = {
        r"neck\.reassemble_stage\.layers\.(\d)\.projection": r"neck.reassemble.\1.project",
        r"neck\.reassemble_stage\.layers\.(\d)\.resize": r"neck.reassemble.\1.resize",
        r"neck\.convs\.(\d)": r"neck.reassemble.\1.adapt",
        r"neck\.fusion_stage\.layers\.(\d)\.projection": r"neck.fusion.~\1.project",
        r"neck\.fusion_stage\.layers\.(\d)\.residual_layer(\d)\.convolution(\d)": r"neck.fusion.~\1.unit\2.conv\3",
        r"^head\.": "branches.depth.",
    }
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    output = Regression("relu", kind="inverse_relative", upsample="image")
    head = DPT((DIM,) * 4, WIDTH, WIDTHS).with_outputs(depth=output)
    head.load_state_dict({k: v for k, v in renamed(state, names).items() if "fusion.3.unit1" not in k})
    return head.eval()


def head_ways() -> tuple[Call, Call]:
    """Return ours and theirs: neck and head only."""
    model = hugging_face()
    head, tokens = depth_head(model), [torch.randn(1, 1 + 37 * 37, DIM) for _ in range(4)]
    features = features_of((37, 37), 14, tokens)
    return lambda: head(features)["depth"][:, 0], lambda: model.head(model.neck(tokens, 37, 37), 37, 37)


def smp_ways() -> tuple[Call, Call]:
    """Return ours and theirs: decoder and segmentation head of smp."""
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead

    torch.manual_seed(0)
    decoder = DPTDecoder((DIM,) * 4, (16,) * 4, True, "cat", WIDTHS, WIDTH).eval()
    labels = DPTSegmentationHead(WIDTH, 21).eval()
    names = {
        r"^projection_blocks\.(\d)\.project\.0": r"neck.reassemble.\1.readout",
        r"^reassemble_blocks\.(\d)\.project_to_out_channel": r"neck.reassemble.\1.project",
        r"^reassemble_blocks\.(\d)\.upsample": r"neck.reassemble.\1.resize",
        r"^reassemble_blocks\.(\d)\.project_to_feature_dim": r"neck.reassemble.\1.adapt",
        r"^fusion_blocks\.(\d)\.residual_conv_block(\d)\.conv_(\d)": r"neck.fusion.~\1.unit\2.conv\3",
        r"^fusion_blocks\.(\d)\.residual_conv_block(\d)\.batch_norm_(\d)": r"neck.fusion.~\1.unit\2.norm\3",
        r"^fusion_blocks\.(\d)\.project": r"neck.fusion.~\1.project",
        r"^head\.0": "branches.labels.conv",
        r"^head\.1": "branches.labels.norm",
        r"^head\.4": "branches.labels.classifier",
    }
    neck = DPT((DIM,) * 4, WIDTH, WIDTHS, readout="project", batch_norm=True, bias=False, deepest_unit=True)
    head = neck.with_outputs(labels=Classes(21)).eval()
    head.load_state_dict(renamed(decoder.state_dict() | labels.state_dict(), names))
    tokens = [torch.randn(1, 1 + 32 * 32, DIM) for _ in range(4)]
    features = features_of((32, 32), 16, tokens)
    maps, prefix = list(features.maps), list(features.prefix)
    return lambda: head(features)["labels"], lambda: labels(decoder(maps, prefix))


def pipeline_ways(bf16: bool) -> tuple[Call, Call]:
    """Return ours and theirs: from the image to depth."""
    model = hugging_face()
    head = depth_head(model)
    state = {k.removeprefix("backbone."): v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    backbone = load_backbone("dinov2_vits14", state, frozen=True, positions="size")
    images = torch.randn(1, 3, 518, 518)

    def ours() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return head(backbone(images, layers=(2, 5, 8, 11), norm=True))["depth"][:, 0]

    return ours, lambda: model(images).predicted_depth


WAYS: dict[str, Callable[[], tuple[Call, Call]]] = {
    "head": head_ways,
    "smp": smp_ways,
    "pipeline": lambda: pipeline_ways(bf16=False),
    "bf16": lambda: pipeline_ways(bf16=True),
}


@torch.inference_mode()
def main() -> None:
    """Print one table."""
    parser = arguments(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["head", "smp", "pipeline"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_memory(WAYS[options.memory[0]]()[int(options.memory[1])]))
        return
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "transformers", "segmentation-models-pytorch"))
    print(f"DPT head of ViT-S, batch 1, fp32 unless stated, {torch.get_num_threads()} threads; {versions}")
    print(
        f"{'way':<10} {'peer':<28} {'ours s':>8} {'theirs s':>9} {'theirs/ours':>12} {'ours MB':>8} {'theirs MB':>10} "
        f"{'difference':>11}"
    )
    for way in options.ways:
        ours, theirs = WAYS[way]()
        expected = theirs()
        difference = float((ours() - expected).abs().max() / expected.abs().max())
        ours_s, theirs_s = alternate([ours, theirs], options.repeats)
        mine, other, ratio = statistics.median(ours_s), statistics.median(theirs_s), median_ratio(theirs_s, ours_s)
        memory = [last_number(__file__, "--memory", way, side) for side in range(2)]
        print(
            f"{way:<10} {PEERS[way]:<28} {mine:>8.3f} {other:>9.3f} {ratio:>12.2f} {memory[0]:>8.0f} "
            f"{memory[1]:>10.0f} {difference:>11.1e}",
            flush=True,
        )
        peer = versioned(PEERS[way])
        record(
            f"DPT, {way}, 518 px", peer=peer, ours=f"{mine:.3f} s", theirs=f"{other:.3f} s", ratio=ratio,
            least={"head": 1.5, "bf16": 2.0}.get(way),
        )  # fmt: skip
        record(
            f"DPT, {way}, 518 px, memory", peer=peer, ours=f"{memory[0]:.0f} MB", theirs=f"{memory[1]:.0f} MB",
            ratio=memory[1] / memory[0],
        )  # fmt: skip
        record(
            f"DPT, {way}, predictions differ by", peer=peer, ours=f"{difference:.0e} of the largest", value=difference,
            most=2e-2 if way == "bf16" else 1e-5,
        )  # fmt: skip
        if difference > (0.1 if way == "bf16" else 1e-5):
            raise SystemExit(f"{way}: the predictions differ by {difference:.1e} of the largest value")


if __name__ == "__main__":
    main()
