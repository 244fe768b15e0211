"""Published numbers, and the commands that measure them here, given the data and the weights."""

from dense.evaluate.published.needs import DATA
from dense.evaluate.published.page import markdown
from dense.evaluate.published.rows import Row, find_row, rows

__all__ = ["DATA", "Row", "find_row", "markdown", "rows"]
