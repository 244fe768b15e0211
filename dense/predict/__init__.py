"""Images to typed predictions."""

from pathlib import Path
from typing import Any

from dense.predict.objects import Instances, Panoptic
from dense.predict.predictions import Anomaly, Depth, Joint, Prediction, Restoration, Segmentation
from dense.predict.predictor import Predictor
from dense.suggest import UnknownOption, did_you_mean, former


def load(source: str | Path, device: str = "cpu", **options: Any) -> Predictor:
    """Open a directory that `dense train` wrote, or a head that others published.

    Options are those of `Predictor.of` (flip, scales, precision, batch, resize, window, stride) and, for a published
    file or directory, what it does not state itself: family, kind, max_depth, backbone, weights, ... See
    docs/published.md; a missing one raises with the choices.
    """
    from dense.published import is_ours, load_published

    path = Path(source)
    published = {k: options.pop(k) for k in list(options) if k not in Predictor.OPTIONS}
    if path.is_file() or (path.is_dir() and (path / "config.json").is_file() and not is_ours(path)):
        return Predictor.of(load_published(path, **published), device, **options)
    if published and not path.exists():
        raise FileNotFoundError(f"no such file or directory: {path}")
    if published:
        name = next(iter(published))
        hint = did_you_mean(name, Predictor.OPTIONS)
        raise UnknownOption(f"{source} is no published file, and a model takes no {name!r}; leave it out.{hint}")
    return Predictor.open(source, device, **options)


__all__ = [
    "Anomaly",
    "Depth",
    "Instances",
    "Joint",
    "Panoptic",
    "Prediction",
    "Predictor",
    "Restoration",
    "Segmentation",
    "load",
]

__getattr__ = former(__name__, {"Answer": "Prediction"})
