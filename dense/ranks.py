"""Which of several processes this one is, as torchrun or SLURM started them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

STARTERS = (  # rank, number of processes; the first pair that is set decides
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # of srun; SLURM_NTASKS is there without srun, too
)
RUN = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")  # tell runs apart
LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")


class Ranks(NamedTuple):
    """Process number `rank` of `world`, which started together as `run`."""

    rank: int = 0
    world: int = 1
    run: str = ""


ALONE = Ranks()


def ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return this process's place among those of its run; without torchrun and SLURM it is alone."""
    if "RANK" in environment and "WORLD_SIZE" not in environment:
        raise ValueError(f"RANK={environment['RANK']} without WORLD_SIZE: set the number of processes, or neither")
    for names in STARTERS:
        given = [environment.get(name) for name in names]
        if None in given:
            continue
        try:
            rank, world = (int(text or "") for text in given)
        except ValueError:
            rank, world = -1, 0
        if not 0 <= rank < world:
            words = " ".join(f"{name}={text}" for name, text in zip(names, given, strict=True))
            raise ValueError(f"{words}: expected a process number from 0 and a greater number of processes")
        found = [f"{name}={environment[name]}" for name in RUN if name in environment]
        return Ranks(rank, world, " ".join([*found, f"{world} processes"])) if world > 1 else ALONE
    return ALONE


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this process on its machine, which chooses its device."""
    given = next((environment[name] for name in LOCAL if name in environment), "0")
    return int(given) if given.isdecimal() else 0
