"""The views against torchvision's on PIL images: the same values where possible, the same statistics elsewhere."""

from __future__ import annotations

import inspect
import pickle
import random
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference
from torchvision.transforms import transforms as published

from pretrain.augment import ORDERS, ColorJitter, RandomResizedCrop, blur, box_kernel, crop, resize
from pretrain.mixed import MixedCrops, StepSampler
from pretrain.views import MultiCrop

UNLIKELY = 1e-4  # a test that compares samples fails by chance once in so many runs, had it not fixed seeds
OFF: dict[str, Any] = {"flip": 0, "jitter": 0, "grey": 0, "solarise": 0, "blur_sigma": (0.1, 0.1)}


def random_image(height: int, width: int, seed: int = 0, smooth: float = 2.0) -> NDArray[np.uint8]:
    """Smooth coloured noise over the whole range of a byte."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), smooth), None, 0, 255, cv2.NORM_MINMAX)


def difference(a: NDArray[Any] | Image.Image, b: NDArray[Any] | Image.Image) -> NDArray[np.int64]:
    """Absolute difference in grey levels."""
    return np.abs(np.asarray(a).astype(np.int64) - np.asarray(b))


# ---- the published numbers


def test_published_defaults() -> None:
    """The signature has the published values of DINO."""
    defaults = {name: p.default for name, p in inspect.signature(MultiCrop).parameters.items()}
    assert defaults == {
        "global_size": 224, "local_size": 96, "local_crops": 8, "global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4),
        "ratio": (3 / 4, 4 / 3), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2,
        "hue": 0.1, "grey": 0.2, "blur": "paper", "blur_sigma": (0.1, 2.0), "solarise": 0.2, "solarise_threshold": 128,
        "gram_size": None, "flip_vertical": 0.0, "rotate90": False, "colour": 0.0, "noise": 0.0, "blur_units": "view",
    }  # fmt: skip
    assert MultiCrop().sizes == (224,) * 2 + (96,) * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blur": "papre"}, "blur='papre': expected one of paper, released"),
        ({"local_crops": -1}, "local_crops=-1"),
        ({"global_size": 0}, "global_size=0"),
        ({"local_scale": (0.4, 0.05)}, "local_scale"),
        ({"global_scale": (0.4, 1.5)}, "low <= high <= 1"),
        ({"solarise_threshold": 256}, "solarise_threshold=256: expected 0 to 255"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    """The error names the value and what was expected."""
    with pytest.raises(ValueError, match=message):
        MultiCrop(**arguments)


# ---- a function of the seed


def test_a_view_depends_on_seed_and_number_alone() -> None:
    """It does not depend on earlier calls, the number of views or the process."""
    image = random_image(60, 80)
    views = MultiCrop(32, 16, 3)
    wanted = views(image, (1, 2, 3))
    views(image, (1, 2, 4))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002 (state that must not matter)
    for again in (views, MultiCrop(32, 16, 3), pickle.loads(pickle.dumps(views))):
        assert all(torch.equal(a, b) for a, b in zip(again(image, (1, 2, 3)), wanted, strict=True))
    more = MultiCrop(32, 16, 6)(image, (1, 2, 3))
    assert all(torch.equal(a, b) for a, b in zip(more, wanted, strict=False))


def test_every_number_of_the_seed_counts() -> None:
    """Another seed, epoch or index gives other views, and no two local views are equal."""
    image = random_image(60, 80)
    views = MultiCrop(32, 16, 4)
    seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), 7, 2**40]
    made = [[view.numpy().tobytes() for view in views(image, seed)] for seed in seeds]
    assert len({view for some in made for view in some}) == len(seeds) * 6


def test_the_image_is_left_alone() -> None:
    """Views never write to the image, even if the crop is the whole image at its own size."""
    image = random_image(32, 32)
    before = image.copy()
    views = MultiCrop(32, 32, 4, global_scale=(1, 1), local_scale=(1, 1), ratio=(1, 1))
    for index in range(20):
        for view in views(image, index):
            assert not np.shares_memory(view.numpy(), image)
    assert np.array_equal(image, before)


# ---- any image


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 1), (10, 10), (7, 301), (2, 2), (500, 375)])
def test_any_size(size: tuple[int, int]) -> None:
    """Images that are small, thin or wide give uint8 views of the given size, channels first and contiguous."""
    views = MultiCrop(48, 24, 3)
    for index in range(10):
        made = views(random_image(*size), (0, 0, index))
        assert [tuple(view.shape) for view in made] == [(3, 48, 48)] * 2 + [(3, 24, 24)] * 3
        assert all(view.dtype == torch.uint8 and view.is_contiguous() for view in made)


def test_grey_stays_grey() -> None:
    """A grey image stays grey, and a constant image constant."""
    grey = np.repeat(random_image(40, 50)[..., :1], 3, axis=2)
    views = MultiCrop(24, 12, 3)
    for index in range(40):
        for view in views(grey, index):
            assert (view.amax(0).int() - view.amin(0).int()).max() <= 1
        for view in views(np.full((40, 50, 3), 90, np.uint8), index):
            assert view.unique().numel() == 1


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_wrong_images(wrong: NDArray[Any]) -> None:
    """The error names dtype and shape."""
    with pytest.raises(ValueError, match=r"expected a uint8 image \(H, W, 3\)"):
        MultiCrop()(wrong, 0)


# ---- crop and resampling


@pytest.mark.parametrize(
    "box", [(0, 0, 300, 400), (10, 20, 240, 280), (5, 7, 120, 150), (3, 3, 40, 61), (9, 9, 1, 30), (0, 0, 1, 1)]
)
@pytest.mark.parametrize("size", [224, 96])
def test_resampling_is_pils(box: tuple[int, int, int, int], size: int) -> None:
    """Bicubic with antialias: at most two grey levels away anywhere, far less than one on average."""
    image = random_image(375, 500, smooth=1.0)
    top, left, height, width = box
    wanted = (
        Image.fromarray(image)
        .crop((left, top, left + width, top + height))
        .resize((size, size), Image.Resampling.BICUBIC)
    )
    apart = difference(resize(crop(image, box), size), wanted)
    assert apart.max() <= 2
    assert apart.mean() < 0.05


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (64, 64), (200, 330)])
@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4)])
def test_boxes_are_torchvisions(shape: tuple[int, int], scale: tuple[float, float]) -> None:
    """Area, shape and place of the boxes have the same distribution."""
    ratio, count = (3 / 4, 4 / 3), 1500
    transform = RandomResizedCrop(96, scale, ratio)
    rng = random.Random(0)
    torch.manual_seed(0)
    blank = torch.empty(3, *shape)
    ours = np.array([transform.box(*shape, rng) for _ in range(count)])
    theirs = np.array([published.RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(count)])
    for of in (
        lambda b: b[:, 2] * b[:, 3],  # area
        lambda b: b[:, 3] / b[:, 2],  # ratio
        lambda b: b[:, 0] / np.maximum(1, shape[0] - b[:, 2]),  # place from top
        lambda b: b[:, 1] / np.maximum(1, shape[1] - b[:, 3]),  # and from left
    ):
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > UNLIKELY
    assert (ours[:, 0] + ours[:, 2]).max() == shape[0]  # the border is reached
    assert (ours[:, 0] + ours[:, 2]).max() <= shape[0]


@pytest.mark.parametrize("shape", [(20, 400), (400, 20), (1, 50), (300, 1), (1, 1)])
def test_the_box_of_thin_images(shape: tuple[int, int]) -> None:
    """If no box of the area fits, it is the central one of an allowed ratio, as in torchvision."""
    transform = RandomResizedCrop(96, (1.0, 1.0), (3 / 4, 4 / 3))
    theirs = published.RandomResizedCrop.get_params(torch.empty(3, *shape), [1.0, 1.0], [3 / 4, 4 / 3])
    assert transform.box(*shape, random.Random(0)) == theirs


# ---- colour and blur


def adjusted(image: NDArray[np.uint8], params: dict[str, Any]) -> Image.Image:
    """Torchvision's jitter with given factors and order."""
    result = Image.fromarray(image)
    for name in params["order"]:
        result = getattr(reference, f"adjust_{name}")(result, params[name])
    return result


@pytest.mark.parametrize(
    ("name", "mean", "most"), [("brightness", 0.4, 1), ("contrast", 0.4, 1), ("saturation", 0.3, 1), ("hue", 0.7, 13)]
)
def test_each_colour_step_is_pils(name: str, mean: float, most: int) -> None:
    """With the same factor nearly the same bytes; only hue, which PIL computes in coarse steps, may differ visibly."""
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    jitter.set_random_seed(0)
    for index in range(40):
        factor = jitter.get_params()[name]
        params = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, name: factor, "order": (name,)}
        apart = difference(
            jitter.apply(random_image(64, 64, index), **params), adjusted(random_image(64, 64, index), params)
        )
        assert apart.mean() < mean
        assert apart.max() <= most


def test_jitter_in_any_order() -> None:
    """Composed steps equal single steps, also where they clip."""
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    jitter.set_random_seed(0)
    clipped = 0
    for index, order in enumerate(ORDERS * 3):
        image = random_image(48, 48, index)
        params = jitter.get_params() | {"order": order}
        wanted = np.asarray(adjusted(image, params))
        clipped += int((wanted == 255).mean() > 0.02)
        assert difference(jitter.apply(image, **params), wanted).mean() < 1.6
    assert clipped > 5


def test_jitter_draws_as_torchvision() -> None:
    """All orders are equally frequent; factors are uniform and independent of the order."""
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    jitter.set_random_seed(1)
    draws = [jitter.get_params() for _ in range(4800)]
    orders = np.array([ORDERS.index(draw["order"]) for draw in draws])
    assert stats.chisquare(np.bincount(orders, minlength=24)).pvalue > UNLIKELY
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ):
        values = np.array([draw[name] for draw in draws])
        assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > UNLIKELY
        assert abs(stats.spearmanr(values, orders).statistic) < 0.06


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 1.7, 2.0])
def test_blur_is_pils(sigma: float) -> None:
    """The result equals PIL's blur, which is three box filters."""
    image = random_image(80, 90, smooth=0.7)
    wanted = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
    ours = blur(image, sigma)
    assert difference(ours, wanted).mean() < 1.0
    assert difference(ours, image).mean() == pytest.approx(difference(wanted, image).mean(), rel=0.05, abs=0.7)
    offsets = np.arange(len(box_kernel(sigma))) - len(box_kernel(sigma)) // 2
    assert (box_kernel(sigma) * offsets**2).sum() == pytest.approx(sigma**2, rel=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.6, 2.0])
def test_released_blur_is_torchvisions(sigma: float) -> None:
    """A Gaussian cut to nine pixels."""
    image = random_image(40, 50, smooth=0.7)
    wanted = reference.gaussian_blur(Image.fromarray(image), [9, 9], [sigma, sigma])
    assert difference(blur(image, sigma, 9), wanted).max() <= 1


@pytest.mark.parametrize("threshold", [0, 1, 64, 127, 128, 200, 255])
def test_solarise_is_pils(threshold: int) -> None:
    """Values from the threshold on are inverted; only in the second view."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    same = {"global_scale": (1, 1), "local_scale": (1, 1), "ratio": (1, 1)}
    views = MultiCrop(16, 16, 1, **same, **(OFF | {"solarise": 1.0}), solarise_threshold=threshold)  # type: ignore[arg-type]
    first, second, local = (view.permute(1, 2, 0).numpy() for view in views(ramp, 6))
    wanted = np.asarray(ImageOps.solarize(Image.fromarray(ramp), threshold))
    assert np.array_equal(second, wanted)
    assert difference(first, ramp).max() <= 1  # a blur of a tenth of a pixel
    assert np.array_equal(local, ramp) or difference(local, ramp).max() <= 1


def test_solarising_comes_last() -> None:
    """After it no value is bright."""
    views = MultiCrop(24, 12, 0, solarise=1.0)
    assert max(int(views(random_image(40, 50), i)[1].max()) for i in range(40)) == 127
    assert max(int(views(random_image(40, 50), i)[0].max()) for i in range(40)) > 200


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ({"flip": 0.5}, (0.5, 0.5, 0.5)),
        ({"jitter": 0.8}, (0.8, 0.8, 0.8)),
        ({"grey": 0.2}, (0.2, 0.2, 0.2)),
        ({"solarise": 0.2}, (0.0, 0.2, 0.0)),
        ({"blur_sigma": (1.0, 2.0)}, (1.0, 0.1, 0.5)),
        ({"blur_sigma": (1.0, 2.0), "blur": "released"}, (0.0, 0.9, 0.5)),
    ],
)
def test_how_often(step: dict[str, Any], wanted: tuple[float, float, float]) -> None:
    """Each step changes the published fraction of each kind of view."""
    image = random_image(16, 16, smooth=1.0)
    same = {"global_scale": (1, 1), "local_scale": (1, 1), "ratio": (1, 1), "blur_sigma": (1e-3, 1e-3)}
    views = MultiCrop(16, 16, 1, **(OFF | same | step))
    original = torch.from_numpy(image).permute(2, 0, 1)
    count = 1500
    changed = np.array([[not torch.equal(v, original) for v in views(image, (0, 0, i))] for i in range(count)]).mean(0)
    for share, probability in zip(changed, wanted, strict=True):
        assert abs(share - probability) <= 4 * np.sqrt(probability * (1 - probability) / count)


# ---- all together


class PublishedBlur:
    """PIL's blur with a probability."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def published_view(size: int, scale: tuple[float, float], blurred: float, solarised: float) -> published.Compose:
    """The published pipeline of one view, on PIL images."""
    return published.Compose(
        [
            published.RandomResizedCrop(size, scale, interpolation=InterpolationMode.BICUBIC),
            published.RandomHorizontalFlip(),
            published.RandomApply([published.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            published.RandomGrayscale(0.2),
            PublishedBlur(blurred),
            published.RandomSolarize(128, p=solarised),
        ]
    )


def measure(view: NDArray[np.uint8]) -> list[float]:
    """Brightness, contrast, colour, sharpness and left-right slant of a view (H, W, 3)."""
    values = view.astype(np.float32)
    grey = values.mean(2)
    sharpness = np.log(np.abs(np.diff(grey, axis=1)).mean() + 0.1)
    slant = grey[:, : grey.shape[1] // 2].mean() - grey[:, grey.shape[1] // 2 :].mean()
    return [grey.mean(), grey.std(), (values.max(2) - values.min(2)).mean(), sharpness, slant]


def test_the_whole_is_torchvisions() -> None:
    """Brightness, contrast, colour, sharpness and slant of the views are distributed as the published pipeline's."""
    image = random_image(90, 120, smooth=3.0)
    image[:, :60] //= 2
    count = 400
    views = MultiCrop(48, 24, 1)
    ours = np.array([[measure(v.permute(1, 2, 0).numpy()) for v in views(image, (0, 1, i))] for i in range(count)])
    random.seed(0)
    torch.manual_seed(0)
    peers = [
        published_view(48, (0.4, 1.0), 1.0, 0.0),
        published_view(48, (0.4, 1.0), 0.1, 0.2),
        published_view(24, (0.05, 0.4), 0.5, 0.0),
    ]
    pil = Image.fromarray(image)
    theirs = np.array([[measure(np.asarray(peer(pil))) for peer in peers] for _ in range(count)])
    for view in range(3):
        for quality in range(5):
            assert stats.ks_2samp(ours[:, view, quality], theirs[:, view, quality]).pvalue > UNLIKELY, (view, quality)
    # the comparison sees a difference where there is one: the kinds of views differ from each other
    assert stats.ks_2samp(ours[:, 0, 3], theirs[:, 1, 3]).pvalue < UNLIKELY
    assert stats.ks_2samp(ours[:, 1, 1], theirs[:, 2, 1]).pvalue < UNLIKELY


def test_gram_views_are_the_global_ones_enlarged() -> None:
    """They have the same box and flip at twice the size, without changes of colour."""
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


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_channels_that_are_no_colours(count: int) -> None:
    """Crops, flips, blur and solarisation treat all alike; the jitter is of each channel, and nothing becomes grey."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 1), dtype=np.uint8).repeat(count, 2)
    alike = MultiCrop(32, 16, 2, jitter=0.0, grey=1.0)
    alike.colours = False
    for view in alike(image, 5):
        assert view.shape[0] == count and (view == view[:1]).all()
    views = MultiCrop(32, 16, 2, jitter=1.0, solarise=0.0)
    views.colours = False
    found = views(image, 5)
    assert [tuple(v.shape) for v in found] == [(count, s, s) for s in (32, 32, 16, 16)]
    assert all(torch.equal(a, b) for a, b in zip(found, views(image, 5), strict=True))
    for view in found:
        assert len({tuple(channel.flatten().tolist()) for channel in view}) == count
    if count != 3:
        with pytest.raises(ValueError, match="expected a uint8 image"):
            MultiCrop(32, 16, 2)(image, 5)


# ---- images without an upright side, and channels that are no colours


def test_newer_options_are_kept_only_where_they_are_set() -> None:
    """So that checkpoints of runs that never heard of them continue."""
    assert "rotate90" not in MultiCrop().options
    assert MultiCrop(rotate90=True, noise=0.1).options.items() >= {"rotate90": True, "noise": 0.1}.items()


def test_every_orientation_comes_as_often() -> None:
    """All eight of the square, and a Gram view has that of its global view."""
    off = OFF | {"flip": 0.5, "blur": "released", "global_scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    views = MultiCrop(16, 8, 0, **off, flip_vertical=0.5, rotate90=True, gram_size=32)
    image = random_image(16, 16)
    eight = [np.rot90(one, turns) for one in (image, image[:, ::-1]) for turns in range(4)]
    counts = np.zeros(8)
    for seed in range(400):
        one, _, large, _ = (view.permute(1, 2, 0).numpy() for view in views(image, seed))
        distances = [difference(one, other).mean() for other in eight]
        counts[int(np.argmin(distances))] += 1
        assert min(distances) < 1
        assert difference(resize(large, 16), one).mean() < 4
    assert stats.chisquare(counts).pvalue > UNLIKELY


def test_channels_change_on_their_own() -> None:
    """By a factor each, and by noise of at most the given deviation; without a change of hue, grey stays grey."""
    grey = np.full((32, 32, 3), 100, np.uint8)
    off = OFF | {"blur": "released", "jitter": 1.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    plain = MultiCrop(32, 8, 0, **off)(grey, 0)[0]
    assert (plain == 100).all()
    means, deviations = [], []
    for seed in range(60):
        coloured = MultiCrop(32, 8, 0, **off, colour=0.3)(grey, seed)[0].float()
        assert not coloured.std((1, 2)).any()
        means += coloured.mean((1, 2)).tolist()
        noisy = MultiCrop(32, 8, 0, **off, noise=0.1)(grey, seed)[0].float()
        deviations.append(noisy.std().item() / 255)
    assert stats.kstest(means, stats.uniform(70, 60).cdf).pvalue > UNLIKELY
    assert 0.08 < max(deviations) < 0.103
    assert min(deviations) < 0.02


def test_blur_in_pixels_of_the_image() -> None:
    """A crop that was enlarged twice is blurred twice as much."""
    image = random_image(64, 64, smooth=1)
    off = OFF | {"blur": "paper", "global_scale": (1.0, 1.0), "ratio": (1.0, 1.0), "blur_sigma": (1.0, 1.0)}
    of_image = MultiCrop(128, 8, 0, **off, blur_units="image")(image, 0)[0]
    expected = blur(resize(image, 128), 2.0)
    assert difference(of_image.permute(1, 2, 0).numpy(), expected).max() == 0
    of_view = MultiCrop(128, 8, 0, **off)(image, 0)[0]
    assert difference(of_view.permute(1, 2, 0).numpy(), blur(resize(image, 128), 1.0)).max() == 0
