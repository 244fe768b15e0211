"""Features and class attention against transformers and timm: time, and memory beyond the model.

Peers, in the same run and with the same weights (ViT-S/14 of DINOv2):
- features: timm's `forward_intermediates` and transformers' `output_hidden_states` (SDPA), four layers;
- class attention: transformers with `attn_implementation="eager", output_attentions=True` (the published method), and
  timm with fused attention off and the softmax recorded in every layer, or in the last one only.

Each number is the median of paired runs, alternating with ours; memory is the peak of resident memory during one call,
in a process of its own, beyond what was resident before it. timm interpolates positions by its own rule, so values
differ at sizes other than 518 px.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from _claims import record, versioned  # noqa: E402
from _measure import alternate, arguments, last_number, median_ratio, peak_memory  # noqa: E402
from torch import Tensor  # noqa: E402

from dense.backbone import Backbone, load_backbone  # noqa: E402

NAME = "vit_small_patch14_dinov2"
LAYERS = (2, 5, 8, 11)
TASKS = {
    "features": ("ours", "timm", "transformers"),
    "attention": ("ours", "timm, last layer eager", "timm, all eager", "transformers eager"),
}


def ours(size: int) -> Backbone:
    """Return the frozen adapter."""
    torch.manual_seed(0)
    backbone = load_backbone(NAME, frozen=True, positions="size")
    for block in backbone.model.blocks:
        torch.nn.init.ones_(block.ls1.gamma)
        torch.nn.init.ones_(block.ls2.gamma)
    return backbone


def hugging_face(backbone: Backbone, implementation: str) -> torch.nn.Module:
    """Return transformers' Dinov2 with the same weights."""
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, attn_implementation=implementation
    )
    model = transformers.Dinov2Model(config).eval()
    state = {"embeddings.mask_token": torch.zeros(1, 384)}
    for name, tensor in backbone.model.state_dict().items():
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                state[_renamed(name.replace("attn.qkv", f"attention.{part}_proj"))] = piece
        else:
            state[_renamed(name)] = tensor
    model.load_state_dict(state, strict=True)
    return model


def _renamed(name: str) -> str:
    renames = {
        "blocks.": "encoder.layer.", "attn.proj": "attention.o_proj", "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1", "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    }  # fmt: skip
    for old, new in renames.items():
        name = name.replace(old, new)
    return "layer" + name if name.startswith("norm.") else name


def way(task: str, peer: str, size: int) -> Callable[[Tensor], Tensor]:
    """Return a function from an image to the last map, or to the class attention of the last layer."""
    backbone = ours(size)
    model = backbone.model
    if (task, peer) == ("features", "ours"):
        return lambda x: backbone(x, layers=LAYERS, norm=False).maps[-1].flatten(2)
    if (task, peer) == ("features", "timm"):
        return lambda x: model.forward_intermediates(x, indices=list(LAYERS), intermediates_only=True)[-1].flatten(2)
    if (task, peer) == ("attention", "ours"):
        return lambda x: backbone.attention(x).flatten(2)
    if peer.startswith("timm"):
        recorded: list[Tensor] = []
        for block in model.blocks if "all" in peer else model.blocks[-1:]:
            block.attn.fused_attn = False
            block.attn.attn_drop.register_forward_hook(lambda m, i, o: recorded.append(i[0]))

        def run(x: Tensor) -> Tensor:
            recorded.clear()
            model.forward_features(x)
            return recorded[-1][:, :, 0, 1:]

        return run
    hf = hugging_face(backbone, "eager" if task == "attention" else "sdpa")
    if task == "features":
        return lambda x: hf(x, output_hidden_states=True).hidden_states[-1][:, 1:].transpose(1, 2)
    return lambda x: hf(x, output_attentions=True).attentions[-1][:, :, 0, 1:]


@torch.inference_mode()
def memory_of(task: str, peer: str, size: int) -> float:
    """Return the MB that one call takes beyond the model."""
    function = way(task, peer, size)
    function(torch.randn(1, 3, 56, 56))  # libraries allocate their own buffers first
    x = torch.randn(1, 3, size, size)
    return peak_memory(lambda: function(x))


@torch.inference_mode()
def main() -> None:
    """Print one table."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 518, 1036])
    parser.add_argument("--repeats", type=int, default=5, help="paired runs")
    parser.add_argument("--memory", nargs=3, metavar=("TASK", "PEER", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory_of(options.memory[0], options.memory[1], int(options.memory[2])))
        return
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "timm", "transformers"))
    print(f"ViT-S/14, batch 1, fp32, {torch.get_num_threads()} threads; {versions}")
    print(
        f"{'task':<10} {'px':>5} {'way':<24} {'median s':>9} {'theirs/ours':>12} {'peak MB':>9} {'ours/theirs':>12} "
        f"{'difference':>11}"
    )
    for task, peers in TASKS.items():
        for size in options.sizes:
            x = torch.randn(1, 3, size, size)
            mine = way(task, "ours", size)
            expected, memory_of_ours = mine(x), 0.0
            for peer in peers:
                theirs = way(task, peer, size)
                difference = float((theirs(x) - expected).abs().max())
                ours_s, theirs_s = alternate([partial(mine, x), partial(theirs, x)], options.repeats)
                ratio, seconds = median_ratio(theirs_s, ours_s), statistics.median(theirs_s)
                memory = last_number(__file__, "--memory", task, peer, size)
                memory_of_ours = memory if peer == "ours" else memory_of_ours
                print(
                    f"{task:<10} {size:>5} {peer:<24} {seconds:>9.3f} {ratio:>12.2f} {memory:>9.0f} "
                    f"{memory_of_ours / max(memory, 1e-9):>12.2f} {difference:>11.1e}",
                    flush=True,
                )
                if peer == "ours":
                    continue
                full = task == "attention" and size == 1036 and "last" not in peer
                whose = " ".join((versioned(peer.split()[0].rstrip(",")), *peer.split()[1:]))
                record(
                    f"{task}, ViT-S/14, {size} px", peer=whose, ours=f"{statistics.median(ours_s):.3f} s",
                    theirs=f"{seconds:.3f} s", ratio=ratio, least=2 if full else None,
                )  # fmt: skip
                record(
                    f"{task}, ViT-S/14, {size} px, memory", peer=whose,
                    ours=f"{memory_of_ours:.0f} MB", theirs=f"{memory:.0f} MB",
                    ratio=memory / max(memory_of_ours, 1.0), least=10 if full else None,
                )  # fmt: skip


if __name__ == "__main__":
    main()
