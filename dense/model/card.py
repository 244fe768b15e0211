"""What is written beside a model or a result: package versions, strict JSON, and the text of a model card."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from dense._version import __version__

if TYPE_CHECKING:
    from dense.model.network import DenseModel

PACKAGES = ("torch", "timm", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and every dependency that may change a number."""
    found = {"dino-dense": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def format_number(value: Any) -> str:
    """Format a number for the screen: four decimals, two digits where those would be zeros, counts as they are."""
    if not isinstance(value, float):
        return str(value)
    if 0 < abs(value) < 1e-3:
        return f"{value:.2g}"
    return "-" if math.isnan(value) else str(int(value)) if value.is_integer() and value > 1 else f"{value:.4f}"


def as_json(content: Any) -> str:
    """Return plain data as JSON. A number that is not finite, such as the IoU of an absent class, becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: finite(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(content), indent=2, default=str, allow_nan=False) + "\n"


def model_card(model: DenseModel) -> str:
    """Return the Markdown text of a trained model's card, from its facts."""
    facts = {k: v for k, v in model.facts.items() if not isinstance(v, dict)}
    facts |= {"images": f"{facts.get('images')} ({reading})"} if (reading := model.inference.reading).to_dict() else {}
    lines = "\n".join(f"- {k}: {v}" for k, v in facts.items())
    numbers = "\n".join(f"| {k} | {v:.4f} |" for k, v in model.facts["numbers"].items())
    return f"""---
library_name: dino-dense
tags: [dino-dense, {model.task}]
---
# {model.task.capitalize()} on {model.backbone.spec.name}

```python
import dense
predictor = dense.load("PATH/TO/THIS/FOLDER")
prediction = predictor("photo.jpg")
```

{lines}

| validation | |
|---|---|
{numbers}
"""
