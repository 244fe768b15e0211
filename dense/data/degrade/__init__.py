"""Degradation of clean images on the fly, from a seed: rain, noise, blur, haze, JPEG, low light."""

from dense.data.degrade.kinds import KINDS, Kind, degrade
from dense.data.degrade.plan import Degradation, Degrade
from dense.suggest import former

__all__ = ["KINDS", "Degradation", "Degrade", "Kind", "degrade"]

__getattr__ = former(__name__, {"Damage": "Degradation"})
