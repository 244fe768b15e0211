"""Batches as a pure function of (seed, step, rank, world)."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dense.data.loader import init_worker
from dense.data.sampler import Draw, IndexSampler, permute


def first(sampler: IndexSampler, batches: int) -> list[list[Draw]]:
    """The first batches of a sampler."""
    return list(islice(sampler, batches))


@pytest.mark.parametrize("length", [1, 2, 3, 10, 97, 1000])
def test_permute_is_a_permutation(length: int) -> None:
    """Every place has its own image, for any key."""
    for key in range(5):
        assert sorted(permute(np.arange(length), length, (key,)).tolist()) == list(range(length))


def test_permutations_are_uniform() -> None:
    """Each index comes as often at each place, neighbours do not stay together, and keys give other orders."""
    length, count = 11, 4000
    orders = np.array([permute(np.arange(length), length, (3, key)) for key in range(count)])  # keys, places
    expected = count / length
    for place in range(length):
        seen = np.bincount(orders[:, place], minlength=length)
        assert ((seen - expected) ** 2 / expected).sum() < 35  # chi-square with 10 degrees: p = 1e-4
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % length, minlength=length)[1:]
    assert ((steps - count / 10) ** 2 / (count / 10)).sum() < 34
    assert len(np.unique(orders, axis=0)) > 0.99 * count


def test_a_billion_cost_no_table() -> None:
    """Any place of a huge data set is found directly."""
    images = permute(np.arange(10**9, 10**9 + 1000), 3 * 10**9, (0,))
    assert len(np.unique(images)) == 1000
    assert 0.4 < (images / 3e9).mean() < 0.6
    with pytest.raises(ValueError, match="less than length=5"):
        permute(np.array([5]), 5, (0,))


def test_an_epoch_is_a_pass_without_repeats() -> None:
    """Whole steps of a permutation; what is left over differs between epochs."""
    sampler = IndexSampler(length=23, batch_size=5)
    assert (sampler.step_size, sampler.steps_per_epoch) == (5, 4)
    left = []
    for epoch in range(6):
        draws = [draw for step in range(4) for draw in sampler.batch(4 * epoch + step)]
        assert {draw.epoch for draw in draws} == {epoch}
        indices = {draw.image for draw in draws}
        assert len(indices) == 20
        assert indices <= set(range(23))
        left.append(frozenset(range(23)) - indices)
    assert len(set(left)) > 3


def test_starting_late_is_skipping() -> None:
    """From step k on, the same batches as after k steps from the beginning."""
    whole = first(IndexSampler(37, 4, seed=5, accumulate=2), 60)
    for step in (1, 4, 9, 23):
        assert first(IndexSampler(37, 4, seed=5, accumulate=2, start_step=step), 10) == whole[2 * step : 2 * step + 10]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("length", [50, 7])
def test_two_ranks_are_one_with_twice_the_batch(length: int, accumulate: int) -> None:
    """Batch by batch, the ranks' parts make up the batch of one process."""
    one = first(IndexSampler(length, 8, accumulate=accumulate), 20)
    ranks = [first(IndexSampler(length, 4, rank=r, world=2, accumulate=accumulate), 20) for r in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == one


def test_accumulation_keeps_the_step() -> None:
    """Two micro-batches of 4 hold what one batch of 8 holds."""
    micro = first(IndexSampler(50, 4, accumulate=2), 20)
    assert [a + b for a, b in zip(micro[::2], micro[1::2], strict=True)] == first(IndexSampler(50, 8), 10)


def test_fewer_images_than_a_step() -> None:
    """They come several times, each time in another epoch, equally often."""
    sampler = IndexSampler(length=6, batch_size=16)
    assert sampler.steps_per_epoch == 1
    draws = [draw for batch in first(sampler, 12) for draw in batch]  # 192 = 32 passes
    assert len(set(draws)) == len(draws)
    assert set(Counter(draw.image for draw in draws).values()) == {32}
    assert {draw.epoch for draw in draws} == set(range(32))


def test_seeds_differ() -> None:
    """Another seed, another order."""
    assert IndexSampler(1000, 8, seed=0).batch(0) != IndexSampler(1000, 8, seed=1).batch(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length=0: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world": 2}, "rank=2: expected 0 to 1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"accumulate": 0}, "accumulate=0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, int], message: str) -> None:
    """Named with what was expected."""
    with pytest.raises(ValueError, match=message):
        IndexSampler(**({"length": 10, "batch_size": 2} | arguments))


class Echo(Dataset[torch.Tensor]):
    """Gives back what it is asked for, and how many threads it may use."""

    def __getitem__(self, draw: Draw) -> torch.Tensor:
        return torch.tensor([draw.epoch, draw.image, torch.get_num_threads()])


def test_loader_with_and_without_workers() -> None:
    """Draws arrive whole and in order; workers are initialised to one thread."""
    loads = []
    for workers in (0, 2):
        loader = DataLoader(
            Echo(), batch_sampler=IndexSampler(10, 3, start_step=2), num_workers=workers, worker_init_fn=init_worker
        )
        loads.append(torch.stack(list(islice(loader, 8))))
    assert torch.equal(loads[0][..., :2], loads[1][..., :2])
    assert loads[0][:, :, 0].tolist() == [[0] * 3, *[[1] * 3] * 3, *[[2] * 3] * 3, [3] * 3]
    assert (loads[1][..., 2] == 1).all()
