"""The network over masked crops, and the terms by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dense.backbone import load_backbone
from pretrain.data import Batch
from pretrain.head import ProjectionHead
from pretrain.health import HealthMonitor, marginal_error
from pretrain.losses import DINOLoss, GramLoss
from pretrain.mixed import MixedCrops, StepSampler
from pretrain.module import DINO
from pretrain.network import MultiCropNetwork, grid_of
from pretrain.recipe import BackboneOptions, GramOptions, HeadOptions, IBOTOptions, KoLeoOptions, TeacherOptions
from pretrain.terms import GramTerm
from pretrain.views import MultiCrop

ARGUMENTS = {"patch_size": 8, "img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2}
TINY = BackboneOptions("vit_tiny_patch16_224", ARGUMENTS, drop_path=0.0)
HEAD = HeadOptions(24, 16, 8)


def crops(seed: int = 0) -> list[torch.Tensor]:
    """Two global and two local views of 3 images."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, 3, s, s), dtype=torch.uint8, generator=generator) for s in (32, 32, 16, 16)]


def network(**options: Any) -> MultiCropNetwork:
    """An untrained network whose mask token is no zero."""
    torch.manual_seed(0)
    backbone = load_backbone("vit_tiny_patch16_224", **ARGUMENTS)
    torch.nn.init.normal_(backbone.mask_token)
    return MultiCropNetwork(backbone, ProjectionHead(16, 24, 16, 8), **options).eval()


def test_masked_pixels_cannot_influence_the_student() -> None:
    """Whatever stands in masked patches, tokens and logits stay the same; what stands elsewhere counts."""
    net, masks = network(), torch.rand(6, 16) < 0.4
    views = crops()
    hidden = masks.view(2, 3, 1, 4, 4).repeat_interleave(8, -1).repeat_interleave(8, -2)  # 2, 3, 1, 32, 32
    noise = crops(1)
    changed = [torch.where(h, n, v) for h, n, v in zip(hidden, noise[:2], views[:2], strict=True)] + views[2:]
    everything = torch.arange(6 * 16)
    a, b = (net(v, masks, everything, patches=True) for v in (views, changed))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    plain = net(changed, None, everything, patches=True)
    assert not torch.allclose(a.logits, plain.logits)


def test_chosen_patches_get_the_logits_of_their_head() -> None:
    """Of a shared head and of one of their own; class tokens are those of the network without masks."""
    views, indices = crops(), torch.tensor([0, 5, 17, 95])
    for own in (None, ProjectionHead(16, 40, 16, 8)):
        net = network(patch_head=own)
        seen = net(views, patch_indices=indices, patches=True)
        assert seen.patches is not None
        assert seen.patches.shape == (6, 16, 16)
        torch.testing.assert_close(seen.patch_logits, (own or net.head)(seen.patches.flatten(0, 1)[indices]))
        torch.testing.assert_close(seen.logits, net(views).logits, rtol=1e-4, atol=1e-5)
        assert net(views).patch_logits is None
        assert len(net.prototypes) == (2 if own is None else 4)


def test_no_masked_patch_still_trains_every_parameter() -> None:
    """Zero patches: the patch head, batch norm in it and the mask token take part with zero weight, or DDP would stall."""
    net = network(patch_head=ProjectionHead(16, 40, 16, 8, batch_norm=True)).train()
    seen = net(crops(), torch.zeros(6, 16).bool(), torch.zeros(0, dtype=torch.int64))
    assert seen.patch_logits is not None
    (seen.patch_logits.sum() + seen.logits.sum()).backward()
    assert [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    assert float(net.backbone.mask_token.grad.abs().sum()) == 0  # type: ignore[union-attr]


def test_local_crops_may_have_a_norm_of_their_own() -> None:
    net = network(local_norm=torch.nn.LayerNorm(16))
    torch.nn.init.constant_(net.local_norm.weight, 3.0)  # type: ignore[union-attr, arg-type]
    plain = network()
    a, b = net(crops()).features, plain(crops()).features
    torch.testing.assert_close(a[:6], b[:6], rtol=1e-4, atol=1e-5)
    local = net.backbone(net._images(crops()[2:]), layers="last", norm=False).class_token
    torch.testing.assert_close(a[6:], net.local_norm(local), rtol=1e-4, atol=1e-5)  # type: ignore[misc]


def test_linear_prototypes_and_one_row_of_batch_norm() -> None:
    head = ProjectionHead(16, 24, 16, 8, batch_norm=True, last_layer="linear")
    assert [k for k in head.state_dict() if k.startswith("last_layer")] == ["last_layer.weight"]
    x = torch.randn(4, 16)
    expected = torch.nn.functional.normalize(head.mlp(x), dim=-1) @ head.last_layer.weight.T  # type: ignore[operator]
    torch.testing.assert_close(head(x), expected)
    assert bool(head.train()(x[:1]).isfinite().all())
    with pytest.raises(ValueError, match="last_layer='cosine'"):
        ProjectionHead(16, 24, last_layer="cosine")  # type: ignore[arg-type]


class Plan:
    """As much of a trainer's plan as a pass needs."""

    steps_per_epoch, world_size, global_rank = 10, 1, 0


def looked(module: DINO, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a module sees of a micro-batch, without a trainer."""
    monkeypatch.setattr(DINO, "_plan", Plan())
    monkeypatch.setattr(DINO, "trainer", Plan(), raising=False)
    module._total_batch = 3
    return module.run_networks(Batch(crops(), torch.arange(3), torch.zeros(0), []), 0, 0)


def test_the_objective_is_the_sum_of_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """DINO's own loss, its masks and the terms' weights, and separate state for separate targets."""
    module = DINO(
        TINY, HEAD, TeacherOptions(centering="sinkhorn"), ibot=IBOTOptions(1.0, HeadOptions(40, 16, 8), centering="center", temperature=0.07),
        koleo=KoLeoOptions(0.1), steps=10,
    )  # fmt: skip
    assert list(module.terms) == ["dino", "ibot", "koleo"]
    seen = looked(module, monkeypatch)
    terms: dict[str, Any] = dict(module.terms.items())
    targets = terms["dino"].targets.centering(seen.teacher.logits, 0.04)
    torch.testing.assert_close(terms["dino"](seen), DINOLoss()(seen.student.logits, targets))
    assert seen.masked.masks.any(1).sum() == 3  # half of 6 crops
    torch.testing.assert_close(seen.masked.weights.sum(), torch.tensor(3.0))
    assert terms["ibot"].targets.temperature(5, 10) == 0.07
    assert float(terms["ibot"](seen).detach()) > 0
    terms["ibot"].after_step()
    assert float(terms["ibot"].targets.center.abs().sum()) > 0
    one, two = seen.student.features[:6].chunk(2)
    loss = terms["koleo"].loss
    torch.testing.assert_close(terms["koleo"](seen), loss(one) + loss(two))


def test_temperatures_move_by_epoch_or_by_step() -> None:
    module = DINO(TINY, HEAD, TeacherOptions(warmup_temperature=0.04, temperature=0.07, warmup_temperature_epochs=3),
                  ibot=IBOTOptions(1.0, temperature_moves="step"))  # fmt: skip
    by_epoch, by_step = (module.terms[n].targets for n in ("dino", "ibot"))
    assert [by_epoch.temperature(s, 4) for s in (0, 3, 4, 8, 99)] == pytest.approx([0.04, 0.04, 0.055, 0.07, 0.07])  # type: ignore[operator, union-attr]
    assert [by_step.temperature(s, 4) for s in (0, 11, 99)] == pytest.approx([0.04, 0.07, 0.07])  # type: ignore[operator, union-attr]
    assert by_step.temperature(1, 4) == pytest.approx(0.04 + 0.03 / 11)  # type: ignore[operator, union-attr]


def test_the_gram_teacher_may_look_at_larger_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its features come down to the student's grid; on the same crops they are compared as they are."""
    module = DINO(TINY, HEAD, gram=GramOptions(1.0, start=1), steps=10)
    seen = looked(module, monkeypatch)
    term = module.terms["gram"]
    assert isinstance(term, GramTerm)
    assert float(term(seen)) == 0  # before `start`
    assert term.weight(0) == 0
    seen = seen._replace(step=1, measure=True)
    term.before_step(1, module.backbone)
    teacher = module.backbone(module.student._images(crops()[:2]), layers="last", norm=True).maps[-1].flatten(2).mT
    torch.testing.assert_close(term(seen), GramLoss()(seen.student.patches, teacher))
    assert term.measurements["gram_drift"] == term(seen).detach().sqrt()
    large = [torch.zeros(3, 3, 64, 64, dtype=torch.uint8)] * 2
    assert term._targets(seen._replace(gram_crops=large)).shape == (6, 16, 16)


@pytest.mark.parametrize("tokens", ["masked", "unmasked"])
def test_the_gram_anchor_may_count_some_patches(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = DINO(TINY, HEAD, ibot=IBOTOptions(1.0), gram=GramOptions(1.0, start=1, tokens=tokens), steps=10)
    seen = looked(module, monkeypatch)._replace(step=1)
    term: Any = module.terms["gram"]
    mask = seen.masked.masks if tokens == "masked" else ~seen.masked.masks
    torch.testing.assert_close(term(seen), GramLoss()(seen.student.patches, term._targets(seen), mask))
    everything = GramLoss()(seen.student.patches, term._targets(seen))
    assert term(seen).item() != everything.item()


def test_gram_views_are_the_global_ones_enlarged() -> None:
    """The same box and flip at twice the size, without changes of colour."""
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    views = MultiCrop(32, 16, 1, jitter=0, grey=0, solarise=0, blur_sigma=(1e-3, 1e-3), gram_size=64)
    assert (len(views), views.sizes, views.gram_crops) == (5, (32, 32, 16), 2)
    for seed in range(4):
        first, second, _, *large = views(image, seed)
        for small, big in zip((first, second), large, strict=True):
            down = torch.nn.functional.interpolate(big[None].float(), (32, 32), mode="bicubic", antialias=True)[0]
            assert (down - small.float()).abs().mean() < 12  # the mean difference of other crops is above 60
    plain = MultiCrop(32, 16, 1)(image, 0)
    assert all(torch.equal(a, b) for a, b in zip(plain, MultiCrop(32, 16, 1, gram_size=64)(image, 0)[:3], strict=True))


def test_mixed_sizes_are_those_of_the_step() -> None:
    mixed = MixedCrops([(32, 16, 0, 0.5), (48, 24, 0, 0.5)], local_crops=2)
    sizes = [mixed.of_step(step, seed=3).sizes for step in range(40)]
    assert set(sizes) == {(32, 32, 16, 16), (48, 48, 24, 24)}
    assert sizes == [mixed.of_step(step, seed=3).sizes for step in range(40)]
    assert [draw[2] for draw in StepSampler(8, 2).batch(5)] == [5, 5]
    for wrong in ([], [(32, 16, 0, 0.5)], [(32, 16, 48, 0.5), (48, 24, 0, 0.5)]):
        with pytest.raises(ValueError, match="mixture="):
            MixedCrops(wrong)


def test_grids_follow_the_padding() -> None:
    assert grid_of(network().backbone, (33, 40)) == (5, 5)


def test_marginal_error() -> None:
    """0 for equal use, 1 - 1/K for one prototype."""
    assert marginal_error(torch.eye(4)).item() == pytest.approx(0)
    assert marginal_error(torch.eye(4)[:1].repeat(3, 1)).item() == pytest.approx(0.75)
    assert bool(marginal_error(torch.zeros(0, 4)).isfinite())


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ({"patch_teacher_entropy": 3.68, "patch_marginal_entropy": 3.68}, "patch_collapse_to_uniform"),
        ({"patch_teacher_entropy": 0.01, "patch_marginal_entropy": 0.02}, "patch_collapse_to_point"),
        ({"gram_drift": 0.8}, "gram_drift"),
    ],
)
def test_failures_of_the_new_terms_are_named(found: dict[str, float], kind: str) -> None:
    monitor = HealthMonitor(64, warmup_steps=0, patience=2, patch_prototypes=40)
    healthy = {"loss": 4.0, "teacher_entropy": 2.0, "marginal_entropy": 4.0}
    assert monitor.update(0, healthy | found) is None
    diagnosis = monitor.update(1, healthy | found)
    assert diagnosis is not None
    assert diagnosis.kind == kind
    assert "nan" not in str(diagnosis)


def test_uniform_stochastic_depth() -> None:
    module = DINO(BackboneOptions("vit_tiny_patch16_224", ARGUMENTS, 0.3, "uniform"), HEAD)
    rates = [block.drop_path1.drop_prob for block in module.student.backbone.model.blocks]  # type: ignore[union-attr]
    assert rates == [0.3, 0.3]


def test_vit_options_by_name() -> None:
    """Registers, LayerScale and SwiGLU, which a saved spec can hold."""
    options = {"reg_tokens": 2, "init_values": 1e-5, "mlp_layer": "swiglu_packed", "act_layer": "silu", "mlp_ratio": 4}
    backbone = load_backbone("vit_tiny_patch16_224", **ARGUMENTS, **options)
    assert backbone.spec.registers == 2
    assert backbone.model.blocks[0].mlp.fc2.in_features == 32  # type: ignore[union-attr, index]
    assert backbone.spec.arguments["mlp_layer"] == "swiglu_packed"
    with pytest.raises(ValueError, match="mlp_layer='swiglo'"):
        load_backbone("vit_tiny_patch16_224", **ARGUMENTS, mlp_layer="swiglo")


def test_rope_is_rescaled_in_training_alone_and_once_a_forward() -> None:
    name = "vit_small_patch16_dinov3_qkvb"
    arguments = ARGUMENTS | {"num_reg_tokens": 1, "rope_rescale_coords": 2.0}
    backbone = load_backbone(name, **arguments)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(backbone(images).maps[-1], backbone(images).maps[-1])
    backbone.train()
    ropes = [backbone.embed(images)[1] for _ in range(2)]  # type: ignore[operator]
    assert not torch.equal(*ropes)
    torch.manual_seed(1)
    a = backbone(images).maps[-1]
    torch.manual_seed(1)
    assert torch.equal(a, backbone(images).maps[-1])
