"""From a recipe to networks: the student's backbone with its stochastic depth, the heads, and the terms."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from dense.backbone import Backbone, load_backbone
from pretrain.head import ProjectionHead
from pretrain.network import MultiCropNetwork
from pretrain.recipe import BackboneOptions, HeadOptions, IBOTOptions, Recipe
from pretrain.stages import Run, gram_teacher
from pretrain.terms import ClassTokens, Gram, MaskedPatches, Spread, Term


def build_network(recipe: Recipe) -> MultiCropNetwork:
    """Backbone, heads and, where wanted, the norm of local class tokens; fresh, or continued from `init_from`."""
    backbone = student_backbone(recipe.backbone)
    dim, own = backbone.spec.dim, recipe.ibot.head if recipe.ibot.weight else None
    return MultiCropNetwork(
        backbone,
        ProjectionHead(dim, **asdict(recipe.head)),
        None if own is None else ProjectionHead(dim, **asdict(own)),
        copy.deepcopy(backbone.model.norm) if recipe.backbone.local_norm else None,  # type: ignore[arg-type]
    )


def student_backbone(options: BackboneOptions) -> Backbone:
    """The student's backbone, fresh or continued."""
    backbone = load_backbone(options.name, options.init_from, **options.arguments)
    if options.drop_path and backbone.spec.kind != "pyramid":
        set_drop_path(backbone, options.drop_path, uniform=options.drop_path_rule == "uniform")
    if options.local_norm and backbone.spec.kind == "pyramid":
        raise ValueError(
            f"backbone.local_norm: {backbone.spec.name} is convolutional and has no class token; leave it out"
        )
    if options.grad_checkpointing:
        backbone.set_grad_checkpointing()
    return backbone.unfreeze().train()  # the Trainer leaves modes as they are


def set_drop_path(backbone: Backbone, rate: float, uniform: bool = False) -> None:
    """Stochastic depth, rising linearly with depth to `rate` or uniform, active in training mode alone."""
    from timm.layers import DropPath

    blocks = backbone.model.blocks  # type: ignore[union-attr]
    for index, block in enumerate(blocks):  # type: ignore[arg-type]
        own = rate if uniform else rate * index / max(len(blocks) - 1, 1)  # type: ignore[arg-type]
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(own) if own else torch.nn.Identity())


def build_terms(recipe: Recipe, backbone: Backbone) -> nn.ModuleDict:
    """The objective: the class-token term, and every other one whose weight is not 0."""
    terms: dict[str, Term] = {"dino": ClassTokens(recipe.dino, recipe.head.out_dim, recipe.targets)}
    if recipe.ibot.weight:
        terms["ibot"] = MaskedPatches(recipe.ibot.weight, recipe.patch_prototypes, recipe.patch_targets)
    if recipe.koleo.weight:
        terms["koleo"] = Spread(recipe.koleo)
    if recipe.gram.weight:
        given = recipe.gram.teacher
        terms["gram"] = Gram(recipe.gram, backbone if given is None else gram_teacher(given), given is not None)
    return nn.ModuleDict(terms)


def build_distilled(run: Run) -> MultiCropNetwork:
    """The teacher of a finished run, backbone and heads, frozen."""
    options: dict[str, Any] = dict(run.recipe)
    ibot = dict(options["ibot"])
    recipe = Recipe(
        backbone=replace(BackboneOptions(**options["backbone"]), init_from=None, drop_path=0.0),
        head=HeadOptions(**options["head"]),
        ibot=IBOTOptions(**(ibot | {"head": None if ibot["head"] is None else HeadOptions(**ibot["head"])})),
    )
    network = build_network(recipe)
    network.load_state_dict(run.part("teacher.network."))
    network.backbone.freeze()
    return network.requires_grad_(False).eval()
