import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from dense.data.scenes import CLASSES, SPLITS, Scene, Scenes, clip, dominant_class, render, sample
from dense.data.scenes.curved import Ball, Capsule, Cone, Cylinder, Dome, Torus, Tube
from dense.data.scenes.render import FAR, cast, shade
from dense.data.scenes.solid import Boxes, Pyramid, Solid
from dense.data.scenes.world import Thing, World

MANY = 350
Points = NDArray[np.float64]


@pytest.fixture(scope="module")
def scenes() -> list[tuple[World, Scene]]:
    return [(sample(1, index), render(1, index, 48)) for index in range(MANY)]


def digest(scene: Scene) -> str:
    parts = (scene.image, scene.depth, scene.semantic, scene.instance)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


# An independent form of every solid: a function that is negative inside, zero on the surface and positive outside.


def inside_of(solid: Solid) -> Callable[[Points, Points, Points], Points]:
    match solid:
        case Ball(size=r):
            return lambda x, y, z: np.sqrt(x**2 + y**2 + z**2) - r
        case Dome(size=r):
            return lambda x, y, z: np.maximum(np.sqrt(x**2 + y**2 + z**2) - r, -y)
        case Cylinder(size=r, half=h):
            return lambda x, y, z: np.maximum(np.hypot(x, z) - r, abs(y) - h)
        case Tube(size=r, hole=i, half=h):
            return lambda x, y, z: np.maximum(abs(np.hypot(x, z) - (r + i) / 2) - (r - i) / 2, abs(y) - h)
        case Capsule(size=r, half=h):
            return lambda x, y, z: np.sqrt(x**2 + (y - y.clip(-h, h)) ** 2 + z**2) - r
        case Cone(size=r, half=h):
            return lambda x, y, z: np.maximum(np.hypot(x, z) - r * (h - y) / (2 * h), abs(y) - h)
        case Pyramid(size=r, half=h):
            return lambda x, y, z: np.maximum(np.maximum(abs(x), abs(z)) - r * (h - y) / (2 * h), abs(y) - h)
        case Torus(size=r, thick=t):
            return lambda x, y, z: np.hypot(np.hypot(x, z) - r, y) - t
        case Boxes(pieces=pieces):
            return lambda x, y, z: np.min(
                [
                    np.max([a - x, x - d, b - y, y - e, c - z, z - f], axis=0)
                    for a, b, c, d, e, f in pieces
                ], axis=0,
            )  # fmt: skip
    raise AssertionError(solid)


def value(thing: Thing, points: Points) -> Points:
    """The function of a thing's solid at world points (..., 3)."""
    x, y, z = np.moveaxis((points - thing.position) @ thing.rotation, -1, 0)
    return inside_of(thing.solid)(x, y, z)


def test_the_same_bytes_in_any_process_and_with_any_threads() -> None:
    code = (
        "import numpy as np, random; np.random.seed(5); random.seed(5)\n"
        "from tests.data.test_scenes import digest\nfrom dense.data.scenes import render\n"
        "print(*[digest(render(3, index, size)) for index in (2**40 + 5, 17) for size in (64, (40, 72))])"
    )
    here = [digest(render(3, index, size)) for index in (2**40 + 5, 17) for size in (64, (40, 72))]
    two = dict.fromkeys(("PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **two}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == here


def test_global_random_state_is_neither_read_nor_moved() -> None:
    before = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    first = digest(render(0, 4, 32))
    assert (random.getstate(), str(np.random.get_state())) == before  # noqa: NPY002
    random.random()
    assert digest(render(0, 4, 32)) == first


def test_seeds_and_indices_give_different_scenes() -> None:
    assert len({digest(render(seed, index, 24)) for seed in range(5) for index in range(10)}) == 50


def test_types_and_shapes_of_any_size() -> None:
    for size, shape in ((33, (33, 33)), ((48, 96), (48, 96)), ((90, 41), (90, 41)), (1, (1, 1))):
        scene = render(0, 2, size)
        assert scene.image.shape == (*shape, 3)
        assert scene.depth.shape == scene.semantic.shape == scene.instance.shape == shape
        kinds = [part.dtype for part in (scene.image, scene.depth, scene.semantic, scene.instance)]
        assert kinds == [np.uint8, np.float32, np.uint8, np.uint16]


def test_the_maps_agree_with_one_another(scenes: list[tuple[World, Scene]]) -> None:
    for world, scene in scenes:
        sky = scene.semantic == CLASSES.index("sky")
        assert (scene.valid == ~sky).all()
        assert (scene.depth[scene.valid] > 0).all()
        assert ((scene.instance == 0) == (scene.semantic <= CLASSES.index("ground"))).all()
        for number in np.unique(scene.instance[scene.instance > 0]):
            assert (scene.semantic[scene.instance == number] == world.things[number - 1].label).all()


def test_depth_lies_on_the_analytic_surfaces(scenes: list[tuple[World, Scene]]) -> None:
    met = set()
    for world, scene in scenes[:120]:
        points = scene.camera.backproject(scene.depth)
        ground = scene.semantic == CLASSES.index("ground")
        assert (abs(points[ground][:, 1]) < 1e-5 * scene.depth[ground]).all()
        assert (scene.depth[ground] < FAR).all()
        for number, thing in enumerate(world.things, 1):
            off = abs(value(thing, points[scene.instance == number]))
            assert off.size == 0 or off.max() < 1e-4, CLASSES[thing.label]
            met.add(thing.label)
    assert len(met) == len(CLASSES) - 2


def test_a_sphere_obeys_its_equation(scenes: list[tuple[World, Scene]]) -> None:
    for world, scene in scenes:
        for number, thing in enumerate(world.things, 1):
            if CLASSES[thing.label] == "sphere":
                seen = scene.camera.backproject(scene.depth)[scene.instance == number]
                assert isinstance(thing.solid, Ball)
                np.testing.assert_allclose(np.linalg.norm(seen - thing.position, axis=-1), thing.solid.size, atol=5e-5)


@pytest.mark.parametrize("index", range(12))
def test_marching_along_every_ray_finds_the_same_first_surface(index: int) -> None:
    side = 20
    world = sample(7, index)
    depth, seen = cast(world, side, side)
    steps = np.linspace(0.05, 20, 4000)
    ahead = world.camera.backproject(np.ones((side, side), np.float32)) - world.camera.position
    first = np.full((side, side), np.inf)
    for thing in world.things:
        along = ahead.reshape(-1, 3)
        towards = np.array(thing.position) - world.camera.position
        nearest = (along @ towards) / (along**2).sum(-1)
        close = np.linalg.norm(along * nearest[:, None] - towards, axis=-1) < thing.solid.radius
        entry = np.full(len(along), np.inf)
        for ray in np.flatnonzero(close):
            near = steps[abs(steps - nearest[ray]) * np.linalg.norm(along[ray]) < thing.solid.radius + 0.02]
            hit = value(thing, world.camera.position + near[:, None] * along[ray]) < 0
            entry[ray] = near[hit.argmax()] if hit.any() else np.inf
        first = np.minimum(first, entry.reshape(side, side))
    things = seen >= 2
    grazing = np.isfinite(first) != things  # parts thinner than a step
    assert grazing.mean() < 0.01
    error = abs(first[things & ~grazing] - depth[things & ~grazing])
    assert np.quantile(error, 0.98) < 0.006  # one step


def test_normals_are_unit_and_point_up_the_slope(scenes: list[tuple[World, Scene]]) -> None:
    step = 1e-4
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in CLASSES[2:]}
    for world, scene in scenes[:100]:
        points = scene.camera.backproject(scene.depth)
        for number, thing in enumerate(world.things, 1):
            local = (points[scene.instance == number] - thing.position) @ thing.rotation
            normal = np.stack(thing.solid.normal(*local.T), -1)
            np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=2e-3)
            f = inside_of(thing.solid)
            slope = np.stack([f(*(local + step * axis).T) - f(*(local - step * axis).T) for axis in np.eye(3)], -1)
            right[CLASSES[thing.label]].append((slope * normal).sum(-1) > 0.999 * np.linalg.norm(slope, axis=-1))
    for name, parts in right.items():  # at edges, where two faces meet, the two may disagree
        assert np.concatenate(parts).mean() > 0.97, name


def test_things_rest_apart_from_one_another_and_from_the_camera(scenes: list[tuple[World, Scene]]) -> None:
    rng = np.random.default_rng(0)
    stacked = 0
    for world, _ in scenes:
        assert 2 <= len(world.things) <= 7
        clouds = []
        for thing in world.things:
            cloud = rng.uniform(-1, 1, (800, 3)) * thing.solid.radius
            cloud = cloud[inside_of(thing.solid)(*cloud.T) < 0] @ thing.rotation.T + thing.position
            assert cloud[:, 1].min() > -1e-3
            clouds.append(cloud)
            stacked += cloud[:, 1].min() > 0.3
            assert np.linalg.norm(np.array(thing.position) - world.camera.position) > thing.solid.radius
        for number, cloud in enumerate(clouds):
            for other in world.things[:number] + world.things[number + 1 :]:
                assert (value(other, cloud) > -1e-3).all()
    assert stacked > 5


def test_things_touch_what_they_rest_on(scenes: list[tuple[World, Scene]]) -> None:
    """The lowest point by the solid's own support is the lowest point of its surface, searched for."""
    for world, _ in scenes[:60]:
        for thing in world.things:
            sides = np.random.default_rng(0).normal(size=(4000, 3))
            rays = sides / np.linalg.norm(sides, axis=-1, keepdims=True) * 3 * thing.solid.radius
            target = np.random.default_rng(1).uniform(-1, 1, (4000, 3)) * thing.solid.radius * 0.8
            reach = thing.solid.enter(tuple(rays.T), tuple((target - rays).T), 0.0)
            found = (rays + reach[:, None] * (target - rays))[np.isfinite(reach)] @ thing.rotation[1]
            lowest = thing.solid.lowest(thing.rotation)
            assert found.min() > lowest - 1e-6
            assert found.min() < lowest + 0.06 * thing.solid.radius, CLASSES[thing.label]


def test_no_scene_is_degenerate(scenes: list[tuple[World, Scene]]) -> None:
    shares = [np.bincount(scene.instance.ravel())[1:].max() / scene.instance.size for _, scene in scenes]
    assert min(shares) > 0.04
    assert 0.15 < np.median(shares) < 0.4
    assert max(shares) < 0.6


def test_the_same_scene_at_two_sizes() -> None:
    for index in range(10):
        small, large = render(0, index, 40), render(0, index, 200)
        assert small.camera == large.camera
        centre = slice(2, None, 5)  # the pixel of 200 whose centre is the centre of a pixel of 40
        assert (large.semantic[centre, centre] == small.semantic).mean() > 0.995
        same = (large.instance[centre, centre] == small.instance) & small.valid & large.valid[centre, centre]
        np.testing.assert_allclose(large.depth[centre, centre][same], small.depth[same], rtol=1e-3)
        shrunk = large.image.reshape(40, 5, 40, 5, 3).mean((1, 3))
        assert abs(shrunk - small.image).mean() < 6


def test_a_wide_image_shows_the_square_in_its_middle() -> None:
    wide, square = render(0, 3, (40, 80)), render(0, 3, 40)
    assert (wide.semantic[:, 20:60] == square.semantic).mean() > 0.995


def test_supersampling_changes_the_image_alone() -> None:
    plain, fine = render(0, 6, 48), render(0, 6, 48, supersample=2)
    assert (plain.depth == fine.depth).all()
    assert (plain.semantic == fine.semantic).all()
    assert 0 < abs(plain.image.astype(int) - fine.image).mean() < 8


def plain_ground(seen: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Ground pixels with nothing but ground around them: those at outlines are softened."""
    plain = seen == 1
    for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        plain &= np.roll(seen, shift, (0, 1)) == 1
    return plain


def test_the_ground_is_dark_where_marching_towards_the_sun_meets_a_thing() -> None:
    """Dark means: as without any sun."""
    shadows = 0
    for index in range(8):
        world = sample(0, index)
        depth, seen = cast(world, 40, 40)
        sunless = replace(world, light=replace(world.light, sun=(0.0, 0.0, 0.0)))
        bare = shade(replace(world, things=(), coats=()), depth, np.minimum(seen, 1)).astype(int)
        image, night = shade(world, depth, seen).astype(int), shade(sunless, depth, seen)
        judged = plain_ground(seen) & (abs(bare - night).max(-1) > 8) & (depth < 15)
        dark = abs(image - night).max(-1)[judged] <= 1
        start = world.camera.backproject(depth)[judged]
        way = start[:, None] + np.linspace(0.01, 8, 500)[:, None] * np.array(world.light.towards)
        hidden = np.any([(value(thing, way) < 0).any(-1) for thing in world.things], axis=0)
        assert (hidden == dark).mean() > 0.98
        shadows += dark.sum()
    assert shadows > 300


def test_a_ball_casts_its_shadow_away_from_the_sun() -> None:
    base = sample(0, 0)
    ball = Thing(Ball(0.5), 2, (0.0, 0.5, 4.0), np.eye(3), 0.5)
    sun = np.array([0.6, 0.7, -0.3])
    sun /= np.linalg.norm(sun)
    camera = replace(base.camera, height=2.5, pitch=0.5, roll=0.0, focal=0.9)
    light = replace(base.light, towards=tuple(sun), sun=(1.0, 1.0, 1.0), ambient=(0.1, 0.1, 0.1))
    ground = replace(base.ground, pattern="plain", first=(0.5, 0.5, 0.5), second=(0.5, 0.5, 0.5))
    world = replace(base, camera=camera, things=(ball,), coats=base.coats[:1], light=light, ground=ground,
                    sky=replace(base.sky, haze=1e9))  # fmt: skip
    depth, seen = cast(world, 96, 96)
    image, points = shade(world, depth, seen), camera.backproject(depth)
    plain = plain_ground(seen)
    away = points[plain] - ball.position
    distance = np.linalg.norm(away - (away @ sun)[:, None] * sun, axis=-1)  # of the ray to the sun from the centre
    dark = image[plain][:, 0] < 100
    decided = abs(distance - 0.5) > 0.01
    assert dark.sum() > 50
    assert (dark == (distance < 0.5))[decided].all()


def test_every_class_is_equally_frequent(scenes: list[tuple[World, Scene]]) -> None:
    labels = [thing.label for world, _ in scenes for thing in world.things]
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts[:2].sum() == 0
    expected = counts.sum() / 12
    assert ((counts[2:] - expected) ** 2 / expected).sum() < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


def test_every_class_can_dominate(scenes: list[tuple[World, Scene]]) -> None:
    counts = np.bincount([dominant_class(scene) for _, scene in scenes], minlength=len(CLASSES))[2:]
    assert counts.min() > MANY / 12 * 0.45
    assert counts.max() < MANY / 12 * 1.8


def test_colour_and_texture_say_nothing_about_the_class(scenes: list[tuple[World, Scene]]) -> None:
    features, labels = [], []
    for world, scene in scenes:
        for number, thing in enumerate(world.things, 1):
            pixels = scene.image[scene.instance == number]
            if len(pixels) >= 20:
                features.append(np.concatenate([pixels.mean(0), np.sqrt(pixels.mean(0))]))
                labels.append(thing.label)
    x, y = np.array(features), np.array(labels)
    x = (x - x.mean(0)) / x.std(0)
    half = len(x) // 2
    assert half > 350
    for classifier in (LogisticRegression(max_iter=300), KNeighborsClassifier(15)):
        accuracy = classifier.fit(x[:half], y[:half]).score(x[half:], y[half:])
        assert accuracy < 1 / 12 + 4 * np.sqrt(1 / 12 * 11 / 12 / half)  # chance and four standard errors
    coats = [
        (coat.pattern, thing.label)
        for world, _ in scenes
        for coat, thing in zip(world.coats, world.things, strict=True)
    ]
    names = sorted({name for name, _ in coats})
    table = np.zeros((len(names), len(CLASSES)))
    for name, label in coats:
        table[names.index(name), label] += 1
    table = table[:, 2:]
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 108  # 66 degrees of freedom, p = 0.001


def test_splits_share_no_index() -> None:
    ranges = list(SPLITS.values())
    assert list(SPLITS) == ["train", "val", "test"]
    assert all(len(r) > 10**9 for r in ranges)
    for number, one in enumerate(ranges):
        for other in ranges[:number]:
            assert one.stop <= other.start or other.stop <= one.start
    firsts = {digest(Scenes(split, 3, 24)[item]) for split in SPLITS for item in range(3)}
    assert len(firsts) == 9


def test_the_dataset_is_a_window_on_render() -> None:
    data = Scenes("val", 5, (24, 36), seed=3, camera_height=(1.0, 1.2), objects=(3, 3))
    assert len(data) == 5
    assert digest(data[2]) == digest(render(3, SPLITS["val"][2], (24, 36), camera_height=(1.0, 1.2), objects=(3, 3)))
    assert digest(data[-1]) == digest(data[4])
    assert [dominant_class(scene) for scene in (data[item] for item in range(5))] == data.labels.tolist()
    assert all(len(sample(3, data.index(i), camera_height=(1.0, 1.2), objects=(3, 3)).things) == 3 for i in range(5))
    with pytest.raises(IndexError, match="item 5 of 5"):
        data[5]


@pytest.mark.parametrize("heights", [(0.5, 0.7), (2.0, 2.5), (4.0, 5.0)])
def test_camera_heights_can_be_held_out(heights: tuple[float, float]) -> None:
    seen = [render(0, index, 24, camera_height=heights).camera.height for index in range(30)]
    assert heights[0] <= min(seen) < max(seen) <= heights[1]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="split is 'valid', expected one of train, val, test"):
        Scenes("valid", 3)
    with pytest.raises(ValueError, match="camera_height"):
        render(0, 0, camera_height=(3.0, 1.0))
    with pytest.raises(ValueError, match="objects"):
        render(0, 0, objects=(0, 3))
    with pytest.raises(ValueError, match="index is -1"):
        render(0, -1)
    with pytest.raises(ValueError, match="size is 0"):
        render(0, 0, 0)


# ---- clips


def test_the_first_frame_is_the_scene_and_the_path_depends_on_the_index() -> None:
    """A pure function of (seed, index); more frames mean a slower camera on the same path."""
    for index in (3, 2**40 + 1):
        frames, again = list(clip(5, index, 5, (40, 56))), list(clip(5, index, 9, (40, 56)))
        first = render(5, index, (40, 56))
        assert np.array_equal(frames[0].image, first.image)
        assert np.array_equal(frames[0].instance, first.instance)
        for one, other in zip(frames, again[::2], strict=True):
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.instance, other.instance)
        assert not np.array_equal(frames[0].instance, frames[-1].instance)
    assert len(list(clip(0, 0, 1, 24))) == 1
    with pytest.raises(ValueError, match="frames is 0"):
        next(clip(0, 0, 0))


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_frames_show_one_world(index: int) -> None:
    """Points of one frame, projected into the next, lie on the same solid at the same depth unless hidden."""
    first, second = (list(clip(1, index, 9, 96))[i] for i in (0, 1))
    points = first.camera.backproject(first.depth)[first.valid]  # N, 3
    numbers = first.instance[first.valid]
    seen = (points - second.camera.position) @ second.camera.rotation
    places = seen @ second.camera.intrinsics(96, 96).T
    column, row = np.floor(places[:, :2] / places[:, 2:]).astype(int).T
    inside = (row >= 0) & (row < 96) & (column >= 0) & (column < 96)
    assert inside.mean() > 0.8
    row, column, depth, numbers = row[inside], column[inside], seen[inside, 2], numbers[inside]
    there = np.abs(second.depth[row, column] - depth) < 0.05 * depth
    assert there.mean() > 0.85  # the rest is hidden, or at an outline
    assert (second.instance[row, column] == numbers)[there].mean() > 0.98
