"""The terms of an objective: ``loss = sum over terms of weight(step) * term(outputs)``.

- `DINOTerm`: class tokens, cross-entropy between views (DINO);
- `IBOTTerm`: masked patches, cross-entropy at the same place (iBOT; its masks are drawn in `pretrain.masking`);
- `KoLeoTerm`: entropy of the class tokens (DINOv2);
- `GramTerm`: similarities between patches stay those of an earlier teacher (DINOv3);
- `FeatureTerm`: class tokens and patches are those of frozen teachers, up to a linear map (distillation);
- `RelationTerm`: the similarities of class tokens and of patches are those of frozen teachers (distillation);
- `GuidesTerm`: class tokens tell or do not tell metadata (FINO; its heads are in `pretrain.guides`).

To add one: write its options in `pretrain.recipe`, a subclass of `Term` here, and a line in `build_terms`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dense.backbone import Backbone
from dense.data.metadata import Column
from pretrain.centering import Center, Centering, SinkhornKnopp
from pretrain.guides import PrototypeGuide, build_guides, metric_name, scaled_gradients
from pretrain.health import (
    TargetStatistics,
    effective_rank,
    entropies,
    feature_std,
    kl_divergence,
    marginal_error,
    measure,
)
from pretrain.losses import DINOLoss, FeatureLoss, GramLoss, IBOTLoss, KoLeoLoss, RelationLoss
from pretrain.masking import VIEWS, Grid, MaskedPatches
from pretrain.network import NetworkOutput, TeacherFeatures
from pretrain.optim import Cosine, Linear
from pretrain.recipe import (
    DINOOptions,
    FeatureOptions,
    FrozenTeacher,
    GramOptions,
    GuideOptions,
    KoLeoOptions,
    Recipe,
    RelationOptions,
    TeacherOptions,
)
from pretrain.sharding import gathered
from pretrain.stages import gram_teacher

QUEUES = (  # of fewer images than the first number, the length of the queue, as in lightly-train's distillation
    (50, 16), (100, 32), (250, 64), (500, 128), (1_000, 256), (2_000, 512), (4_000, 1024), (10_000, 2048),
    (20_000, 4096),
)  # fmt: skip
LONGEST = 8192


class StepOutputs(NamedTuple):
    """Outputs of student and teacher for one micro-batch: B images, 2 global and V - 2 local crops of each."""

    student: NetworkOutput
    teacher: NetworkOutput | None  # None where nothing but frozen teachers makes targets
    masked: MaskedPatches | None
    gram_crops: Sequence[Tensor]  # two of (B, 3, S, S): input of the Gram teacher
    grid: Grid  # of the student's global crops
    step: int
    steps_per_epoch: int
    measure: bool  # whether terms take measurements for the log
    frozen: Sequence[TeacherFeatures] = ()  # of each frozen teacher
    metadata: Tensor | None = None  # B, columns; NaN where nothing is known

    @property
    def global_crops(self) -> int:
        return VIEWS * len(self.gram_crops[0])

    def pairs(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return for each frozen teacher class tokens (2*B, D), its own, patches (2*B, h*w, D) on its grid, its own."""
        found = []
        for (images, patches), (their_images, theirs) in zip(self.student.mapped, self.frozen, strict=True):
            grid = theirs.shape[1:3]
            if grid != self.grid:
                maps = patches.mT.unflatten(2, self.grid).float()
                patches = F.interpolate(maps, grid, mode="bilinear").flatten(2).mT
            found.append((images, their_images, patches, theirs.flatten(1, 2)))
        return found


class Term(nn.Module):
    """Base of the terms: ``value = term(outputs)``, a scalar without its weight.

    ``measurements`` holds what the last call with ``outputs.measure`` found; it is logged as `health/NAME`.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.full_weight = weight
        self.measurements: dict[str, Tensor] = {}

    def plan(self, steps: int) -> None:
        """Prepare for a training of this many optimiser steps."""

    def weight(self, step: int) -> float:
        """Return the factor of this term at a step."""
        return self.full_weight

    def before_step(self, step: int, teacher: Backbone) -> None:
        """Prepare for the first micro-batch of a step."""

    def after_step(self) -> None:
        """Update the state of the term after the optimiser's step."""

    def schedule(self, step: int, steps_per_epoch: int) -> dict[str, float]:
        """Return scheduled numbers of a step, for the log."""
        return {}


class Targets(nn.Module):
    """Turns the teacher's logits into targets, and accumulates the logits that move the centre after the step."""

    def __init__(self, prototypes: int, options: TeacherOptions) -> None:
        super().__init__()
        self.options = options
        self.centering: Centering = (
            SinkhornKnopp() if options.centering == "sinkhorn" else Center(prototypes, options.center_momentum)
        )
        self.statistics = TargetStatistics(prototypes)

    def temperature(self, step: int, steps_per_epoch: int) -> float:
        """Return the teacher's temperature at a step."""
        o = self.options
        start, final, epochs = o.warmup_temperature, o.temperature, o.warmup_temperature_epochs
        if o.temperature_moves == "epoch":
            return Linear(start, final, epochs)(step // steps_per_epoch)
        return Linear(start, final, epochs * steps_per_epoch)(step)

    def forward(self, logits: Tensor, step: int, steps_per_epoch: int) -> Tensor:
        targets = self.centering(logits, self.temperature(step, steps_per_epoch))  # N, K
        self.centering.accumulate(logits)
        return targets

    @property
    def center(self) -> Tensor | None:
        """The moving mean of the logits; None for Sinkhorn-Knopp, which has none."""
        return self.centering.center if isinstance(self.centering, Center) else None


class DINOTerm(Term):
    """Class tokens: each crop of the student predicts the teacher's target of every other global crop.

    ``mean over t != v of  -sum_k p_t[k] log softmax(s_v / T)[k]``, with p_t the centred (DINO) or Sinkhorn-Knopp
    (DINOv2) target of global crop t and s_v the student's logits of crop v; see `DINOLoss`.
    Caron et al., 2021, equations 1 to 4. Weight: constant.
    Logs the entropies of targets, the use of prototypes, the KL divergence of student and teacher, the spread and rank
    of features, and the norm of the centre or the error of Sinkhorn-Knopp.
    """

    def __init__(self, options: DINOOptions, prototypes: int, targets: TeacherOptions) -> None:
        super().__init__(options.weight)
        self.local_weight = options.local_weight
        self.targets = Targets(prototypes, targets)
        self.loss = DINOLoss(targets.student_temperature)

    def forward(self, outputs: StepOutputs) -> Tensor:
        assert outputs.teacher is not None
        targets = self.targets(outputs.teacher.logits, outputs.step, outputs.steps_per_epoch)  # 2*B, K
        value = self.loss(outputs.student.logits, targets, local_weight=self.local_weight)
        if outputs.measure:
            features = outputs.student.features[: outputs.global_crops].detach()
            mean_over_pairs = value.detach() if self.local_weight == 1 else None
            self.measurements = measure(
                self.targets.statistics, targets, mean_over_pairs, features, self.targets.center
            )
            if self.targets.options.centering == "sinkhorn":
                self.measurements["sinkhorn_error"] = marginal_error(targets)
        return value

    def after_step(self) -> None:
        self.targets.centering.step()

    def schedule(self, step: int, steps_per_epoch: int) -> dict[str, float]:
        return {"teacher_temperature": self.targets.temperature(step, steps_per_epoch)}


class IBOTTerm(Term):
    """Masked patches: the student, which sees a mask token, predicts the teacher's target of the same patch.

    ``1 / (2*B) sum_i w_i * -sum_k p_i[k] log softmax(s_i / T)[k]`` over masked patches i, with w_i one over the number
    of masked patches in the same crop; see `IBOTLoss`. Targets are made as for class tokens, with a state of their own.
    Zhou et al., 2022, equation 2. Weight: constant. Logs the same as `DINOTerm` without the features, as `patch_NAME`.
    """

    def __init__(self, weight: float, prototypes: int, targets: TeacherOptions) -> None:
        super().__init__(weight)
        self.targets = Targets(prototypes, targets)
        self.loss = IBOTLoss(targets.student_temperature)

    def forward(self, outputs: StepOutputs) -> Tensor:
        assert outputs.teacher is not None
        student, teacher, masked = outputs.student.patch_logits, outputs.teacher.patch_logits, outputs.masked
        assert student is not None
        assert teacher is not None
        assert masked is not None
        targets = self.targets(teacher, outputs.step, outputs.steps_per_epoch)  # M, K
        value = self.loss(student, targets, masked.weights, outputs.global_crops)
        if outputs.measure:
            self.measurements = self._measure(targets, value, masked.weights, outputs.global_crops)
        return value

    def _measure(self, targets: Tensor, value: Tensor, weights: Tensor, crops: int) -> dict[str, Tensor]:
        """Return the measurements; none if no patch is masked."""
        found = {}
        if self.targets.options.centering == "sinkhorn":
            found["patch_sinkhorn_error"] = marginal_error(targets)  # first: every process takes part
        if len(targets) == 0:
            return {}
        found |= {f"patch_{name}": number for name, number in self.targets.statistics(targets).items()}
        fraction = weights.sum() / crops  # of crops that have a masked patch
        teacher_entropy = (weights * entropies(targets)).sum() / weights.sum()
        found["patch_kl"] = kl_divergence(value.detach() / fraction, teacher_entropy)
        if self.targets.center is not None:
            found["patch_center_norm"] = self.targets.center.norm()
        return found

    def after_step(self) -> None:
        self.targets.centering.step()

    def schedule(self, step: int, steps_per_epoch: int) -> dict[str, float]:
        """Return the teacher's temperature for patches."""
        return {"patch_teacher_temperature": self.targets.temperature(step, steps_per_epoch)}


class KoLeoTerm(Term):
    """KoLeo of the student's class tokens x before the head, summed over the two global crops.

    ``-mean_i log |x_i - x_nearest(i)|`` of x on the unit sphere, within each crop; see `KoLeoLoss`.
    Sablayrolles et al., 2019; Oquab et al., "DINOv2", 2023. No targets. Weight: constant. Logs nothing but its loss.
    """

    def __init__(self, options: KoLeoOptions) -> None:
        super().__init__(options.weight)
        self.loss = KoLeoLoss(options.group, options.distributed)

    def forward(self, outputs: StepOutputs) -> Tensor:
        first, second = outputs.student.features[: outputs.global_crops].chunk(VIEWS)  # each B, D
        return self.loss(first) + self.loss(second)


class GramTerm(Term):
    """Gram anchor: the student's similarities between patches stay those of the Gram teacher, an earlier teacher.

    ``mean (X X^T - Y Y^T)^2``, with unit-length patch features X of the student and Y of the Gram teacher, both of the
    last block after its norm; see `GramLoss`. Y may come from larger crops: bicubic interpolation reduces it to the
    student's grid. Simeoni et al., "DINOv3", 2025, section 4.
    Weight: 0 before step `start`, then warm-up and cosine. Logs gram_drift, the root of the loss.
    """

    def __init__(self, options: GramOptions, backbone: Backbone, given: bool) -> None:
        """Copy `backbone`; `given`: it is the Gram teacher already, and no copy is made at step `start`."""
        super().__init__(options.weight)
        self.options, self.given = options, given
        self.teacher = copy.deepcopy(backbone).freeze()
        self.loss = GramLoss(options.level, options.negatives)
        self._weight: Cosine | None = None

    def plan(self, steps: int) -> None:
        """Schedule the weight from `start` to the end."""
        o = self.options
        if o.start >= steps:
            raise ValueError(
                f"gram.start={o.start} is never reached by a run of {steps} steps; lower it, or set gram.weight to 0"
            )
        final = o.weight if o.final_weight is None else o.final_weight
        self._weight = Cosine(o.weight, final, steps - o.start, min(o.warmup_steps, steps - o.start))

    def weight(self, step: int) -> float:
        """Return the scheduled factor; 0 before `start`."""
        if step < self.options.start:
            return 0.0
        return self.full_weight if self._weight is None else self._weight(step - self.options.start)

    def before_step(self, step: int, teacher: Backbone) -> None:
        """Copy the teacher at `start`, unless the Gram teacher was given, and at every refresh."""
        after, every = step - self.options.start, self.options.refresh_every
        first = after == 0 and not self.given
        again = every > 0 and after > 0 and after % every == 0 and after // every <= self.options.refreshes
        if first or again:
            with torch.no_grad():
                for mine, theirs in zip(self.teacher.parameters(), teacher.parameters(), strict=True):
                    mine.copy_(theirs)

    def forward(self, outputs: StepOutputs) -> Tensor:
        if outputs.step < self.options.start:
            self.measurements = {}
            return outputs.student.features.new_zeros(())
        assert outputs.student.patches is not None
        value = self.loss(outputs.student.patches, self._targets(outputs), self._mask(outputs))
        if outputs.measure:
            self.measurements = {"gram_drift": value.detach().sqrt()}
        return value

    @torch.no_grad()
    def _targets(self, outputs: StepOutputs) -> Tensor:
        """Return features (2*B, h*w, D) of the Gram teacher on the student's grid."""
        images = torch.cat(list(outputs.gram_crops))
        images = self.teacher.normalise(images) if images.dtype == torch.uint8 else images
        maps = self.teacher(images, layers="last", norm=True).maps[-1]
        if tuple(maps.shape[-2:]) != outputs.grid:
            maps = F.interpolate(maps.float(), outputs.grid, mode="bicubic", antialias=self.options.antialias)
        return maps.flatten(2).mT

    def _mask(self, outputs: StepOutputs) -> Tensor | None:
        if self.options.tokens == "all":
            return None
        assert outputs.masked is not None
        assert outputs.masked.masks is not None
        return outputs.masked.masks if self.options.tokens == "masked" else ~outputs.masked.masks

    def schedule(self, step: int, steps_per_epoch: int) -> dict[str, float]:
        return {"gram_weight": self.weight(step)}


class FrozenTeacherTerm(Term):
    """Base of the terms of frozen teachers: a mean over teachers, by their weights.

    Logs the cosine of the mapped features to the teachers' (`image_cosine`, `patch_cosine`, and with a number for each
    further teacher), and the spread and rank of the student's features.
    """

    def __init__(self, weight: float, teachers: Sequence[FrozenTeacher]) -> None:
        super().__init__(weight)
        total = sum(teacher.weight for teacher in teachers)
        self.shares = [teacher.weight / total for teacher in teachers]

    def forward(self, outputs: StepOutputs) -> Tensor:
        pairs = outputs.pairs()
        if outputs.measure:
            features = outputs.student.features[: outputs.global_crops].detach()
            self.measurements = {"feature_std": feature_std(features), "effective_rank": effective_rank(features)}
            for number, (images, their_images, patches, theirs) in enumerate(pairs, start=1):
                suffix = "" if number == 1 else f"_{number}"
                for name, x, y in (("image", images, their_images), ("patch", patches, theirs)):
                    cosine = F.cosine_similarity(x.detach().float(), y.float(), dim=-1).mean()
                    self.measurements[f"{name}_cosine{suffix}"] = cosine
        values = [
            share * self.compare(n, *pair) for n, (share, pair) in enumerate(zip(self.shares, pairs, strict=True))
        ]
        return torch.stack(values).sum()

    def compare(self, number: int, images: Tensor, their_images: Tensor, patches: Tensor, theirs: Tensor) -> Tensor:
        """Return the loss for one teacher: see `StepOutputs.pairs`."""
        raise NotImplementedError


class FeatureTerm(FrozenTeacherTerm):
    """Frozen teachers' features: the student predicts them through a linear map, on the teacher's grid.

    ``a L(class tokens) + b L(patches)`` with L of `FeatureLoss`: one minus the cosine, or smooth L1. Weight: constant.
    """

    def __init__(self, options: FeatureOptions, teachers: Sequence[FrozenTeacher]) -> None:
        super().__init__(options.weight, teachers)
        self.options, self.loss = options, FeatureLoss(options.loss)

    def compare(self, number: int, images: Tensor, their_images: Tensor, patches: Tensor, theirs: Tensor) -> Tensor:
        o = self.options
        return o.image_weight * self.loss(images, their_images) + o.patch_weight * self.loss(patches, theirs)


class RelationTerm(FrozenTeacherTerm):
    """Frozen teachers' similarities: of class tokens to a queue of the teacher's, and among the patches of an image.

    ``KL(images to queue) + b KL(patches to patches)`` with the divergence of `RelationLoss`. The queue holds class
    tokens of earlier steps, of all processes; while it is empty, the first part is 0. `open_queues` makes those whose
    length depends on the number of images. Weight: constant.
    """

    filled: Tensor  # number of vectors that ever entered a queue

    def __init__(self, options: RelationOptions, teachers: Sequence[FrozenTeacher], dims: Sequence[int]) -> None:
        super().__init__(options.weight, teachers)
        self.options, self.loss = options, RelationLoss(options.temperature)
        for number, dim in enumerate(dims):
            self.register_buffer(f"queue_{number}", torch.zeros(options.queue or 0, dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._new: dict[int, list[Tensor]] = {}

    def open_queues(self, images: int) -> None:
        """Give the queues the length for this number of images, where the options leave it open."""
        length = next((length for more, length in QUEUES if images < more), LONGEST)
        for name, queue in list(self.named_buffers()):
            if name != "filled" and not len(queue):
                self.register_buffer(name, queue.new_zeros(length, queue.shape[1]))

    def compare(self, number: int, images: Tensor, their_images: Tensor, patches: Tensor, theirs: Tensor) -> Tensor:
        self._new.setdefault(number, []).append(their_images.detach().float())
        value = self.options.patch_weight * self.loss(patches, theirs, patches, theirs)
        queue = self.get_buffer(f"queue_{number}")[: int(self.filled)]
        return value + (self.loss(images, their_images, queue, queue) if len(queue) else 0.0 * images.sum())

    def after_step(self) -> None:
        for number, new in self._new.items():
            queue = self.get_buffer(f"queue_{number}")
            vectors = gathered(torch.cat(new))[-len(queue) :]
            places = (self.filled + torch.arange(len(vectors), device=vectors.device)) % len(queue)
            queue[places] = vectors
        if self._new:
            self.filled += len(vectors)
        self._new = {}


class GuidesTerm(Term):
    """Metadata: guides predict columns from the student's class tokens, before the projection head.

    ``sum over columns of mean(cross-entropy or squared error)`` over the crops whose image has a value. A guide learns
    from its own loss at full weight. At the class token its gradient is brought to the geometric mean of the norms of
    all guides' gradients, then multiplied by lambda, and for a column to forget by -0.1 lambda (`forget_weight`):
    ``lambda = 2 / (1 + exp(-10 p)) - 1``, with p the progress after the warm-up. FINO, 2026; the reversal is that of
    Ganin et al., "Domain-adversarial training of neural networks", 2016. Weight: constant. Logs for each column
    guide_NAME_accuracy without dropout (numbers: guide_NAME_error, within 0 to 1) and guide_NAME_chance.
    """

    def __init__(self, options: GuideOptions, columns: Sequence[Column], dim: int, warmup_steps: int) -> None:
        super().__init__(options.weight)
        self.options, self.columns = options, columns
        self.heads = build_guides(options, columns, dim)
        self.warmup_steps = warmup_steps if options.warmup_steps is None else options.warmup_steps
        self._steps = self.warmup_steps + 1
        signs = [-options.forget_weight if c.name in options.forget else 1.0 for c in columns]
        own = [sign * options.weights.get(c.name, 1.0) for sign, c in zip(signs, columns, strict=True)]
        self.register_buffer("factors", torch.tensor(own), persistent=False)

    def plan(self, steps: int) -> None:
        """Schedule the gradients up to the end."""
        if (self.options.warmup_steps or 0) >= steps:  # a run that is all warm-up by its learning rate has a warning
            raise ValueError(
                f"guides.warmup_steps={self.warmup_steps}: guides would never move the backbone in a run of {steps} "
                "steps; lower it, or set it to null for the warm-up of the learning rate"
            )
        self._steps = steps

    def strength(self, step: int) -> float:
        """Return lambda, the factor of all gradients that reach the backbone."""
        progress = max(0.0, (step - self.warmup_steps) / max(self._steps - self.warmup_steps, 1))
        return 2 / (1 + math.exp(-self.options.ramp * progress)) - 1

    def forward(self, outputs: StepOutputs) -> Tensor:
        assert outputs.metadata is not None
        features, crops = outputs.student.features, outputs.global_crops
        tokens = features if self.options.views == "all" else features[:crops]
        metadata = outputs.metadata.repeat(len(tokens) // len(outputs.metadata), 1)  # crop-major, as tokens are
        branches = tokens.expand(len(self.heads), *tokens.shape)  # G, N, D
        factors = self.get_buffer("factors") * self.strength(outputs.step)
        if branches.requires_grad:
            branches.register_hook(lambda gradients: scaled_gradients(gradients, factors, self.options.equalise))
        values = []
        for place, (head, column) in enumerate(zip(self.heads, self.columns, strict=True)):
            known = ~metadata[:, place].isnan()
            targets = metadata[:, place].nan_to_num(0.0)
            losses, _ = head(branches[place], targets)
            # by their expected number, so that a row counts the same in every micro-batch and process
            values.append(torch.where(known, losses, 0.0).sum() / (len(known) * column.share))
            if isinstance(head, PrototypeGuide):
                assert outputs.teacher is not None
                head.accumulate(outputs.teacher.features[:crops], targets[:crops], known[:crops])
        if outputs.measure:
            self.measurements = self._measure(tokens.detach(), metadata)
        return torch.stack(values).sum()

    @torch.no_grad()
    def _measure(self, tokens: Tensor, metadata: Tensor) -> dict[str, Tensor]:
        found = {}
        for place, (head, column) in enumerate(zip(self.heads, self.columns, strict=True)):
            known = ~metadata[:, place].isnan()
            _, hits = head.eval()(tokens, metadata[:, place].nan_to_num(0.0))  # of all, as every process takes part
            head.train()
            if known.any():
                name = f"guide_{metric_name(column.name)}"
                found[f"{name}_{'accuracy' if column.classes else 'error'}"] = hits[known].mean()
                found[f"{name}_chance"] = hits.new_tensor(column.chance)
        return found

    def after_step(self) -> None:
        for head in self.heads:
            if isinstance(head, PrototypeGuide):
                head.after_step()

    def schedule(self, step: int, steps_per_epoch: int) -> dict[str, float]:
        return {"guides_strength": self.strength(step)}


def build_terms(recipe: Recipe, backbone: Backbone, teachers: Sequence[Backbone] = ()) -> nn.ModuleDict:
    """Return the objective: the class-token term, and every other one whose weight is not 0.

    The class-token term is left out where frozen teachers alone make the targets.
    """
    terms: dict[str, Term] = {}
    if recipe.has_prototypes:
        terms["dino"] = DINOTerm(recipe.dino, recipe.head.out_dim, recipe.teacher)
    if recipe.ibot.weight:
        terms["ibot"] = IBOTTerm(recipe.ibot.weight, recipe.patch_prototypes, recipe.patch_targets)
    if recipe.koleo.weight:
        terms["koleo"] = KoLeoTerm(recipe.koleo)
    if recipe.gram.weight:
        given = recipe.gram.teacher
        terms["gram"] = GramTerm(recipe.gram, backbone if given is None else gram_teacher(given), given is not None)
    frozen = recipe.teacher.frozen
    if recipe.features.weight:
        terms["features"] = FeatureTerm(recipe.features, frozen)
    if recipe.relations.weight:
        terms["relations"] = RelationTerm(recipe.relations, frozen, [teacher.spec.dim for teacher in teachers])
    return nn.ModuleDict(terms)
