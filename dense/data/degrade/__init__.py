"""Degradation of clean images on the fly, from a seed: rain, noise, blur, haze, JPEG, low light."""

from dense.data.degrade.kinds import KINDS, Kind, degrade
from dense.data.degrade.plan import Degradation, Degrade

__all__ = ["KINDS", "Degradation", "Degrade", "Kind", "degrade"]
