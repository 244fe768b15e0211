"""`python -m dense` is `dense`."""

from dense.cli import process

process()
