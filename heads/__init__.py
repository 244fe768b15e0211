"""Decoders: they eat `Features` and return dense maps."""

from heads.features import Features

__all__ = ["Features"]
