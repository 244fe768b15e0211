"""The options of a training: every number, its default (that of the published repositories) and its check."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from pretrain.head import LastLayer
from pretrain.losses.features import Objective
from pretrain.losses.gram import Level, Negatives
from pretrain.teacher import Mode

CenteringName = Literal["center", "sinkhorn"]  # a moving mean (DINO), or equal use of all prototypes (DINOv2)
Moves = Literal["epoch", "step"]  # a warm-up moves once per epoch (DINO) or at every step (DINOv2)
EVEN, FIRST = "teacher", "teacher_first"  # values of init_from: blocks of the frozen teacher
Stage = Literal["pretrain", "gram", "high_res"]


def _expect(options: Any, holds: bool, name: str, expected: str) -> None:
    """Raise, naming the value and what was expected, if the check of an option does not hold."""
    if not holds:
        raise ValueError(f"{options.key}{name}={getattr(options, name)}: expected {expected}")


def _expect_at_least(options: Any, least: float, *names: str) -> None:
    """Raise for an option below `least`; null is left out."""
    for name in names:
        value = getattr(options, name)
        _expect(options, value is None or value >= least, name, f"at least {least}")


def _expect_temperatures(options: Any) -> None:
    """Raise for a temperature that is not positive; null is left out."""
    for name in ("warmup_temperature", "temperature", "student_temperature"):
        value = getattr(options, name)
        expected = "more than 0 (published: 0.04 to 0.07, the student's 0.1)"
        _expect(options, value is None or value > 0, name, expected)


@dataclass(frozen=True)
class BackboneOptions:
    """The backbone to train.

    `arguments` override those of timm, such as img_size, depth, reg_tokens, init_values (LayerScale) or, for DINOv3's
    backbones, rope_rescale_coords, rope_shift_coords and rope_jitter_coords.
    """

    key: ClassVar[str] = "backbone."  # YAML key below `model`, for errors
    name: str = "vit_small_patch16_224"  # a timm name, an official name or a saved directory
    arguments: dict[str, Any] = field(default_factory=dict)
    drop_path: float = 0.1  # stochastic depth of the student
    drop_path_rule: Literal["linear", "uniform"] = "linear"  # rising with depth (DINO) or not (DINOv2)
    local_norm: bool = False  # a final norm of their own for the class tokens of local crops (DINOv3)
    init_from: str | None = None  # a file, a directory or "timm"; "teacher" or "teacher_first", see `shallower`
    channels: int | list[str] | None = None  # of the images, number or names; null: as saved, or red, green and blue
    channels_from: Literal["mean", "copy", "random", "each"] | None = (
        None  # see `load_backbone`; null: mean, or as saved
    )
    head_warmup_steps: int = 0  # steps in which the backbone is frozen, so that untrained heads do not destroy it
    patch_steps: int = 0  # steps before which, of the backbone, the patch embedding alone is trained
    grad_checkpointing: bool = False  # compute blocks again in the backward pass, which saves memory

    def __post_init__(self) -> None:
        _expect(self, 0 <= self.drop_path < 1, "drop_path", "0 or more, below 1 (published: 0.1 to 0.4)")
        _expect_at_least(self, 0, "head_warmup_steps", "patch_steps")
        later = not self.patch_steps or self.patch_steps > self.head_warmup_steps
        _expect(self, later, "patch_steps", f"0, or more than head_warmup_steps={self.head_warmup_steps}")

    @property
    def changes(self) -> dict[str, Any]:
        """What `load_backbone` changes of the named backbone."""
        given = {"channels": self.channels, "channels_from": self.channels_from}
        return {k: v for k, v in given.items() if v is not None} | self.arguments


@dataclass(frozen=True)
class HeadOptions:
    """A projection head; see `ProjectionHead`. `Recipe` checks it, because only there its key is known."""

    out_dim: int = 65536  # number K of prototypes
    hidden_dim: int = 2048  # width of the hidden layers
    bottleneck_dim: int = 256  # width of the normalised features that are compared with the prototypes
    layers: int = 3  # linear layers up to the bottleneck
    batch_norm: bool = False  # batch norm after every hidden linear layer
    norm_last_layer: bool = True  # keep the prototypes of "weight_norm" at unit length
    last_layer: LastLayer = "weight_norm"  # as DINO and DINOv2, or "linear" as DINOv3


@dataclass(frozen=True)
class FrozenTeacher:
    """A frozen backbone whose features are targets."""

    name: str  # a timm name, an official name, a saved directory or the directory of a run
    weights: str | None = None  # of a named architecture: a file, a directory or "timm"
    weight: float = 1.0  # of this teacher among several


@dataclass(frozen=True)
class TeacherOptions:
    """The teacher: a frozen backbone of the given name, or an average of the student with targets from its logits.

    With a frozen teacher, mode and momentum are those of the average of the student that is the result.
    """

    key: ClassVar[str] = "teacher."
    name: str | None = None  # a frozen backbone whose features are targets (see `features`, `relations`); null for none
    weights: str | None = None  # of a named architecture: a file, a directory or "timm"
    others: list[FrozenTeacher] = field(default_factory=list)  # further frozen teachers; the first one has weight 1
    subtract_mean: bool = True  # from a frozen teacher's features, which then are what differs between images
    mode: Mode = "ema"  # rule by which the teacher follows the student, see `Teacher`
    centering: CenteringName = "center"  # how the teacher's logits are kept from collapsing
    momentum: float = 0.996  # of the moving average of weights, at the start
    final_momentum: float = 1.0  # and at the end, along a cosine
    warmup_temperature: float = 0.04  # of the targets, at the start
    temperature: float = 0.04  # and after the warm-up
    warmup_temperature_epochs: int = 0  # length of the linear warm-up of the temperature
    temperature_moves: Moves = "epoch"  # whether the temperature changes per epoch or per step
    center_momentum: float = 0.9  # of the moving average of logits ("center") or of a frozen teacher's features
    student_temperature: float = 0.1  # of the student's softmax

    def __post_init__(self) -> None:
        for name in ("momentum", "final_momentum"):
            _expect(self, 0 <= getattr(self, name) <= 1, name, "0 to 1 (published: 0.996 and 1)")
        _expect_temperatures(self)
        if self.name is None and (self.weights is not None or self.others):
            raise ValueError("teacher.weights and teacher.others belong to a frozen teacher; set teacher.name")
        for other in self.others:
            if other.weight <= 0:
                raise ValueError(f"teacher.others: {other.name} has weight {other.weight}: expected more than 0")

    @property
    def frozen(self) -> list[FrozenTeacher]:
        """The frozen teachers."""
        return [] if self.name is None else [FrozenTeacher(self.name, self.weights), *self.others]


@dataclass(frozen=True)
class DINOOptions:
    """The class-token term; a weight of 0 leaves it out."""

    key: ClassVar[str] = "dino."
    weight: float = 1.0  # factor of the term in the loss
    local_weight: float = 1.0  # factor of the pairs with a local crop (0.5 in DINOv3's Gram stage)

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "weight", "local_weight")


@dataclass(frozen=True)
class IBOTOptions:
    """The masked-patch term; a weight of 0 leaves it out. Centring and temperatures that are null are the teacher's.

    masking: "blocks" masks patches for the student; "none" masks nothing and compares every patch of the global crops,
    as distillation does.
    """

    key: ClassVar[str] = "ibot."
    weight: float = 0.0  # factor of the term in the loss
    head: HeadOptions | None = None  # a projection head for patches; null shares that of class tokens
    masking: Literal["blocks", "none"] = "blocks"
    mask_probability: float = 0.5  # fraction of the global crops that are masked
    mask_ratio: tuple[float, float] = (0.1, 0.5)  # fraction of patches masked in such a crop
    complete: bool = False  # fill the blocks up to the exact number with single patches (DINOv3)
    # as in `TeacherOptions`, for the patch targets; null: the teacher's
    centering: CenteringName | None = None
    center_momentum: float | None = None
    warmup_temperature: float | None = None
    temperature: float | None = None
    warmup_temperature_epochs: int | None = None
    temperature_moves: Moves | None = None
    student_temperature: float | None = None

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "weight")
        _expect_temperatures(self)


@dataclass(frozen=True)
class KoLeoOptions:
    """The term that spreads class tokens, see `KoLeoLoss`; a weight of 0 leaves it out."""

    key: ClassVar[str] = "koleo."
    weight: float = 0.0  # factor of the term in the loss
    group: int | None = None  # consecutive samples that are searched for the nearest neighbour; null: all
    distributed: bool = False  # search the samples of all processes, not only those of this one

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "weight")


@dataclass(frozen=True)
class GramOptions:
    """The Gram anchor, see `GramLoss`; a weight of 0 leaves it out."""

    key: ClassVar[str] = "gram."
    weight: float = 0.0  # once the warm-up is over
    final_weight: float | None = None  # to which the weight then moves along a cosine; null keeps it
    warmup_steps: int = 0  # optimiser steps of the linear warm-up of the weight
    start: int = 0  # optimiser step before which there is no anchor
    teacher: str | None = None  # directory of a backbone or run; null copies the teacher as it is at step `start`
    refresh_every: int = 0  # steps between new copies of the teacher; 0 for none
    refreshes: int = 3  # largest number of such copies
    level: Level = "image"  # compare the patches of each image, or those of the whole batch
    negatives: Negatives = "keep"  # what happens to negative similarities, see `GramLoss`
    tokens: Literal["all", "masked", "unmasked"] = "all"  # patches that the loss compares
    antialias: bool = False  # filter when features of larger crops (data.views.gram_size) are reduced

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "weight", "final_weight", "warmup_steps", "start", "refresh_every", "refreshes")
        if self.weight and self.refresh_every and self.teacher is not None:
            raise ValueError(
                f"gram.refresh_every={self.refresh_every} would replace the given gram.teacher={self.teacher}; "
                "leave one out"
            )


@dataclass(frozen=True)
class FeatureOptions:
    """The term that compares features with those of frozen teachers, see `FeatureLoss`; a weight of 0 leaves it out."""

    key: ClassVar[str] = "features."
    weight: float = 0.0  # factor of the term in the loss
    loss: Objective = "cosine"  # how features are compared
    image_weight: float = 1.0  # factor of the class or pooled token within the term
    patch_weight: float = 1.0  # factor of the patches within the term

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "weight", "image_weight", "patch_weight")
        if self.weight and not self.image_weight + self.patch_weight:
            raise ValueError(
                f"features.weight={self.weight} with image_weight=0 and patch_weight=0, so there is nothing to learn; "
                "raise one of them"
            )


@dataclass(frozen=True)
class RelationOptions:
    """The term that compares similarities with those of frozen teachers, see `RelationLoss`; 0 leaves it out."""

    key: ClassVar[str] = "relations."
    weight: float = 0.0  # factor of the term in the loss
    queue: int | None = None  # recent class tokens of the teacher to compare with; null: by the number of images
    temperature: float = 0.07  # of the softmax over similarities
    patch_weight: float = 1.0  # factor of the similarities among an image's patches within the term

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "weight", "patch_weight")
        _expect_at_least(self, 1, "queue")
        _expect(self, self.temperature > 0, "temperature", "more than 0 (published: 0.07)")


@dataclass(frozen=True)
class GuideOptions:
    """The term of metadata, see `GuidesTerm`; without columns to keep or to forget it is left out.

    The columns are those of data.metadata. A guide predicts a column from the student's class token; its gradient moves
    the backbone by ``2 / (1 + exp(-ramp p)) - 1`` times its weight, with p the progress after the warm-up, and in the
    opposite direction for what is to be forgotten.
    """

    key: ClassVar[str] = "guides."
    keep: list[str] = field(default_factory=list)  # columns that the backbone shall hold, such as the class
    forget: list[str] = field(default_factory=list)  # columns that it shall not, such as the microscope or the batch
    numbers: list[str] = field(default_factory=list)  # those of these columns that hold numbers; others hold classes
    weight: float = 1.0  # factor of the term in the loss
    forget_weight: float = 0.1  # factor of the reversed gradients
    weights: dict[str, float] = field(default_factory=dict)  # further factors of the gradients, by column
    equalise: bool = True  # scale the gradients of several guides to the geometric mean of their norms
    warmup_steps: int | None = None  # steps before guides move the backbone; null: the learning rate's warm-up
    ramp: float = 10.0  # how fast they do afterwards
    views: Literal["global", "all"] = "global"  # crops whose class tokens guides see
    kind: Literal["mlp", "prototypes"] = "mlp"  # of the guides of classes; prototypes have no parameters
    hidden: tuple[int, ...] = (512, 512, 256)  # widths of the layers of "mlp"
    dropout: float = 0.5  # after each of them
    balanced: bool = False  # every class counts the same, however many images it has
    momentum: float = 0.999  # of the centroids of "prototypes"
    spread: float = 0.07  # of the classes around them, at the start
    least_spread: float = 0.01  # below which it does not fall

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "weight", "forget_weight", "warmup_steps")
        for name in ("ramp", "spread", "least_spread"):
            _expect(self, getattr(self, name) > 0, name, "more than 0")
        _expect(self, 0 <= self.dropout < 1, "dropout", "0 or more, below 1 (published: 0.5)")
        _expect(self, 0 <= self.momentum <= 1, "momentum", "0 to 1 (published: 0.999)")
        _expect(self, all(width >= 1 for width in self.hidden), "hidden", "widths of at least 1")
        _expect(self, all(factor >= 0 for factor in self.weights.values()), "weights", "factors of at least 0")
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise ValueError(f"guides: {twice[0]!r} is named twice in keep and forget; leave one")
        for name, given in (("numbers", self.numbers), ("weights", self.weights)):
            if other := [column for column in given if column not in self.columns]:
                raise ValueError(
                    f"guides.{name}: {other[0]!r} is not among the columns of guides.keep and guides.forget"
                    f" ({', '.join(self.columns) or 'none'})"
                )

    @property
    def columns(self) -> list[str]:
        """All columns, those to keep first."""
        return [*self.keep, *self.forget]


@dataclass(frozen=True)
class OptimOptions:
    """The optimiser and its schedules.

    lr is that at a total batch of 256 with lr_scaling "linear" (DINO), of 1024 with "sqrt" (DINOv2, DINOv3), of any
    with "none"; min_lr is not scaled.
    """

    key: ClassVar[str] = "optim."
    name: Literal["adamw", "sgd", "lars"] = "adamw"  # the optimiser
    arguments: dict[str, Any] = field(default_factory=dict)  # further arguments of the optimiser
    lr: float = 5e-4  # peak learning rate, before scaling
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"  # with the total batch
    lr_schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up
    min_lr: float = 1e-6  # learning rate at the end of the cosine
    warmup_epochs: float = 10  # length of the linear warm-up of the learning rate
    weight_decay: float = 0.04  # at the start
    final_weight_decay: float = 0.4  # at the end, along a cosine
    layer_decay: float = 1.0  # factor of the learning rate from each block to the one below
    patch_embed_lr: float = 1.0  # additional factor of the patch embedding
    clip: float = 3.0  # largest norm of a gradient; 0 clips nothing
    clip_mode: Literal["per_parameter", "global"] = "per_parameter"  # norm of each gradient, or of all
    freeze_last_layer_epochs: float = 1  # epochs at the start in which the prototypes are frozen

    def __post_init__(self) -> None:
        _expect_at_least(self, 0, "lr", "min_lr", "weight_decay", "final_weight_decay", "clip", "warmup_epochs")
        for name in ("layer_decay", "patch_embed_lr"):
            _expect(self, 0 < getattr(self, name) <= 1, name, "more than 0, at most 1")


@dataclass(frozen=True)
class HealthOptions:
    """When the health of the training is measured, and what a recognised failure does; see `HealthMonitor`."""

    key: ClassVar[str] = "health."
    every: int = 10  # optimiser steps between measurements
    warmup_steps: int = 1000  # optimiser steps before which a collapse is not reported
    patience: int = 20  # consecutive measurements with a symptom before it is reported
    on_failure: Literal["warn", "stop"] = "warn"  # continue with a warning, or stop the training

    def __post_init__(self) -> None:
        _expect_at_least(self, 1, "every", "patience")


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a checkpoint with the default of every option that is newer than the checkpoint."""

    def fill(options: Any, default: Any) -> Any:
        if not isinstance(options, dict) or not isinstance(default, dict):
            return options
        return {**default, **{key: fill(value, default.get(key)) for key, value in options.items()}}

    return fill(saved, Recipe().to_dict())


def without_places(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without the names and files of frozen teachers, whose weights a checkpoint compares itself."""
    teacher = recipe["teacher"]
    unnamed = {"name": teacher["name"] and "frozen", "weights": None}
    others = [{**other, "name": None, "weights": None} for other in teacher["others"]]
    return {**recipe, "teacher": {**teacher, **unnamed, "others": others}}


@dataclass(frozen=True)
class Recipe:
    """All options of a training.

    Args:
        backbone: the network to train.
        head: the projection head of class tokens.
        teacher: how the teacher follows the student and makes targets.
        optim: optimiser and schedules.
        health: when health is measured and what a failure does.
        epochs: length in passes over the images, or in epochs of steps_per_epoch steps.
        steps: length in optimiser steps, instead of epochs.
        seed: of the initial weights and of drop path.
        dino: the class-token term.
        ibot: the masked-patch term.
        koleo: the term that spreads class tokens.
        gram: the Gram anchor.
        features: the term of frozen teachers' features.
        relations: the term of frozen teachers' similarities.
        guides: the term of metadata.
        mixup: mix the images of a batch in pairs, for student and frozen teachers alike.
        steps_per_epoch: optimiser steps that the options call an epoch; null for a pass over the images.
        stage: pretrain, gram or high_res; the latter two start from a run of the stage before.
        start_from: directory of that run, or one of its checkpoints.
        distill: directory of a run whose frozen teacher makes the targets; the result is still a moving average.
    """

    key: ClassVar[str] = ""
    backbone: BackboneOptions = BackboneOptions()
    head: HeadOptions = HeadOptions()
    teacher: TeacherOptions = TeacherOptions()
    optim: OptimOptions = OptimOptions()
    health: HealthOptions = HealthOptions()
    epochs: float = 100
    steps: int | None = None
    seed: int = 0
    dino: DINOOptions = DINOOptions()
    ibot: IBOTOptions = IBOTOptions()
    koleo: KoLeoOptions = KoLeoOptions()
    gram: GramOptions = GramOptions()
    features: FeatureOptions = FeatureOptions()
    relations: RelationOptions = RelationOptions()
    guides: GuideOptions = GuideOptions()
    mixup: bool = False
    steps_per_epoch: int | None = None
    stage: Stage = "pretrain"
    start_from: str | None = None
    distill: str | None = None

    def __post_init__(self) -> None:
        _expect_at_least(self, 1, "steps", "steps_per_epoch")
        for key, prototypes in (("head", self.head.out_dim), ("ibot.head", self.patch_prototypes)):
            if prototypes < 2:
                raise ValueError(f"{key}.out_dim={prototypes}: expected at least 2")
        terms = (self.dino, self.ibot, self.koleo, self.gram, self.features, self.relations)
        if not any(term.weight for term in terms):
            raise ValueError("every term has a weight of 0, so there is nothing to learn; set dino.weight or another")
        tokens, masks = self.gram.tokens, self.ibot.weight and self.ibot.masking == "blocks"
        if self.gram.weight and tokens != "all" and not masks:
            raise ValueError(
                f"gram.tokens={tokens} without masks; set ibot.weight and ibot.masking: blocks, or tokens: all"
            )
        self._check_frozen_teachers()
        self._check_guides()
        if self.stage == "pretrain":
            self._check_first_stage()
        else:
            self._check_later_stage()

    def _check_frozen_teachers(self) -> None:
        compared = self.features.weight or self.relations.weight
        if compared and not self.teacher.frozen:
            raise ValueError(
                "features and relations need a frozen teacher: --model.teacher.name dinov2_vits14 "
                "--model.teacher.weights FILE, or the directory of a backbone as --model.teacher.name"
            )
        if self.teacher.frozen and not compared:
            raise ValueError(
                f"teacher.name={self.teacher.name} without a term that uses it; set features.weight or relations.weight"
            )
        if self.distill is not None and not self.has_prototypes:
            raise ValueError(
                f"distill={self.distill}: its targets are prototypes, which features and relations do not use; set "
                f"dino.weight or ibot.weight, or use --model.teacher.name {self.distill} instead"
            )
        if self.backbone.init_from in (EVEN, FIRST) and not self.teacher.frozen:
            raise ValueError(f"backbone.init_from: {self.backbone.init_from} needs a frozen teacher; set teacher.name")
        if self.mixup and (not compared or self.dino.weight or self.ibot.weight or self.gram.weight):
            raise ValueError("mixup is for features and relations alone; set dino, ibot and gram to weight 0")

    def _check_guides(self) -> None:
        if self.guides.columns and self.mixup:
            raise ValueError("guides: metadata belongs to images, which mixup mixes; set mixup to false")
        if self.guides.kind == "prototypes" and (self.distill is not None or not self.has_prototypes):
            raise ValueError(
                "guides.kind=prototypes averages class tokens of the teacher that follows the student, which makes no "
                "targets here; set guides.kind to mlp"
            )

    def _check_first_stage(self) -> None:
        if self.start_from is not None:
            raise ValueError(
                f"start_from={self.start_from} with stage: pretrain, which is the first; set model.stage to gram or "
                "high_res, or continue from weights alone with backbone.init_from"
            )
        if self.gram.weight and self.gram.teacher is None and self.gram.start == 0:
            raise ValueError(
                "Gram without a teacher: at step 0 there is none yet; give gram.teacher a directory, gram.start a "
                "step, or start_from a run"
            )

    def _check_later_stage(self) -> None:
        if self.start_from is None:
            raise ValueError(
                f"stage: {self.stage} starts from a run of the stage before; give its directory: --model.start_from RUN"
            )
        if self.stage == "gram" and not self.gram.weight:
            raise ValueError("stage: gram without a Gram term; set gram.weight (published: 2)")
        if self.backbone.init_from is not None:
            raise ValueError(
                f"both start_from={self.start_from} and backbone.init_from={self.backbone.init_from}; leave one out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries of plain values, as checkpoints hold them."""
        return asdict(self)

    @property
    def has_prototypes(self) -> bool:
        """Whether student and teacher have projection heads: always, unless frozen teachers alone make the targets."""
        return not self.teacher.frozen or self.dino.weight > 0 or self.ibot.weight > 0

    @property
    def patch_targets(self) -> TeacherOptions:
        """The teacher's options with those that `ibot` sets itself."""
        own = {option.name: getattr(self.ibot, option.name, None) for option in fields(TeacherOptions)}
        return replace(self.teacher, **{name: value for name, value in own.items() if value is not None})

    @property
    def patch_prototypes(self) -> int:
        """Number of prototypes of the masked-patch term."""
        return (self.ibot.head or self.head).out_dim
