"""Networks for images of any number of channels, from weights of other channels."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from dense.backbone.spec import RGB, BackboneSpec, ChannelsFrom, channel_names
from dense.backbone.weights.report import WeightsError
from dense.suggest import did_you_mean

State = dict[str, Tensor]


def check_rule(rule: str | None) -> None:
    """Raise for an unknown value of `channels_from`."""
    if rule is not None and rule not in (rules := get_args(ChannelsFrom)):
        raise ValueError(f"channels_from={rule!r}: expected one of {', '.join(rules)}.{did_you_mean(rule, rules)}")


def input_layers(model: Any) -> list[str]:
    """Return the names of the convolutions of timm's model that read the image."""
    known = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    found = [name for name in ((known,) if isinstance(known, str) else known) if name in convolutions]
    return found or [next(n for n, module in model.named_modules() if isinstance(module, nn.Conv2d))]


def input_parameters(model: Any) -> list[nn.Parameter]:
    """Return the parameters of the convolutions of timm's model that read the image."""
    return [parameter for name in input_layers(model) for parameter in model.get_submodule(name).parameters()]


def inputs_of(spec: BackboneSpec) -> tuple[str, ...]:
    """Return the names of the channels that the network reads at once."""
    return ("any",) if spec.each_channel else spec.channels


def mixed(weight: Tensor, held: tuple[str, ...], wanted: tuple[str, ...], by_name: bool) -> Tensor:
    """Return filters (D, N, k, k) of the wanted channels from those of the held ones (D, S, k, k), times S / N.

    Each is the mean of the held filters or, `by_name`, that of the same name. An image of N equal channels then gives
    what an image of S equal channels gave, where every held channel is wanted or none is taken by name. So does FINO.
    """
    mean = weight.mean(1)
    parts = [weight[:, held.index(n)] if by_name and n in held else mean for n in wanted]
    return torch.stack(parts, 1) * (len(held) / len(wanted))


def adapted(
    state: State,
    backbone: Any,
    rule: ChannelsFrom | None,
    source: str,
    held: tuple[str, ...] | None = None,
    own: bool = False,
) -> State:
    """Return a state dict of the adapter's layout whose first convolution reads the channels of the backbone.

    held: names of the channels of the state dict; None for a file that does not record them. Three of them are red,
    green and blue, unless the file is one of this project's (`own`) and the backbone has three as well.
    """
    spec, result = backbone.spec, dict(state)
    wanted = inputs_of(spec)
    for layer in input_layers(backbone.model):
        name = f"model.{layer}.weight"
        weight = state.get(name)
        if weight is None or weight.ndim != 4:
            continue  # the report names it
        if rule == "random":
            fresh = backbone.state_dict()
            result |= {n: fresh[n] for n in (name, f"model.{layer}.bias") if n in fresh}
            continue
        names = channel_names(weight.shape[1]) if held is None else held
        unnamed = all(n == f"ch{i}" for i, n in enumerate(names, 1)) or (own and names == RGB)
        if names == wanted or (len(names) == len(wanted) and (unnamed or spec.each_channel)):
            continue
        if held is None and names != RGB:
            raise WeightsError(
                f"{source} reads images of {len(names)} channels, and {spec.name} was asked to read {len(wanted)} "
                f"({', '.join(wanted)}); load it with channels={len(names)}, or their names"
            )
        result[name] = mixed(weight, names, wanted, by_name=rule == "copy")
    return result
