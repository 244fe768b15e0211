"""Ray casting of a world: what every pixel shows, at which depth, and with which colour."""

import numpy as np
from numpy.typing import NDArray

from dense.data.scenes.looks import Colour, Light
from dense.data.scenes.patterns import on_ground, on_solid, sheet
from dense.data.scenes.solid import Array, Surface
from dense.data.scenes.world import Camera, Thing, World

FAR = 60.0  # metres of planar depth at which the ground ends in the haze
SKY, GROUND = 0, 1  # in the map that `cast` returns; thing number k of the world is 2 + k
EPSILON = 2e-3  # metres a shadow ray starts off its surface


def cast(world: World, height: int, width: int) -> tuple[Array, NDArray[np.uint8]]:
    """Return planar depth (H, W), infinite at the sky, and what each pixel shows (H, W): SKY, GROUND or 2 + the thing's
    number."""
    camera = world.camera
    columns, rows = camera.plane(height, width)
    with np.errstate(divide="ignore"):
        depth = np.float32(-camera.height) / _affine(camera.rotation[1:2], columns, rows)[0]
    ground = (depth > 0) & (depth < FAR)
    depth[~ground] = np.inf
    hit = ground.astype(np.uint8)
    for number, (thing, window) in enumerate(zip(world.things, world.windows, strict=True)):
        left, right = np.searchsorted(columns, window[:2])
        top, bottom = np.searchsorted(rows, window[2:])
        if left >= right or top >= bottom:
            continue
        distance = _enter(camera, thing, columns[left:right], rows[top:bottom])
        behind = depth[top:bottom, left:right]
        nearer = distance < behind
        np.copyto(behind, distance, where=nearer)
        np.copyto(hit[top:bottom, left:right], np.uint8(2 + number), where=nearer)
    return depth, hit


def _affine(matrix: NDArray[np.float64], columns: Array, rows: Array) -> Array:
    """Return the products of (K, 3) with (column, row, 1) over the image: K, H, W."""
    narrow = matrix.astype(np.float32)
    return (narrow[:, :1] * columns + narrow[:, 2:])[:, None, :] + (narrow[:, 1:2] * rows)[:, :, None]


def _enter(camera: Camera, thing: Thing, columns: Array, rows: Array) -> Array:
    """Return the planar depth (H, W) at which rays enter a thing, computed relative to its own depth for precision."""
    relative = np.array(camera.position) - thing.position
    middle = -float(relative @ camera.rotation[:, 2])
    turn, start = thing.rotation.T @ camera.rotation, thing.rotation.T @ relative
    moved = turn * middle
    moved[:, 2] += start
    dx, dy, dz, ox, oy, oz = _affine(np.concatenate([turn, moved]), columns, rows)
    return thing.solid.enter((ox, oy, oz), (dx, dy, dz), -middle) + np.float32(middle)


def shade(world: World, depth: Array, hit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image (H, W, 3) for the two maps that `cast` returned."""
    height, width = depth.shape
    rays = _affine(world.camera.rotation, *world.camera.plane(height, width)).reshape(3, -1)
    flat = hit.reshape(-1)
    above = np.flatnonzero(flat == SKY)
    if above.size < flat.size:
        distance = depth.reshape(-1).copy()
        distance[above] = 0
        shaded = _solid_colours(world, rays, distance, flat, 1 / (world.camera.focal * min(height, width)))
    else:
        shaded = np.empty_like(rays)
    if above.size:
        for channel, value in enumerate(_sky_colours(world, *(ray[above] for ray in rays))):
            shaded[channel][above] = value
    np.clip(shaded, 0, 1, out=shaded)
    _soften(shaded, hit)
    np.sqrt(shaded, out=shaded)
    shaded *= 255
    shaded += np.float32(0.5)
    image = np.empty((flat.size, 3), np.uint8)
    for channel in range(3):
        image[:, channel] = shaded[channel]
    return image.reshape(height, width, 3)


def _soften(shaded: Array, hit: NDArray[np.uint8]) -> None:
    """Mix pixels at an outline with their neighbours, in place: a cheap substitute for several rays per pixel."""
    edge = np.zeros(hit.shape, bool)
    sides, ends = hit[1:-1, 1:] != hit[1:-1, :-1], hit[1:, 1:-1] != hit[:-1, 1:-1]
    edge[1:-1, 1:-1] = sides[:, 1:] | sides[:, :-1] | ends[1:] | ends[:-1]
    place, width = np.flatnonzero(edge), hit.shape[1]
    for channel in shaded:
        around = channel[place - width] + channel[place - 1] + channel[place + 1] + channel[place + width]
        channel[place] = channel[place] * np.float32(0.4) + around * np.float32(0.15)


def _mix(first: Colour, second: Colour, weight: Array | float) -> list[Array | float]:
    return [a + (b - a) * weight for a, b in zip(first, second, strict=True)]


def _sky_colours(world: World, rx: Array, ry: Array, rz: Array) -> Array:
    """Return the colours of sky, clouds, the sun's glow and hills: 3, N."""
    sky, light = world.sky, world.light
    length = np.sqrt(rx * rx + ry * ry + rz * rz)
    climb = np.clip(ry / length, 0, 1)
    colour = np.stack([np.broadcast_to(c, rx.shape) for c in _mix(sky.horizon, sky.zenith, np.sqrt(climb))])
    if sky.clouds:
        reach = np.float32(sky.cloud_scale) / (climb + np.float32(0.12))
        density = sheet(rx * reach + sky.offset[0], rz * reach + sky.offset[1]) + np.float32(sky.clouds - 0.95)
        cover = np.clip(density * 4, 0, 0.9) * np.clip(climb * 12, 0, 1)
        colour += cover * (np.float32(0.25) + np.float32(0.7) * np.array(sky.horizon, np.float32)[:, None] - colour)
    lx, ly, lz = light.towards
    glow = np.maximum((rx * lx + ry * ly + rz * lz) / length, 0)
    for _ in range(4):
        glow = glow * glow
    disc = glow
    for _ in range(5):
        disc = disc * disc
    colour += (glow * np.float32(0.25) + disc) * np.array(light.sun, np.float32)[:, None]
    if sky.hills:
        azimuth = rx / np.maximum(rz, np.float32(0.1))
        ridge = sheet(azimuth * np.float32(0.15) + sky.offset[1], np.full_like(rx, sky.offset[0]))
        hidden = np.clip((ridge * np.float32(sky.hills) - ry / length) * 150, 0, 1)
        tint = [0.5 * a + 0.5 * b for a, b in zip(sky.hill, sky.horizon, strict=True)]
        colour += hidden * (np.array(tint, np.float32)[:, None] - colour)
    return colour


def _solid_colours(world: World, rays: Array, distance: Array, hit: NDArray[np.uint8], pixel: float) -> Array:
    """Return the colours of ground and things with light, shadows and haze; undefined at the sky: 3, N."""
    light, sky = world.light, world.sky
    point = rays * distance
    for axis, shift in zip(point, world.camera.position, strict=True):
        axis += np.float32(shift)
    albedo, normal = np.zeros_like(point), np.zeros_like(point)
    normal[1] = hit != SKY
    shine: list[tuple[NDArray[np.int64], float]] = []
    plane = np.flatnonzero(hit == GROUND)
    if plane.size:
        far = distance[plane]
        blur = far * far * np.float32(pixel / world.camera.height)
        mask = on_ground(world.ground, point[0][plane], point[2][plane], blur)
        for channel, value in enumerate(_mix(world.ground.first, world.ground.second, mask)):
            albedo[channel][plane] = value
    places: dict[int, NDArray[np.int64]] = {}
    for number, (thing, coat) in enumerate(zip(world.things, world.coats, strict=True)):
        place = np.flatnonzero(hit == 2 + number)
        if not place.size:
            continue
        places[number] = place
        inside = _inside(thing, *(axis[place] for axis in point))
        faces = thing.solid.normal(*inside)
        for channel, value in enumerate(_mix(coat.first, coat.second, on_solid(coat, *inside))):
            albedo[channel][place] = value
        for axis, (a, b, c) in enumerate(thing.rotation.tolist()):
            normal[axis][place] = a * faces[0] + b * faces[1] + c * faces[2]
        if coat.shine:
            shine.append((place, coat.shine))
    lx, ly, lz = light.towards
    facing = np.maximum(normal[0] * lx + normal[1] * ly + normal[2] * lz, 0)
    facing *= ~_shadowed(world, point, normal, facing, places)
    for place, strength in shine:
        _polish(world, albedo, rays, normal, facing, place, strength)
    ambient = normal[1] * np.float32(0.35) + np.float32(0.65)
    clear = np.exp(distance * np.float32(-1 / sky.haze))
    for channel, sun, fill, veil in zip(albedo, light.sun, light.ambient, sky.horizon, strict=True):
        channel *= facing * sun + ambient * fill
        channel -= np.float32(veil)
        channel *= clear
        channel += np.float32(veil)
    return albedo


def _inside(thing: Thing, x: Array, y: Array, z: Array) -> Surface:
    """Return world points in the thing's own frame."""
    a, b, c = thing.position
    x, y, z = x - np.float32(a), y - np.float32(b), z - np.float32(c)
    rows = thing.rotation.T.tolist()
    ox, oy, oz = (a * x + b * y + c * z for a, b, c in rows)
    return ox, oy, oz


def _polish(
    world: World, albedo: Array, rays: Array, normal: Array, facing: Array, place: NDArray[np.int64], strength: float
) -> None:
    """Add the sun's reflection (Blinn's highlight) to the reflectance of sunlit pixels, in place."""
    place = place[facing[place] > 0.02]
    rx, ry, rz = (ray[place] for ray in rays)
    lx, ly, lz = world.light.towards
    scale = -1 / np.sqrt(rx * rx + ry * ry + rz * rz)
    hx, hy, hz = rx * scale + lx, ry * scale + ly, rz * scale + lz
    length = np.sqrt(hx * hx + hy * hy + hz * hz)
    gloss = np.maximum((normal[0][place] * hx + normal[1][place] * hy + normal[2][place] * hz) / length, 0)
    for _ in range(5):
        gloss = gloss * gloss
    gloss *= strength / facing[place]
    for channel in albedo:
        channel[place] += gloss


def _shadowed(
    world: World, point: Array, normal: Array, facing: Array, places: dict[int, NDArray[np.int64]]
) -> NDArray[np.bool_]:
    """Return where a thing lies between a point and the sun (N); things whose shadow cannot reach it are skipped."""
    light = world.light
    dark = facing <= 0
    first, second = _across(light)
    u = point[0] * first[0] + point[1] * first[1] + point[2] * first[2]  # the point projected along the sunlight
    v = point[0] * second[0] + point[1] * second[1] + point[2] * second[2]
    for number, thing in enumerate(world.things):
        centre = np.array(thing.position)
        du, dv = u - np.float32(centre @ first), v - np.float32(centre @ second)
        reached = (du * du + dv * dv < np.float32(thing.solid.radius**2)) & ~dark
        if thing.solid.convex and number in places:
            reached[places[number]] = False
        place = np.flatnonzero(reached)
        if not place.size:
            continue
        lifted = (p[place] + np.float32(EPSILON) * n[place] for p, n in zip(point, normal, strict=True))
        origin = _inside(thing, *lifted)
        direction = (np.array(light.towards) @ thing.rotation).tolist()
        dark[place] |= np.isfinite(thing.solid.enter(origin, (direction[0], direction[1], direction[2]), 0.0))
    return dark


def _across(light: Light) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two unit vectors perpendicular to the sun's direction and to each other."""
    towards = np.array(light.towards)
    first = np.cross(towards, (0.0, 0.0, 1.0))
    first /= np.linalg.norm(first)
    return first.astype(np.float32), np.cross(towards, first).astype(np.float32)
