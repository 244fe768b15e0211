"""k-NN, linear and fine-tuned classification of a pair of sets, each with its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dense.backbone import Backbone
from dense.console import progress
from dense.evaluate.classification.data import Examples, Pair, RandomCrop
from dense.evaluate.classification.features import (
    Pooled,
    Readout,
    blocks_of,
    default_readout,
    extract,
    final_norm,
    statistics,
)
from dense.evaluate.classification.finetune import FineTuneRecipe, classification_accuracy, fine_tune
from dense.evaluate.classification.knn import NEIGHBOURS, TEMPERATURE, accuracy, knn_classify
from dense.evaluate.classification.linear import RECIPES, linear_evaluation
from dense.evaluate.protocol import Protocol, Result
from dense.files import replacing


def measure_knn(
    backbone: Backbone,
    pair: Pair,
    *,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    readout: Readout | None = None,
    batch_size: int = 64,
    workers: int = 2,
) -> Result:
    """Weighted k-NN. readout: the class token if there is one, else the average, if left out."""
    kind = readout or default_readout(backbone.spec.class_token)

    def features(examples: Examples, name: str) -> Pooled:
        batches = examples.batches(pair.view, batch_size, workers=workers)
        return extract(backbone, progress(batches, name, -(-len(examples) // batch_size)), blocks=blocks_of([kind]))

    bank, queries = features(pair.train, "features of train"), features(pair.val, "features of val")
    assert bank.labels is not None
    assert queries.labels is not None
    device = next(backbone.parameters()).device
    found = knn_classify(bank.readout(kind), bank.labels, queries.readout(kind), list(k), temperature, device=device)
    numbers = {f"top{top} k={n}": accuracy(votes, queries.labels, top) for n, votes in found.items() for top in (1, 5)}
    settings = {"k": list(k), "temperature": temperature, "similarity": "cosine", "bank": len(bank)}
    return _result("knn", backbone, pair, kind, settings, numbers)


def measure_linear(
    backbone: Backbone,
    pair: Pair,
    *,
    recipe: str = "dinov2",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    augment: bool = True,
    seed: int = 0,
    workers: int = 2,
) -> Result:
    """Linear classification by the recipe of DINO or DINOv2. epochs, steps: its length, instead of the recipe's."""
    chosen = replace(RECIPES[recipe](backbone.spec), batch_size=batch_size, augment=augment)
    if epochs is not None or steps is not None:
        chosen = replace(chosen, epochs=epochs, steps=steps)
    result = linear_evaluation(
        backbone, pair.train, pair.val, chosen, train_view=RandomCrop(pair.crop, resample=chosen.resample),
        val_view=pair.view, seed=seed, workers=workers,
    )  # fmt: skip
    numbers = {
        "top1": result.top1, "top5": result.top5, "readout": result.readout, "learning rate": result.learning_rate,
        "heads": result.heads,
    }  # fmt: skip
    settings = {
        "epochs": chosen.epochs, "steps": chosen.length(len(pair.train))[0], "batch_size": batch_size,
        "learning_rates_at_256": list(chosen.learning_rates), "momentum": 0.9, "weight_decay": 0.0,
        "schedule": f"cosine to 0, each {chosen.anneal}",
        "training_view": f"random crop and flip, {chosen.resample}" if augment else "as validation",
        "choice": "best head on val" if len(result.heads) > 1 else "one head",
    }  # fmt: skip
    return _result(f"linear-{chosen.name}", backbone, pair, ", ".join(chosen.readouts), settings, numbers)


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
    return _result("finetune", backbone, pair, classifier.readout, settings, numbers)


def _result(
    name: str, backbone: Backbone, pair: Pair, features: str, settings: Mapping[str, Any], numbers: dict[str, Any]
) -> Result:
    protocol = Protocol(
        name=name,
        train=f"{pair.train.source} ({len(pair.train)} images)",
        val=f"{pair.val.source} ({len(pair.val)} images)",
        view=str(pair.view),
        resolution=pair.crop,
        features=features,
        norm=final_norm(backbone),
        statistics=statistics(backbone),
        classes=len(pair.train.classes),
        settings=settings,
    )
    return Result(protocol, numbers, backbone.spec, pair.skipped)
