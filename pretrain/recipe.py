"""Every number of a run, with the defaults of the published repositories."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from pretrain.head import LastLayer
from pretrain.losses.gram import Level, Negatives
from pretrain.teacher import Mode

CenteringName = Literal["center", "sinkhorn"]
Stage = Literal["pretrain", "gram", "high_res"]


@dataclass(frozen=True)
class BackboneOptions:
    """Which network learns.

    name: a timm name, an official name or a saved directory. arguments: overrides, such as img_size, depth, reg_tokens,
    init_values (LayerScale) or, of DINOv3's backbones, rope_rescale_coords, rope_shift_coords and rope_jitter_coords.
    drop_path: stochastic depth of the student, drop_path_rule: rising linearly with depth (DINO) or uniform (DINOv2).
    local_norm: the class tokens of local crops have a final norm of their own (DINOv3). init_from: weights to continue from
    (a file, a directory or "timm"). head_warmup_steps: steps in which only the heads learn, so that a continued backbone is
    not destroyed by fresh ones. grad_checkpointing: blocks are computed again in the backward pass, for less memory.
    """

    name: str = "vit_small_patch16_224"
    arguments: dict[str, Any] = field(default_factory=dict)
    drop_path: float = 0.1
    drop_path_rule: Literal["linear", "uniform"] = "linear"
    local_norm: bool = False
    init_from: str | None = None
    head_warmup_steps: int = 0
    grad_checkpointing: bool = False


@dataclass(frozen=True)
class HeadOptions:
    """A projection head; out_dim is the number K of prototypes. last_layer: "weight_norm" (DINO, DINOv2), to which
    norm_last_layer belongs, or "linear" (DINOv3)."""

    out_dim: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    layers: int = 3
    batch_norm: bool = False
    norm_last_layer: bool = True
    last_layer: LastLayer = "weight_norm"


class TargetOptions(NamedTuple):
    """How the teacher's logits become the targets of one term; the fields of `TeacherOptions` that are about that."""

    centering: CenteringName
    center_momentum: float
    warmup_temperature: float
    temperature: float
    warmup_temperature_epochs: int
    temperature_moves: Literal["epoch", "step"]
    student_temperature: float


@dataclass(frozen=True)
class TeacherOptions:
    """How the teacher follows and how its outputs become targets.

    centering: "center" subtracts a moving mean (DINO), "sinkhorn" makes a batch use all prototypes equally (DINOv2).
    temperature_moves: the warm-up of the temperature moves once an epoch (DINO) or with every step (DINOv2).
    """

    mode: Mode = "ema"
    centering: CenteringName = "center"
    momentum: float = 0.996
    final_momentum: float = 1.0
    warmup_temperature: float = 0.04
    temperature: float = 0.04
    warmup_temperature_epochs: int = 0
    temperature_moves: Literal["epoch", "step"] = "epoch"
    center_momentum: float = 0.9
    student_temperature: float = 0.1


@dataclass(frozen=True)
class DINOOptions:
    """The class-token term. local_weight: how much pairs of local crops count (DINOv3's Gram stage: 0.5)."""

    weight: float = 1.0
    local_weight: float = 1.0


@dataclass(frozen=True)
class IBOTOptions:
    """The masked-patch term; a weight of 0 leaves it out.

    head: its own projection head, or null to share the class token's. masking: "blocks" hides patches from the student;
    "none" hides nothing and compares every patch of the global crops, as distillation does. mask_probability: share of
    global crops that are masked, mask_ratio: share of their patches, complete: fill blocks up to the exact number (DINOv3).
    Centring and temperatures are the teacher's where null.
    """

    weight: float = 0.0
    head: HeadOptions | None = None
    masking: Literal["blocks", "none"] = "blocks"
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    complete: bool = False
    centering: CenteringName | None = None
    center_momentum: float | None = None
    warmup_temperature: float | None = None
    temperature: float | None = None
    warmup_temperature_epochs: int | None = None
    temperature_moves: Literal["epoch", "step"] | None = None
    student_temperature: float | None = None


@dataclass(frozen=True)
class KoLeoOptions:
    """The term that spreads class tokens; a weight of 0 leaves it out. See `KoLeoLoss` for group and distributed."""

    weight: float = 0.0
    group: int | None = None
    distributed: bool = False


@dataclass(frozen=True)
class GramOptions:
    """The Gram anchor; a weight of 0 leaves it out.

    teacher: a backbone's or run's directory that gives the Gram teacher; null for the teacher as it is at step `start`,
    before which there is no anchor. refresh_every: steps between copies of the teacher, 0 for never, at most `refreshes`
    times. weight: reached after warmup_steps, then moving to final_weight (null: staying) along a cosine.
    level, negatives: see `GramLoss`. tokens: patches that count. antialias: of the bicubic reduction of features that come
    from larger crops (data.views.gram_size).
    """

    weight: float = 0.0
    final_weight: float | None = None
    warmup_steps: int = 0
    start: int = 0
    teacher: str | None = None
    refresh_every: int = 0
    refreshes: int = 3
    level: Level = "image"
    negatives: Negatives = "keep"
    tokens: Literal["all", "masked", "unmasked"] = "all"
    antialias: bool = False


@dataclass(frozen=True)
class OptimOptions:
    """The optimiser and its schedules.

    lr: at a total batch of 256 with lr_scaling "linear" (DINO), at 1024 with "sqrt" (DINOv2, DINOv3), at any with "none";
    min_lr is not scaled. lr_schedule: "cosine" to min_lr, or "constant" after the warm-up. layer_decay: factor of the
    learning rate from each block to the one below; patch_embed_lr: factor of the patch embedding's, beside that.
    clip: largest norm of a gradient, 0 for none. freeze_last_layer_epochs: epochs in which the prototypes stand still.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    arguments: dict[str, Any] = field(default_factory=dict)
    lr: float = 5e-4
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    layer_decay: float = 1.0
    patch_embed_lr: float = 1.0
    clip: float = 3.0
    clip_mode: Literal["per_parameter", "global"] = "per_parameter"
    freeze_last_layer_epochs: float = 1


@dataclass(frozen=True)
class HealthOptions:
    """When health is measured and what a recognised failure does."""

    every: int = 10
    warmup_steps: int = 1000
    patience: int = 20
    on_failure: Literal["warn", "stop"] = "warn"


@dataclass(frozen=True)
class Recipe:
    """A whole run. Its length is `epochs` passes over the images, or `steps` optimiser steps where that is given.

    steps_per_epoch: what schedules call an epoch, where it is not a pass. stage, start_from: see `pretrain.stages`.
    distill: a run whose teacher, frozen, makes the targets.
    """

    backbone: BackboneOptions = field(default_factory=BackboneOptions)
    head: HeadOptions = field(default_factory=HeadOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    health: HealthOptions = field(default_factory=HealthOptions)
    epochs: float = 100
    steps: int | None = None
    seed: int = 0
    dino: DINOOptions = field(default_factory=DINOOptions)
    ibot: IBOTOptions = field(default_factory=IBOTOptions)
    koleo: KoLeoOptions = field(default_factory=KoLeoOptions)
    gram: GramOptions = field(default_factory=GramOptions)
    steps_per_epoch: int | None = None
    stage: Stage = "pretrain"
    start_from: str | None = None
    distill: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def targets(self) -> TargetOptions:
        """Targets of the class-token term."""
        return TargetOptions(*(getattr(self.teacher, name) for name in TargetOptions._fields))

    @property
    def patch_targets(self) -> TargetOptions:
        """Targets of the masked-patch term."""
        own = {name: getattr(self.ibot, name) for name in TargetOptions._fields}
        return self.targets._replace(**{name: value for name, value in own.items() if value is not None})

    @property
    def patch_prototypes(self) -> int:
        """Number of prototypes of the masked-patch term."""
        return (self.ibot.head or self.head).out_dim
