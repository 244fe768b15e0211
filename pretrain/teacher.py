"""The teacher: a copy of the student that follows it without gradients."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.sharding import local

Mode = Literal["ema", "previous_epoch", "student_copy"]
_MODES = ("ema", "previous_epoch", "student_copy")


class Teacher(nn.Module):
    """A deep copy of the student (backbone and heads) that follows it by one of three rules.

    - ``ema``: after every step ``w <- momentum w + (1 - momentum) w_student``, as published.
    - ``previous_epoch``: the student at the end of the last epoch.
    - ``student_copy``: the student after the last step.

    Call ``after_step`` and ``after_epoch`` with every rule. Only parameters follow: buffers, such as the running
    statistics of batch norm, are computed from the teacher's own inputs. So in training mode batch norm is in training
    mode, and the rest, drop path and dropout included, in evaluation mode.
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, sections 3.1 and 5.2.
    """

    def __init__(self, student: nn.Module, mode: Mode = "ema", buffers: bool = False) -> None:
        """Copy the student; `buffers`: they follow too, for a teacher that computes nothing itself."""
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(_MODES)}")
        self.mode, self.buffers_follow = mode, buffers
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.train()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the network's output, without gradients."""
        return self.network(*args, **kwargs)

    def train(self, mode: bool = True) -> Teacher:
        """Set the training mode of batch norm; everything else stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def after_step(self, student: nn.Module, momentum: float) -> None:
        """Follow the student after an optimiser step; only ``ema`` uses the momentum."""
        if self.mode == "ema":
            mine, theirs = self._pairs(student)
            torch._foreach_lerp_(mine, theirs, 1 - momentum)
        elif self.mode == "student_copy":
            self.copy_parameters(student)
        if self.buffers_follow:
            for own, buffer in zip(self.network.buffers(), student.buffers(), strict=True):
                own.copy_(buffer)

    @torch.no_grad()
    def after_epoch(self, student: nn.Module) -> None:
        """Follow the student after the last step of an epoch."""
        if self.mode == "previous_epoch":
            self.copy_parameters(student)

    @torch.no_grad()
    def copy_parameters(self, student: nn.Module) -> None:
        mine, theirs = self._pairs(student)
        torch._foreach_copy_(mine, theirs)

    def _pairs(self, student: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        mine = [parameter.detach() for parameter in self.network.parameters()]
        theirs = [parameter.detach() for parameter in student.parameters()]
        if [parameter.shape for parameter in mine] != [parameter.shape for parameter in theirs]:
            raise ValueError("the student's parameters differ from those this teacher was copied from")
        for parameter in mine:
            if self.mode == "ema" and parameter.itemsize < 4:
                # bf16 rounds a step of 1 - momentum = 0.004 away: the teacher would never move.
                raise ValueError(
                    f"the teacher holds {parameter.dtype} parameters, too coarse for a moving average: "
                    "keep the weights in fp32 and let autocast choose the precision of the operations"
                )
        theirs = [parameter.to(own.dtype) for parameter, own in zip(theirs, mine, strict=True)]
        return [local(parameter) for parameter in mine], [local(parameter) for parameter in theirs]

    def extra_repr(self) -> str:
        return f"mode={self.mode}"
