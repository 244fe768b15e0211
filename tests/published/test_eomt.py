"""Published EoMT: the same masks and classes as transformers, from every layout, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dense.backbone import WeightsError
from dense.model.network import DenseModel, Inference
from dense.model.queries import instances, resized
from dense.model.tiles import search
from dense.published.convert import write
from dense.published.eomt import to_transformers
from dense.published.export import export_huggingface
from dense.published.parity import certify
from dense.published.recognise import load_published
from tests.heads.conftest import randomise

transformers = pytest.importorskip("transformers")

COMMON: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
    "num_blocks": 2, "num_queries": 6, "num_upscale_blocks": 2, "num_register_tokens": 4, "num_labels": 4,
    "hidden_act": "gelu",
}  # fmt: skip
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "registers": ("Eomt", {"mlp_ratio": 2}),
    "no registers, patch 14": (
        "Eomt",
        {"num_register_tokens": 0, "patch_size": 14, "image_size": 56, "num_upscale_blocks": 1},
    ),
    "swiglu": ("Eomt", {"use_swiglu_ffn": True}),
    "dinov3": ("EomtDinov3", {"intermediate_size": 160}),
    "dinov3, gated": ("EomtDinov3", {"intermediate_size": 160, "use_gated_mlp": True, "hidden_act": "silu"}),
}


def peer_of(name: str, folder: Path | None = None, masked: float = 0.0) -> Any:
    """A tiny random model of transformers, saved in `folder`."""
    kind, changes = PEERS[name]
    config = getattr(transformers, f"{kind}Config")(**(COMMON | changes))
    peer = getattr(transformers, f"{kind}ForUniversalSegmentation")(config).eval()
    randomise(peer, std=0.1)
    with torch.no_grad():
        peer.attn_mask_probs.fill_(masked)
        for key, tensor in peer.named_parameters():
            if key.endswith(("norm1.weight", "norm2.weight", "layernorm.weight", "lambda1")):
                tensor.add_(1)
    if folder is not None:
        peer.save_pretrained(folder)
    return peer


def assert_equal(ours: DenseModel, peer: Any, least: float = 1e-4) -> None:
    """Masks and classes of all queries on a random image, relative to the largest value."""
    size = peer.config.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = ours(images), peer(images)
    for mine, theirs in (
        (found["mask_logits"], expected.masks_queries_logits),
        (found["class_logits"], expected.class_queries_logits),
    ):
        assert mine.shape == theirs.shape
        assert float((mine - theirs).abs().max() / theirs.abs().max()) < least


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_directories_of_transformers(name: str, masked: float, tmp_path: Path) -> None:
    """Recognised, equal with and without masked attention, and written back tensor by tensor."""
    peer = peer_of(name, tmp_path / "theirs", masked)
    ours = load_published(tmp_path / "theirs", kind="panoptic", things=[0, 2])
    assert ours.task == "panoptic"
    assert ours.outputs["masks"].things == (True, False, True, False)
    assert_equal(ours, peer)
    kind = export_huggingface(ours, tmp_path / "ours")
    assert kind == type(peer).__name__
    back = load_published(tmp_path / "ours")
    assert (back.task, back.outputs["masks"].things) == (ours.task, ours.outputs["masks"].things)
    again = getattr(transformers, kind).from_pretrained(tmp_path / "ours").eval()
    theirs, mine = peer.state_dict(), again.state_dict()
    assert theirs.keys() == mine.keys()
    assert [k for k in theirs if not torch.equal(theirs[k], mine[k])] == ["criterion.empty_weight"]
    assert_equal(ours, again)


@pytest.mark.parametrize("name", ["registers", "no registers, patch 14", "dinov3"])
@pytest.mark.parametrize("inference", [Inference(resize=90), Inference(longer=112), Inference(window=80)])
def test_the_working_size_goes_to_transformers(name: str, inference: Inference, tmp_path: Path) -> None:
    """Positions are those of the working size, in whole patches, which is the one that transformers' model reads."""
    peer_of(name, tmp_path / "theirs")
    ours = load_published(tmp_path / "theirs", kind="instance")
    ours.inference = inference
    words = write(ours, tmp_path / "theirs", tmp_path / "ours", "huggingface")
    again = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "ours").eval()
    patch, wanted = ours.backbone.spec.patch, inference.longer or inference.resize or inference.window
    assert wanted <= again.config.image_size < wanted + patch
    assert again.config.image_size % patch == 0
    assert f"opens {again.config.image_size}x{again.config.image_size} only; images are shrunk to fit and" in words
    assert "interpolate" not in words
    assert_equal(ours, again)
    ours.inference = Inference(resize=(64, 128))
    with pytest.raises(WeightsError, match=r"this model images of 64x128; .* Inference\(longer=128\)"):
        write(ours, tmp_path / "theirs", tmp_path / "ours", "huggingface")


@pytest.mark.parametrize("name", ["registers", "dinov3"])
@pytest.mark.parametrize("size", [(48, 64), (64, 30)])
def test_images_that_are_not_square(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Padded as EomtImageProcessor pads them; masks at another size are equal to those of its postprocessing."""
    peer = peer_of(name, tmp_path)
    ours = load_published(tmp_path, kind="instance")
    assert ours.inference == Inference(longer=64, square=True)
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    edges = {"shortest_edge": 64, "longest_edge": 64}
    processor = transformers.EomtImageProcessor(size=edges, do_pad=True)
    found: list[Tensor] = []

    def find(masks: Tensor, classes: Tensor, size: Any, through: Any, part: Any) -> Any:
        found.extend((resized(masks[0], size, through, part), classes[0]))
        return instances(masks, classes, size, through=through, part=part)[0]

    with torch.no_grad():
        theirs = peer(**{"pixel_values": processor(photo, return_tensors="pt")["pixel_values"]})
        masks = torch.nn.functional.interpolate(theirs.masks_queries_logits, (64, 64), mode="bilinear")
        pixels = torch.from_numpy(photo).permute(2, 0, 1)
        search(lambda x: ours.maps(ours.backbone.normalise(x)), pixels, (2 * size[0], 70), ours.inference, find)
    (expected,) = processor.unpad_image(masks, [size], edges)
    expected = torch.nn.functional.interpolate(expected[None], (2 * size[0], 70), mode="bilinear")[0]
    for mine, other in ((found[0], expected), (found[1], theirs.class_queries_logits[0])):
        assert float((mine - other).abs().max() / other.abs().max()) < 1e-4


def repository_state(name: str, peer: Any) -> dict[str, Tensor]:
    """The same weights under the names of EoMT's repository, with timm's backbone."""
    state = {}
    for key, tensor in peer.state_dict().items():
        key = key.replace("query.weight", "q.weight").replace("class_predictor.", "class_head.")
        key = key.replace("upscale_block.block.", "upscale.").replace("layernorm2d", "norm")
        for i in (1, 2, 3):
            key = key.replace(f"mask_head.fc{i}.", f"mask_head.{2 * i - 2}.")
        head = key.startswith(("q.", "class_head", "mask_head", "upscale", "attn_mask_probs"))
        if head:
            state[f"network.{key}"] = tensor
    side = peer.config.image_size // peer.config.patch_size
    inner, theirs = {}, peer.state_dict()
    inner["cls_token"], inner["reg_token"] = theirs["embeddings.cls_token"], theirs["embeddings.register_tokens"]
    if name == "registers":
        inner["pos_embed"] = theirs["embeddings.position_embeddings.weight"][None]
        assert inner["pos_embed"].shape[1] == side**2
    stem = "embeddings.patch_embeddings" + (".projection" if name == "registers" else "")
    for kind in ("weight", "bias"):
        inner[f"patch_embed.proj.{kind}"] = theirs[f"{stem}.{kind}"]
        inner[f"norm.{kind}"] = theirs[f"layernorm.{kind}"]
    for i in range(peer.config.num_hidden_layers):
        layer = {k.removeprefix(f"layers.{i}."): v for k, v in theirs.items() if k.startswith(f"layers.{i}.")}
        block = f"blocks.{i}."
        inner[f"{block}attn.qkv.weight"] = torch.cat([layer[f"attention.{p}_proj.weight"] for p in "qkv"])
        if name == "registers":
            inner[f"{block}attn.qkv.bias"] = torch.cat([layer[f"attention.{p}_proj.bias"] for p in "qkv"])
        else:
            inner |= {f"{block}attn.{p}_bias": layer[f"attention.{p}_proj.bias"] for p in "qv"}
        for kind in ("weight", "bias"):
            out = "out" if name == "registers" else "o"
            first, second = ("fc1", "fc2") if name == "registers" else ("up_proj", "down_proj")
            inner[f"{block}attn.proj.{kind}"] = layer[f"attention.{out}_proj.{kind}"]
            inner[f"{block}mlp.fc1.{kind}"], inner[f"{block}mlp.fc2.{kind}"] = (
                layer[f"mlp.{first}.{kind}"],
                layer[f"mlp.{second}.{kind}"],
            )
            for n in ("norm1", "norm2"):
                inner[f"{block}{n}.{kind}"] = layer[f"{n}.{kind}"]
        for n in (1, 2):
            inner[f"{block}{f'ls{n}.gamma' if name == 'registers' else f'gamma_{n}'}"] = layer[
                f"layer_scale{n}.lambda1"
            ]
    state |= {f"network.encoder.backbone.{k}": v for k, v in inner.items()}
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return state | {f"network.encoder.pixel_{k}": torch.tensor(v).view(1, 3, 1, 1) for k, v in statistics.items()}


@pytest.mark.parametrize("name", ["registers", "dinov3"])
def test_checkpoints_of_the_repository(name: str, tmp_path: Path) -> None:
    """Lightning's checkpoints, also compiled ones, with timm's names."""
    peer = peer_of(name)
    if name == "dinov3":
        peer.config.layer_norm_eps = 1e-5
        for module in peer.modules():
            if type(module) is torch.nn.LayerNorm:
                module.eps = 1e-5
    state = repository_state(name, peer)
    state = {k.replace("network.", "network._orig_mod.", 1) if "mask_head" in k else k: v for k, v in state.items()}
    state["criterion.empty_weight"] = torch.ones(5)
    torch.save({"state_dict": state}, tmp_path / "eomt.ckpt")
    ours = load_published(tmp_path / "eomt.ckpt", kind="semantic", classes=["a", "b", "c", "d"])
    assert ours.task == "segmentation"
    assert ours.classes == ("a", "b", "c", "d")
    assert ours.inference.window == ours.inference.resize
    assert_equal(ours, peer)
    certificate = certify(tmp_path / "eomt.ckpt", ours)
    assert certificate.equal, certificate
    with pytest.raises(WeightsError, match="kind='instance' for objects"):
        load_published(tmp_path / "eomt.ckpt")


def test_transformers_names_inside_a_checkpoint(tmp_path: Path) -> None:
    """A DINOv3 of transformers inside the repository's network."""
    peer = peer_of("dinov3")
    state = {k: v for k, v in repository_state("dinov3", peer).items() if "encoder.backbone" not in k}
    for k, v in peer.state_dict().items():
        if k.startswith(("embeddings.", "layers.", "layernorm.")):
            name = k.replace("layers.", "layer.").replace("layernorm.", "norm.")
            state[f"network.encoder.backbone.{name}"] = v
    torch.save(state, tmp_path / "eomt.bin")
    for module in peer.modules():
        if type(module) is torch.nn.LayerNorm:
            module.eps = 1e-5
    assert_equal(load_published(tmp_path / "eomt.bin", kind="instance"), peer)


def test_differences_are_refused(tmp_path: Path) -> None:
    """Weights that are differences to DINOv3's."""
    state = repository_state("dinov3", peer_of("dinov3"))
    state = {k: 0.001 * v if "encoder.backbone" in k else v for k, v in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="differences to the weights of its backbone"):
        load_published(tmp_path / "pytorch_model.bin", kind="instance")


def test_certificate_and_mistakes(tmp_path: Path) -> None:
    peer_of("registers", tmp_path)
    ours = load_published(tmp_path, kind="instance")
    assert certify(tmp_path, ours).equal
    with pytest.raises(WeightsError, match="expected indices of the 4 classes"):
        load_published(tmp_path, kind="panoptic", things=[7])
    with pytest.raises(WeightsError, match=r"which of its 4 classes are countable objects, .* things=\[0, 1\]"):
        load_published(tmp_path, kind="panoptic")
    with pytest.raises(WeightsError, match="kind='segments' does not suit"):
        load_published(tmp_path, kind="segments")
    ours.backbone.spec = ours.backbone.spec.from_dict(ours.backbone.spec.to_dict() | {"family": "timm"})
    with pytest.raises(WeightsError, match="stands on DINOv2 or DINOv3"):
        to_transformers(ours, ours.head.spec())
