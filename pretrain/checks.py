"""Checks of a recipe against the network, the images and the trainer, made before training starts.

What the numbers alone decide is checked where they are: in the options of `pretrain.recipe`.
"""

from __future__ import annotations

from pretrain.masking import VIEWS, check_grid
from pretrain.network import MultiCropNetwork, grid_of
from pretrain.recipe import Recipe
from pretrain.views import MultiCrop

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_run(recipe: Recipe, precision: str, total_batch: int) -> None:
    """Refuse a precision without fp32 weights, and batches in which no crop is masked."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={precision}: pretraining keeps its weights in fp32; use {' or '.join(PRECISIONS)}"
        )
    ibot, crops = recipe.ibot, VIEWS * total_batch
    if ibot.weight and ibot.masking == "blocks" and int(crops * ibot.mask_probability) < 1:
        raise ValueError(
            f"ibot.mask_probability={ibot.mask_probability} masks none of the {crops} global crops of a step; "
            "raise it or the batch"
        )


def check_views(recipe: Recipe, network: MultiCropNetwork, views: MultiCrop, neighbours: int) -> None:
    """Refuse crops that do not fit the network and the terms; neighbours: images among which KoLeo looks for one."""
    if recipe.ibot.weight and recipe.ibot.masking == "blocks":
        check_grid(grid_of(network.backbone, (views.sizes[0], views.sizes[0])))
    if recipe.backbone.local_norm and len(views.sizes) == VIEWS:
        raise ValueError("backbone.local_norm without local crops; set data.views.local_crops or leave it out")
    if views.gram_crops and not recipe.gram.weight:
        raise ValueError("data.views.gram_size without a Gram term; set gram.weight or leave gram_size out")
    patch, gram_size = network.backbone.spec.patch, views.gram_size or views.sizes[0]
    if gram_size != views.sizes[0] and (gram_size % patch or views.sizes[0] % patch):
        raise ValueError(
            f"data.views.gram_size={gram_size} and global_size={views.sizes[0]} with patches of {patch}: the padding "
            "would shift one grid against the other; choose multiples of the patch"
        )
    group = recipe.koleo.group
    if recipe.koleo.weight and group is not None and neighbours % group:
        raise ValueError(
            f"koleo.group={group} does not divide the {neighbours} images that KoLeo compares; choose one that does, "
            "or null"
        )
