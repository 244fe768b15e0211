"""Ray casting of a world: what every pixel sees and how far it is, and the light that comes from there."""

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.camera import Camera
from dense.data.scenes.looks import Colour, Light
from dense.data.scenes.patterns import on_ground, on_solid, sheet
from dense.data.scenes.solid import Array, Surface
from dense.data.scenes.world import Thing, World

FAR = 60.0  # metres of planar depth at which the ground ends in the haze
SKY, GROUND = 0, 1  # in a map of what is seen; thing number k of the world is 2 + k
EPSILON = 2e-3  # metres a shadow ray starts off its surface


def cast(world: World, height: int, width: int) -> tuple[Array, NDArray[np.uint8]]:
    """Planar depth (H, W), infinite at the sky, and what is seen (H, W): SKY, GROUND or 2 + the thing's number."""
    camera = world.camera
    columns, rows = camera.plane(height, width)
    with np.errstate(divide="ignore"):
        depth = np.float32(-camera.height) / _affine(camera.rotation[1], columns, rows)
    ground = (depth > 0) & (depth < FAR)
    depth[~ground] = np.inf
    seen = ground.astype(np.uint8)
    for number, (thing, window) in enumerate(zip(world.things, world.windows, strict=True)):
        left, right = np.searchsorted(columns, window[:2])
        top, bottom = np.searchsorted(rows, window[2:])
        if left >= right or top >= bottom:
            continue
        distance = _enter(camera, thing, columns[left:right], rows[top:bottom])
        behind = depth[top:bottom, left:right]
        nearer = distance < behind
        np.copyto(behind, distance, where=nearer)
        np.copyto(seen[top:bottom, left:right], np.uint8(2 + number), where=nearer)
    return depth, seen


def _affine(row: NDArray[np.float64], columns: Array, rows: Array, scale: float = 1.0, offset: float = 0.0) -> Array:
    """One coordinate, over the picture, of (column, row, 1) times a row of a matrix: H, W."""
    a, b, c = (scale * float(value) for value in row)
    return (columns * np.float32(a) + np.float32(c + offset))[None, :] + (rows * np.float32(b))[:, None]


def _enter(camera: Camera, thing: Thing, columns: Array, rows: Array) -> Array:
    """Planar depth at which rays enter a thing; counted from the thing's own depth, for precision: H, W."""
    relative = np.array(camera.position) - thing.position
    middle = -float(relative @ camera.rotation[:, 2])
    turn, start = thing.rotation.T @ camera.rotation, thing.rotation.T @ relative
    direction = [_affine(turn[axis], columns, rows) for axis in range(3)]
    origin = [_affine(turn[axis], columns, rows, middle, float(start[axis])) for axis in range(3)]
    entry = thing.solid.enter((origin[0], origin[1], origin[2]), (direction[0], direction[1], direction[2]), -middle)
    return entry + np.float32(middle)


def shade(world: World, depth: Array, seen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture (H, W, 3) of what `cast` returned."""
    height, width = depth.shape
    columns, rows = world.camera.plane(height, width)
    x, y = np.broadcast_to(columns, depth.shape).reshape(-1), np.repeat(rows, width)
    flat, distance = seen.reshape(-1), depth.reshape(-1)
    picture = np.empty((3, flat.size), np.float32)
    above = np.flatnonzero(flat == SKY)
    if above.size:
        picture[:, above] = _heaven(world, x[above], y[above])
    solid = np.flatnonzero(flat)
    if solid.size:
        pixel = 1 / (world.camera.focal * min(height, width))
        picture[:, solid] = _matter(world, x[solid], y[solid], distance[solid], flat[solid], pixel)
    np.sqrt(np.clip(picture, 0, 1, out=picture), out=picture)
    return np.ascontiguousarray((picture * 255 + 0.5).astype(np.uint8).T).reshape(height, width, 3)


def _rays(camera: Camera, x: Array, y: Array) -> Surface:
    rows = camera.rotation.tolist()
    rx, ry, rz = (a * x + b * y + c for a, b, c in rows)
    return rx, ry, rz


def _mix(first: Colour, second: Colour, weight: Array | float) -> list[Array | float]:
    return [a + (b - a) * weight for a, b in zip(first, second, strict=True)]


def _heaven(world: World, x: Array, y: Array) -> Array:
    """Sky, clouds, the sun's glow and hills: 3, N."""
    sky, light = world.sky, world.light
    rx, ry, rz = _rays(world.camera, x, y)
    length = np.sqrt(rx * rx + ry * ry + rz * rz)
    climb = np.clip(ry / length, 0, 1)
    colour = np.stack([np.broadcast_to(c, x.shape) for c in _mix(sky.horizon, sky.zenith, np.sqrt(climb))])
    if sky.clouds:
        reach = np.float32(sky.cloud_scale) / (climb + np.float32(0.12))
        density = sheet(rx * reach + sky.offset[0], rz * reach + sky.offset[1]) + np.float32(sky.clouds - 0.95)
        cover = np.clip(density * 4, 0, 0.9) * np.clip(climb * 12, 0, 1)
        colour += cover * (np.float32(0.25) + np.float32(0.7) * np.array(sky.horizon, np.float32)[:, None] - colour)
    lx, ly, lz = light.towards
    glow = np.maximum((rx * lx + ry * ly + rz * lz) / length, 0)
    for _ in range(4):
        glow = glow * glow
    disc = glow**12
    colour += (glow * np.float32(0.25) + disc * disc) * np.array(light.sun, np.float32)[:, None]
    if sky.hills:
        azimuth = rx / np.maximum(rz, np.float32(0.1))
        ridge = sheet(azimuth * np.float32(0.15) + sky.offset[1], np.full_like(x, sky.offset[0])) * np.float32(
            sky.hills
        )
        hidden = np.clip((ridge - ry / length) * 150, 0, 1)
        tint = [0.5 * a + 0.5 * b for a, b in zip(sky.hill, sky.horizon, strict=True)]
        colour += hidden * (np.array(tint, np.float32)[:, None] - colour)
    return colour


def _matter(world: World, x: Array, y: Array, distance: Array, seen: NDArray[np.uint8], pixel: float) -> Array:
    """Ground and things, lit, shadowed and hazy: 3, N."""
    camera, light, sky = world.camera, world.light, world.sky
    rx, ry, rz = _rays(camera, x, y)
    px, py, pz = rx * distance, ry * distance + np.float32(camera.height), rz * distance
    albedo = np.empty((3, x.size), np.float32)
    normal = np.zeros((3, x.size), np.float32)
    shine: list[tuple[NDArray[np.int64], float]] = []
    plane = np.flatnonzero(seen == GROUND)
    if plane.size:
        far = distance[plane]
        mask = on_ground(world.ground, px[plane], pz[plane], far * far * np.float32(pixel / camera.height))
        for channel, value in enumerate(_mix(world.ground.first, world.ground.second, mask)):
            albedo[channel, plane] = value
        normal[1, plane] = 1
    places: dict[int, NDArray[np.int64]] = {}
    for number, thing in enumerate(world.things):
        place = np.flatnonzero(seen == 2 + number)
        if not place.size:
            continue
        places[number] = place
        point = _inside(thing, px[place], py[place], pz[place])
        coat, faces = thing.coat, thing.solid.normal(*point)
        for channel, value in enumerate(_mix(coat.first, coat.second, on_solid(coat, *point))):
            albedo[channel, place] = value
        for axis, (a, b, c) in enumerate(thing.rotation.tolist()):
            normal[axis, place] = a * faces[0] + b * faces[1] + c * faces[2]
        if coat.shine:
            shine.append((place, coat.shine))
    lx, ly, lz = light.towards
    facing = np.maximum(normal[0] * lx + normal[1] * ly + normal[2] * lz, 0)
    facing = facing * ~_shadowed(world, px, py, pz, normal, facing, places)
    ambient = normal[1] * np.float32(0.35) + np.float32(0.65)
    colour = np.stack([facing * s + ambient * a for s, a in zip(light.sun, light.ambient, strict=True)]) * albedo
    for place, strength in shine:
        lit = np.flatnonzero(facing[place])
        colour[:, place[lit]] += strength * _gloss(world, (rx, ry, rz), normal, place[lit])
    haze = 1 - np.exp(distance * np.float32(-1 / sky.haze))
    return colour + haze * (np.array(sky.horizon, np.float32)[:, None] - colour)


def _inside(thing: Thing, x: Array, y: Array, z: Array) -> Surface:
    """World points in the thing's own frame."""
    a, b, c = thing.position
    x, y, z = x - np.float32(a), y - np.float32(b), z - np.float32(c)
    rows = thing.rotation.T.tolist()
    ox, oy, oz = (a * x + b * y + c * z for a, b, c in rows)
    return ox, oy, oz


def _gloss(world: World, rays: Surface, normal: Array, place: NDArray[np.int64]) -> Array:
    """The sun's reflection (Blinn's highlight): N."""
    rx, ry, rz = (ray[place] for ray in rays)
    lx, ly, lz = world.light.towards
    scale = -1 / np.sqrt(rx * rx + ry * ry + rz * rz)
    hx, hy, hz = rx * scale + lx, ry * scale + ly, rz * scale + lz
    length = np.sqrt(hx * hx + hy * hy + hz * hz)
    gloss = np.maximum((normal[0, place] * hx + normal[1, place] * hy + normal[2, place] * hz) / length, 0)
    for _ in range(5):
        gloss = gloss * gloss
    return gloss


def _shadowed(
    world: World, px: Array, py: Array, pz: Array, normal: Array, facing: Array, places: dict[int, NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """Whether a thing stands between a point and the sun; only things whose shadow can reach it are asked: N."""
    light = world.light
    dark = facing <= 0
    first, second = _across(light)
    u = px * first[0] + py * first[1] + pz * first[2]  # where the point falls, seen from the sun
    v = px * second[0] + py * second[1] + pz * second[2]
    for number, thing in enumerate(world.things):
        centre = np.array(thing.position)
        du, dv = u - np.float32(centre @ first), v - np.float32(centre @ second)
        reached = (du * du + dv * dv < np.float32(thing.solid.radius**2)) & ~dark
        if thing.solid.convex and number in places:
            reached[places[number]] = False
        place = np.flatnonzero(reached)
        if not place.size:
            continue
        origin = _inside(
            thing, *(p[place] + np.float32(EPSILON) * n[place] for p, n in zip((px, py, pz), normal, strict=True))
        )
        direction = (np.array(light.towards) @ thing.rotation).tolist()
        dark[place] |= np.isfinite(thing.solid.enter(origin, (direction[0], direction[1], direction[2]), 0.0))
    return dark


def _across(light: Light) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two unit vectors perpendicular to the sun's direction and to one another."""
    towards = np.array(light.towards)
    first = np.cross(towards, (0.0, 0.0, 1.0))
    first /= np.linalg.norm(first)
    return first.astype(np.float32), np.cross(towards, first).astype(np.float32)
