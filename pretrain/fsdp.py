"""FSDP2 as a Lightning strategy: weights, teacher and optimiser are sharded, checkpoints are those of one process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from dense.backbone.attention import SHARDED, can_pack, run_block
from dense.backbone.base import Backbone
from pretrain.network import MultiCropNetwork
from pretrain.sharding import sharded_like, whole

NAME = "fsdp2"
Dtype = Literal["float32", "bfloat16", "float16"]


class FSDP2(ModelParallelStrategy):
    """Shards weights, the teacher and the optimiser's state over processes, each of which has its part of the batch.

    The weights of a block are gathered for its forward and backward pass and freed again. A checkpoint is the file that
    a single process would write, assembled on the first, so it continues with any number of processes and any strategy.

    Args:
        param_dtype: dtype of the gathered weights, with trainer.precision bf16-mixed; null keeps fp32.
        reduce_dtype: dtype in which gradients are summed over processes; null for that of the gathered weights.
    """

    def __init__(self, param_dtype: Dtype | None = None, reduce_dtype: Dtype | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.param_dtype, self.reduce_dtype = (
            None if name is None else getattr(torch, name) for name in (param_dtype, reduce_dtype)
        )

    def setup_environment(self) -> None:
        """Set up one mesh of all processes."""
        precision = self.precision_plugin.precision
        if self.param_dtype not in (None, torch.float32) and not precision.endswith("-mixed"):
            raise ValueError(
                f"param_dtype={self.param_dtype} with trainer.precision={precision}: images would stay in fp32; "
                "set --trainer.precision bf16-mixed, or leave param_dtype out"
            )
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        # logits and patches are views, which are never written to
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")

    def shard(self, network: nn.Module) -> None:
        """Shard a network: each block and each head on its own, then the rest together."""

        def policy(cast: bool) -> MixedPrecisionPolicy:
            return MixedPrecisionPolicy(self.param_dtype, self.reduce_dtype, cast_forward_inputs=cast)

        shard_module = partial(fully_shard, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        for block in [module for module in network.modules() if can_pack(module)]:
            setattr(block, SHARDED, MethodType(run_block, block))
            shard_module(block, mp_policy=policy(cast=False))  # rotary positions keep their precision
            register_fsdp_forward_method(block, SHARDED)
        if isinstance(network, MultiCropNetwork):
            for head in (network.head, network.patch_head):
                if head is not None:
                    shard_module(head, mp_policy=policy(cast=True))
        shard_module(network, mp_policy=policy(cast=True))
        if isinstance(network, Backbone):  # a frozen teacher, of which that is called
            register_fsdp_forward_method(network, "image_features")
        if not any(parameter.requires_grad for parameter in network.parameters()):
            # PyTorch may keep the outermost weights gathered until a backward pass, which a frozen network lacks
            network.register_forward_hook(_reshard)

    # ---- checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimiser is restored by `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole state on the first process, and nothing on the others."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Map the file into memory, so that only the tensors in use are read."""
        return torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=weights_only is not False)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Shard and load what `lightning_module_state_dict` returned."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {k: sharded_like(v, own[k]) if k in own else v for k, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state on the first process, as `lightning_module_state_dict` does."""
        state = optimizer.state_dict()
        moments = {number: self._gathered(own) for number, own in state["state"].items()}
        return state | {"state": moments} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard and load what `optimizer_state` returned."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {
                number: {k: _moment(v, parameters[number]) for k, v in own.items()}
                for number, own in state["state"].items()
            }
            optimizer.load_state_dict(state | {"state": moments})

    def _gathered(self, state: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in state.items():
            full = whole(value) if isinstance(value, Tensor) else value
            if self.is_global_zero:
                found[name] = full.cpu() if isinstance(full, Tensor) else full
        return found


def _moment(value: Any, parameter: Tensor) -> Any:
    return sharded_like(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _reshard(network: nn.Module, inputs: Any, output: Any) -> None:
    assert isinstance(network, FSDPModule)
    network.reshard()


if NAME not in StrategyRegistry:
    StrategyRegistry.register(NAME, FSDP2, "FSDP2: weights, teacher and optimiser sharded over processes")
