"""What learns of a backbone, and how fast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dense.backbone import Backbone, load_backbone
from dense.backbone.channels import input_parameters
from dense.tasks.options import TuneOptions
from dense.tasks.tuning import free_patches, parameter_groups, prepare

TINY = {"patch_size": 8, "img_size": 32, "depth": 4, "embed_dim": 16, "num_heads": 2}


def vit() -> Backbone:
    return load_backbone("vit_tiny_patch16_224", **TINY)


def learning(backbone: Backbone) -> set[str]:
    """Blocks by number, everything else by name."""
    names = [n.removeprefix("model.") for n, p in backbone.named_parameters() if p.requires_grad]
    return {n.split(".")[1] if n.startswith("blocks.") else n.split(".")[0] for n in names}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"unfreeze": 1}, {"3", "norm"}),
        ({"unfreeze": 2}, {"2", "3", "norm"}),
        ({"unfreeze": "all"}, {"0", "1", "2", "3", "norm", "patch_embed", "pos_embed", "cls_token"}),
        ({"lora_rank": 2}, {"0", "1", "2", "3"}),
    ],
)
def test_what_learns(options: dict[str, Any], expected: set[str]) -> None:
    backbone = prepare(vit(), TuneOptions(**options))
    assert learning(backbone) == expected
    assert backbone.frozen == (not options)


@pytest.mark.parametrize("options", [{"unfreeze": 1}, {"unfreeze": "all"}, {"lora_rank": 2}])
@pytest.mark.parametrize(("layers", "norm"), [((1,), True), ((0, 2), False), ((3,), False), ((1, 3), "last")])
def test_whatever_learns_gets_a_gradient(options: dict[str, Any], layers: tuple[int, ...], norm: Any) -> None:
    """A parameter without one would stall distributed training."""
    backbone = prepare(vit(), TuneOptions(**options), layers, norm).train()
    sum(m.square().sum() for m in backbone(torch.randn(1, 3, 32, 32), layers=layers, norm=norm).maps).backward()
    learns = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert learns
    assert learns == {n for n, p in backbone.named_parameters() if p.grad is not None}


def test_groups_of_learning_rates() -> None:
    network = nn.Module()
    network.backbone, network.head = prepare(vit(), TuneOptions(unfreeze="all")), nn.Linear(2, 2)
    groups = parameter_groups(network, 1.0, 0.5, 0.1, lr_scale=0.2)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == sum(p.requires_grad for p in network.parameters())
    model: Any = network.backbone.model
    assert found[id(network.head.weight)] == (1.0, 0.1)
    assert found[id(network.head.bias)] == (1.0, 0.0)
    assert found[id(model.blocks[3].attn.qkv.weight)] == (0.2 * 0.5, 0.1)
    assert found[id(model.blocks[0].attn.qkv.weight)] == (0.2 * 0.5**4, 0.1)
    assert found[id(model.pos_embed)] == (0.2 * 0.5**5, 0.0)


def test_wrong_options_are_named() -> None:
    for wrong in ({"unfreeze": 0}, {"unfreeze": "last"}, {"layer_decay": 0}, {"lora_rank": 1, "unfreeze": "all"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TuneOptions(**wrong)
    with pytest.raises(ValueError, match="4 blocks"):
        prepare(vit(), TuneOptions(unfreeze=5))


@pytest.mark.parametrize(("options", "stays"), [({}, False), ({"unfreeze": 1}, False), ({"unfreeze": "all"}, True)])
def test_the_patch_embedding_has_a_group_of_its_own(options: dict[str, Any], stays: bool) -> None:
    """It is freed beside what else is trained, with the full learning rate of the backbone in its own steps."""
    tune = TuneOptions(patch_steps=3, **options)
    assert not tune.frozen
    network = nn.Module()
    network.backbone, network.head = prepare(vit(), tune), nn.Linear(2, 2)
    assert network.backbone.frozen == (not options)
    assert free_patches(network.backbone) == stays
    patches = input_parameters(network.backbone.model)
    assert len(patches) == 2 and all(p.requires_grad for p in patches)
    groups = parameter_groups(network, 1.0, 0.5, 0.1, lr_scale=0.2, patches=patches)
    own = [g for g in groups if "patch_lr" in g]
    assert {id(p) for g in own for p in g["params"]} == {id(p) for p in patches}
    assert {(g["lr"], g["patch_lr"]) for g in own} == {(0.2 * 0.5**5, 0.2)}
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in network.parameters())
