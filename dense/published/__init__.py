"""Published heads of other projects: recognised by their keys and rebuilt, with their numerics, as our models."""

from dense.suggest import lazily

_PUBLIC = {
    "FAMILIES": "dense.published.recognise",
    "Published": "dense.published.family",
    "is_backbone": "dense.published.recognise",
    "is_ours": "dense.published.family",
    "load_published": "dense.published.recognise",
}
__all__ = sorted(_PUBLIC)
__getattr__ = lazily(__name__, _PUBLIC)
