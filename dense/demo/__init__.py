"""`dense demo`: what works, seen on embedded scenes or on anybody's images, as one report."""

from dense.demo.verb import main

__all__ = ["main"]
