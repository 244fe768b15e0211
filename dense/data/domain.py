"""Augmentation for images that are no photographs: what each domain changes in the options of a training."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, get_args

Domain = Literal["photographs", "microscopy", "satellite", "xray"]
_NO_COLOUR = {"saturation": 0.0, "hue": 0.0}
_UPRIGHT = {"flip": 0.5, "flip_vertical": 0.5, "rotate90": True}
# of pretraining: without grey and solarised views, channels vary on their own, blur is in pixels of the image
_VIEWS = {**_NO_COLOUR, "grey": 0.0, "solarise": 0.0, "blur_units": "image"}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {  # domain -> of heads (Augment), of pretraining (MultiCrop)
    "photographs": {"augment": {}, "views": {}},
    "microscopy": {  # any orientation; stains and detectors differ in each channel
        "augment": {**_UPRIGHT, **_NO_COLOUR, "brightness": 0.2, "contrast": 0.2, "colour": 0.2, "noise": 0.02},
        "views": {**_UPRIGHT, **_VIEWS, "brightness": 0.3, "contrast": 0.3, "colour": 0.2, "noise": 0.03,
                  "blur_sigma": (0.1, 1.0)},
    },
    "satellite": {  # seen from above; bands vary with atmosphere and season
        "augment": {**_UPRIGHT, **_NO_COLOUR, "brightness": 0.2, "contrast": 0.2, "colour": 0.1, "noise": 0.01},
        "views": {**_UPRIGHT, **_VIEWS, "brightness": 0.4, "contrast": 0.4, "colour": 0.1, "noise": 0.02,
                  "blur_sigma": (0.1, 1.0)},
    },
    "xray": {  # left and right differ, as do top and bottom; exposure varies, colour does not exist
        "augment": {**_NO_COLOUR, "flip": 0.0, "rotate": 10.0, "brightness": 0.2, "contrast": 0.2,
                    "gamma": (0.8, 1.25), "colour": 0.0, "noise": 0.01},
        "views": {**_VIEWS, "flip": 0.0, "brightness": 0.4, "contrast": 0.4, "noise": 0.02, "blur_sigma": (0.1, 1.0)},
    },
}  # fmt: skip


def check_domain(domain: str) -> None:
    """Raise for a domain that does not exist."""
    if domain not in get_args(Domain):
        raise ValueError(f"data.domain={domain}: expected one of {', '.join(get_args(Domain))}")


def preset(domain: str, kind: Literal["augment", "views"], given: Collection[str]) -> dict[str, Any]:
    """Return the options of a domain for heads or pretraining, without those that are given explicitly."""
    check_domain(domain)
    return {name: value for name, value in PRESETS[domain][kind].items() if name not in given}
