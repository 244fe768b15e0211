"""Is training well? Measurements of targets and features, and the recognition of the known ways to fail."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pretrain.sharding import is_distributed


def entropies(targets: Tensor) -> Tensor:
    """Entropies (...), in nats, of distributions (..., K)."""
    return torch.special.entr(targets.float()).sum(-1)


def entropy(targets: Tensor) -> Tensor:
    """Mean entropy, in nats, of distributions (..., K)."""
    return entropies(targets).mean()


def marginal_error(targets: Tensor) -> Tensor:
    """How far Sinkhorn-Knopp is from convergence: total variation between the mean target and equal use of prototypes.

    0 when it has converged, towards 1 when few prototypes get all. targets (N, K), over all processes; N may be 0.
    """
    count = torch.full((1,), len(targets), device=targets.device)
    both = torch.cat((targets.sum(0, dtype=torch.float32), count))
    if is_distributed():
        distributed.all_reduce(both)
    return (both[:-1] / both[-1].clamp(min=1) - 1 / targets.shape[1]).abs().sum() / 2


def kl_divergence(cross_entropy: Tensor, teacher_entropy: Tensor) -> Tensor:
    """Mean ``KL(teacher || student)`` over the pairs of views: the DINO loss less the entropy of its targets."""
    return cross_entropy - teacher_entropy


def feature_std(features: Tensor) -> Tensor:
    """Spread of features (N, D) on the unit sphere: standard deviation over the batch, mean over dimensions, times √D.

    1 for directions without preference, 0 when all images have the same feature.
    """
    directions = F.normalize(features.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """Number of dimensions that features (N, D) make use of: exponential of the entropy of their singular values.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", 2007. NaN if the features are not
    finite.
    """
    finite = features.isfinite().all()
    matrix = torch.where(finite, features, 1).double()
    if len(matrix) > matrix.shape[1]:
        matrix = matrix.T
    singular = torch.linalg.eigvalsh(matrix @ matrix.T).clamp(min=0).sqrt()  # the shorter side: min(N, D)
    shares = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.special.entr(shares).sum().exp().float()
    return torch.where(finite, rank, torch.nan)


class TargetStatistics(nn.Module):
    """How the targets are spread over prototypes, over the recent steps of this process.

    - ``teacher_entropy``: mean entropy of a target.
    - ``marginal_entropy``: entropy of the mean target, a moving average so that small batches will do.
    - ``prototype_usage``: share of the K prototypes that were the first choice of a sample within ``window`` updates.
      It cannot exceed the number of samples in the window over K.
    """

    mean_target: Tensor
    last_seen: Tensor

    def __init__(self, prototypes: int, window: int = 100, momentum: float = 0.9) -> None:
        super().__init__()
        self.window, self.momentum, self.updates = window, momentum, 0
        self.register_buffer("mean_target", torch.zeros(prototypes), persistent=False)
        self.register_buffer("last_seen", torch.full((prototypes,), -1), persistent=False)

    @torch.no_grad()
    def forward(self, targets: Tensor) -> dict[str, Tensor]:
        """The three statistics, as scalars on the device, including targets (N, K)."""
        self.mean_target.lerp_(targets.float().mean(0), 1 - self.momentum if self.updates else 1.0)
        self.last_seen[targets.argmax(dim=1)] = self.updates
        self.updates += 1
        used = (self.last_seen >= 0) & (self.last_seen >= self.updates - self.window)
        return {
            "teacher_entropy": entropy(targets),
            "marginal_entropy": entropy(self.mean_target),
            "prototype_usage": used.float().mean(),
        }


@torch.no_grad()
def measure(
    statistics: TargetStatistics,
    targets: Tensor,
    cross_entropy: Tensor | None = None,
    features: Tensor | None = None,
    center: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the measurements of one step as scalars on the device; only `effective_rank` synchronises with it.

    targets (N, K); cross_entropy: mean over the pairs of views, which gives `kl`; features (N, D) of the backbone;
    center: of the teacher's logits.
    """
    values = statistics(targets)
    if cross_entropy is not None:
        values["kl"] = kl_divergence(cross_entropy.detach().float(), values["teacher_entropy"])
    if features is not None:
        values |= {"feature_std": feature_std(features), "effective_rank": effective_rank(features)}
    if center is not None:
        values["center_norm"] = torch.linalg.vector_norm(center)
    return values


@dataclass(frozen=True)
class Diagnosis:
    """A recognised failure: what it is called, what was seen, and what to try."""

    kind: str
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"


class TrainingFailed(ValueError):
    """A failure that ends a run; its last checkpoint is of before."""


@dataclass(frozen=True)
class _Symptom:
    kind: str
    present: Callable[[Mapping[str, float], float], bool]  # of the measurements and log K
    message: str
    advice: str
    of_patches: bool = False  # K is that of the patch head


# The first symptom that lasts names the illness; those after it are often its consequences.
_COLLAPSES = (
    _Symptom(
        kind="collapse_to_point",
        present=lambda seen, most: max(seen["teacher_entropy"], seen["marginal_entropy"]) < 0.05 * most,
        message="Collapse to one point: the teacher gives every image the same prototype "
        "(target entropy {teacher_entropy:.3g}, entropy of the mean target {marginal_entropy:.3g}, both near 0).",
        advice="Centring is too weak for this much sharpening. Check that the centre is updated after every step "
        "(momentum 0.9), raise the teacher temperature a little (at most to 0.07), and lower the learning rate.",
    ),
    _Symptom(
        kind="collapse_to_uniform",
        present=lambda seen, most: seen["teacher_entropy"] > 0.99 * most,
        message="Collapse to uniform: the teacher has no preference among prototypes "
        "(target entropy {teacher_entropy:.3g}, its maximum log K is {most:.3g}).",
        advice="Sharpening is too weak for this much centring. Lower the teacher temperature (0.04, or 0.02 for little "
        "data) or lengthen its warm-up; for small data use fewer prototypes (1024 to 8192) and a momentum of .99; and "
        "check that the teacher shares no storage with the student.",
    ),
    _Symptom(
        kind="feature_collapse",
        present=lambda seen, most: seen.get("feature_std", 1.0) < 0.1,
        message="Feature collapse: the backbone gives nearly the same feature for every image "
        "(spread {feature_std:.3g}, healthy is near 1).",
        advice="Spread the features (--model.koleo.weight 0.1), lower the learning rate or lengthen its warm-up, check that the "
        "images differ and reach the network normalised, and start again, perhaps from the weights of a checkpoint of before (--model.backbone.init_from).",
    ),
    _Symptom(
        kind="patch_collapse_to_point",
        present=lambda seen, most: (
            max(seen.get("patch_teacher_entropy", most), seen.get("patch_marginal_entropy", most)) < 0.05 * most
        ),
        message="Collapse of the patch head to one point: the teacher gives every patch the same prototype "
        "(target entropy {patch_teacher_entropy:.3g}, of the mean target {patch_marginal_entropy:.3g}, both near 0).",
        advice="Use Sinkhorn-Knopp for patches (ibot.centering: sinkhorn) or raise ibot.temperature a little.",
        of_patches=True,
    ),
    _Symptom(
        kind="patch_collapse_to_uniform",
        present=lambda seen, most: seen.get("patch_teacher_entropy", 0.0) > 0.99 * most,
        message="Collapse of the patch head to uniform: the teacher has no preference among prototypes for any patch "
        "(target entropy {patch_teacher_entropy:.3g}, its maximum log K is {most:.3g}).",
        advice="Lower ibot.temperature, use fewer prototypes in ibot.head, or ibot.centering: sinkhorn.",
        of_patches=True,
    ),
    _Symptom(
        kind="gram_drift",
        present=lambda seen, most: seen.get("gram_drift", 0.0) > 0.5,
        message="The patches' similarities have left the Gram teacher's: they differ by {gram_drift:.3g} (root mean square).",
        advice="Raise gram.weight, lower the learning rate, or check that gram.teacher is of the same backbone and run.",
    ),
)


class HealthMonitor:
    """Recognises, in the measurements of successive steps, numbers that are not finite and the known collapses.

    An untrained teacher is close to uniform, so a collapse counts only after ``warmup_steps`` and when it shows in
    ``patience`` updates on end; what is not finite counts at once. ``history`` holds the last ``window`` updates.
    The two collapses of targets: Caron et al., 2021, section 5.3 and figure 7.
    """

    def __init__(
        self,
        prototypes: int,
        warmup_steps: int = 1000,
        patience: int = 20,
        window: int = 100,
        patch_prototypes: int = 2,
    ) -> None:
        for name, number in (("prototypes", prototypes), ("patch_prototypes", patch_prototypes)):
            if number < 2:
                raise ValueError(f"{name}={number}: expected at least 2")
        self.warmup_steps, self.patience = warmup_steps, patience
        self.most, self.most_of_patches = math.log(prototypes), math.log(patch_prototypes)
        self.history: deque[dict[str, float]] = deque(maxlen=window)
        self._streaks = {symptom.kind: 0 for symptom in _COLLAPSES} | {"not_finite": 0}

    def update(self, step: int, values: Mapping[str, Tensor | float]) -> Diagnosis | None:
        """Take in what ``measure`` returned at a step; a diagnosis when one is first recognised, else None.

        It is given again only after the symptom has gone and come back. All tensors are fetched in one transfer.
        """
        seen = _fetch(values)
        self.history.append({"step": float(step)} | seen)
        broken = [name for name, value in seen.items() if not math.isfinite(value)]
        if self._lasts("not_finite", bool(broken), patience=1):
            return not_finite(step, broken)
        found = None
        for symptom in _COLLAPSES:
            most = self.most_of_patches if symptom.of_patches else self.most
            present = not broken and step >= self.warmup_steps and symptom.present(seen, most)
            if self._lasts(symptom.kind, present, self.patience) and found is None:
                message = f"Step {step}: " + symptom.message.format(most=most, **seen)
                found = Diagnosis(symptom.kind, message, symptom.advice)
        return found

    def _lasts(self, kind: str, present: bool, patience: int) -> bool:
        """Whether the symptom has just been present for the ``patience``-th time on end."""
        self._streaks[kind] = self._streaks[kind] + 1 if present else 0
        return self._streaks[kind] == patience


def not_finite(step: int, names: list[str]) -> Diagnosis:
    """Of what is NaN or infinite, by name."""
    return Diagnosis(
        "not_finite",
        f"Step {step}: NaN or infinity in {', '.join(names)}.",
        "Start again in another --output with a lower learning rate or stronger clipping (0.3 to 1), perhaps from the weights "
        "of the last checkpoint (--model.backbone.init_from RUN/checkpoints/last.ckpt). If it happens in fp16, use bf16 or "
        "fp32, above all with patches of 8 pixels.",
    )


def _fetch(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    tensors = {name: value.detach().float() for name, value in values.items() if isinstance(value, Tensor)}
    fetched = torch.stack(list(tensors.values())).tolist() if tensors else []
    return {name: value for name, value in values.items() if not isinstance(value, Tensor)} | dict(
        zip(tensors, fetched, strict=True)
    )
