"""Damage to clean pictures, on the fly and from a seed: rain, noise, blur, haze, JPEG, low light."""

from dense.data.degrade.kinds import KINDS, Kind, degrade
from dense.data.degrade.plan import Damage, Degrade

__all__ = ["KINDS", "Damage", "Degrade", "Kind", "degrade"]
