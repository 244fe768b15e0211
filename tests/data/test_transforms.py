"""Transforms: image and targets move together, values of targets never mix, and a seed determines the sample."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dense.data.labelled.sample import IGNORE, Labelled
from dense.data.transforms import Augment, EvalTransform, Sample, TrainTransform, collate, to_tensors

SEGMENTATION = Augment(scale=(0.5, 2.0), flip=0.5, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05)
DEPTH = Augment(flip=0.5, rotate=2.5, brightness=0.25, gamma=(0.9, 1.1), colour=0.1)
ALL = replace(SEGMENTATION, rotate=20, rotate_probability=1.0, focal_corrected=True)


def sample(height: int = 40, width: int = 60, seed: int = 0) -> Labelled:
    """Squares of 10 pixels: each has a class, a grey value and a depth of its own."""
    rng = np.random.default_rng(seed)
    squares = rng.permutation(24)[: -(-height // 10) * -(-width // 10)].reshape(-(-height // 10), -1)
    labels = np.kron(squares, np.ones((10, 10)))[:height, :width].astype(np.uint8)
    image = np.repeat(10 * labels[..., None], 3, 2)
    return Labelled(image, labels, 1 + labels.astype(np.float32), "squares")


def same(a: Sample, b: Sample) -> bool:
    return all(torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)) for x, y in zip(a[:3], b[:3], strict=True))


# ---- training


def test_a_pure_function_of_sample_and_seed() -> None:
    """The same again from another object, whatever came before; another number anywhere gives another sample."""
    first, second = (TrainTransform(ALL, 32, "metric") for _ in range(2))
    for seed in range(4):
        second(sample(), (9, seed))
    assert same(first(sample(), (1, 2, 3)), second(sample(), (1, 2, 3)))
    others = [(1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2), (3, 2, 1), (-1, 2, 3)]
    assert not any(same(first(sample(), (1, 2, 3)), first(sample(), other)) for other in others)
    assert same(first(sample(), 7), first(sample(), (7,)))


def test_nothing_global_is_touched() -> None:
    """Neither numpy's generator nor torch's, nor the sample."""
    given, numbers, state = sample(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index] # noqa: NPY002
    TrainTransform(ALL, 32, "metric")(given, 0)
    assert (np.random.get_state()[1] == numbers).all()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(given.labels, sample().labels)  # type: ignore[arg-type]
    assert np.array_equal(given.image, sample().image)


@pytest.mark.parametrize("augment", [Augment(), SEGMENTATION, DEPTH])
def test_shapes_and_types(augment: Augment) -> None:
    """Also for images smaller than the crop."""
    if augment.rescales:
        augment = replace(augment, focal_corrected=True)
    for height, width in ((40, 60), (20, 30)):
        result = TrainTransform(augment, (33, 47), "metric")(sample(height, width), 0)
        assert result.labels is not None
        assert result.depth is not None
        assert (result.image.shape, result.image.dtype) == ((3, 33, 47), torch.uint8)
        assert (result.labels.shape, result.labels.dtype) == ((33, 47), torch.int64)
        assert (result.depth.shape, result.depth.dtype) == ((1, 33, 47), torch.float32)
        assert result.image.is_contiguous()


def test_targets_keep_their_values_and_agree() -> None:
    """Classes and depths are those of the sample; at every pixel the depth is that of the class; outside, both are
    unknown."""
    augment = replace(ALL, flip=0.5)
    transform = TrainTransform(augment, 48, "inverse_relative")
    outside = 0
    for seed in range(30):
        result = transform(sample(), seed)
        assert result.labels is not None
        assert result.depth is not None
        unknown = result.labels == IGNORE
        assert set(result.labels.unique().tolist()) <= {*range(24), IGNORE}
        assert torch.equal(unknown, result.depth[0].isnan())
        assert torch.equal(result.depth[0][~unknown], 1 + result.labels[~unknown].float())
        outside += int(unknown.sum())
    assert outside > 0


def test_the_image_moves_with_its_targets() -> None:
    """Without colour changes, the grey value is that of the class, except at edges between squares."""
    augment = Augment(scale=(0.7, 2.0), flip=0.5, rotate=15)
    transform = TrainTransform(augment, 40, "inverse_relative")
    for seed in range(20):
        result = transform(sample(), seed)
        assert result.labels is not None
        known = result.labels != IGNORE
        agree = (result.image[0].float() - 10 * result.labels).abs() < 5
        assert agree[known].float().mean() > 0.65


@pytest.mark.parametrize("factor", [2, 3, 0.5])
def test_resized_targets_are_not_shifted(factor: float) -> None:
    """At a whole factor, every pixel becomes a block of pixels; halved, none leaves its block of four."""
    labels = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    given = Labelled(np.zeros((12, 16, 3), np.uint8), labels, labels.astype(np.float32), "ramp")
    transform = TrainTransform(Augment(scale=(factor, factor)), None, "inverse_relative")
    result = transform(given, 0)
    assert result.labels is not None
    assert result.depth is not None
    assert torch.equal(result.depth[0], result.labels.float())
    if factor > 1:
        blocks = np.kron(labels, np.ones((int(factor), int(factor)), np.uint8))
        assert np.array_equal(result.labels.numpy(), blocks)
    else:
        row, column = np.divmod(result.labels.numpy(), 16)
        assert (row // 2 == np.arange(6)[:, None]).all()
        assert (column // 2 == np.arange(8)[None]).all()


@pytest.mark.parametrize("size", [32, (20, 30), None])
def test_an_impulse_stays_on_its_pixel(size: Any) -> None:
    """After crops, padding and flips, the class is 1 and the depth is 7 where the image is white."""
    image, labels = np.zeros((25, 35, 3), np.uint8), np.zeros((25, 35), np.uint8)
    depth = np.ones((25, 35), np.float32)
    image[12, 17], labels[12, 17], depth[12, 17] = 255, 1, 7
    transform = TrainTransform(Augment(flip=0.5), size, "metric")
    seen = 0
    for seed in range(30):
        result = transform(Labelled(image, labels, depth, ""), seed)
        assert torch.equal(result.image[0] == 255, result.labels == 1)
        assert torch.equal(result.image[0] == 255, result.depth[0] == 7)  # type: ignore[index]
        seen += int((result.image[0] == 255).sum())
    assert seen > 5


def test_flip_flips_all_alike() -> None:
    """And flips back."""
    given = sample()
    result = TrainTransform(Augment(flip=1.0), None, "metric")(given, 0)
    plain = to_tensors(given)
    for a, b in zip(result[:3], plain[:3], strict=True):
        assert torch.equal(a.flip(-1), b)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("shape", "crop", "kinds"), [((40, 40), None, 4), ((40, 60), None, 2), ((40, 60), (40, 60), 4)]
)
def test_quarter_turns_and_vertical_flips(shape: tuple[int, int], crop: Any, kinds: int) -> None:
    """Of image and targets alike; whole images that are not square keep their shape, and crops are padded."""
    transform = TrainTransform(Augment(rotate90=True), crop, "metric")
    seen = set()
    for seed in range(24):
        found = transform(sample(*shape), seed)
        assert found.image.shape[1:] == shape
        inside = found.labels != IGNORE
        assert torch.equal(found.image[0][inside], 10 * found.labels[inside])
        assert torch.equal(found.depth[0][inside], 1 + found.labels[inside].float())
        seen.add(tuple(found.labels[::5, ::5].flatten().tolist()))
    assert len(seen) >= kinds
    flipped = TrainTransform(Augment(flip_vertical=1.0), None)(sample(), 0)
    assert np.array_equal(flipped.labels, sample().labels[::-1])  # type: ignore[index]


def test_padding_at_a_corner() -> None:
    """Images begin at the upper left, also mirrored; what is added is black, unknown, and untouched by colours."""
    plain = sample(20, 30)
    augment = Augment(flip=0.5, brightness=0.5, contrast=0.5, photometric=1.0, pad="corner")
    for seed in range(4):
        found = TrainTransform(augment, (40, 33), "metric")(plain, seed)
        assert found.labels is not None
        inside = torch.zeros(40, 33, dtype=torch.bool)
        inside[:20, :30] = True
        assert torch.equal(found.labels != IGNORE, inside)
        assert not found.image[:, ~inside].any()


def test_noise_is_in_the_image_alone() -> None:
    plain = Labelled(np.full((64, 64, 3), 100, np.uint8), np.zeros((64, 64), np.uint8), None, "grey")
    transform = TrainTransform(Augment(noise=0.1, photometric=1.0), None)
    found = [transform(plain, seed) for seed in range(20)]
    spreads = [float(one.image.float().std()) / 255 for one in found]
    assert 0.06 < max(spreads) < 0.11
    assert not any(one.labels.any() for one in found)


def test_newer_options_name_no_older_cache() -> None:
    assert str(Augment()) == str(Augment(rotate90=True, noise=0.1))
    assert Augment(rotate90=True, noise=0.1, flip=0.5).newer == {"rotate90": True, "noise": 0.1}


def test_padding_is_no_class() -> None:
    """Around a small image: IGNORE, NaN and a colour near the mean."""
    result = TrainTransform(Augment(), 60, "metric")(sample(20, 20), 0)
    assert result.labels is not None
    assert result.depth is not None
    assert int((result.labels == IGNORE).sum()) == 60 * 60 - 20 * 20 == int(result.depth.isnan().sum())
    assert result.image[:, result.labels == IGNORE].T.unique(dim=0).tolist() == [[124, 116, 104]]


def test_photometry_leaves_targets_alone() -> None:
    """Only the image changes, differently for each seed."""
    augment = Augment(
        brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, gamma=(0.7, 1.4), colour=0.2, photometric=1
    )
    transform = TrainTransform(augment, None, "metric")
    given = replace(sample(), image=np.random.default_rng(0).integers(50, 200, (40, 60, 3), np.uint8))
    plain, results = to_tensors(given), [transform(given, seed) for seed in range(4)]
    for result in results:
        assert torch.equal(result.labels, plain.labels)  # type: ignore[arg-type]
        assert torch.equal(result.depth, plain.depth)  # type: ignore[arg-type]
    assert len({result.image.numpy().tobytes() for result in (*results, plain)}) == 5


# ---- metric depth


def test_metric_depth_is_not_resized_without_correction() -> None:
    """Refused when the transform is made, or when the kind of depth is not known."""
    augment = Augment(scale=(0.5, 2.0))
    with pytest.raises(ValueError, match=r"scale=\(0.5, 2.0\) with metric depth: .*focal_corrected=True"):
        TrainTransform(augment, 32, "metric")
    with pytest.raises(ValueError, match=r"squares has depth .* give TrainTransform the depth_kind"):
        TrainTransform(augment, 32)(sample(), 0)
    TrainTransform(augment, 32)(replace(sample(), depth=None), 0)


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.25])
def test_focal_correction(factor: float) -> None:
    """Twice as large in the image is half as far, and infinity stays."""
    given = sample()
    depth = given.depth
    assert depth is not None
    depth[:2, :2] = np.inf
    augment = Augment(scale=(factor, factor), focal_corrected=True)
    result = TrainTransform(augment, None, "metric")(given, 0)
    assert result.depth is not None
    assert result.labels is not None
    inside = ~result.depth[0].isinf()
    expected = (1 + result.labels.float()) / factor
    torch.testing.assert_close(result.depth[0][inside], expected[inside])
    assert result.depth[0, 0, 0] == torch.inf
    relative = TrainTransform(augment, None, "inverse_relative")(sample(), 0)
    torch.testing.assert_close(relative.depth[0], 1 + relative.labels.float())  # type: ignore[index, union-attr]


# ---- evaluation


@pytest.mark.parametrize(
    ("size", "shape"), [(None, (40, 60)), (20, (20, 30)), (80, (80, 120)), ((33, 70), (33, 70)), (27, (27, 40))]
)
def test_evaluation(size: Any, shape: tuple[int, int]) -> None:
    """The image at a size; targets as they were, or with it."""
    kept, resized = EvalTransform(size)(sample()), EvalTransform(size, "resize")(sample())
    assert tuple(kept.image.shape[1:]) == tuple(resized.image.shape[1:]) == shape
    assert torch.equal(kept.labels, to_tensors(sample()).labels)  # type: ignore[arg-type]
    assert resized.labels is not None
    assert resized.depth is not None
    assert tuple(resized.labels.shape) == tuple(resized.depth.shape[1:]) == shape
    assert torch.equal(resized.depth[0], 1 + resized.labels.float())


# ---- batches


def test_batches_with_lacking_targets() -> None:
    """Unknown where one sample lacks a target, None where all do or where it is not requested."""
    both = to_tensors(sample())
    first, second = both._replace(depth=None), both._replace(labels=None)
    batch = collate([first, second])
    assert batch.labels is not None
    assert batch.depth is not None
    assert batch.images.shape == (2, 3, 40, 60)
    assert batch.names == ("squares", "squares")
    assert torch.equal(batch.labels[0], both.labels)  # type: ignore[arg-type]
    assert (batch.labels[1] == IGNORE).all()
    assert batch.depth[0].isnan().all()
    assert batch.labels.dtype == torch.int64
    assert collate([first, first]).depth is None
    assert collate([first, first], depth=True).depth is not None
    assert collate([first, first], labels=False).labels is None
    one = EvalTransform(20)(sample())
    assert collate([one]).labels.shape == (1, 40, 60)  # type: ignore[union-attr]  # targets may be larger, one by one
    with pytest.raises(ValueError, match=r"of 2 sizes, \[\(20, 30\), \(40, 60\)\]: crop them"):
        collate([one, one])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Augment(scale=(2.0, 0.5)), "expected 0 < low <= high"),
        (lambda: Augment(flip=1.5), "flip=1.5: expected 0 to 1"),
        (lambda: TrainTransform(Augment(), 0), "crop_size=0"),
        (lambda: TrainTransform(Augment(pad="corner"), None), "pad='corner' pads crops"),
        (lambda: Augment(pad="center"), "pad='center': expected around or corner"),  # type: ignore[arg-type]
        (lambda: EvalTransform(0), "size=0"),
        (lambda: EvalTransform(targets="drop"), "expected 'keep' or 'resize'"),  # type: ignore[arg-type]
    ],
)
def test_options_that_are_wrong(make: Any, words: str) -> None:
    """Named with what was expected."""
    with pytest.raises(ValueError, match=words):
        make()


# ---- channels that are no colours


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_channels_that_are_no_colours(count: int) -> None:
    """Geometry moves all channels together; each has a brightness and gamma of its own; a seed decides."""
    given = replace(sample(), image=np.repeat(sample().image[..., :1], count, 2))
    moved = TrainTransform(replace(ALL, brightness=0.0, contrast=0.0, saturation=0.9, hue=0.4), 32, "metric", 50, False)
    found = moved(given, 3).image
    assert found.shape == (count, 32, 32)
    assert (found == found[:1]).all()  # saturation and hue do nothing
    bright = TrainTransform(Augment(brightness=0.5, contrast=0.3, gamma=(0.7, 1.3), photometric=1.0), 32, colours=False)
    found = bright(given, 3).image
    assert torch.equal(found, bright(given, 3).image)
    assert len({tuple(channel.flatten().tolist()) for channel in found}) == count
    small = EvalTransform((20, 31))(given).image
    expected = EvalTransform((20, 31))(replace(given, image=given.image[..., :1])).image
    assert small.shape == (count, 20, 31) and (small == expected).all()


def test_outside_of_an_image_of_channels_is_black() -> None:
    given = replace(sample(16, 16), image=np.full((16, 16, 5), 200, np.uint8))
    assert set(TrainTransform(Augment(), 32, colours=False)(given, 0).image.unique().tolist()) == {0, 200}
