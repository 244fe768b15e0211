from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing

from pretrain.centering import Center, SinkhornKnopp, subtract_mean
from tests.pretrain.golden import det

GOLDEN_CENTERS = [
    [0.035072, 0.020428, 0.002505, -0.003281, -0.028147, -0.027683],
    [0.066637, 0.038813, 0.004759, -0.006235, -0.053479, -0.052597],
]
GOLDEN_SINKHORN = [
    [0.582952, 0.373296, 0.021428, 0.022321, 2e-06, 0.0],
    [0.0, 0.0, 2e-06, 0.468154, 0.483117, 0.048727],
    [0.001119, 1.1e-05, 0.0, 5.6e-05, 0.000205, 0.998609],
    [0.114087, 0.293179, 0.592733, 1e-06, 0.0, 0.0],
]


def test_golden_centers() -> None:
    center = Center(6, momentum=0.9)
    for expected in GOLDEN_CENTERS:
        center.update(det(4, 6, phase=1))
        torch.testing.assert_close(center.center, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_targets_are_centred_and_sharpened() -> None:
    center = Center(20)
    center.center.copy_(torch.randn(1, 20))
    logits = torch.randn(8, 20, requires_grad=True)
    targets = center(logits, 0.05)
    assert targets.dtype == torch.float32 and not targets.requires_grad
    torch.testing.assert_close(targets, ((logits.detach() - center.center) / 0.05).softmax(-1))
    torch.testing.assert_close(center(logits.bfloat16(), 0.05).sum(-1), torch.ones(8))
    # The same preference in every image is what centring takes away.
    center.center.copy_(torch.randn(1, 20))
    torch.testing.assert_close(center(center.center.repeat(3, 1), 0.05), torch.full((3, 20), 0.05))


def test_the_mean_of_features_starts_at_that_of_the_first() -> None:
    """The first features lose their own mean; from then on it is a moving average, counted once per step."""
    center, first, second = Center(6), det(4, 6) + 10, det(4, 6, phase=1) + 10
    torch.testing.assert_close(subtract_mean(first, center, start=True), first - first.mean(0))
    center.step()
    torch.testing.assert_close(subtract_mean(second, center), second - first.mean(0))
    center.step()
    torch.testing.assert_close(center.center[0], 0.9 * first.mean(0) + 0.1 * second.mean(0))


def test_making_targets_changes_no_state() -> None:
    center = Center(6)
    before = {name: value.clone() for name, value in center.named_buffers()}
    center(det(4, 6), 0.04)
    assert all(torch.equal(before[name], value) for name, value in center.named_buffers())


def test_micro_batches_move_the_center_like_one_batch() -> None:
    logits = torch.randn(12, 6)
    once, thrice = Center(6), Center(6)
    for _ in range(2):  # the second round shows that the first left nothing behind
        once.update(logits)
        for part in logits.split([2, 6, 4]):
            thrice.accumulate(part)
        thrice.step()
        torch.testing.assert_close(thrice.center, once.center)
    assert once.center.abs().max() > 0


def test_accumulating_alone_does_not_move_and_an_empty_step_leaves_the_center() -> None:
    center = Center(6)
    center.update(torch.randn(4, 6))
    before = center.center.clone()
    center.accumulate(torch.randn(4, 6))
    assert torch.equal(center.center, before)
    center.step()
    moved = center.center.clone()
    assert not torch.equal(moved, before)
    center.step()
    assert torch.equal(center.center, moved)


def test_only_the_center_is_saved() -> None:
    assert list(Center(6).state_dict()) == ["center"]


def test_momentum_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"momentum=1\.5"):
        Center(6, momentum=1.5)


def test_golden_sinkhorn() -> None:
    targets = SinkhornKnopp(3)(det(4, 6, phase=1), temperature=0.07)
    torch.testing.assert_close(targets, torch.tensor(GOLDEN_SINKHORN), atol=1e-6, rtol=0)


def test_sinkhorn_agrees_with_lightly() -> None:
    swav = pytest.importorskip("lightly.loss.swav_loss")
    logits = torch.randn(16, 10)
    torch.testing.assert_close(SinkhornKnopp(4)(logits, 0.2), swav.sinkhorn(logits, 4, 0.2), atol=1e-6, rtol=1e-4)


def test_sinkhorn_uses_prototypes_equally() -> None:
    logits = torch.randn(64, 8) + 5 * torch.arange(8)  # without it, the last prototype would take all
    targets = SinkhornKnopp(50)(logits, 1.0)
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    torch.testing.assert_close(targets.sum(0), torch.full((8,), 8.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(SinkhornKnopp(50)(logits + 100, 1.0), targets, atol=1e-4, rtol=0)


def test_sinkhorn_survives_extreme_logits() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [1e4, -1e4, 0.0]], dtype=torch.float32, requires_grad=True)
    targets = SinkhornKnopp()(logits, 0.04)
    assert targets.isfinite().all() and not targets.requires_grad
    torch.testing.assert_close(targets.sum(1), torch.ones(2))


def test_sinkhorn_has_the_interface_of_center_and_leaves_its_input() -> None:
    sinkhorn, logits = SinkhornKnopp(), torch.randn(4, 6)
    before = logits.clone()
    sinkhorn(logits, 1.0)
    sinkhorn.accumulate(logits)
    sinkhorn.step()
    sinkhorn.update(logits)
    assert torch.equal(logits, before) and not sinkhorn.state_dict()


def test_two_processes_equal_one_with_all_the_data(tmp_path: Path) -> None:
    multiprocessing.start_processes(_one_of_two, (str(tmp_path),), nprocs=2, start_method="forkserver")
    logits = det(8, 6, phase=1)
    center = Center(6)
    center.accumulate(logits)
    center.accumulate(logits[:3])
    center.step()
    results: list[dict[str, Tensor]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for result in results:
        torch.testing.assert_close(result["center"], center.center)
    together = torch.cat([result["targets"] for result in results])
    torch.testing.assert_close(together, SinkhornKnopp()(logits, 0.07), atol=1e-6, rtol=1e-5)


def _one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mine = det(8, 6, phase=1)[:3] if rank == 0 else det(8, 6, phase=1)[3:]  # uneven on purpose
    center = Center(6)
    center.accumulate(mine)
    if rank == 0:
        center.accumulate(mine)
    center.step()
    torch.save({"center": center.center, "targets": SinkhornKnopp()(mine, 0.07)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
