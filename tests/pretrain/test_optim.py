import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from dense.backbone import load_backbone
from pretrain.head import ProjectionHead
from pretrain.optim import (
    Cosine,
    Linear,
    build_optimizer,
    clip_gradients_,
    drop_gradients_,
    parameter_groups,
    scale_lr,
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
        before = model.weight.detach().clone()
        with_gradients(model)
        optimizer.step()
        assert not torch.equal(model.weight, before)


def test_unknown_optimiser() -> None:
    with pytest.raises(ValueError, match="'adam': expected one of adamw, sgd, lars"):
        build_optimizer("adam", parameter_groups(network()))


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


def test_golden_cosine() -> None:
    schedule = Cosine(base=1.0, final=0.1, steps=12, warmup_steps=3)
    golden = [0, 0.5, 1, 1, 0.972862, 0.89472, 0.775, 0.628142, 0.471858, 0.325, 0.20528, 0.127138]
    assert [schedule(step) for step in range(12)] == pytest.approx(golden, abs=1e-6)


def test_golden_teacher_temperature() -> None:
    schedule = Linear(0.04, 0.07, steps=3)
    assert [schedule(epoch) for epoch in range(5)] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])


def test_teacher_temperature_without_warmup_and_with_one_longer_than_training() -> None:
    assert [Linear(0.04, 0.04, 0)(epoch) for epoch in range(3)] == [0.04] * 3
    assert Linear(0.04, 0.07, 1)(0) == 0.07
    warming = [Linear(0.04, 0.07, 31)(epoch) for epoch in range(11)]
    assert warming == pytest.approx([0.04 + 0.001 * epoch for epoch in range(11)])


def test_cosine_without_warmup_agrees_with_lightly() -> None:
    scheduler = pytest.importorskip("lightly.utils.scheduler")
    schedule = Cosine(0.996, 1.0, steps=50)
    # Theirs reaches the final value on the last step, ours, as published, one step later.
    theirs = [scheduler.cosine_schedule(step, 51, 0.996, 1.0) for step in range(51)]
    assert [schedule(step) for step in range(51)] == pytest.approx(theirs)


def test_cosine_runs_between_its_ends_and_stays_there() -> None:
    falling = [Cosine(2.0, 0.5, 100, warmup_steps=10)(step) for step in range(130)]
    assert falling[:10] == sorted(falling[:10]) and falling[10:] == sorted(falling[10:], reverse=True)
    assert falling[0] == 0 and falling[9] == falling[10] == 2.0
    assert falling[99] > 0.5 and set(falling[100:]) == {0.5}
    assert Cosine(2.0, 0.5, 100)(50) == pytest.approx(1.25)


@pytest.mark.parametrize("warmup", [1, 12, 13, 1000])
def test_a_warmup_of_any_length_is_handled(warmup: int) -> None:
    values = [Cosine(1.0, 0.1, steps=12, warmup_steps=warmup, start=0.2)(step) for step in range(14)]
    assert all(math.isfinite(value) and 0.1 <= value <= 1 for value in values)
    assert values[0] == 0.2
    if warmup == 1000:
        assert values[11] == pytest.approx(0.2 + 0.8 * 11 / 999)


def test_linear() -> None:
    assert [Linear(1.0, 2.0, steps=5)(step) for step in range(7)] == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0, 2.0]
    assert Linear(1.0, 2.0, steps=0)(0) == 2.0


def test_schedules_are_plain_frozen_values() -> None:
    schedule = Cosine(1.0, 0.1, 12)
    assert dataclasses.asdict(schedule) == {"base": 1.0, "final": 0.1, "steps": 12, "warmup_steps": 0, "start": 0.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.base = 2.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="steps=0"):
        Cosine(1.0, 0.1, 0)


def test_learning_rate_scaling() -> None:
    assert scale_lr(5e-4, "linear", 512) == pytest.approx(1e-3)
    assert scale_lr(4e-3, "sqrt", 4096) == pytest.approx(8e-3)
    assert scale_lr(0.1, "linear", 256) == scale_lr(0.1, "sqrt", 1024) == scale_lr(0.1, "none", 7) == 0.1
