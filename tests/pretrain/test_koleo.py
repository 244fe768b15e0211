from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import distributed

from pretrain.losses import KoLeoLoss
from tests.pretrain.golden import det
from tests.runs import SERVER


def textbook(features: np.ndarray) -> float:
    """The loss by scikit-learn's neighbours."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances, _ = NearestNeighbors(n_neighbors=2).fit(unit).kneighbors(unit)
    return float(-np.log(distances[:, 1]).mean())


def test_golden_value() -> None:
    assert KoLeoLoss()(det(5, 8)).item() == pytest.approx(0.405056, abs=2e-6)


def test_agrees_with_scikit_learn_and_lightly() -> None:
    torch.manual_seed(0)
    features = torch.randn(20, 6)
    value = KoLeoLoss()(features).item()
    assert value == pytest.approx(textbook(features.double().numpy()), rel=1e-5)
    theirs = pytest.importorskip("lightly.loss").KoLeoLoss()
    assert value == pytest.approx(theirs(features).item(), rel=1e-4)


def test_order_and_length_do_not_matter() -> None:
    torch.manual_seed(1)
    features = torch.randn(9, 5)
    value = KoLeoLoss()(features)
    torch.testing.assert_close(KoLeoLoss()(features[torch.randperm(9)]), value)
    torch.testing.assert_close(KoLeoLoss()(features * torch.rand(9, 1).add(0.1)), value)


def test_groups_are_batches_of_their_own() -> None:
    torch.manual_seed(2)
    features = torch.randn(12, 5)
    apart = torch.stack([KoLeoLoss()(part) for part in features.split(4)]).mean()
    torch.testing.assert_close(KoLeoLoss(group=4)(features), apart)


def test_one_image_is_skipped_with_a_warning() -> None:
    loss, features = KoLeoLoss(), torch.randn(1, 4).requires_grad_()
    with pytest.warns(UserWarning, match="skipped: a batch of 1"):
        value = loss(features)
    value.backward()
    assert value.item() == 0
    assert features.grad is not None
    loss(features)  # warned once


def test_twins_give_a_finite_gradient() -> None:
    features = torch.ones(4, 3).requires_grad_()
    value = KoLeoLoss()(features)
    value.backward()
    assert torch.isfinite(value)
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="group=1"):
        KoLeoLoss(group=1)
    with pytest.raises(ValueError, match="does not divide a batch of 6"):
        KoLeoLoss(group=4)(torch.randn(6, 3))
    with pytest.raises(ValueError, match=r"expected features \(B, D\)"):
        KoLeoLoss()(torch.randn(2, 3, 4))


def _part(rank: int, folder: str, group: int | None) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    features = det(8, 5).chunk(2)[rank].clone().requires_grad_()
    value = KoLeoLoss(group, distributed=True)(features)
    value.backward()
    torch.save({"value": value.detach(), "gradient": features.grad}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("group", [None, 8, 4, 2])
def test_two_processes_are_one(tmp_path: Path, group: int | None) -> None:
    """Means over processes of the loss, and gradients as DDP averages them, are those of the whole batch."""
    parts = [SERVER.Process(target=_part, args=(rank, str(tmp_path), group)) for rank in range(2)]
    for process in parts:
        process.start()
    for process in parts:
        process.join(60)
        assert process.exitcode == 0
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    features = det(8, 5).requires_grad_()
    value = KoLeoLoss(group)(features)
    value.backward()
    assert features.grad is not None
    torch.testing.assert_close(torch.stack([r["value"] for r in results]).mean(), value.detach())
    torch.testing.assert_close(torch.cat([r["gradient"] for r in results]) / 2, features.grad)
