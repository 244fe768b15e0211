"""What the numbers of an image mean: which channels it has, and which numbers become black and white."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dense.console import say
from dense.suggest import did_you_mean

RGB = ("red", "green", "blue")
QUANTILES = (0.001, 0.999)  # of the numbers of a channel, which become black and white
SAMPLED, PIXELS = 32, 20_000  # images of a set, and pixels of each, whose numbers are looked at
WHOLE = 1_000_000  # pixels of an image that chooses its own levels, of which all are looked at
FILL = (124, 116, 104)  # ImageNet's mean colour, about zero once normalised: what stands for missing pixels
SHOWN = 3  # names in a report
TWELVE_BITS, SIXTEEN_BITS = 4096, 65535
with_nan: dict[str, float] = {}  # images that were read in this process and have NaN, and the share of their numbers
counted_nan: set[str] = set()  # those that a check has counted and reported already

Values = NDArray[Any]  # H, W, C, of any type
Levels = Sequence[float] | str | Mapping[str, Any] | None


class ImageError(ValueError):
    """An image that cannot be read."""


@dataclass(frozen=True)
class Reading:
    """How the stored numbers of an image become bytes. The default reads photographs as RGB.

    channels: names, in the order of the network's input; () for photographs
    black, white: numbers that become 0 and 255, one for all channels or one each; () for those of the file's type: 0
        and 255 of 8 bits, 0 and 65535 of more, 0 and 1, 255 or 65535 of floating point
    gamma: exponent after scaling to 0..1
    log: logarithm of 1 + value - black before scaling
    per_image: quantiles of each image instead of black and white
    """

    channels: tuple[str, ...] = ()
    black: tuple[float, ...] = ()
    white: tuple[float, ...] = ()
    gamma: float = 1.0
    log: bool = False
    per_image: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("channels", str), ("black", float), ("white", float)):
            given = getattr(self, name)
            several = given if isinstance(given, list | tuple) else (given,)
            try:
                object.__setattr__(self, name, tuple(kind(one) for one in several))
            except (TypeError, ValueError):
                raise ValueError(f"levels: {name}={given!r}: expected numbers") from None
        if len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels={list(self.channels)}: expected each name once")
        if len(self.black) != len(self.white) or len(self.black) not in {0, 1, len(self.channels) or 3}:
            raise ValueError(
                f"levels: {len(self.black)} numbers for black and {len(self.white)} for white; expected one of each, "
                f"or one for each of {len(self.channels) or 3} channels"
            )
        for black, white in zip(self.black, self.white, strict=True):
            if not (math.isfinite(black) and math.isfinite(white)):
                raise ValueError(f"levels {black:g} {white:g}: expected finite numbers")
            if not black < white:
                hint = f"; they are reversed, write {white:g} before {black:g}" if white < black else ""
                raise ValueError(f"levels {black:g} {white:g}: expected black below white{hint}")
        if self.black and self.per_image:
            raise ValueError("levels: per_image takes black and white from each image; leave black and white out")
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"levels: gamma={self.gamma}: expected a positive exponent")

    @classmethod
    def of(cls, levels: Levels = None, channels: int | Sequence[str] | None = None) -> Reading:
        """Return the reading that options name.

        levels: two numbers, black and white; per_image; a mapping of black, white, gamma, log and per_image; None for
            the levels of the file's type
        channels: names, or their number; None for photographs
        """
        names = channel_names(channels)
        if levels is None:
            return cls(names)
        if isinstance(levels, str):
            if levels != "per_image":
                expected = "two numbers, black and white, per_image, or a mapping of black, white, gamma and log"
                auto = "; trainings, and verbs that take a folder, choose auto" if levels == "auto" else ""
                raise ValueError(f"levels={levels!r}: expected {expected}{auto}")
            return cls(names, per_image=True)
        if isinstance(levels, Mapping):
            known = [field.name for field in fields(cls)][1:]
            if wrong := [key for key in levels if key not in known]:
                raise ValueError(
                    f"levels: unknown {wrong[0]!r}; expected {', '.join(known)}.{did_you_mean(str(wrong[0]), known)}"
                )
            return cls(names, **levels)
        if len(levels) != 2:
            raise ValueError(
                f"levels={list(levels)}: expected two numbers, black and white; for each channel "
                "{black: [...], white: [...]}"
            )
        return cls(names, (levels[0],), (levels[1],))

    @property
    def colours(self) -> bool:
        """Whether the channels are those of a colour photograph."""
        return self.channels in ((), RGB)

    @property
    def count(self) -> int:
        """The number of channels."""
        return len(self.channels) or 3

    def to_bytes(self, values: Values, name: str = "the image") -> NDArray[np.uint8]:
        """Return numbers (H, W) or (H, W, C) of any type as uint8 (H, W, C); NaN becomes black."""
        values = np.asarray(values)
        values = values[..., None] if values.ndim == 2 else values
        if self.colours and values.shape[2] == 1:
            values = np.repeat(values, 3, axis=2)
        if values.shape[2] != self.count:
            raise ImageError(self.mismatch(values.shape[2], name))
        black, white = self.black or (0.0,), self.white or (white_of(values),)
        limits = list(zip(*(side * (self.count // len(side)) for side in (black, white)), strict=True))
        result = np.empty(values.shape, np.uint8)
        for channel in range(self.count):
            plane = values[..., channel]
            low, high = quantiles(sampled(plane[..., None], WHOLE)) if self.per_image else limits[channel]
            result[..., channel] = _bytes(plane, low, high, self.gamma, self.log)
        if values.dtype.kind == "f" and (lost := float(np.isnan(values).mean())) and name not in counted_nan:
            if not with_nan:
                say(f"{name}: {100 * lost:.3g} % of its numbers are NaN, which become black, there as in other images")
            with_nan[name] = max(lost, with_nan.get(name, 0.0))
        return result

    def mismatch(self, found: int, name: str, stored: Sequence[str] = ()) -> str:
        """Return why an image of `found` channels is not read."""
        names = f" ({', '.join(stored)})" if stored else ""
        has = f"{name} has {found} channel{'s' * (found != 1)}{names}"
        if not self.channels:
            return f"{has}, expected 1 or 3 of a photograph; name them, as --channels {found} (--data.channels {found})"
        return f"{has}, expected {self.count} ({', '.join(self.channels)})"

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the default, as plain data."""
        default = Reading()
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in plain.items() if getattr(self, name) != getattr(default, name)}

    def options(self) -> dict[str, Any]:
        """Return the options of a training's images that name this reading, but for photographs."""
        plain = self.to_dict()
        channels = plain.pop("channels", None)
        return {f"data.{name}": value for name, value in (("channels", channels), ("levels", plain)) if value}

    @classmethod
    def of_spec(cls, spec: Any) -> Reading:
        """Return the reading of a backbone's images: the one saved with it, with its channels."""
        found = cls.from_dict(spec.reading)
        return found if found.channels or spec.channels == RGB else replace(found, channels=spec.channels)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Reading:
        """Return the reading that `to_dict` gave."""
        return cls(**(data or {}))

    def __str__(self) -> str:
        parts = [f"channels {', '.join(self.channels)}"] if self.channels else []
        if self.per_image:
            parts.append("levels of each image")
        elif len(set(zip(self.black, self.white, strict=True))) == 1:
            parts.append(f"levels {self.black[0]:g} to {self.white[0]:g}")
        elif self.black:
            pairs = zip(self.channels or RGB, self.black, self.white, strict=True)
            parts.append("levels " + ", ".join(f"{name} {black:g} to {white:g}" for name, black, white in pairs))
        parts += [f"gamma {self.gamma:g}"] * (self.gamma != 1) + ["logarithm"] * self.log
        return "; ".join(parts) or "RGB photographs"


PHOTOGRAPHS = Reading()


def report_nan() -> None:
    """Report how many images with NaN were read since the last report, if several, with the names of a few."""
    if len(with_nan) > 1:
        some = ", ".join(f"{name} ({100 * lost:.3g} %)" for name, lost in list(with_nan.items())[:SHOWN])
        more = f" and {len(with_nan) - SHOWN} more" if len(with_nan) > SHOWN else ""
        say(f"{len(with_nan)} images have NaN, which became black: {some}{more}")
    with_nan.clear()


def channel_names(channels: int | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of channels that an option gives: a number (3 for RGB, else ch1, ch2, ...), names, or None."""
    if channels is None:
        return ()
    if isinstance(channels, int):
        if channels < 1:
            raise ValueError(f"channels={channels}: expected at least 1, or names")
        return RGB if channels == 3 else tuple(f"ch{n}" for n in range(1, channels + 1))
    return (channels,) if isinstance(channels, str) else tuple(map(str, channels))


def white_of(values: Values) -> float:
    """Return the number that is white where nothing says so: by type; of floating point 1, 255 or 65535.

    Floating point has a margin for highlights.
    """
    if values.dtype.kind == "b":
        return 1.0
    if values.dtype.kind in "iu":
        return 255.0 if values.dtype.itemsize == 1 else float(SIXTEEN_BITS)
    highest = values.max(initial=0.0, where=np.isfinite(values))
    return next((white for white in (1.0, 255.0) if highest <= 1.5 * white), float(SIXTEEN_BITS))


def quantiles(values: Values) -> tuple[float, float]:
    """Return the numbers that become black and white: quantiles of the finite ones, white above black."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return 0.0, 1.0
    low, high = map(float, np.quantile(finite, QUANTILES))
    return low, high if high > low else low + 1.0


def _bytes(plane: Values, black: float, white: float, gamma: float, log: bool) -> NDArray[np.uint8]:
    if plane.dtype == np.uint8 and (black, white, gamma, log) == (0.0, 255.0, 1.0, False):
        return plane
    if plane.dtype in (np.uint8, np.uint16):
        return _table(plane.dtype.itemsize, black, white, gamma, log)[plane]
    return _scaled(plane.astype(np.float64), black, white, gamma, log)


@lru_cache(64)
def _table(size: int, black: float, white: float, gamma: float, log: bool) -> NDArray[np.uint8]:
    """Return the byte of every number of an unsigned type of one or two bytes."""
    return _scaled(np.arange(256**size, dtype=np.float64), black, white, gamma, log)


def _scaled(values: NDArray[np.float64], black: float, white: float, gamma: float, log: bool) -> NDArray[np.uint8]:
    values = np.nan_to_num(values, nan=black, posinf=white, neginf=black)
    if log:
        values, black, white = np.log1p(np.maximum(values - black, 0)), 0.0, float(np.log1p(white - black))
    values = (values - black) * (255.0 / (white - black))
    if gamma != 1:
        values = 255.0 * np.clip(values / 255.0, 0, 1) ** gamma
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


# ---- what a sample of a set shows


def sampled(values: Values, most: int = PIXELS) -> Values:
    """Return numbers of some pixels of an image, always the same places of a size: (N, C)."""
    height, width = values.shape[:2]
    if height * width <= most:
        return values.reshape(-1, values.shape[2])
    places = np.random.default_rng(0).integers(0, height * width, most)
    return values[places // width, places % width]


def fitted(reading: Reading, images: Iterable[Values]) -> tuple[Reading, str]:
    """Return a reading with black and white by the quantiles of each channel over a sample, and the reason."""
    found = [sampled(values) for values in images]
    if not found:
        raise ValueError("levels: auto looks at images, and there are none")
    if reading.colours and {some.shape[1] for some in found} == {1, 3}:
        found = [some if some.shape[1] == 3 else np.repeat(some, 3, axis=1) for some in found]
    if len(counts := {some.shape[1] for some in found}) > 1:
        raise ValueError(f"levels: auto, and images of {' and '.join(map(str, sorted(counts)))} channels")
    pooled = np.concatenate(found)
    whole = pooled.dtype.kind in "iub"
    pairs = []
    for channel in range(pooled.shape[1]):
        low, high = quantiles(pooled[:, channel])
        digits = 0 if whole else 3 - math.floor(math.log10(high - low))  # of a thousandth of the range
        pairs.append((np.floor(low), np.ceil(high)) if whole else (round(low, digits), round(high, digits)))
    black, white = (tuple(float(n) for n in side) for side in zip(*pairs, strict=True))
    if len(pairs) == 1 or (not reading.channels and len(pairs) != 3):
        black, white = black[:1], white[:1]
    first, last = (f"{100 * q:g}" for q in QUANTILES)
    return (
        replace(reading, black=black, white=white),
        f"the {first} and {last} % quantiles of {'each channel' if len(black) > 1 else 'the numbers'} in {len(found)} "
        "images",
    )


def statistics(images: Iterable[NDArray[np.uint8]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel of images (H, W, C), of values from 0 to 1."""
    pooled = np.concatenate([sampled(image) for image in images]) / 255.0
    mean, std = pooled.mean(0), np.maximum(pooled.std(0), 1 / 255)
    return tuple(float(round(n, 4)) for n in mean), tuple(float(round(n, 4)) for n in std)


def resized(image: Values, size: tuple[int, int], interpolation: int) -> Values:
    """Resize an array (H, W) or (H, W, C) to (height, width) by OpenCV, which takes four channels at once."""
    parts = [image] if image.ndim == 2 else [image[..., first : first + 4] for first in range(0, image.shape[2], 4)]
    done = [cv2.resize(part, (size[1], size[0]), interpolation=interpolation) for part in parts]
    return done[0].reshape(*size, *image.shape[2:]) if len(done) == 1 else np.dstack(done)


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W, C) as it is drawn: one channel as grey, two as red and green, else the first three.

    An image of three channels is returned as it is.
    """
    count = image.shape[2]
    if count == 1:
        return np.repeat(image, 3, axis=2)
    if count == 2:
        return np.dstack([image, np.zeros_like(image[..., :1])])
    return image if count == 3 else np.ascontiguousarray(image[..., :3])
