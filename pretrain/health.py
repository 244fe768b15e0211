"""The health of a training: measurements of targets and features, and the recognition of known failures."""

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
    """Return the entropies (...), in nats, of distributions (..., K)."""
    return torch.special.entr(targets.float()).sum(-1)


def entropy(targets: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of distributions (..., K)."""
    return entropies(targets).mean()


def marginal_error(targets: Tensor) -> Tensor:
    """Return the total variation between the mean target and equal use of all prototypes, over all processes.

    It is 0 when Sinkhorn-Knopp has converged, and close to 1 when few prototypes are used. targets (N, K); N may be 0.
    """
    count = torch.full((1,), len(targets), device=targets.device)
    both = torch.cat((targets.sum(0, dtype=torch.float32), count))
    if is_distributed():
        distributed.all_reduce(both)
    return (both[:-1] / both[-1].clamp(min=1) - 1 / targets.shape[1]).abs().sum() / 2


def kl_divergence(cross_entropy: Tensor, teacher_entropy: Tensor) -> Tensor:
    """Return the mean ``KL(teacher || student)`` over pairs of views: the loss minus the entropy of its targets."""
    return cross_entropy - teacher_entropy


def feature_std(features: Tensor) -> Tensor:
    """Return the spread of features (N, D) on the unit sphere: standard deviation over N, mean over D, times √D.

    It is 1 for uniform directions and 0 when all images have the same feature.
    """
    directions = F.normalize(features.float(), dim=1)
    return directions.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank of features (N, D): the exponential of the entropy of their singular values.

    It is NaN if the features are not finite. Roy and Vetterli, "The effective rank: a measure of effective
    dimensionality", 2007.
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
    """Statistics of the targets over prototypes, in the recent steps of this process.

    - ``teacher_entropy``: mean entropy of the targets.
    - ``marginal_entropy``: entropy of the mean target, a moving average so that small batches suffice.
    - ``prototype_usage``: fraction of the K prototypes that had the largest probability for a sample within ``window``
      updates. It cannot exceed the number of samples in the window over K.
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
        """Update with targets (N, K) and return the three statistics, scalars on the device."""
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
    """A recognised failure: its kind, what was measured, and what to try."""

    kind: str
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message} {self.advice}"


class TrainingFailed(ValueError):
    """A failure ended the run; its last checkpoint was written before."""


@dataclass(frozen=True)
class _Symptom:
    kind: str
    present: Callable[[Mapping[str, float], float], bool]  # given the measurements and log K
    message: str
    advice: str
    of_patches: bool = False  # K is that of the patch head


# Only the first of several symptoms is reported; those after it are often its consequences.
_COLLAPSES = (
    _Symptom(
        kind="collapse_to_point",
        present=lambda found, most: (
            max(found.get("teacher_entropy", most), found.get("marginal_entropy", most)) < 0.05 * most
        ),
        message="Collapse to one point: the teacher gives every image the same prototype "
        "(target entropy {teacher_entropy:.3g}, entropy of the mean target {marginal_entropy:.3g}, both near 0).",
        advice="Centring is too weak for this much sharpening. Check that the centre is updated after every step "
        "(momentum 0.9), raise the teacher temperature a little (at most to 0.07), and lower the learning rate.",
    ),
    _Symptom(
        kind="collapse_to_uniform",
        present=lambda found, most: found.get("teacher_entropy", 0.0) > 0.99 * most,
        message="Collapse to uniform: the teacher has no preference among prototypes "
        "(target entropy {teacher_entropy:.3g}, its maximum log K is {most:.3g}).",
        advice="Sharpening is too weak for this much centring. Lower the teacher temperature (0.04, or 0.02 for little "
        "data) or lengthen its warm-up; for small data use fewer prototypes (1024 to 4096) and a momentum of .99; and "
        "check that the teacher shares no storage with the student.",
    ),
    _Symptom(
        kind="feature_collapse",
        present=lambda found, most: found.get("feature_std", 1.0) < 0.1,
        message="Feature collapse: the backbone gives nearly the same feature for every image "
        "(spread {feature_std:.3g}, healthy is near 1).",
        advice="Spread the features (--model.koleo.weight 0.1), lower the learning rate or lengthen its warm-up, check "
        "that the images differ and reach the network normalised, and start again, perhaps from the weights of an "
        "earlier checkpoint (--model.backbone.init_from).",
    ),
    _Symptom(
        kind="patch_collapse_to_point",
        present=lambda found, most: (
            max(found.get("patch_teacher_entropy", most), found.get("patch_marginal_entropy", most)) < 0.05 * most
        ),
        message="Collapse of the patch head to one point: the teacher gives every patch the same prototype "
        "(target entropy {patch_teacher_entropy:.3g}, of the mean target {patch_marginal_entropy:.3g}, both near 0).",
        advice="Use Sinkhorn-Knopp for patches (ibot.centering: sinkhorn) or raise ibot.temperature a little.",
        of_patches=True,
    ),
    _Symptom(
        kind="patch_collapse_to_uniform",
        present=lambda found, most: found.get("patch_teacher_entropy", 0.0) > 0.99 * most,
        message="Collapse of the patch head to uniform: the teacher has no preference among prototypes for any patch "
        "(target entropy {patch_teacher_entropy:.3g}, its maximum log K is {most:.3g}).",
        advice="Lower ibot.temperature, use fewer prototypes in ibot.head, or ibot.centering: sinkhorn.",
        of_patches=True,
    ),
    _Symptom(
        kind="gram_drift",
        present=lambda found, most: found.get("gram_drift", 0.0) > 0.5,
        message="The similarities between patches have drifted from the Gram teacher's: they differ by "
        "{gram_drift:.3g} (root mean square).",
        advice="Raise gram.weight, lower the learning rate, or check that gram.teacher is of the same backbone and "
        "run.",
    ),
)


class HealthMonitor:
    """Recognises numbers that are not finite, and the known collapses, in the measurements of successive steps.

    An untrained teacher is close to uniform, so a collapse is reported only after ``warmup_steps`` and ``patience``
    updates in a row; what is not finite is reported at once. ``history`` holds the last ``window`` updates.
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
        """Add the measurements of a step; return a diagnosis when one is first recognised, else None.

        The same diagnosis returns only after its symptom was absent. All tensors are fetched in one transfer.
        """
        found = _fetch(values)
        self.history.append({"step": float(step)} | found)
        broken = [name for name, value in found.items() if not math.isfinite(value)]
        if self._lasts("not_finite", bool(broken), patience=1):
            return not_finite(step, broken)
        diagnosis = None
        for symptom in _COLLAPSES:
            most = self.most_of_patches if symptom.of_patches else self.most
            present = not broken and step >= self.warmup_steps and symptom.present(found, most)
            if self._lasts(symptom.kind, present, self.patience) and diagnosis is None:
                message = f"Step {step}: " + symptom.message.format(most=most, **found)
                diagnosis = Diagnosis(symptom.kind, message, symptom.advice)
        return diagnosis

    def _lasts(self, kind: str, present: bool, patience: int) -> bool:
        """Return whether the symptom is present for the ``patience``-th time in a row."""
        self._streaks[kind] = self._streaks[kind] + 1 if present else 0
        return self._streaks[kind] == patience


def not_finite(step: int, names: list[str]) -> Diagnosis:
    """Return the diagnosis of values that are NaN or infinite."""
    return Diagnosis(
        "not_finite",
        f"Step {step}: NaN or infinity in {', '.join(names)}.",
        "Start again in another --output with a lower learning rate or stronger clipping (0.3 to 1), perhaps from the "
        "weights of the last checkpoint (--model.backbone.init_from RUN/checkpoints/last.ckpt). If it happens in fp16, "
        "use bf16 or fp32, above all with patches of 8 pixels.",
    )


def _fetch(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    tensors = {name: value.detach().float() for name, value in values.items() if isinstance(value, Tensor)}
    fetched = torch.stack(list(tensors.values())).tolist() if tensors else []
    return {name: value for name, value in values.items() if not isinstance(value, Tensor)} | dict(
        zip(tensors, fetched, strict=True)
    )
