"""A trained model or a backbone as one file for other runtimes."""

from dense.export.write import Exported, export, open_model

__all__ = ["Exported", "export", "open_model"]
