"""`dense demo`: one report of what the project does, on embedded scenes or on a user's images."""

from dense.demo.verb import main

__all__ = ["main"]
