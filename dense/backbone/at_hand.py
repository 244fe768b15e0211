"""The backbone that is used where none is named: the best one whose weights are on this machine, or may be fetched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dense.backbone.saved import fetching
from dense.backbone.weights.names import ALIASES, cached, directory, repository, resolve, shipped
from dense.console import on_terminal, warn
from dense.suggest import did_you_mean

BEST, SHIPPED = "dinov2_vits14_reg", "photos_tiny"
NAME, WEIGHTS = "DENSE_BACKBONE", "DENSE_WEIGHTS"  # environment variables
BETTER = (
    f"no published backbone is at hand, so this is {SHIPPED}, a small student of DINOv2-S. DINOv2-S itself is far "
    f"better: add --download once (88 MB), or offline name a file with --backbone {BEST} --weights FILE; {NAME} and "
    f"{WEIGHTS} set both for good"
)


def at_hand(name: str | None = None, weights: str | None = None, download: bool = False) -> tuple[str, str | None]:
    """Return name and weights for `load_backbone`: the given ones or, without a name, the best ones at hand.

    These are the environment's, published DINOv2-S, or the backbone in the package. DENSE_BACKBONE names a backbone as
    `load_backbone` takes it, with its weights in DENSE_WEIGHTS or in the hub's cache. Published weights are taken from
    the cache of timm or torch.hub; they are downloaded with `download`, or if a user at a terminal agrees. Nothing else
    reaches the network.
    """
    if name is not None:
        return name, weights
    if weights is not None:
        raise ValueError(f"weights {weights} without a backbone: name the architecture that they are for")
    name, weights = os.environ.get(NAME), os.environ.get(WEIGHTS) or None
    if weights and not name:
        raise ValueError(f"{WEIGHTS}={weights} without {NAME}: name the architecture that they are for")
    if name and (weights or "/" in name or directory(name) is not None):
        return name, weights
    wanted = name or BEST
    found = cached(wanted)
    if name and found is None:
        _check_name(name)
    found = found or _fetched(wanted, download)
    if found is not None:
        return wanted, str(found)
    if name:
        raise ValueError(
            f"{NAME}={name}: its published weights are not in the hub's cache; add --download, or offline set "
            f"{WEIGHTS} to a file"
        )
    warn(BETTER)
    return SHIPPED, None


def _check_name(name: str) -> None:
    """Raise for a name that no published backbone has."""
    import timm

    if timm.is_model(resolve(name)[0]):
        return
    known = [*shipped(), *(alias for alias in ALIASES if "/" not in alias), *(resolve(a)[0] for a in ALIASES)]
    raise ValueError(f"{NAME}={name}: there is no such backbone or directory.{did_you_mean(name, known)}")


def _fetched(name: str, download: bool) -> Path | None:
    """Download published weights if that is wanted; None if it is not."""
    from huggingface_hub import hf_hub_download

    if not (download or (on_terminal() and _agreed(name))):
        return None
    with fetching(repository(name)):
        return Path(hf_hub_download(repository(name), "model.safetensors"))


def _agreed(name: str) -> bool:
    """Ask a user whether weights may be downloaded."""
    words = f"download the published weights of {name} once, from the Hugging Face hub? {NAME}={SHIPPED} asks no more"
    print(f"{words} [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
