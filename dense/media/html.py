"""HTML pages that need no network: pictures are embedded as data URLs, text is escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

import cv2

from dense.data.levels import as_rgb
from dense.media.draw import Picture


def document(title: str, style: str, body: str) -> str:
    """Return a whole page; title is text, style is CSS, body is HTML."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def data_url(picture: Picture) -> str:
    """Return a picture as the data URL of a WebP file."""
    done, data = cv2.imencode(".webp", cv2.cvtColor(as_rgb(picture), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 90])
    if not done:
        raise ValueError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels is too large for an HTML page")
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"


def figures(pictures: Iterable[tuple[str, Picture]]) -> str:
    """Return one figure per pair of a caption and a picture."""
    return "".join(
        f"<figure><img src='{data_url(picture)}' alt='{html.escape(caption, quote=True)}' width='{picture.shape[1]}' "
        f"height='{picture.shape[0]}'><figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in pictures
    )


def table(rows: Iterable[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Return a table; without a header its head is empty."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
