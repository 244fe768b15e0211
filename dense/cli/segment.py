"""`dense segment` and `dense.segment`: segmentation from annotated images, without training."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dense.cli.memory_options import add_memory, memory_options
from dense.cli.parser import (
    Parser,
    add_backbone,
    add_overwrite,
    check_source,
    check_sources,
    choose_levels,
    open_backbone,
    reading_of,
    run_folder,
    warn_if_random,
)
from dense.console import hint
from dense.files import RunFolder

if TYPE_CHECKING:
    from dense.backbone import Backbone
    from dense.predict import Segmentation

EXAMPLES = (
    ("dense segment IMAGES --like cat.jpg=cat_mask.png --output found", "the same kind of object in other images"),
    ("dense segment IMAGES --like cat.jpg=cat_mask.png --method insid3 --refine guided", "one object, sharper"),
    ("dense segment IMAGES --like-folder ANNOTATED --output found", "ANNOTATED/images, masks and classes.yaml"),
)


def parser(**options: bool) -> Parser:
    words = "Segment images and videos like annotated ones, without training."
    parser = Parser("dense segment", words, EXAMPLES, **options)
    parser.add_argument("images", nargs="+", help="images, folders of images, videos")
    parser.add_argument(
        "--like", dest="annotated", action="append", default=[], metavar="IMAGE=MASK",
        help="an annotated image; may be given several times. A mask of 0 and one other value is one object",
    )  # fmt: skip
    parser.add_argument("--like-folder", metavar="FOLDER", help="annotated images as dense train reads them")
    parser.add_argument("--layout", default="folder", help="of that folder")
    parser.add_argument("--split", default="train", help="of that folder, where it has splits")
    parser.add_argument("--output", type=Path, default=Path("segmented"), help="folder for model and predictions")
    add_backbone(parser, "of the choice of patches, and of random initialisation")
    add_memory(parser)
    parser.add_argument("--no-overlay", action="store_true", help="write labels only, no overlays on the images")
    add_overwrite(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb; return 1 if nothing could be segmented."""
    of_verb = parser()
    options = of_verb.parse_args(argv)
    pairs = []
    for given in options.annotated:
        image, found, mask = given.rpartition("=")
        if not found or not image or not mask:
            of_verb.error(f"--like {given}: expected IMAGE=MASK, such as cat.jpg=cat_mask.png")
        pairs.append((image, mask))
    if bool(pairs) == bool(options.like_folder):
        of_verb.error("give annotated images by --like IMAGE=MASK or by --like-folder FOLDER, one of the two")
    for pair in pairs:
        for path in pair:
            check_source(path, "file")
    check_sources(options)
    choose_levels(options, lambda reading: annotated(options, pairs, reading))
    with run_folder("segment", options.output, options, but=["images"], shared=True) as folder:
        return run(of_verb, options, pairs, folder)


def run(of_verb: Parser, options: Namespace, pairs: Sequence[tuple[str, str]], folder: RunFolder) -> int:
    """Build the memory, save it, and write predictions; return the exit status."""
    from dense.media.inputs import sort_inputs
    from dense.memory import remember
    from dense.predict import Predictor
    from dense.predict.files import predict_files

    reading = reading_of(options)
    images, videos = sort_inputs(options.images, without=options.output, reading=reading)
    if not images and not videos:
        of_verb.error(f"no images or videos in {', '.join(options.images)}")
    source = annotated(options, pairs, reading)
    backbone = open_backbone(options, frozen=True)
    warn_if_random(options)
    facts = {"images": described(options)}
    model = remember(options.method, backbone, source, **memory_options(options), facts=facts)
    if not folder.ranks.rank:
        model.save_pretrained(options.output / "model")
    failed = predict_files(Predictor(model), images, videos, options.output, not options.no_overlay, folder)
    if failed is None:
        return 0
    count = len(images) + len(videos)
    print(
        f"segmented {count - len(failed)} of {count} like {len(source)} annotated images "
        f"({', '.join(source.classes[:8])}) by {len(model.head.bank)} patches and {options.method}; "
        f"wrote {options.output}"
    )
    if failed:
        print(f"could not be read: {len(failed)}\n  " + "\n  ".join(failed[:20]), file=sys.stderr)
    hint(shlex.join(["dense", "predict", str(options.output / "model"), "MORE"]), "the same memory, for other images")
    return 1 if len(failed) == count else 0


def annotated(options: Namespace, pairs: Sequence[tuple[str, str]], reading: Any) -> Any:
    """Return the annotated images."""
    from dense.data.labelled.open import open_labelled
    from dense.memory import open_references

    if pairs:
        return open_references(pairs, reading)
    return open_labelled(
        options.like_folder, options.split, layout=options.layout, targets=("labels",), val_ratio=0.0, reading=reading
    )


def described(options: Namespace) -> str:
    """Return the annotated images in words, for the model card."""
    return str(options.like_folder or ", ".join(options.annotated))


def segment(
    images: Any,
    references: Mapping[str | Path, str | Path] | str | Path,
    *,
    layout: str = "folder",
    split: str = "train",
    method: str = "knn",
    backbone: str | Backbone | None = None,
    weights: str | Path | None = None,
    download: bool = False,
    device: str = "cpu",
    **options: Any,
) -> Iterator[Segmentation] | Segmentation:
    """Segment images like annotated ones, without training.

    Args:
        images: one image (a file, an array of uint8 RGB or a PIL image), or several: a folder or a list.
        references: {image: mask} of files, or a folder with images/, masks/ and classes.yaml.
        layout, split: of such a folder, see `dense.data.labelled.open.open_labelled`.
        method: "knn" gives each patch the labels of its nearest neighbours; "insid3" finds the clusters of an image
            that resemble the annotated objects, for one or a few annotated images.
        backbone, weights: as for `load_backbone`; the best backbone at hand if left out.
        download: download DINOv2-S if no published backbone is at hand.
        **options: of `dense.memory.build_memory`, such as patches=20000, resize=None, layers=8, or of
            `dense.memory.build_insid3`.

    Returns:
        One prediction, or an iterator over those of several images.

    >>> found = dense.segment("dog.jpg", {"cat.jpg": "cat_mask.png"})
    >>> found.labels  # (H, W): 0 background, 1 object
    """
    from dense.data.image import list_images
    from dense.predict import Predictor

    place = (layout, split)
    predictor = Predictor(model_of(references, place, method, backbone, weights, download, device, **options))
    several = isinstance(images, list | tuple) or is_folder(images)
    if not several:
        return predictor(images)  # type: ignore[return-value]
    sources = list[Any]()
    for item in images if isinstance(images, list | tuple) else [images]:
        sources += list_images(item, reading=predictor.inference.reading) if is_folder(item) else [item]
    return (predictor(image) for image in sources)  # type: ignore[misc]


def is_folder(source: Any) -> bool:
    return isinstance(source, str | Path) and Path(source).is_dir()


def model_of(
    references: Any, place: tuple[str, str], method: str, backbone: str | Backbone | None,
    weights: str | Path | None, download: bool, device: str,
    **options: Any,
) -> Any:  # fmt: skip
    """Return the model of references, see `segment`; place: layout and split of a folder."""
    from dense.backbone import load_backbone
    from dense.backbone.at_hand import at_hand
    from dense.data.labelled.open import open_labelled
    from dense.data.levels import Reading
    from dense.memory import open_references, remember

    if backbone is None or isinstance(backbone, str):
        name, file = at_hand(backbone, None if weights is None else str(weights), download)
        backbone = load_backbone(name, file, frozen=True)
    reading = Reading.of_spec(backbone.spec)
    if isinstance(references, str | Path):  # all images of a folder without splits
        source: Any = open_labelled(
            references, place[1], layout=place[0], targets=("labels",), val_ratio=0.0, reading=reading
        )
    elif place != ("folder", "train"):
        raise ValueError(f"layout={place[0]!r}, split={place[1]!r} are of a folder of references; leave them out")
    else:
        source = open_references(references, reading)
    return remember(method, backbone.to(device), source, **options)
