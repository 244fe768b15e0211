"""Whether there are other processes to agree with."""

from torch import distributed


def is_distributed() -> bool:
    """Whether this is one process of a group."""
    return distributed.is_available() and distributed.is_initialized()
