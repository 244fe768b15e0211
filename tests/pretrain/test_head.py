import copy

import pytest
import torch
from torch import nn

from pretrain.head import ProjectionHead, Prototypes


def tiny(**options: object) -> ProjectionHead:
    torch.manual_seed(0)
    return ProjectionHead(12, 40, hidden_dim=16, bottleneck_dim=8, **options)  # type: ignore[arg-type]


def shapes(head: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in head.state_dict().items()}


def test_state_has_the_published_layout() -> None:
    assert shapes(ProjectionHead(384, 1000)) == {
        "mlp.0.weight": (2048, 384),
        "mlp.0.bias": (2048,),
        "mlp.2.weight": (2048, 2048),
        "mlp.2.bias": (2048,),
        "mlp.4.weight": (256, 2048),
        "mlp.4.bias": (256,),
        "last_layer.weight_g": (1000, 1),
        "last_layer.weight_v": (1000, 256),
    }


def test_layout_with_batch_norm_and_with_one_layer() -> None:
    linear = {name.split(".")[1] for name in shapes(tiny(batch_norm=True)) if name.endswith("running_mean")}
    assert linear == {"1", "4"}
    assert shapes(tiny(batch_norm=True))["mlp.6.weight"] == (8, 16)
    assert set(shapes(tiny(layers=1))) == {"mlp.weight", "mlp.bias", "last_layer.weight_g", "last_layer.weight_v"}
    with pytest.raises(ValueError, match="layers=0"):
        tiny(layers=0)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(256, 512, hidden_dim=512)
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[index]
    assert all(not value.any() for name, value in head.state_dict().items() if name.endswith("bias"))
    assert torch.equal(head.last_layer.weight_g, torch.ones(512, 1))


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")  # theirs uses it
@pytest.mark.parametrize("learned", [False, True])
def test_agrees_with_the_head_of_lightly(learned: bool) -> None:
    heads = pytest.importorskip("lightly.models.modules.heads")
    theirs = heads.DINOProjectionHead(12, 16, 8, 40, norm_last_layer=not learned)
    mine = tiny(norm_last_layer=not learned)
    values = {name.replace("layers.", "mlp."): value for name, value in theirs.state_dict().items()}
    mine.load_state_dict(values)
    x = torch.randn(6, 12)
    torch.testing.assert_close(mine(x), theirs(x), atol=1e-6, rtol=1e-5)
    for model in (mine, theirs):
        model(x).square().sum().backward()
    gradients = {name.replace("layers.", "mlp."): p.grad for name, p in theirs.named_parameters()}
    for name, parameter in mine.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_prototypes_agree_with_weight_norm_of_torch() -> None:
    torch.manual_seed(0)
    mine = Prototypes(5, 7, learn_norm=True).double()
    with torch.no_grad():
        mine.weight_g.uniform_(0.5, 2)
    linear = nn.Linear(5, 7, bias=False).double()
    theirs = nn.utils.parametrizations.weight_norm(linear)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(mine.weight_g)
        theirs.parametrizations.weight.original1.copy_(mine.weight_v)
    x = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.testing.assert_close(mine(x), theirs(y))
    torch.testing.assert_close(mine.weight, theirs.weight)
    mine(x).cos().sum().backward()
    theirs(y).cos().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(mine.weight_g.grad, theirs.parametrizations.weight.original0.grad)
    torch.testing.assert_close(mine.weight_v.grad, theirs.parametrizations.weight.original1.grad)


def test_prototype_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    layer = Prototypes(4, 6, learn_norm=True).double()
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)

    def logits(x: torch.Tensor, v: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight_v": v, "weight_g": g}, (x,))

    assert torch.autograd.gradcheck(logits, (x, layer.weight_v, layer.weight_g))


def test_logits_with_fixed_norm_are_cosines() -> None:
    head = tiny()
    with torch.no_grad():
        head.last_layer.weight_v.mul_(torch.rand(40, 1) * 10 + 0.1)
    x = torch.randn(20, 12)
    before = head(x)
    assert before.abs().max() <= 1 + 1e-6
    before.square().sum().backward()
    gradient = head.last_layer.weight_v.grad
    assert gradient is not None and gradient.norm() > 0
    along = (gradient * head.last_layer.weight_v).sum(1)  # a direction has no gradient along itself
    torch.testing.assert_close(along, torch.zeros(40), atol=1e-5, rtol=0)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(3)
    torch.testing.assert_close(head(x), before)


def test_only_a_learned_norm_has_a_gradient() -> None:
    assert [p.requires_grad for p in tiny().prototypes] == [False, True]
    assert [p.requires_grad for p in tiny(norm_last_layer=False).prototypes] == [True, True]


def test_leading_dimensions_are_kept() -> None:
    head, x = tiny(), torch.randn(2, 3, 12)
    assert head(x).shape == (2, 3, 40)
    torch.testing.assert_close(head(x)[1, 2], head(x[1, 2][None])[0])


def test_autocast_keeps_norms_in_fp32() -> None:
    head, x = tiny(), torch.randn(64, 12)
    exact = head(x)
    exact.square().mean().backward()
    gradients = [p.grad.clone() for p in head.parameters() if p.grad is not None]
    head.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(x)
    rough.float().square().mean().backward()
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.03, rtol=0)
    for exact_gradient, p in zip(gradients, (p for p in head.parameters() if p.grad is not None), strict=True):
        assert p.grad is not None and p.grad.dtype == torch.float32
        assert (p.grad - exact_gradient).norm() < 0.05 * exact_gradient.norm()


def test_a_deep_copy_shares_nothing() -> None:
    head, x = tiny(), torch.randn(4, 12)
    head(x).sum().backward()
    twin = copy.deepcopy(head)
    torch.testing.assert_close(twin(x), head(x))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in head.parameters()}


def test_linear_prototypes_and_one_row_of_batch_norm() -> None:
    head = ProjectionHead(16, 24, 16, 8, batch_norm=True, last_layer="linear")
    assert [k for k in head.state_dict() if k.startswith("last_layer")] == ["last_layer.weight"]
    x = torch.randn(4, 16)
    expected = torch.nn.functional.normalize(head.mlp(x), dim=-1) @ head.last_layer.weight.T  # type: ignore[operator]
    torch.testing.assert_close(head(x), expected)
    assert bool(head.train()(x[:1]).isfinite().all())
    with pytest.raises(ValueError, match="last_layer='cosine'"):
        ProjectionHead(16, 24, last_layer="cosine")  # type: ignore[arg-type]
