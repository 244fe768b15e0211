"""k-NN, linear and fine-tuned classification of a pair of sets, each with its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dense.backbone import Backbone
from dense.evaluate.classification.data import Pair, RandomCrop
from dense.evaluate.classification.extraction import Extraction, held_out
from dense.evaluate.classification.features import (
    PIXELS,
    READOUTS,
    Choice,
    Pooled,
    Readout,
    choices_of,
    final_norm,
    randomly_initialised,
    statistics,
)
from dense.evaluate.classification.finetune import FineTuneRecipe, classification_accuracy, fine_tune
from dense.evaluate.classification.knn import NEIGHBOURS, TEMPERATURE, Votes, accuracy, knn_classify
from dense.evaluate.classification.linear import RECIPES, LinearResult, linear_evaluation
from dense.evaluate.protocol import Protocol, Result
from dense.files import replacing

HOLDOUT = 0.1  # of the training images, on which the best of several layers, norms and readouts is chosen
Layers = Sequence[int | str] | int | str
Norms = Sequence[bool] | bool | str | None
Readouts = Sequence[Readout] | str | None


def measure_knn(
    backbone: Backbone,
    pair: Pair,
    *,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    layers: Layers = "last",
    norm: Norms = None,
    readout: Readouts = None,
    holdout: float | None = None,
    baselines: bool = False,
    cache: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 2,
) -> Result:
    """Weighted k-NN, for every combination of layers, norm and readout from one pass over the images.

    layers, norm, readout: one or several of each, or "all"; see `choices_of`. holdout: fraction of the training images
    on which the best of several combinations, and k, is chosen (a tenth if left out); 0 chooses on the validation set.
    baselines: also raw pixels and the same network with random initialisation, by each readout. cache: folder of
    features, which a second call reads.
    """
    choices = choices_of(backbone, layers, norm, readout)
    loading = {"batch_size": batch_size, "workers": workers}
    sources = {"": (Extraction.of(backbone, choices, cache, **loading), choices)}
    if baselines:
        fresh, every = randomly_initialised(backbone, seed), choices_of(backbone, layers, norm, "all")
        sources["random"] = (Extraction.of(fresh, every, cache, **loading), every)
        sources["pixels"] = (Extraction.of_pixels(**loading), [PIXELS])
    device = next(backbone.parameters()).device

    def votes(bank: Pooled, queries: Pooled, choice: Choice) -> dict[int, Votes]:
        assert bank.labels is not None
        ours, theirs = bank.readout(choice), queries.readout(choice)
        return knn_classify(ours, bank.labels, theirs, list(k), temperature, device=device)

    scores: dict[tuple[str, Choice], dict[str, float]] = {}
    judged: dict[tuple[Choice, int], float] = {}
    size = 0
    for name, (extraction, measured) in sources.items():
        bank = extraction(pair.train, pair.view, f"{name} features of train".strip())
        queries = extraction(pair.val, pair.view, f"{name} features of val".strip())
        size = len(bank)
        assert queries.labels is not None
        for choice in measured:
            found = votes(bank, queries, choice)
            scores[name, choice] = {
                f"top{top} k={n}": accuracy(vote, queries.labels, top) for n, vote in found.items() for top in (1, 5)
            }
        if name or len(choices) == 1:
            continue
        fraction = HOLDOUT if holdout is None else holdout
        if fraction:
            mask = held_out(bank.labels, fraction, seed)
            bank, queries = bank[~mask], bank[mask]
        assert queries.labels is not None
        for choice in choices:
            found = votes(bank, queries, choice)
            judged |= {(choice, n): accuracy(vote, queries.labels) for n, vote in found.items()}
    settings: dict[str, Any] = {"k": list(k), "temperature": temperature, "similarity": "cosine", "bank": size}
    if not judged:
        numbers: dict[str, Any] = dict(scores["", choices[0]])
        shown = f"top1 k={20 if 20 in k else k[0]}"
    else:
        (best, neighbours), score = max(judged.items(), key=lambda item: item[1])
        shown = f"top1 k={neighbours}"
        own = scores["", best]
        numbers = {"top1": own[shown], "top5": own[f"top5 k={neighbours}"], **_chosen(best), "k": neighbours}
        settings["choice"] = _where(fraction, seed)
        if fraction:
            numbers["held_out_top1"] = score
    table = _table(shown, {place: found[shown] for place, found in scores.items()}) if len(scores) > 1 else ""
    if judged:
        table += f"\nbest: {best}, k = {neighbours}, {settings['choice']}"
    if len(scores) > 1:
        numbers["scores"] = {
            f"{name}{'/' if name else ''}{choice}, {of}": value
            for (name, choice), found in scores.items() for of, value in found.items()
        }  # fmt: skip
    return _result("knn", backbone, pair, choices, settings, numbers, table)


def measure_linear(
    backbone: Backbone,
    pair: Pair,
    *,
    recipe: str = "dinov2",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    augment: bool = True,
    layers: Layers = "last",
    norm: Norms = None,
    readout: Readouts = None,
    holdout: float | None = None,
    baselines: bool = False,
    cache: str | Path | None = None,
    seed: int = 0,
    workers: int = 2,
) -> Result:
    """Linear classification by the recipe of DINO or DINOv2. epochs, steps: its length, instead of the recipe's.

    layers, norm, readout, holdout, baselines, cache: as of `measure_knn`. Without the first three, the recipe's
    readouts are trained and, as published, the best head on the validation set is reported. A cache needs
    augment=False, since features of random crops are never the same.
    """
    if cache is not None and augment:
        raise ValueError(
            "features of random crops cannot be cached; train on centre crops (--no-augment) or drop cache"
        )
    chosen = replace(RECIPES[recipe](backbone.spec), batch_size=batch_size, augment=augment)
    if epochs is not None or steps is not None:
        chosen = replace(chosen, epochs=epochs, steps=steps)
    swept = readout is not None or layers != "last" or norm is not None
    choices = choices_of(backbone, layers, norm, readout, chosen.readouts)
    fraction = (HOLDOUT if swept and len(choices) > 1 else 0.0) if holdout is None else holdout
    view = RandomCrop(pair.crop, resample=chosen.resample)

    def run(extraction: Extraction, kinds: Sequence[Choice] | None) -> LinearResult:
        return linear_evaluation(
            backbone, pair.train, pair.val, chosen, train_view=view, val_view=pair.view, seed=seed, workers=workers,
            choices=kinds, extraction=extraction, holdout=fraction,
        )  # fmt: skip

    result = run(Extraction.of(backbone, choices, cache, workers=workers), choices if swept else None)
    numbers: dict[str, Any] = {"top1": result.top1, "top5": result.top5}
    numbers |= _chosen(result.readout) if isinstance(result.readout, Choice) else {"readout": result.readout}
    numbers |= {"learning rate": result.learning_rate, "heads": result.heads}
    of_recipe = {choice.readout: choice for choice in choices}
    scores = {
        ("", kind if isinstance(kind, Choice) else of_recipe[kind]): value for kind, value in result.choices.items()
    }
    if baselines:
        fresh, every = randomly_initialised(backbone, seed), choices_of(backbone, layers, norm, "all")
        found = run(Extraction.of(fresh, every, cache, workers=workers), every)
        scores |= {("random", kind): value for kind, value in found.choices.items() if isinstance(kind, Choice)}
        pixels = run(Extraction.of_pixels(workers=workers), [PIXELS])
        scores["pixels", PIXELS] = pixels.top1
    where = _where(fraction, seed)
    settings = {
        "epochs": chosen.epochs, "steps": chosen.length(len(pair.train))[0], "batch_size": batch_size,
        "learning_rates_at_256": list(chosen.learning_rates), "momentum": 0.9, "weight_decay": 0.0,
        "schedule": f"cosine to 0, each {chosen.anneal}",
        "training_view": f"random crop and flip, {chosen.resample}" if augment else "as validation",
        "choice": (where if fraction else "best head on val") if len(result.heads) > 1 else "one head",
    }  # fmt: skip
    table = ""
    if fraction:
        numbers["held_out_top1"] = result.held_out
    if swept or baselines:
        numbers["scores"] = {f"{n}{'/' if n else ''}{choice}": value for (n, choice), value in scores.items()}
    if len(scores) > 1 and (swept or baselines):
        best = f"{result.readout}, learning rate {result.learning_rate:g}"
        table = f"{_table('top1', scores)}\nbest: {best}, {where}"
    return _result(f"linear-{chosen.name}", backbone, pair, choices, settings, numbers, table)


def measure_finetune(
    backbone: Backbone, pair: Pair, recipe: FineTuneRecipe, *, drop_path: float = 0.1, seed: int = 0,
    workers: int = 2, output: Path | None = None,
) -> Result:  # fmt: skip
    """Fine-tuning of the whole backbone. output: where the tuned backbone and the head are saved."""
    view = RandomCrop(pair.crop, resample="bicubic")
    classifier = fine_tune(backbone, pair.train, recipe, view=view, seed=seed, workers=workers)
    found = classification_accuracy(classifier, pair.val.batches(pair.view, 64, workers=workers), (1, 5))
    settings = vars(recipe) | {"drop_path": drop_path, "training_view": "random crop and flip, bicubic"}
    settings.pop("readout")
    if output is not None:
        backbone.save_pretrained(output / "backbone")
        tensors = {name: value.detach().cpu().contiguous() for name, value in classifier.head.state_dict().items()}
        metadata = {"classes": "\n".join(pair.train.classes), "readout": classifier.readout}
        with replacing(output / "head.safetensors", sum(tensor.nbytes for tensor in tensors.values())) as file:
            save_file(tensors, file, metadata=metadata)
    numbers = {f"top{top}": value for top, value in found.items()}
    choices = choices_of(backbone, readout=classifier.readout)
    return _result("finetune", backbone, pair, choices, settings, numbers)


def _chosen(best: Choice) -> dict[str, Any]:
    return {"readout": best.readout, "layer": best.layer, "norm": best.normed}


def _where(fraction: float, seed: int) -> str:
    """Say on which images a choice was made, and what that means for its score."""
    if fraction:
        return f"chosen on {fraction:.0%} of train, held out (seed {seed})"
    return "chosen on the validation images of the scores, which are optimistic therefore"


def _table(shown: str, scores: Mapping[tuple[str, Choice], float]) -> str:
    """One row per source of features, layer and norm, and one column per readout."""
    readouts = [kind for kind in READOUTS if any(choice.readout == kind for _, choice in scores)]
    lines = [f"{shown:<24}" + "".join(f"{kind:>15}" for kind in readouts)]
    for name, layer, normed in dict.fromkeys((name, choice.layer, choice.normed) for name, choice in scores):
        label = "raw pixels" if name == "pixels" else f"{name} layer {layer}{', norm' if normed else ''}".strip()
        values = [scores.get((name, Choice(kind, layer, normed))) for kind in readouts]
        lines.append(f"{label:<24}" + "".join(f"{'-' if v is None else f'{v:.4f}':>15}" for v in values))
    return "\n".join(lines)


def _result(
    name: str, backbone: Backbone, pair: Pair, choices: Sequence[Choice], settings: Mapping[str, Any],
    numbers: dict[str, Any], table: str = "",
) -> Result:  # fmt: skip
    places = sorted({choice.layer for choice in choices})
    norms = {choice.normed for choice in choices}
    if places != [backbone.spec.depth - 1]:
        settings = {**settings, "layers": places}
    protocol = Protocol(
        name=name,
        train=f"{pair.train.source} ({len(pair.train)} images)",
        val=f"{pair.val.source} ({len(pair.val)} images)",
        view=str(pair.view),
        resolution=pair.crop,
        features=", ".join(dict.fromkeys(choice.readout for choice in choices)),
        norm="both" if len(norms) > 1 else norms == {True} and final_norm(backbone),
        statistics=statistics(backbone),
        classes=len(pair.train.classes),
        settings=settings,
    )
    return Result(protocol, numbers, backbone.spec, pair.skipped, table)
