"""What cameras and files do: noise, low light, JPEG."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


def noise(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """White Gaussian noise. level: its standard deviation, of 255."""
    return image + draw.standard_normal(image.shape, np.float32) * np.float32(level / 255)


def low_light(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Less light, in linear intensities, and the noise that comes with it. level: how many times less."""
    linear = image ** np.float32(2.2) / np.float32(level)
    electrons = np.float32(4000)  # of a white pixel in good light
    linear = draw.poisson(linear * electrons).astype(np.float32) / electrons
    return linear ** np.float32(1 / 2.2)


def jpeg(image: Any, level: float, draw: np.random.Generator, depth: Any) -> Any:
    """Compressed and read again. level: the quality, 1 to 100."""
    pixels = np.round(image * 255).astype(np.uint8)[..., ::-1]
    _, file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, round(level)])
    decoded = cv2.imdecode(file, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded[..., ::-1].astype(np.float32) / 255
