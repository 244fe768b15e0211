"""Segmentation from one annotated image by clusters: each step against a case made by hand, and the whole on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from torch._subclasses.fake_tensor import FakeTensorMode

from dense.backbone import Backbone
from dense.cli import main
from dense.export import export
from dense.memory import build_insid3, remember
from dense.memory.build import inside
from dense.memory.views import MemoryView, crop_box
from dense.model.network import DenseModel, Inference
from dense.predict import Predictor
from heads import Insid3Head, MemoryHead
from heads.insid3 import average_linkage
from heads.outputs import Classes

from .test_memory import Pairs, backbone, features, painted, written

__all__ = ["backbone"]  # the fixture
NAMES = ("background", "object")


def head_of(patches: int = 4, rank: int = 1, names: tuple[str, ...] = NAMES) -> Insid3Head:
    return Insid3Head(3, {"labels": Classes(len(names), names=names)}, patches, rank)


def test_position_is_removed() -> None:
    """The features of an empty image vary along one direction, which no vector keeps."""
    head = head_of()
    empty = torch.stack([torch.tensor([1.0, 0, x]) for x in (-0.5, 0, 0.5)])
    head.fill(empty, [(torch.eye(3)[[0, 1, 2, 0]], torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0]]).bool())])
    direction = torch.linalg.svd(F.normalize(empty, dim=1) - F.normalize(empty, dim=1).mean(0)).Vh[0]
    vectors = head.debiased(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(vectors @ direction, torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))


def test_prototypes_are_means_of_the_images_that_hold_the_class() -> None:
    head = head_of(rank=0)
    first = (torch.eye(3)[[0, 1]], torch.tensor([[1, 0], [0, 1]]).bool())
    second = (torch.eye(3)[[2, 2]], torch.tensor([[1, 0], [1, 0]]).bool())
    head.fill(torch.randn(4, 3), [first, second])
    expected = F.normalize(torch.tensor([[1.0, 0, 1], [0, 1, 0]]), dim=1)
    torch.testing.assert_close(head.prototypes, expected)


def test_candidates_need_the_prototype_and_the_nearest_patch() -> None:
    """A patch that resembles the prototype, but whose nearest annotated patch lies outside, is none."""
    head = head_of(rank=0)
    bank = F.normalize(torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1], [0, 0, 1]]), dim=1)
    head.fill(torch.randn(4, 3), [(bank, torch.tensor([[0, 1], [1, 0], [1, 0], [1, 0]]).bool())])
    own = F.normalize(torch.tensor([[1.0, 0.1, 0], [0.8, 0.6, 0], [0, -1.0, 0.1]]), dim=1)
    found = head.candidates(own, own @ head.prototypes.T)
    assert found[:, 1].tolist() == [True, False, False]


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors (N, 3) at these angles in a plane."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], 1)


def filled(*images: tuple[torch.Tensor, list[set[int]]], names: tuple[str, ...] = NAMES) -> Insid3Head:
    """A head that clusters above a cosine of 0.9, and knows images of vectors and the classes of each vector."""
    held = [torch.tensor([[k in own for k in range(len(names))] for own in classes]) for _, classes in images]
    head = head_of(sum(map(len, held)), rank=0, names=names)
    head.cluster = 0.9
    head.fill(torch.randn(4, 3), [(vectors, inside) for (vectors, _), inside in zip(images, held, strict=True)])
    return head


def test_where_nothing_is_alike_the_upper_tenth_is_asked() -> None:
    """All cosines with the prototype at 0 degrees are below 0, and the nearest annotated patch is the object's."""
    head = filled((at(0, -90), [{1}, {0}]))
    own = at(*range(95, 115, 2))
    found = head.candidates(own, own @ head.prototypes.T)
    assert found[:, 1].tolist() == [True] + 9 * [False]


def test_candidates_need_most_of_the_images_that_hold_the_class() -> None:
    """At 53 degrees one image of three says object; the class that one image alone holds needs that image."""
    first, third = (at(0, 90), [{1}, {0}]), (at(45, 180), [{1}, {0, 2}])
    head = filled(first, first, third, names=(*NAMES, "other"))
    own = at(0, 53, 170)
    found = head.candidates(own, own @ head.prototypes.T)
    assert found[:, 1].tolist() == [True, False, False]
    assert found[:, 2].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("objects", "others", "patches", "expected"),
    [
        pytest.param([0], [180], [20, 60], [1, 1], id="a cluster like object and seed joins"),
        pytest.param([0], [180], [40, -60], [1, 0], id="one unlike the seed does not"),
        pytest.param([0], [180], [40, 85], [1, 0], id="one unlike the object does not"),
        pytest.param([0, 0, 0, 50], [45], [0, 45, 45, 45, 50], [1, 0, 0, 0, 0], id="nor one of few candidates"),
        pytest.param([30, -30], [0], [30, 0], [1, 0], id="the seed has candidates"),
        pytest.param([0], [180], [85], [1], id="the seed stays"),
    ],
)
def test_seed_and_aggregation(objects: list[int], others: list[int], patches: list[int], expected: list[int]) -> None:
    """Each case has another result without the step that it names."""
    head = filled((at(*objects, *others), [{1}] * len(objects) + [{0}] * len(others)))
    assert head.classify(at(*patches)).argmax(1).tolist() == expected


def test_a_seed_counts_whole_and_what_joins_none_goes_to_the_nearest_prototype() -> None:
    """The patches at 0 and 6 degrees are the seed of class 0, of which one is a candidate; class 1 has both, and 43."""
    head = filled((at(0, 6, *[43] * 6), [{0, 1}, *[{1}] * 7]), names=("left", "right"))
    assert head.classify(at(0, 6, 43, 43, 120)).argmax(1).tolist() == [0, 0, 1, 1, 1]


def test_clusters_are_of_features_with_position() -> None:
    """Two patches that differ in position alone stay apart, though without position both are the object."""
    head = head_of(patches=2)
    empty = torch.tensor([[1.0, 0, -0.1], [1, 0, 0.1]])
    head.fill(empty, [(torch.eye(3)[:2], torch.tensor([[0, 1], [1, 0]]).bool())])
    assert head.classify(torch.tensor([[1.0, 0, 0], [0.1, 0.01, 1]])).argmax(1).tolist() == [1, 0]


def test_position_is_what_a_black_image_has(backbone: Backbone) -> None:
    source = Pairs([painted(0, (16, 48, 24, 56))], ("background", "object"))
    basis = build_insid3(backbone, source, resize=None, rank=3).head.basis  # type: ignore[arg-type]
    black = backbone(backbone.normalise(torch.zeros(1, 3, 64, 80, dtype=torch.uint8)), layers=[3], norm=True)
    units = F.normalize(black.maps[0][0].flatten(1).T.double(), dim=1).detach()
    values, vectors = torch.linalg.eigh((units - units.mean(0)).T @ (units - units.mean(0)))
    assert values[-4] < 0.9 * values[-3]  # else the first three are not determined
    expected = (vectors[:, -3:] @ vectors[:, -3:].T).float()
    torch.testing.assert_close(basis @ basis.T, expected, atol=1e-4, rtol=0)


def test_masks_follow_the_features_to_their_device() -> None:
    """Masks are read on the CPU, whatever the device of the backbone."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = head_of(patches=6).to("cuda")
        vectors = torch.empty(6, 3, device="cuda")
        head.fill(torch.empty(9, 3, device="cuda"), [(vectors, torch.ones(6, 2, dtype=torch.bool))])
        assert head.bank.device.type == "cuda"


def test_clusters_equal_scipy() -> None:
    units = F.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(2)), dim=1)
    expected = fcluster(linkage(units.double().numpy(), "average", metric="cosine"), 0.4, "distance")
    found = average_linkage(units, 0.6)
    assert torch.equal(found[:, None] == found[None], torch.from_numpy(expected[:, None] == expected[None]))
    assert average_linkage(units[:1], 0.6).tolist() == [0]


def test_clusters_join_their_seed() -> None:
    """Of three clusters the one like the object is the seed, its neighbour joins it, the third does not."""
    head = head_of(patches=3, rank=0)
    bank = F.normalize(torch.tensor([[1.0, 0.2, 0], [0, 0, 1.0], [0, 0.1, 1]]), dim=1)
    head.fill(torch.randn(4, 3), [(bank, torch.tensor([[0, 1], [1, 0], [1, 0]]).bool())])
    vectors = torch.tensor([[1.0, 0.2, 0]] * 3 + [[0.5, 1.2, 0]] * 2 + [[0, 0, 1.0]] * 4)
    labels = head.classify(vectors).argmax(1)
    assert labels.tolist() == [1] * 5 + [0] * 4
    head.least = 0.9
    assert head.classify(vectors).argmax(1).tolist() == [1] * 3 + [0] * 6
    without = head_of(patches=3, rank=0, names=("left", "right"))
    without.load_state_dict(head.state_dict())
    assert set(without.classify(vectors).argmax(1).tolist()) == {0, 1}


def test_equal_features_and_too_many_patches() -> None:
    head = head_of(rank=0)
    head.fill(torch.ones(4, 3), [(torch.eye(3)[[0, 1, 2, 0]], torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0]]).bool())])
    assert head(features(torch.ones(1, 3, 2, 2)))["labels"].isfinite().all()
    assert head(features(torch.zeros(1, 3, 2, 2)))["labels"].isfinite().all()
    with pytest.raises(ValueError, match="smaller resize"):
        head.classify(torch.ones(20_000, 3))
    with pytest.raises(ValueError, match="below the 3 channels"):
        head_of(rank=3)


def test_small_objects_keep_their_fullest_patch() -> None:
    shares = torch.tensor([[0.9, 0.1, 0], [0.7, 0.3, 0], [1, 0, 0]])
    assert inside(shares).tolist() == [[True, False, False], [True, True, False], [True, False, False]]


def test_another_image_of_the_same_kind(backbone: Backbone, tmp_path: Path) -> None:
    first, second = painted(0, (16, 48, 24, 56)), painted(1, (8, 40, 8, 40))
    source = Pairs([first], ("background", "object"))
    model = remember("insid3", backbone, source, resize=None, rank=2)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    again = Predictor(DenseModel.from_pretrained(tmp_path))
    assert (again(first[0]).labels == first[1]).mean() > 0.9
    assert (again(second[0]).labels == second[1]).mean() > 0.85
    with pytest.raises(ValueError, match="head insid3 cannot be exported"):
        export(tmp_path, tmp_path / "a.pt2", (64, 64))
    with pytest.raises(ValueError, match="reads one layer"):
        build_insid3(backbone, source, layers=[0, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Did you mean insid3"):
        remember("insid", backbone, source)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown option 'neighbours'"):
        remember("insid3", backbone, source, neighbours=3)  # type: ignore[arg-type]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Backbone) -> None:
    (pair,) = written(tmp_path).items()
    backbone.save_pretrained(tmp_path / "backbone")
    image, mask = painted(2, (8, 40, 8, 40))
    Image.fromarray(image).save(tmp_path / "b.png")
    common = ["segment", str(tmp_path / "b.png"), "--like", f"{pair[0]}={pair[1]}", "--method", "insid3"]
    common += ["--backbone", str(tmp_path / "backbone"), "--output", str(tmp_path / "out"), "--resize", "64"]
    assert main([*common, "--no-square", "--rank", "2", "--refine", "guided"]) == 0
    found = np.asarray(Image.open(tmp_path / "out/b_labels.png"))
    assert (found == mask).mean() > 0.85
    assert DenseModel.from_pretrained(tmp_path / "out/model").inference.refine == "guided"
    assert main([*common, "--neighbours", "3", "--overwrite"]) != 0
    assert "--neighbours belongs to --method knn" in capsys.readouterr().err


# ---- what both methods share


def test_lists_find_what_the_exact_search_finds(backbone: Backbone, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    vectors = F.normalize(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    queries = F.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    exact = MemoryHead(8, {"labels": Classes(2)}, 400, 5)
    exact.fill(vectors, torch.rand(400, 2))
    for probes, least in ((10, 1.0), (3, 0.6)):
        lists = MemoryHead(8, {"labels": Classes(2)}, 400, 5, lists=10, probes=probes)
        lists.fill(vectors, exact.shares)
        pairs = zip(lists.nearest(queries)[1].tolist(), exact.nearest(queries)[1].tolist(), strict=True)
        assert sum(len(set(a) & set(b)) for a, b in pairs) >= least * 100
    with pytest.raises(ValueError, match="probes"):
        MemoryHead(8, {"labels": Classes(2)}, 400, lists=2, probes=3)
    source = Pairs([painted(0, (16, 48, 24, 56))])
    model = remember("knn", backbone, source, resize=None, lists=None)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    image = source.items[0][0]
    labels = Predictor(DenseModel.from_pretrained(tmp_path))(image).labels
    assert np.array_equal(labels, Predictor(model)(image).labels)


def test_views_of_the_memory(backbone: Backbone) -> None:
    """Crops lie within the image, depend on the seed alone, and image and mask stay together."""
    image, mask = painted(0, (16, 48, 24, 56))
    sample, view = Pairs([(image, mask)]).read(0), MemoryView()
    views = [view(sample, (0, i, 0)) for i in range(20)]
    assert np.array_equal(view(sample, (0, 3, 0)).image, views[3].image)
    assert len({v.image.shape for v in views}) > 3
    for v in views:
        assert v.labels is not None
        assert v.labels.shape == v.image.shape[:2]
        red = v.image[..., 0].astype(int) > v.image[..., 2]
        assert (red == v.labels).mean() > 0.99
    areas = [h * w for _, _, h, w in (crop_box(np.random.default_rng(i), 60, 80) for i in range(50))]
    assert min(areas) >= 0.45 * 4800
    assert max(areas) == 4800
    source = Pairs([(image, np.where(mask == 1, 1, 255).astype(np.uint8))])
    model = remember("knn", backbone, source, resize=None, augment=3, unknown=0)  # type: ignore[arg-type]
    assert len(model.head.bank) == 3 * 80
    assert model.head.shares[:, 0].any()
    with pytest.raises(ValueError, match="augment=-1"):
        remember("knn", backbone, source, augment=-1)  # type: ignore[arg-type]


def test_refined_edges_follow_the_image(backbone: Backbone) -> None:
    image, mask = painted(0, (13, 43, 21, 51))
    model = remember("knn", backbone, Pairs([(image, mask)]), resize=None, neighbours=1)  # type: ignore[arg-type]
    plain = (Predictor(model)(image).labels == mask).mean()
    refined = (Predictor.of(model, refine="guided")(image).labels == mask).mean()
    assert refined > plain
    with pytest.raises(ValueError, match="expected none or guided"):
        Inference(refine="sharp")  # type: ignore[arg-type]
