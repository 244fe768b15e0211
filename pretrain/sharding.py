"""Tensors sharded over processes (FSDP2): their local part or the whole. Other tensors are returned unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, distribute_tensor

from dense.backbone import Backbone


def local(x: Tensor) -> Tensor:
    """Return the local part, which shares the memory of x."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole(x: Tensor) -> Tensor:
    """Return the whole tensor; every process takes part."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def sharded_like(value: Tensor, model: Tensor) -> Tensor:
    """Shard a tensor like `model`, from the values of the first process; every process takes part."""
    if not isinstance(model, DTensor):
        return value
    return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)


def norms(parts: Sequence[Tensor], model: Tensor) -> Tensor:
    """Return the norms (n,) of n tensors, given their local parts, sharded like `model`; every process takes part."""
    own = torch.stack(torch._foreach_norm(list(parts)))
    if not isinstance(model, DTensor):
        return own
    squares = own.square()
    distributed.all_reduce(squares, group=model.device_mesh.get_group())
    return squares.sqrt()


def unsharded(backbone: Backbone) -> Backbone:
    """Return the backbone, or a whole copy of a sharded one; every process takes part."""
    state = backbone.state_dict()
    if not any(isinstance(value, DTensor) for value in state.values()):
        return backbone
    with torch.random.fork_rng(devices=[]):
        copy = Backbone.from_spec(backbone.spec)
    copy.load_state_dict({name: whole(value) for name, value in state.items()})
    copy.keep_unused(backbone.unused_tensors)
    return copy.to(next(iter(state.values())).device).requires_grad_(False).train(backbone.training)


def gathered(x: Tensor) -> Tensor:
    """Concatenate the rows (n, ...) of all processes, whose number may differ; every process takes part."""
    if not is_distributed():
        return x
    counts = torch.zeros(distributed.get_world_size(), dtype=torch.int64, device=x.device)
    counts[distributed.get_rank()] = len(x)
    distributed.all_reduce(counts)
    padded = x.new_zeros(int(counts.max()), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])


def is_distributed() -> bool:
    """Return whether this is one process of a group."""
    return distributed.is_available() and distributed.is_initialized()


def wait_for_all() -> None:
    """Wait until every process of the group is here."""
    if is_distributed():
        distributed.barrier()
