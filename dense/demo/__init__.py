"""`dense demo`: what works, seen on embedded scenes or on anybody's pictures, as one report."""

from dense.demo.cli import main

__all__ = ["main"]
