"""`dense predict`: answers for files, folders and films."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from dense.arguments import Parser
from dense.data.images import ImageError, list_images, read_image
from dense.predict.predictor import Predictor
from dense.predict.video import EXTENSIONS, Film, FilmWriter
from dense.training.checkpoints import check_writable


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(prog="dense predict", description="Depth and classes of pictures and films, by a trained model.")
    parser.add_argument("model", help="directory that dense train wrote")
    parser.add_argument("inputs", nargs="+", help="pictures, folders of pictures, films")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the answers")
    parser.add_argument("--resize", type=int, help="bring the shorter side to so many pixels first")
    parser.add_argument("--window", type=int, help="see pictures through windows of this side")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over sizes of the picture")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16")
    parser.add_argument("--batch", type=int, default=1, help="windows at once")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--no-overlay", action="store_true", help="numbers alone, no colours over pictures")
    options = parser.parse_args(argv)
    pictures, films = sort_inputs(options.inputs)
    check_writable(options.output)
    predictor = Predictor.open(
        options.model, options.device, resize=options.resize, window=options.window, stride=options.stride,
        flip=options.flip, scales=options.scales, precision=options.precision, batch=options.batch,
    )  # fmt: skip
    failed = predict_pictures(predictor, pictures, options.output, overlays=not options.no_overlay)
    for film in films:
        predict_film(predictor, film, options.output)
    print(
        f"wrote answers for {len(pictures) + len(films) - len(failed)} of {len(pictures) + len(films)} to {options.output}"
    )
    if failed:
        some = "\n  ".join(failed[:20])
        print(f"could not be read: {len(failed)}\n  {some}", file=sys.stderr)
    return 1 if failed and len(failed) == len(pictures) and not films else 0


def sort_inputs(inputs: Iterable[str]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pictures with the names of their answers, and films."""
    pictures: list[tuple[Path, Path]] = []
    films = []
    for item in map(Path, inputs):
        if item.suffix.lower() in EXTENSIONS:
            if not item.is_file():
                raise FileNotFoundError(f"no such film: {item}")
            films.append(item)
        else:
            root = item if item.is_dir() else item.parent
            pictures += [(p, p.relative_to(root).with_suffix("")) for p in list_images(item)]
    seen: dict[Path, Path] = {}
    for path, stem in pictures:
        if stem in seen and seen[stem] != path:
            raise ValueError(f"{seen[stem]} and {path} would write the same answer, {stem}; predict them apart")
        seen[stem] = path
    return pictures, films


def predict_pictures(
    predictor: Predictor, pictures: Sequence[tuple[Path, Path]], output: Path, overlays: bool = True
) -> list[str]:
    """Save the answer of every picture that can be read; those that cannot, in words."""
    failed = []
    for path, stem in _track(pictures, "pictures"):
        try:
            image = read_image(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        predictor(image).save(output / stem, image if overlays else None)
    return failed


def predict_film(predictor: Predictor, path: Path, output: Path) -> Path:
    """OUTPUT/NAME.mp4, the film in the colours of its answers."""
    film = Film(path)
    target = output / f"{path.stem}_predicted.mp4"
    writer = FilmWriter(target, film.rate)
    try:
        for frame in _track(film, path.name, film.length or None):
            writer.add(predictor(frame).overlay(frame))
    finally:
        writer.close()
    return target


def _track(items: Any, description: str, total: int | None = None) -> Iterable[Any]:
    """With a progress bar on a terminal."""
    length = total if total is not None else (len(items) if hasattr(items, "__len__") else None)
    return track(items, description, total=length, disable=not sys.stderr.isatty())
