"""Combinations that cannot train, found before training starts."""

from __future__ import annotations

from pretrain.masking import VIEWS, check_grid
from pretrain.network import MultiCropNetwork, grid_of
from pretrain.recipe import Recipe
from pretrain.stages import check_stage
from pretrain.views import MultiCrop

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_recipe(recipe: Recipe) -> None:
    """What can be seen from the numbers alone."""
    check_stage(recipe)
    for name, weight in (
        ("dino.weight", recipe.dino.weight),
        ("dino.local_weight", recipe.dino.local_weight),
        ("ibot.weight", recipe.ibot.weight),
        ("koleo.weight", recipe.koleo.weight),
        ("gram.weight", recipe.gram.weight),
        ("gram.final_weight", recipe.gram.final_weight or 0),
    ):
        if weight < 0:
            raise ValueError(f"{name}={weight}: expected 0 or more")
    if not any((recipe.dino.weight, recipe.ibot.weight, recipe.koleo.weight, recipe.gram.weight)):
        raise ValueError("every term has a weight of 0, so there is nothing to learn; set dino.weight or another")
    for name, factor in (("layer_decay", recipe.optim.layer_decay), ("patch_embed_lr", recipe.optim.patch_embed_lr)):
        if not 0 < factor <= 1:
            raise ValueError(f"optim.{name}={factor}: expected more than 0, at most 1")
    if not 0 <= recipe.backbone.drop_path < 1:
        raise ValueError(
            f"backbone.drop_path={recipe.backbone.drop_path}: expected 0 or more, below 1 (published: 0.1 to 0.4)"
        )
    for name, momentum in (("momentum", recipe.teacher.momentum), ("final_momentum", recipe.teacher.final_momentum)):
        if not 0 <= momentum <= 1:
            raise ValueError(f"teacher.{name}={momentum}: expected 0 to 1 (published: 0.996 and 1)")
    teacher, ibot = recipe.teacher, recipe.ibot
    for name, temperature in (
        ("teacher.warmup_temperature", teacher.warmup_temperature),
        ("teacher.temperature", teacher.temperature),
        ("teacher.student_temperature", teacher.student_temperature),
        ("ibot.warmup_temperature", ibot.warmup_temperature),
        ("ibot.temperature", ibot.temperature),
        ("ibot.student_temperature", ibot.student_temperature),
    ):
        if temperature is not None and temperature <= 0:
            raise ValueError(f"{name}={temperature}: expected more than 0 (published: 0.04 to 0.07, the student's 0.1)")
    for name, number, least in (
        ("steps", recipe.steps, 1),
        ("steps_per_epoch", recipe.steps_per_epoch, 1),
        ("head.out_dim", recipe.head.out_dim, 2),
        ("ibot.head.out_dim", recipe.patch_prototypes, 2),
        ("health.every", recipe.health.every, 1),
        ("health.patience", recipe.health.patience, 1),
        ("backbone.head_warmup_steps", recipe.backbone.head_warmup_steps, 0),
        ("optim.lr", recipe.optim.lr, 0),
        ("optim.min_lr", recipe.optim.min_lr, 0),
        ("optim.weight_decay", recipe.optim.weight_decay, 0),
        ("optim.final_weight_decay", recipe.optim.final_weight_decay, 0),
        ("optim.clip", recipe.optim.clip, 0),
        ("optim.warmup_epochs", recipe.optim.warmup_epochs, 0),
    ):
        if number is not None and number < least:
            raise ValueError(f"{name}={number}: expected at least {least}")
    gram = recipe.gram
    if gram.weight and gram.teacher is None and gram.start == 0 and recipe.start_from is None:
        raise ValueError(
            "Gram without a teacher: at step 0 there is none yet; give gram.teacher a directory, gram.start a step, or "
            "start_from a run"
        )
    if gram.weight and gram.refresh_every and gram.teacher is not None:
        raise ValueError(
            f"gram.refresh_every={gram.refresh_every} would replace the given gram.teacher={gram.teacher}; leave one out"
        )
    if gram.weight and gram.tokens != "all" and not (recipe.ibot.weight and recipe.ibot.masking == "blocks"):
        raise ValueError(
            f"gram.tokens={gram.tokens} without masks; set ibot.weight and ibot.masking: blocks, or tokens: all"
        )
    if min(gram.start, gram.refresh_every, gram.refreshes, gram.warmup_steps) < 0:
        raise ValueError("gram.start, gram.refresh_every, gram.refreshes and gram.warmup_steps are 0 or more")


def check_network(recipe: Recipe, network: MultiCropNetwork) -> None:
    """What depends on the kind of backbone."""
    spec = network.backbone.spec
    if spec.kind != "pyramid":
        return
    for option, set_ in (
        ("ibot.weight: masked patches", recipe.ibot.weight > 0),
        ("gram.weight: the Gram anchor", recipe.gram.weight > 0),
        ("optim.layer_decay", recipe.optim.layer_decay != 1),
        ("optim.patch_embed_lr", recipe.optim.patch_embed_lr != 1),
    ):
        if set_:
            raise ValueError(f"{option} needs a ViT, and {spec.name} is convolutional; leave it out or choose a ViT")


def check_views(recipe: Recipe, network: MultiCropNetwork, views: MultiCrop, together: int) -> None:
    """What depends on the crops, and on how many images KoLeo sees together."""
    if recipe.ibot.weight and recipe.ibot.masking == "blocks":
        check_grid(grid_of(network.backbone, (views.sizes[0], views.sizes[0])))
    if recipe.backbone.local_norm and len(views.sizes) == VIEWS:
        raise ValueError("backbone.local_norm without local crops; set data.views.local_crops or leave it out")
    if views.gram_crops and not recipe.gram.weight:
        raise ValueError("data.views.gram_size without a Gram term; set gram.weight or leave gram_size out")
    patch, gram_size = network.backbone.spec.patch, views.gram_size or views.sizes[0]
    if gram_size != views.sizes[0] and (gram_size % patch or views.sizes[0] % patch):
        raise ValueError(
            f"data.views.gram_size={gram_size} and global_size={views.sizes[0]} with patches of {patch}: the borders added to "
            "them shift one grid against the other; choose multiples of the patch"
        )
    group = recipe.koleo.group
    if recipe.koleo.weight and group is not None and together % group:
        raise ValueError(
            f"koleo.group={group} does not divide the {together} images that are together; choose one that does, or null"
        )


def check_precision(precision: str) -> None:
    """Whether weights stay in fp32, which moving averages need."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={precision}: pretraining keeps its weights in fp32; use {' or '.join(PRECISIONS)}"
        )


def check_batch(recipe: Recipe, total: int) -> None:
    """What depends on how many images a step has."""
    ibot, crops = recipe.ibot, VIEWS * total
    if ibot.weight and ibot.masking == "blocks" and int(crops * ibot.mask_probability) < 1:
        raise ValueError(
            f"ibot.mask_probability={ibot.mask_probability} masks none of the {crops} global crops of a step; raise it or the batch"
        )


def check_distilled(recipe: Recipe, network: MultiCropNetwork, distilled: MultiCropNetwork, of_patches: bool) -> None:
    """Whether a frozen teacher makes targets for this student; of_patches: it was trained with masked patches."""
    ours, theirs = network.backbone.spec, distilled.backbone.spec
    pairs = [("head.out_dim", network.head, distilled.head)]
    if recipe.ibot.weight:
        pairs.append(("ibot.head.out_dim", network.patch_head or network.head, distilled.patch_head or distilled.head))
        if not of_patches:
            raise ValueError(
                "distill: the teacher was trained without iBOT, so its head makes no targets for patches; set ibot.weight to 0"
            )
        if ours.patch != theirs.patch:
            raise ValueError(
                f"distill: the teacher's patches have {theirs.patch} pixels, the student's {ours.patch}; iBOT compares patch by patch"
            )
    for name, student, teacher in pairs:
        mine, other = (head.last_layer.out_features for head in (student, teacher))  # type: ignore[union-attr]
        if mine != other:
            raise ValueError(f"distill: {name}={mine}, but the teacher has {other} prototypes; make them equal")
