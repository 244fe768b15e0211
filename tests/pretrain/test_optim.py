import copy
from typing import Any

import pytest
import torch
from torch import nn

from dense.backbone import load_backbone
from pretrain.head import ProjectionHead
from pretrain.optim import (
    LARS,
    build_optimizer,
    clip_gradients_,
    drop_gradients_,
    parameter_groups,
    set_hyperparameters,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def with_gradients(model: nn.Module, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return model


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_groups_split_matrices_from_the_rest() -> None:
    model = nn.ModuleDict({"net": network(), "head": ProjectionHead(3, 10, 4, 4)})
    model.register_parameter("odd", nn.Parameter(torch.zeros(2, 2)))
    model["net"][0].register_parameter("bias", nn.Parameter(torch.zeros(1, 8)))  # type: ignore[index]
    decay, no_decay = parameter_groups(model, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decay["params"]} == {
        "odd", "net.0.weight", "net.3.weight", "head.mlp.0.weight", "head.mlp.2.weight", "head.mlp.4.weight",
        "head.last_layer.weight_v",
    }  # fmt: skip
    assert "net.0.bias" in {names[id(p)] for p in no_decay["params"]}  # a bias by name, whatever its shape
    everything = {names[id(p)] for group in (decay, no_decay) for p in group["params"]}
    assert everything == set(names.values()) - {"head.last_layer.weight_g"}  # fixed, so not trained
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_schedules_reach_their_groups(name: str) -> None:
    model = network()
    groups = parameter_groups(model)
    groups[1]["lr_scale"] = 0.5
    optimizer = build_optimizer(name, groups)
    before = copy.deepcopy(model.state_dict())
    with_gradients(model)
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())  # lr 0 moves nothing
    set_hyperparameters(optimizer, lr=0.1, weight_decay=0.2)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("decay", 0.1, 0.2),
        ("no_decay", 0.05, 0.0),
    ]
    optimizer.step()
    assert all(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_fused_adamw_equals_the_plain_one_and_options_pass() -> None:
    models, optimizers = [network(), network()], []
    for model, fused in zip(models, (True, False), strict=True):
        optimizers.append(build_optimizer("adamw", parameter_groups(model), lr=0.01, fused=fused, betas=(0.8, 0.9)))
    default = build_optimizer("adamw", parameter_groups(network()))
    assert default.param_groups[0]["fused"] is True
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            with_gradients(model)
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert optimizers[0].param_groups[0]["betas"] == (0.8, 0.9)


def test_a_group_may_be_empty() -> None:
    model = nn.LayerNorm(4)
    for name in ("adamw", "sgd", "lars"):
        optimizer = build_optimizer(name, parameter_groups(model), lr=0.1)
        with_gradients(model)
        optimizer.step()


def test_unknown_optimiser() -> None:
    with pytest.raises(ValueError, match="'adam': expected one of adamw, sgd, lars"):
        build_optimizer("adam", parameter_groups(network()))


def lars_by_hand(model: nn.Module, steps: int, lr: float, weight_decay: float) -> list[torch.Tensor]:
    weights = [p.detach().clone().double() for p in model.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    for _ in range(steps):
        for w, m, g in zip(weights, momenta, gradients(with_gradients(model)), strict=True):
            u = g.double()
            if w.ndim > 1:
                u = u + weight_decay * w
                u = u * 0.001 * w.norm() / u.norm()
            m.mul_(0.9).add_(u)
            w.sub_(lr * m)
    return weights


def test_lars_follows_its_equations() -> None:
    model = network()
    expected = lars_by_hand(copy.deepcopy(model), 3, lr=2.0, weight_decay=0.05)
    optimizer = build_optimizer("lars", parameter_groups(model, 0.05), lr=2.0)
    for _ in range(3):
        with_gradients(model)
        optimizer.step()
    for value, by_hand in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(value.double(), by_hand, atol=1e-6, rtol=1e-5)


def test_a_lars_step_does_not_depend_on_the_scale_of_the_gradient() -> None:
    moved = []
    for scale in (1.0, 1000.0):
        model = nn.Linear(5, 4, bias=False)
        nn.init.constant_(model.weight, 0.3)
        before = model.weight.detach().clone()
        with_gradients(model, scale)
        LARS(model.parameters(), lr=1.0).step()
        moved.append(model.weight.detach() - before)
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[0].norm().item() == pytest.approx(0.001 * 0.3 * 20**0.5, rel=1e-4)


def test_lars_moves_weights_that_are_zero_and_resumes() -> None:
    model = nn.Linear(5, 4, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = LARS(model.parameters(), lr=0.1)
    with_gradients(model)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), -0.1 * gradients(model)[0])
    twin = copy.deepcopy(model)
    other = LARS(twin.parameters(), lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, other)):
        with_gradients(m)
        o.step()
    assert torch.equal(model.weight, twin.weight)
    unused: Any = nn.Parameter(torch.ones(3, 3))
    LARS([unused], lr=1.0).step()  # no gradient: left alone
    assert torch.equal(unused, torch.ones(3, 3))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_clipping_agrees_with_torch(scale: float) -> None:
    expected = with_gradients(network(), scale)
    total = torch.nn.utils.get_total_norm(gradients(expected))
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 3.0)
    model = with_gradients(network(), scale)
    torch.testing.assert_close(clip_gradients_(model.parameters(), 3.0, mode="global"), total)
    torch.testing.assert_close(gradients(model), gradients(expected))

    expected = with_gradients(network(), scale)
    for parameter in expected.parameters():
        torch.nn.utils.clip_grad_norm_([parameter], 3.0)
    model = with_gradients(network(), scale)
    torch.testing.assert_close(clip_gradients_(model.parameters(), 3.0), total)
    torch.testing.assert_close(gradients(model), gradients(expected))


def test_clipping_bounds_each_norm_and_zero_clips_nothing() -> None:
    model = with_gradients(network(), 100.0)
    before = gradients(model)
    clip_gradients_(model.parameters(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), before, strict=True))
    clip_gradients_(model.parameters(), 0.5)
    for gradient in gradients(model):
        assert gradient.norm().item() == pytest.approx(0.5, rel=1e-4)
    clip_gradients_(model.parameters(), 0.5, mode="global")
    assert torch.cat([g.flatten() for g in gradients(model)]).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_clipping_without_gradients_and_an_unknown_mode() -> None:
    assert clip_gradients_(network().parameters(), 1.0).item() == 0
    with pytest.raises(ValueError, match="mode='each'"):
        clip_gradients_(network().parameters(), 1.0, mode="each")  # type: ignore[arg-type]


def test_frozen_prototypes_do_not_move() -> None:
    head = ProjectionHead(3, 10, 4, 4, norm_last_layer=False)
    optimizer = build_optimizer("adamw", parameter_groups(head, 0.5), lr=0.1)
    with_gradients(head)
    optimizer.step()  # so that there is momentum to withhold
    before = copy.deepcopy(head.state_dict())
    with_gradients(head)
    drop_gradients_(head.prototypes)
    optimizer.step()
    still = {key for key, value in head.state_dict().items() if torch.equal(value, before[key])}
    assert still == {"last_layer.weight_g", "last_layer.weight_v"}


LAYER_DECAY = """
cls_token 0.81 1
pos_embed 0.81 1
mask_token 0.81 1
patch_embed.proj.weight 0.162 1
patch_embed.proj.bias 0.162 0
blocks.0.norm1.weight 0.9 0
blocks.0.norm1.bias 0.9 0
blocks.0.attn.qkv.weight 0.9 1
blocks.0.attn.qkv.bias 0.9 0
blocks.0.attn.proj.weight 0.9 1
blocks.0.attn.proj.bias 0.9 0
blocks.0.norm2.weight 0.9 0
blocks.0.norm2.bias 0.9 0
blocks.0.mlp.fc1.weight 0.9 1
blocks.0.mlp.fc1.bias 0.9 0
blocks.0.mlp.fc2.weight 0.9 1
blocks.0.mlp.fc2.bias 0.9 0
norm.weight 1.0 0
norm.bias 1.0 0
"""


def test_golden_layer_decay() -> None:
    """Learning rate and weight decay of every parameter of a ViT of depth 1, decay 0.9, patch embedding 0.2."""
    backbone = load_backbone("vit_tiny_patch16_224", patch_size=8, img_size=16, depth=1, embed_dim=8, num_heads=1)
    model = nn.ModuleDict({"backbone": backbone, "head": ProjectionHead(8, 10, 4, 4)})
    found = {}
    for group in parameter_groups(model, weight_decay=0.5, layer_decay=0.9, patch_embed_lr=0.2):
        names = {id(p): n for n, p in model.named_parameters()}
        for parameter in group["params"]:
            name = names[id(parameter)].removeprefix("backbone.").removeprefix("model.")
            found[name] = (group.get("lr_scale", 1.0), group["weight_decay"] / 0.5)
    for line in LAYER_DECAY.split("\n")[1:-1]:
        name, lr, decay = line.split()
        assert found[name] == pytest.approx((float(lr), float(decay))), name
    assert found["head.mlp.0.weight"] == (1.0, 1.0)
    optimizer = build_optimizer("adamw", parameter_groups(model, 0.5, 0.9, 0.2))
    set_hyperparameters(optimizer, lr=2.0, weight_decay=0.3)
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {2.0, 1.8, 1.62, 0.324}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.3, 0.0}
