"""The network of student and teacher: a backbone and projection heads, over crops of several sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from dense.backbone import Backbone, load_backbone
from dense.backbone.vit import ViT
from pretrain.head import ProjectionHead
from pretrain.masking import VIEWS, Grid, check_grid
from pretrain.recipe import EVEN, FIRST, BackboneOptions, Recipe
from pretrain.views import MultiCrop

SAME = ("kind:", "patch:", "dim:", "heads:", "norm_eps:", "mean:", "std:")  # fields of a spec on which blocks depend


class NetworkOutput(NamedTuple):
    """What a network returns to the terms; None for what was not asked for."""

    logits: Tensor | None  # V*B, K, crop-major, of the class tokens
    features: Tensor  # V*B, D: class tokens before the head
    patch_logits: Tensor | None = None  # M, K' of the compared patches
    patches: Tensor | None = None  # 2*B, h*w, D of the global crops, before the head
    mapped: Sequence[tuple[Tensor, Tensor]] = ()  # for each frozen teacher, of width D': (2*B, D'), (2*B, h*w, D')


class TeacherFeatures(NamedTuple):
    """Features of a frozen teacher for the global crops."""

    images: Tensor  # 2*B, D': class or pooled tokens
    patches: Tensor  # 2*B, h', w', D'


class TeacherMap(nn.Module):
    """Linear maps of the student's features to the width of a frozen teacher: one of class tokens, one of patches."""

    def __init__(self, dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.images, self.patches = nn.Linear(dim, teacher_dim), nn.Linear(dim, teacher_dim)
        for linear in (self.images, self.patches):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, images: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        return self.images(images), self.patches(patches)


class MultiCropNetwork(nn.Module):
    """A backbone and its heads. Crops of all sizes run as one packed sequence where the backbone supports it.

    patch_head: for patches; without one they share `head`. local_norm: replaces the backbone's final norm for the class
    tokens of local crops (DINOv3). maps: to frozen teachers.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module | None,
        patch_head: nn.Module | None = None,
        local_norm: nn.Module | None = None,
        maps: Sequence[TeacherMap] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.patch_head = patch_head
        self.local_norm = local_norm
        self.maps = nn.ModuleList(maps)

    @property
    def prototypes(self) -> list[nn.Parameter]:
        """Parameters of the heads' last layers."""
        heads = [head for head in (self.head, self.patch_head) if head is not None]
        return [parameter for head in heads for parameter in head.prototypes]  # type: ignore[union-attr]

    def forward(
        self,
        crops: Sequence[Tensor],
        masks: Tensor | None = None,
        patch_indices: Tensor | None = None,
        patches: bool = False,
    ) -> NetworkOutput:
        """Return the `Output` of V crops (B, 3, S, S), uint8 or normalised, the two global ones first.

        masks: (2*B, h*w), true for masked patches of the global crops. patch_indices: (M,), among the 2*B*h*w patches
        of the global crops, those that get logits. patches: whether to return the features of all these patches.
        """
        wanted = patch_indices is not None or patches or len(self.maps) > 0
        apart = VIEWS if wanted or masks is not None or self.local_norm is not None else 0
        groups = [self._images(crops[:apart])] if apart else []
        groups += [self._images(list(group)) for _, group in groupby(crops[apart:], key=lambda c: c.shape[-2:])]
        images, tokens = self.backbone.image_features(groups, masks, wanted, self.local_norm)
        compared = None if patch_indices is None else tokens.flatten(0, 1)[patch_indices]  # type: ignore[union-attr]
        logits, patch_logits = self._project(images, compared)
        mapped = [map_(images[: len(tokens)], tokens) for map_ in self.maps]  # type: ignore[arg-type]
        return NetworkOutput(logits, images, patch_logits, tokens if patches else None, mapped)

    def _project(self, images: Tensor, patches: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if self.head is None:
            return None, None
        if patches is None:
            return self.head(images), None
        if self.patch_head is not None:
            return self.head(images), self.patch_head(patches)
        both = self.head(torch.cat((images, patches)))
        return both[: len(images)], both[len(images) :]

    def grid(self, crop: Tensor) -> Grid:
        """Return the rows and columns of patches of a crop (B, 3, H, W)."""
        return grid_of(self.backbone, (crop.shape[-2], crop.shape[-1]))

    def _images(self, crops: Sequence[Tensor]) -> Tensor:
        images = torch.cat(list(crops))  # v*B, 3, S, S
        return self.backbone.normalise(images) if images.dtype == torch.uint8 else images


def grid_of(backbone: Backbone, size: tuple[int, int]) -> Grid:
    """Return the rows and columns of patches of an image of a size (H, W)."""
    fitted = backbone.pad_to_patch_multiple(backbone.blank(size))[0]
    return fitted.shape[-2] // backbone.spec.patch, fitted.shape[-1] // backbone.spec.patch


@torch.no_grad()
def teacher_features(teacher: Backbone, crops: Tensor) -> TeacherFeatures:
    """Return the features of crops (2*B, 3, S, S), uint8 or normalised for this teacher."""
    images = teacher.normalise(crops) if crops.dtype == torch.uint8 else crops
    vectors, tokens = teacher.image_features([images], patches=True)
    assert tokens is not None
    return TeacherFeatures(vectors, tokens.unflatten(1, grid_of(teacher, (crops.shape[-2], crops.shape[-1]))))


def shallower(options: BackboneOptions, teacher: Backbone) -> Backbone:
    """Return the student with the weights of a frozen teacher of equal width, of which it takes some blocks.

    `init_from: teacher` takes evenly chosen ones, the first and the last among them, `teacher_first` the first ones;
    all else is the teacher's, with positions for the student's grid.
    """
    backbone = load_backbone(options.name, **options.changes)
    ours, theirs = backbone.spec, teacher.spec
    given, own = teacher.state_dict(), backbone.state_dict()
    state = {name: tensor for name, tensor in given.items() if ".blocks." not in name}
    step = 1.0 if options.init_from == FIRST else (theirs.depth - 1) / max(ours.depth - 1, 1)
    for place in range(ours.depth):
        block = f"model.blocks.{round(place * step)}."
        state |= {n.replace(block, f"model.blocks.{place}."): t for n, t in given.items() if n.startswith(block)}
    if isinstance(teacher, ViT) and isinstance(backbone, ViT) and "model.pos_embed" in state:
        tables = teacher.position_tables(backbone.table_grid, torch.float32)
        state["model.pos_embed"] = torch.cat([table for table in tables if table is not None], dim=1)
    shapes = own.keys() ^ state.keys() | {n for n in own.keys() & state.keys() if own[n].shape != state[n].shape}
    same = (*SAME, "depth:") if ours.depth > theirs.depth else SAME
    differ = [line for line in ours.difference(theirs) if line.startswith(same)] or sorted(shapes)[:3]
    if differ or ours.kind == "pyramid":
        reason = "convolutional" if ours.kind == "pyramid" else ", ".join(differ)
        raise ValueError(
            f"backbone.init_from: {options.init_from} needs a ViT like the teacher, of at most as many blocks, and "
            f"{ours.name} (here) is not like {theirs.name} (there): {reason}; set "
            "backbone.name to the teacher's and backbone.arguments to {depth: N}"
        )
    backbone.load_state_dict(state)
    return backbone


def build_network(recipe: Recipe, teachers: Sequence[Backbone] = ()) -> MultiCropNetwork:
    """Return the student, its backbone with random initialisation or with the weights of `init_from`.

    teachers: frozen ones, to whose features the student's are mapped.
    """
    options = recipe.backbone
    if options.init_from in (EVEN, FIRST):
        backbone = shallower(options, teachers[0])
    else:
        backbone = load_backbone(options.name, options.init_from, **options.changes)
    if backbone.spec.kind == "pyramid":
        _refuse_options_of_vits(recipe, backbone.spec.name)
    elif options.drop_path:
        set_drop_path(backbone, options.drop_path, uniform=options.drop_path_rule == "uniform")
    if options.grad_checkpointing:
        backbone.set_grad_checkpointing()
    backbone.unfreeze().train()  # the Trainer leaves modes as they are
    if backbone.spec.kind == "pyramid" and not backbone.spec.norm:
        for name, parameter in backbone.named_parameters():
            if name.startswith(("model.head.", "model.norm.")):  # a norm that is not applied never gets a gradient
                parameter.requires_grad_(False)
    dim, own = backbone.spec.dim, recipe.ibot.head if recipe.ibot.weight else None
    return MultiCropNetwork(
        backbone,
        ProjectionHead(dim, **asdict(recipe.head)) if recipe.has_prototypes else None,
        None if own is None else ProjectionHead(dim, **asdict(own)),
        copy.deepcopy(backbone.model.norm) if options.local_norm else None,  # type: ignore[arg-type]
        [TeacherMap(dim, teacher.spec.dim) for teacher in teachers],
    )


def set_drop_path(backbone: Backbone, rate: float, uniform: bool = False) -> None:
    """Set stochastic depth, rising linearly with depth to `rate` or uniform. It is active in training mode alone."""
    blocks = backbone.model.blocks  # type: ignore[union-attr]
    for index, block in enumerate(blocks):  # type: ignore[arg-type]
        own = rate if uniform else rate * index / max(len(blocks) - 1, 1)  # type: ignore[arg-type]
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(own) if own else torch.nn.Identity())


def _refuse_options_of_vits(recipe: Recipe, name: str) -> None:
    for option, given in (
        ("backbone.local_norm", recipe.backbone.local_norm),
        ("ibot.weight: masked patches", recipe.ibot.weight > 0),
        ("gram.weight: the Gram anchor", recipe.gram.weight > 0),
        ("optim.layer_decay", recipe.optim.layer_decay != 1),
        ("optim.patch_embed_lr", recipe.optim.patch_embed_lr != 1),
    ):
        if given:
            raise ValueError(f"{option} needs a ViT, and {name} is convolutional; leave it out or choose a ViT")


def check_crops(
    recipe: Recipe,
    network: MultiCropNetwork,
    views: MultiCrop,
    total_batch: int,
    neighbours: int,
    teachers: Iterable[Backbone] = (),
) -> None:
    """Refuse crops that do not fit the network and the terms; neighbours: images that KoLeo compares."""
    patches = {network.backbone.spec.patch, *(teacher.spec.patch for teacher in teachers)}
    if len(patches) > 1 and any(views.sizes[0] % patch for patch in patches):
        common = math.lcm(*patches)
        raise ValueError(
            f"data.views.global_size={views.sizes[0]} with patches of {' and '.join(map(str, sorted(patches)))}: "
            "the padding would shift one grid against the other; choose a multiple of all, such as "
            f"{max(1, round(views.sizes[0] / common)) * common}"
        )
    if not recipe.has_prototypes and len(views.sizes) > VIEWS:
        raise ValueError(
            f"data.views.local_crops={len(views.sizes) - VIEWS}: frozen teachers see global crops alone; set it to 0"
        )
    ibot, size, patch = recipe.ibot, views.sizes[0], network.backbone.spec.patch
    if ibot.weight and ibot.masking == "blocks":
        check_grid(grid_of(network.backbone, (size, size)))
        crops = VIEWS * total_batch
        if int(crops * ibot.mask_probability) < 1:
            raise ValueError(
                f"ibot.mask_probability={ibot.mask_probability} masks none of the {crops} global crops of a step; "
                "raise it or the batch"
            )
    if recipe.backbone.local_norm and len(views.sizes) == VIEWS:
        raise ValueError("backbone.local_norm without local crops; set data.views.local_crops or leave it out")
    if views.gram_size and not recipe.gram.weight:
        raise ValueError("data.views.gram_size without a Gram term; set gram.weight or leave gram_size out")
    gram_size = views.gram_size or size
    if gram_size != size and (gram_size % patch or size % patch):
        raise ValueError(
            f"data.views.gram_size={gram_size} and global_size={size} with patches of {patch}: the padding would "
            "shift one grid against the other; choose multiples of the patch"
        )
    group = recipe.koleo.group
    if recipe.koleo.weight and group is not None and neighbours % group:
        raise ValueError(
            f"koleo.group={group} does not divide the {neighbours} images that KoLeo compares; choose one that does, "
            "or null"
        )
