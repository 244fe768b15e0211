"""Draw the figures of docs/methods: diagrams as SVG, and two from photographs of scikit-image.

    python docs/methods/figures.py
    python docs/methods/figures.py --images SKIMAGE/data --weights dinov2_vits14_pretrain.pth

Without --images only the diagrams are drawn. astronaut.png: Eileen Collins, NASA, public domain. coffee.png: Rachel
Michetti, courtesy of Pikolo Espresso Bar, CC0.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import itertools

from matplotlib import pyplot
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
FILL = {"data": "#f3f3f3", "train": "#dcebfa", "fixed": "#fde9cf", "loss": "#f9d9d9", "plain": "white"}
CHARACTER, LINE = 0.79, 1.75  # of text of 9 points, in tenths of an inch
Point = tuple[float, float]


class Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float

    def at(self, side: str, shift: float = 0) -> Point:
        """Return the middle of a side, l, r, t or b, moved along it."""
        if side in "lr":
            return (self.x + self.width / 2 * (1 if side == "r" else -1), self.y + shift)
        return (self.x + shift, self.y + self.height / 2 * (1 if side == "t" else -1))


class Diagram:
    """Boxes and arrows on a canvas measured in tenths of an inch."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = pyplot.figure(figsize=(width / 10, height / 10))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(self, x: float, y: float, text: str, kind: str = "plain", width: float = 0, height: float = 0) -> Box:
        lines = text.split("\n")
        box = Box(x, y, width or CHARACTER * max(map(len, lines)) + 1.6, height or LINE * len(lines) + 1.2)
        place = (x - box.width / 2, y - box.height / 2)
        style = "round,pad=0,rounding_size=0.6"
        self.axes.add_patch(FancyBboxPatch(place, *box[2:], boxstyle=style, fc=FILL[kind], ec="#555555", lw=0.8))
        self.text(x, y, text)
        return box

    def text(self, x: float, y: float, text: str, size: float = 9, **options: Any) -> None:
        self.axes.text(x, y, text, size=size, **{"ha": "center", "va": "center", "linespacing": 1.35} | options)

    def arrow(self, start: Point, end: Point, text: str = "", shift: Point = (0, 1.1), dashed: bool = False) -> None:
        style = {"arrowstyle": "-|>", "lw": 0.9, "color": "#333333", "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", end, start, arrowprops=style | ({"ls": (0, (4, 3))} if dashed else {}))
        if text:
            self.text((start[0] + end[0]) / 2 + shift[0], (start[1] + end[1]) / 2 + shift[1], text, 8, color="#333333")

    def path(self, *points: Point, text: str = "", at: Point = (0, 0), dashed: bool = False) -> None:
        """Draw a broken line that ends in an arrow."""
        style = {"lw": 0.9, "color": "#333333"} | ({"ls": (0, (4, 3))} if dashed else {})
        self.axes.plot(*zip(*points[:-1], strict=True), **style)
        self.arrow(points[-2], points[-1], dashed=dashed)
        if text:
            self.text(*at, text, 8, color="#333333")

    def save(self, name: str) -> None:
        self.figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
        pyplot.close(self.figure)


def dino() -> None:
    d = Diagram(112, 38)
    image = d.box(7, 19, "image", "data")
    crops = d.box(22, 28, "2 global and\n8 local crops", "data")
    globals_ = d.box(22, 10, "2 global crops", "data")
    student = d.box(42, 28, "student: backbone", "train")
    head = d.box(61, 28, "ProjectionHead", "train")
    teacher = d.box(42, 10, "teacher: backbone", "fixed")
    twin = d.box(61, 10, "ProjectionHead", "fixed")
    center = d.box(77, 10, "t - center", "fixed")
    soft = d.box(95, 28, "log softmax(s / 0.1)", "train")
    target = d.box(95, 10, "softmax(. / 0.04)", "fixed")
    loss = d.box(95, 19, "DINOLoss: - sum p log q", "loss")
    d.path(image.at("t"), (7, 28), crops.at("l"), text="MultiCrop", at=(9, 29.6))
    d.path(image.at("b"), (7, 10), globals_.at("l"))
    for start, end in ((crops, student), (student, head), (globals_, teacher), (teacher, twin), (twin, center)):
        d.arrow(start.at("r"), end.at("l"))
    d.arrow(head.at("r"), soft.at("l"), "s: V*B, K")
    d.arrow(center.at("r"), target.at("l"))
    d.text(69, 12.4, "t", 8)
    d.arrow(soft.at("b"), loss.at("t"))
    d.arrow(target.at("t"), loss.at("b"))
    d.arrow((51, 25.8), (51, 12.3), "Teacher.after_step:\nw <- m w + (1 - m) w_student", (13.5, 0), dashed=True)
    d.path(twin.at("b"), (61, 4.5), (77, 4.5), center.at("b"), dashed=True)
    d.text(69, 2.8, "Center.step: c <- 0.9 c + 0.1 mean(t)", 8)
    d.text(95, 33.2, "gradients flow through blue boxes alone", 8)
    d.save("dino")


def dinov2() -> None:
    d = Diagram(112, 46)
    d.text(56, 44, "loss = dino.weight DINOTerm + ibot.weight IBOTTerm + koleo.weight KoLeoTerm + gram.weight GramTerm")
    crops = d.box(11, 33, "8 local crops;\n2 global crops,\nhalf of them masked", "data")
    seen = d.box(11, 8, "2 global crops,\nnothing masked", "data")
    student = d.box(33, 33, "student: backbone", "train")
    teacher = d.box(33, 8, "teacher: backbone", "fixed")
    d.arrow(crops.at("r"), student.at("l"))
    d.arrow(seen.at("r"), teacher.at("l"))
    d.arrow(student.at("b"), teacher.at("t"), "Teacher: EMA", (6.5, 0), dashed=True)
    koleo = d.box(97, 39.5, "KoLeoTerm", "loss", 24)
    dino = d.box(97, 27, "DINOTerm", "loss", 24)
    ibot = d.box(97, 14, "IBOTTerm", "loss", 24)
    head = d.box(61, 33, "head", "train", 13)
    patch_head = d.box(61, 27, "patch_head", "train", 13)
    twin = d.box(61, 11, "head", "fixed", 13)
    patch_twin = d.box(61, 5, "patch_head", "fixed", 13)
    sinkhorn = d.box(78, 8, "SinkhornKnopp\nor Center", "fixed")
    right = student.at("r")[0]
    d.path((right, 34), (45, 34), (45, 39.5), koleo.at("l"), text="class tokens before the head", at=(62, 40.7))
    d.arrow((right, 33), head.at("l"), "class tokens", (1.5, 1.1))
    d.path((right, 32), (45, 32), (45, 27), patch_head.at("l"), text="masked patches", at=(48.5, 25.4))
    for end, y in ((twin, 11), (patch_twin, 5)):
        d.path((teacher.at("r")[0], 8), (46, 8), (46, y), end.at("l"))
    d.text(50, 12.4, "class tokens", 8)
    d.text(50, 3.4, "same patches", 8)
    d.arrow(twin.at("r"), sinkhorn.at("l", 1))
    d.arrow(patch_twin.at("r"), sinkhorn.at("l", -1))
    d.path(head.at("r"), (90, 33), dino.at("t", -7))
    d.path(patch_head.at("r"), (73, 27), (73, 14), ibot.at("l"))
    x = sinkhorn.at("r")[0]
    d.path((x, 8), (97, 8), ibot.at("b"), text="targets", at=(90, 9.2))
    d.path((x, 7), (111, 7), (111, 27), dino.at("r"))
    d.save("dinov2")


def dinov3() -> None:
    d = Diagram(112, 50)
    stages = (
        (18, "stage: pretrain\n1,000,000 steps", "data"), (56, "stage: gram\n200,000 steps, weight 2", "loss"),
        (93, "stage: high_res\n30,000 steps, weight 1.5", "train"),
    )  # fmt: skip
    boxes = [d.box(x, 44, text, kind, 32) for x, text, kind in stages]
    for left, right in itertools.pairwise(boxes):
        d.arrow(left.at("r"), right.at("l"))
    for shift in (-13, -9, -5, -1):
        d.axes.plot([56 + shift] * 2, [38.5, 41.2], color="#c03030", lw=1.2)
    d.text(56, 37, "copy of the EMA teacher at the start and after 10k, 20k, 30k steps", 8)
    d.text(18, 39.5, "no Gram term", 8)
    d.text(93, 39.5, "crops of 512 and 768 px mixed", 8)
    small = d.box(9, 26, "global crops\n256 px", "data", 15)
    large = d.box(9, 10, "the same crops\n512 px, no colour", "data", 16)
    student = d.box(30, 26, "student: backbone", "train")
    gram = d.box(30, 10, "Gram teacher: backbone", "fixed")
    x = d.box(60, 26, "X: unit patches\nB, N, D", "train")
    reduce = d.box(54, 10, "bicubic to the\nstudent's grid", "fixed")
    y = d.box(72, 10, "Y: unit patches\nB, N, D", "fixed")
    ours = d.box(79, 26, "X X^T", "train", 10)
    theirs = d.box(90, 10, "Y Y^T", "fixed", 10)
    loss = d.box(97, 18, "GramLoss:\nmean (X X^T - Y Y^T)^2", "loss")
    for a, b in ((small, student), (student, x), (x, ours), (large, gram), (gram, reduce), (reduce, y), (y, theirs)):
        d.arrow(a.at("r"), b.at("l"))
    d.path(ours.at("r"), (97, 26), loss.at("t"))
    d.path(theirs.at("r"), (103, 10), loss.at("b", 6))
    d.text(40, 18, "only the similarities between patches are held: features may rotate", 8)
    d.text(56, 3, "GramTerm of pretrain/terms.py; the class-token, patch and KoLeo terms of DINOv2 go on beside it", 8)
    d.save("dinov3")


def dpt() -> None:
    d = Diagram(118, 64)
    heads = {
        7: ("backbone", "maps"), 22: ("concatenate", "to_map"), 38: ("read", "readout"),
        56: ("resample", "project, resize"),
        73: ("", "adapt"), 95: ("fusion", "FeatureFusionBlock"),
    }  # fmt: skip
    for x, (title, name) in heads.items():
        d.text(x, 62, title, 10, weight="bold")
        d.text(x, 59.6, name, 8, style="italic")
    d.axes.plot([29.5, 29.5, 79.5, 79.5], [58, 57.5, 57.5, 58], color="#555555", lw=0.8)
    d.text(54.5, 56.4, "Reassemble", 8, style="italic")
    resizes = ("ConvT 4, stride 4", "ConvT 2, stride 2", "as it is", "Conv 3, stride 2")
    previous, fused = None, []
    for i, name in enumerate(("block 2", "block 5", "block 8", "block 11")):
        y = 52 - 12.7 * (3 - i)
        block = d.box(7, y, f"{name}\nB, 1 + h*w, C", "fixed", 12)
        to_map = d.box(22, y, "B, C, h, w", "fixed")
        read = d.box(38, y, "ignore, add\nor project", "train")
        resample = d.box(56, y, f"Conv 1x1\n{resizes[i]}", "train", 16)
        adapt = d.box(73, y, "Conv 3x3", "train", 9.5)
        unit = d.box(87, y, "unit1" if i < 3 else "no unit1", "train" if i < 3 else "plain", 9)
        rest = d.box(107, y, "unit2, project,\nresize", "train", 15)
        row = (block, to_map, read, resample, adapt, unit, rest)
        for a, b in itertools.pairwise(row):
            d.arrow(a.at("r"), b.at("l"))
        bend = y - 5.2
        d.path(block.at("b", 3.5), (block.at("b", 3.5)[0], bend), (38, bend), read.at("b"))
        d.text(24, bend + 1.1, "class token: B, C", 8)
        d.text(66, y + 1.4, f"1/{(4, 8, 16, 32)[i]}", 8)
        if i < 3:
            d.text(94, y + 1.4, "+", 11)
        if previous is not None:
            d.arrow(previous.at("t"), block.at("b"))
        previous = block
        fused.append(rest)
    for i in (3, 2, 1):
        y = fused[i].y - 6.35
        d.path(fused[i].at("b"), (107, y), (96, y), (96, fused[i - 1].y + 0.2))
        d.text(111.5, y, f"fusion[{i}]", 8)
    end = d.box(104, 4.5, "project 3x3, then branch", "loss")
    d.arrow(fused[0].at("b"), (107, end.at("t")[1]), "fusion[0]", (4.5, 0))
    d.text(42, 5.5, "Sizes are those of patches of 16 pixels; the last map has 8 times the grid.\n"
           "Deep is at the top, as in the paper's figure. orange: the frozen backbone, blue: DPT", 8)  # fmt: skip
    d.save("dpt")


def dino_ir() -> None:
    d = Diagram(118, 70)
    d.text(30, 68, "PixelSemanticFusion (PSF)", 10, weight="bold")
    d.text(88, 68, "ChannelFusion (D-R attention), one per level", 10, weight="bold")
    d.text(59, 30.5, "RestorationHead: Restormer, guided before the encoder of each level", 10, weight="bold")
    image = d.box(6, 52, "degraded\nimage", "data")
    backbone = d.box(18, 52, "frozen\nDINO", "fixed")
    d.arrow(image.at("r"), backbone.at("l"))
    total = d.box(50, 58, "sum of\ng_i e_i", "train", 9)
    for i, (y, text) in enumerate(((63, "shallow"), (58, "middle"), (53, "deep"))):
        expert = d.box(36, y, f"expert {i}", "train", 10)
        d.path((backbone.at("r")[0], 52 + (1 - i)), (24, 52 + (1 - i)), (24, y), expert.at("l"))
        d.text(27.6, y + 1.1, text, 8)
        d.path(expert.at("r"), (43, y), (43, 58), total.at("l")) if i != 1 else d.arrow(expert.at("r"), total.at("l"))
    gate = d.box(40, 43, "means -> gating -> softmax", "train")
    d.path((18, backbone.at("b")[1]), (18, 43), gate.at("l"))
    d.path(gate.at("r"), (54, 43), (54, 52), (50, 52), total.at("b"), text="g", at=(55.5, 47))
    guide = d.box(57, 38, "guide", "data", 9)
    d.path(total.at("r"), (57, 58), guide.at("t"))

    side = d.box(74, 62, "guide, adapt to\nchannels and size", "data")
    level = d.box(74, 42, "x of the level\nB, dim, h, w", "data")
    q = d.box(90, 62, "norm, q", "train", 10)
    kv = d.box(90, 48, "norm, k and v", "train", 13)
    attend = d.box(105, 55, "softmax over\nchannels, c x c\nout: starts at 0", "train", 16)
    plus = d.box(105, 42, "x + update", "loss", 12)
    d.arrow(side.at("r"), q.at("l"))
    d.path(level.at("t"), (74, 48), kv.at("l"))
    d.path(q.at("r"), (105, 62), attend.at("t"))
    d.path(kv.at("r"), (98.5, 48), (98.5, attend.at("b")[1]))
    d.arrow(attend.at("b", 2), (107, plus.at("t")[1]))
    d.arrow(level.at("r"), plus.at("l"))
    d.text(87, 36, "query: dino as drawn; query: restoration swaps q with k and v", 8)

    xs, ys = (22, 33, 44, 55), (24, 18, 12, 6)
    before, skips = d.box(8, 24, "image", "data"), []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        box = d.box(x, y, f"encoder {i + 1}", "plain", 9.5) if i < 3 else d.box(59, y, "latent", "plain", 9)
        start = before.at("r") if i == 0 else (before.at("b"))
        d.path(start, box.at("l")) if i == 0 else d.path(start, (before.x, y), box.at("l"))
        gx = (start[0] + box.at("l")[0]) / 2 if i == 0 else (before.x + box.at("l")[0]) / 2
        d.axes.plot([gx], [y], "o", color="#2060b0", ms=8)
        skips.append(box)
        before = box
    after = before
    for i, (x, y) in enumerate(zip((74, 85, 96), (12, 18, 24), strict=True)):
        box = d.box(x, y, f"decoder {3 - i}", "plain", 9.5)
        d.path(after.at("r"), (x, after.y), box.at("b"))
        d.arrow(skips[2 - i].at("r"), box.at("l"), dashed=True)
        after = box
    d.arrow(after.at("r"), d.box(110, 24, "restored", "loss").at("l"))
    d.axes.plot([8], [4], "o", color="#2060b0", ms=8)
    d.text(10, 4, "fusions[level]: the guide enters", 8, ha="left")
    d.save("dino_ir")


def tokencut(photo: Path, backbone: Any) -> None:
    """Draw the graph of one photograph from the features that `dense.discover` uses."""
    import numpy as np
    import torch
    from PIL import Image

    from dense.discover import TokenCut
    from dense.discover.attention import salience
    from dense.discover.graph import edges, normalised_cut
    from dense.discover.methods import default_source, suited
    from dense.discover.source import unit_tokens

    pixels = Image.open(photo).convert("RGB")
    side = 20 * backbone.spec.patch
    pixels = pixels.resize((round(side * pixels.width / pixels.height / 14) * 14, side))
    images = backbone.normalise(torch.from_numpy(np.asarray(pixels).copy()).permute(2, 0, 1)[None])
    source = default_source(backbone.spec, cuts=True)
    method = suited(TokenCut(), backbone.spec, source)
    with torch.inference_mode():
        features = source(backbone, images)
        grid = features.shape[-2:]
        adjacency = edges(unit_tokens(features), method.tau)
        found = method(features, salience(backbone, images, tuple(grid)))
    height, width = grid
    seed = int(found.maps[0, 0].argmax())
    patch = backbone.spec.patch
    figure, axes = pyplot.subplots(1, 4, figsize=(12, 2.5), layout="constrained")
    axes[0].imshow(pixels)
    row, column = divmod(seed, width)
    joined = adjacency[0, seed].nonzero()[:, 0].tolist()
    for other in joined:
        r, c = divmod(other, width)
        ends = [[(column + 0.5) * patch, (c + 0.5) * patch], [(row + 0.5) * patch, (r + 0.5) * patch]]
        axes[0].plot(*ends, color="#ffd84d", lw=0.4, alpha=0.7)
    axes[0].plot((column + 0.5) * patch, (row + 0.5) * patch, "o", color="#d02020", ms=5)
    axes[0].set_title(f"edges of one patch: {len(joined)} of {height * width}", size=9)
    axes[1].imshow(adjacency[0], cmap="gray_r", interpolation="nearest")
    axes[1].set_title(f"adjacency: cosine > tau = {method.tau}", size=9)
    vector = normalised_cut(adjacency).vectors[0].unflatten(0, tuple(grid))
    axes[2].imshow(vector, cmap="coolwarm")
    axes[2].set_title("second eigenvector", size=9)
    axes[3].imshow(pixels)
    mask = np.asarray(Image.fromarray(found.masks[0, 0].numpy()).resize(pixels.size, 0))
    axes[3].imshow(np.where(mask, np.nan, 1.0), cmap="gray", vmin=0, vmax=1, alpha=0.75)
    axes[3].set_title("the side with more attention", size=9)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    figure.savefig(HERE / "tokencut.jpg", dpi=90, pil_kwargs={"quality": 80})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of scikit-image's data")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights")
    options = parser.parse_args()
    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "methods", "font.family": ["DejaVu Sans", "sans-serif"]}
    for draw in (dino, dinov2, dinov3, dpt, dino_ir):
        draw()
    if options.images is None:
        return
    import dense
    from pretrain import MultiCrop, PretrainData
    from pretrain.run import show_views

    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(options.images / "astronaut.png", folder)
        show_views(PretrainData(folder, MultiCrop(), batch_size=1, workers=0), HERE / "views.jpg")
    tokencut(options.images / "coffee.png", dense.load_backbone(options.backbone, options.weights, frozen=True))


if __name__ == "__main__":
    main()
