import numpy as np
import pytest
import torch

from pretrain.masking import BlockMasks, add_block


def of_step(masks: BlockMasks, step: int, total: int, grid: tuple[int, int] = (14, 14)) -> torch.Tensor:
    return masks(step, np.arange(total), total, grid)


def test_a_fraction_is_masked_and_ratios_spread_evenly() -> None:
    """Half of 2 x 32 crops are masked, and the i-th smallest ratio lies in the i-th part of the range."""
    masks = of_step(BlockMasks(0.5, (0.1, 0.5), complete=True), 3, 32)
    assert masks.shape == (64, 196)
    ratios = np.sort(masks.float().mean(1).numpy())
    assert (ratios == 0).sum() == 32
    edges = np.linspace(0.1, 0.5, 33)
    for ratio, low, high in zip(ratios[32:], edges, edges[1:], strict=False):
        assert low - 1 / 196 <= ratio <= high


def test_without_completion_no_ratio_is_passed() -> None:
    ratios = np.sort(of_step(BlockMasks(), 0, 64).float().mean(1).numpy())[64:]
    assert (ratios <= np.linspace(0.1, 0.5, 65)[1:]).all()
    assert ratios.mean() == pytest.approx(0.3, abs=0.02)  # blocks nearly always reach it


def test_masks_are_blocks() -> None:
    """Masked patches have far more masked neighbours than scattered ones."""
    masks = of_step(BlockMasks(1.0, (0.3, 0.3)), 0, 16).view(-1, 14, 14)
    beside = (masks[:, :, 1:] & masks[:, :, :-1]).float().mean() / masks.float().mean()
    assert beside > 0.6


def test_a_mask_depends_on_seed_step_and_place_alone() -> None:
    """The images of a step have the same masks for any number of processes and micro-batches."""
    masks = BlockMasks(seed=5)
    whole = of_step(masks, 7, 8).view(2, 8, -1)
    for ranks in (2, 4):
        parts = [masks(7, part, 8, (14, 14)).view(2, 8 // ranks, -1) for part in np.split(np.arange(8), ranks)]
        assert torch.equal(torch.cat(parts, 1), whole)
    assert not torch.equal(of_step(masks, 8, 8).view(2, 8, -1), whole)
    assert not torch.equal(of_step(BlockMasks(seed=6), 7, 8).view(2, 8, -1), whole)


def test_one_block_keeps_to_its_limit() -> None:
    import random

    for seed in range(50):
        mask = np.zeros((7, 9), bool)
        mask[:3] = True
        before = int(mask.sum())
        if add_block(mask, 5, random.Random(seed)):
            assert 1 <= int(mask.sum()) - before <= 5
        else:
            assert int(mask.sum()) == before


def test_completion_is_exact_on_any_grid() -> None:
    for grid in ((3, 3), (15, 17), (4, 9)):
        masks = of_step(BlockMasks(1.0, (0.4, 0.4), complete=True), 1, 6, grid)
        assert masks.sum(1).tolist() == [int(0.4 * grid[0] * grid[1])] * 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 0.0}, "mask_probability=0.0"),
        ({"probability": 1.5}, "mask_probability=1.5"),
        ({"ratio": (0.5, 0.1)}, "mask_ratio"),
        ({"ratio": (0.1, 1.2)}, "mask_ratio"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMasks(**arguments)  # type: ignore[arg-type]


def test_a_grid_without_room() -> None:
    with pytest.raises(ValueError, match="grid of 2x2 patches, too small for masks"):
        of_step(BlockMasks(), 0, 2, (2, 2))
