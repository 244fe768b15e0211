import copy

import pytest
import torch
from torch import Tensor, nn

from pretrain.head import ProjectionHead
from pretrain.teacher import Teacher


def student(batch_norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), ProjectionHead(6, 10, 8, 5, batch_norm=batch_norm))


def disturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def values(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def storages(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}


@pytest.mark.parametrize("mode", ["ema", "previous_epoch", "student_copy"])
def test_never_shares_storage_with_the_student(mode: str) -> None:
    net = student(batch_norm=True)
    teacher = Teacher(net, mode)  # type: ignore[arg-type]
    assert not storages(net) & storages(teacher)
    for _ in range(2):
        disturb(net)
        teacher.after_step(net, 0.0)
        teacher.after_epoch(net)
        assert not storages(net) & storages(teacher)
    before = values(teacher)
    disturb(net)
    assert all(torch.equal(a, b) for a, b in zip(values(teacher), before, strict=True))


def test_starts_equal_and_has_no_gradient() -> None:
    net = student().eval()
    teacher, x = Teacher(net), torch.randn(3, 4)
    torch.testing.assert_close(teacher(x), net(x))
    assert not teacher(x.requires_grad_()).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(p.requires_grad for name, p in net.named_parameters() if "weight_g" not in name)


def test_moving_average_by_its_equation() -> None:
    net = student()
    teacher = Teacher(net)
    expected = values(net)
    for momentum in (0.9, 0.996, 1.0, 0.0):
        disturb(net)
        teacher.after_step(net, momentum)
        expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, values(net), strict=True)]
        torch.testing.assert_close(values(teacher), expected)
    teacher.after_epoch(net)
    torch.testing.assert_close(values(teacher), expected)


def test_previous_epoch_moves_only_between_epochs() -> None:
    net = student()
    teacher = Teacher(net, "previous_epoch")
    first = values(net)
    disturb(net)
    teacher.after_step(net, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(values(teacher), first, strict=True))
    teacher.after_epoch(net)
    second = values(net)
    disturb(net)
    teacher.after_step(net, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(values(teacher), second, strict=True))


def test_student_copy_follows_every_step() -> None:
    net = student()
    teacher = Teacher(net, "student_copy")
    disturb(net)
    teacher.after_step(net, 0.996)
    assert all(torch.equal(a, b) for a, b in zip(values(teacher), values(net), strict=True))


def test_batch_norm_trains_with_its_own_statistics_and_dropout_never() -> None:
    net = student(batch_norm=True)
    teacher = Teacher(net)
    assert {type(m).__name__ for m in teacher.network.modules() if m.training} == {"BatchNorm"}
    theirs = copy.deepcopy(dict(net.named_buffers()))
    x = torch.randn(16, 4) + 3
    assert torch.equal(teacher(x), teacher(x))  # no dropout
    moved = {name: value.clone() for name, value in teacher.network.named_buffers()}
    assert all(torch.equal(value, theirs[name]) for name, value in net.named_buffers())
    assert not any(torch.equal(value, theirs[name]) for name, value in moved.items())
    teacher.after_step(net, 0.5)  # parameters alone follow
    assert all(torch.equal(value, moved[name]) for name, value in teacher.network.named_buffers())
    teacher.eval()
    assert not any(module.training for module in teacher.modules())
    teacher.train()
    assert any(module.training for module in teacher.network.modules())


def test_low_precision_weights_are_refused_for_the_average() -> None:
    net = student().bfloat16()
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*fp32"):
        Teacher(net).after_step(net, 0.996)
    Teacher(net, "student_copy").after_step(net, 0.996)
    teacher = Teacher(student())
    teacher.after_step(net, 0.0)  # a student in bf16 may be averaged into a teacher in fp32
    torch.testing.assert_close(values(teacher), [value.float() for value in values(net)])


def test_wrong_student_and_wrong_mode() -> None:
    teacher = Teacher(student())
    with pytest.raises(ValueError, match="differ"):
        teacher.after_step(nn.Linear(4, 6), 0.9)
    with pytest.raises(ValueError, match="mode='mean'"):
        Teacher(student(), "mean")  # type: ignore[arg-type]
