"""`dense predict`: answers for files, folders and films."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from dense.arguments import Parser, device
from dense.console import progress
from dense.data.images import ImageError, list_images, read_image
from dense.predict import load
from dense.predict.predictor import Predictor, torch_precision
from dense.predict.video import EXTENSIONS, Film, FilmError, FilmWriter
from dense.published.options import add_options, said
from dense.training.writable import check_writable


def main(argv: Sequence[str]) -> int:
    """The verb."""
    parser = Parser(
        prog="dense predict", description="Depth and classes of pictures and films, or their restoration, by a trained or a published model.",
        usage="dense predict MODEL PICTURES ... [options]",
    )  # fmt: skip
    parser.add_argument(
        "inputs", nargs="+", metavar="MODEL PICTURES",
        help="a model: a directory that dense train wrote, a published file or directory; then pictures, folders, films",
    )  # fmt: skip
    parser.add_argument("--model", help="the model, if it is not the first of these")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the answers")
    parser.add_argument("--resize", type=int, help="bring the shorter side to so many pixels first")
    parser.add_argument("--window", type=int, help="see pictures through windows of this side")
    parser.add_argument("--stride", type=int, help="pixels between windows")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over sizes of the picture")
    parser.add_argument("--precision", choices=tuple(torch_precision), default="fp32", help="of the network")
    parser.add_argument("--batch", type=int, default=1, help="windows at once")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--no-overlay", action="store_true", help="numbers alone, no colours over pictures")
    add_options(parser)
    options = parser.parse_args(argv)
    if options.model is None:
        options.model = options.inputs.pop(0)
    if not options.inputs:
        parser.error("the following arguments are required: PICTURES (a picture, a folder or a film)")
    pictures, films = sort_inputs(options.inputs, without=options.output)
    if not pictures and not films:
        parser.error(f"all pictures lie in {options.output}, where answers go; choose another --output")
    check_writable(options.output)
    predictor = load(
        options.model, options.device, **said(options), resize=options.resize, window=options.window, stride=options.stride,
        flip=options.flip, scales=options.scales, precision=options.precision, batch=options.batch,
    )  # fmt: skip
    failed = predict_pictures(predictor, pictures, options.output, overlays=not options.no_overlay)
    for film in films:
        try:
            predict_film(predictor, film, options.output)
        except FilmError as error:
            failed.append(str(error))
    count = len(pictures) + len(films)
    print(f"wrote answers for {count - len(failed)} of {count} to {options.output}")
    if failed:
        some = "\n  ".join(failed[:20])
        print(f"could not be read: {len(failed)}\n  {some}", file=sys.stderr)
    return 1 if len(failed) == count else 0


def sort_inputs(inputs: Iterable[str], without: Path | None = None) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Pictures with the names of their answers, and films, each once; nothing that lies in the folder `without`."""
    pictures: dict[Path, Path] = {}
    films: dict[Path, Path] = {}
    for item in map(Path, inputs):
        if item.suffix.lower() in EXTENSIONS and not item.is_dir():
            if not item.is_file():
                raise FileNotFoundError(f"no such film: {item}")
            films[item] = Path(item.stem)
            continue
        inside = [p for p in item.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()] if item.is_dir() else []
        films |= {p: Path(p.stem) for p in sorted(inside) if not _within(p, without)}
        root = item if item.is_dir() else item.parent
        try:
            found = list_images(item)
        except FileNotFoundError:
            if not inside:
                raise
            continue
        pictures |= {p: p.relative_to(root).with_suffix("") for p in found if not _within(p, without)}
    for answers in (pictures, films):
        seen: dict[Path, Path] = {}
        for path, stem in answers.items():
            if stem in seen:
                raise ValueError(f"{seen[stem]} and {path} would write the same answer, {stem}; predict them apart")
            seen[stem] = path
    return list(pictures.items()), list(films)


def _within(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def predict_pictures(
    predictor: Predictor, pictures: Sequence[tuple[Path, Path]], output: Path, overlays: bool = True
) -> list[str]:
    """Save the answer of every picture that can be read; those that cannot, in words."""
    failed = []
    for path, stem in progress(pictures, "pictures"):
        try:
            image = read_image(path)
        except ImageError as error:
            failed.append(str(error))
            continue
        predictor(image).save(output / stem, image if overlays else None)
    return failed


def predict_film(predictor: Predictor, path: Path, output: Path) -> Path:
    """OUTPUT/NAME_predicted.mp4, the film in the colours of its answers."""
    film = Film(path)
    target = output / f"{path.stem}_predicted.mp4"
    writer = FilmWriter(target, film.rate)
    try:
        for frame in progress(film, path.name, film.length or None):
            writer.add(predictor(frame).overlay(frame))
    finally:
        writer.close()
    return target
