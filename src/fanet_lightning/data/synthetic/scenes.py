"""Whole images: backgrounds, things (some look like a face), who stands where and hides whom; boxes and attributes."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.synthetic.faces import BITS, Drawn, Image, draw_body, draw_head, fill_polygon, fixed_point
from fanet_lightning.data.synthetic.people import SKINS, Color, Person, between, pick, random_color, random_person, walk


class Shot(NamedTuple):
    """``blur`` sigma and ``motion`` length (0: none) in pixels, ``noise`` sigma in gray levels, JPEG ``quality``."""

    gain_rgb: tuple[float, float, float]
    gamma: float
    blur: float
    motion: int
    motion_angle: float
    noise: float
    noise_corner: tuple[int, int]
    quality: int
    extreme: bool


def random_shot(rng: np.random.Generator, *, dim: bool) -> Shot:
    """Most images are well exposed and sharp; ``dim`` ones are dark and noisy more often."""
    gain, cast, noise = rng.uniform(0.9, 1.1), np.ones(3), rng.uniform(1, 4)
    draw, extreme = rng.random(), False
    if draw < (0.2 if dim else 0.05):
        gain, noise, extreme = rng.uniform(0.32, 0.6), rng.uniform(5, 11), True
    elif draw < (0.25 if dim else 0.09):
        gain, extreme = rng.uniform(1.45, 2.0), True
    if rng.random() < (0.5 if dim else 0.1):
        cast = rng.uniform(0.55, 1.2, 3)
        extreme |= bool(cast.min() < 0.55 * cast.max())
    red, green, blue = gain * cast
    return Shot(
        gain_rgb=(float(red), float(green), float(blue)),
        gamma=float(rng.uniform(0.85, 1.2)),
        blur=float(rng.uniform(0.5, 1.3)) if rng.random() < 0.2 else 0.0,
        motion=int(rng.integers(3, 7)) if rng.random() < 0.05 else 0,
        motion_angle=float(rng.uniform(0, np.pi)),
        noise=float(noise),
        noise_corner=(int(rng.integers(_TILE)), int(rng.integers(_TILE))),
        quality=int(rng.integers(60, 96)),
        extreme=extreme,
    )


def take(image: Image, shot: Shot) -> Image:
    """The image as the camera stores it (without the JPEG), (H, W, 3) uint8."""
    levels = np.arange(256) / 255
    table = np.clip(levels[:, None] ** shot.gamma * shot.gain_rgb, 0, 1) * 255
    taken = cv2.LUT(image, np.round(table).astype(np.uint8)[None])
    if shot.blur:
        taken = cv2.GaussianBlur(taken, (0, 0), shot.blur)
    if shot.motion:
        taken = cv2.filter2D(taken, -1, _motion_kernel(shot.motion, shot.motion_angle))
    height, width = image.shape[:2]
    x, y = shot.noise_corner
    noise = _noise_tile()[y : y + height, x : x + width] * np.float32(shot.noise)
    return np.asarray(cv2.add(taken, noise, dtype=cv2.CV_8U), np.uint8)


def _motion_kernel(length: int, angle: float) -> npt.NDArray[np.float32]:
    kernel: npt.NDArray[np.float32] = np.zeros((2 * length + 1, 2 * length + 1), np.float32)
    dx, dy = length / 2 * np.cos(angle), length / 2 * np.sin(angle)
    ends = [(round((length + sign * dx) * 16), round((length + sign * dy) * 16)) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    kernel /= kernel.sum()
    return kernel


_TILE = 256


@lru_cache(maxsize=1)
def _noise_tile() -> npt.NDArray[np.float32]:
    """White noise of sigma 1, (1280, 1280, 3); to draw it again for every image would take longest of all."""
    return np.random.default_rng(7).standard_normal((1024 + _TILE, 1024 + _TILE, 3), dtype=np.float32)


# In the order of their numbers, "0--Crowd" …: how many images of it (the odds give some 11 faces an image, and 8 % of
# images without one), how hard its faces are, how often a head is no face (a back, a scrambled face …).
_EVENTS = {
    "Crowd": (0.09, 0.16, 0.12), "Portrait": (0.17, 0.1, 0.05), "Street": (0.27, 0.16, 0.2),
    "Group": (0.27, 0.08, 0.06), "Stage": (0.12, 0.2, 0.2), "Still_Life": (0.08, 0.2, 1.0),
}  # fmt: skip
EVENTS = tuple(_EVENTS)
# No one would see a face of which so little is left, so it is not annotated.
_LEAST_VISIBLE = 0.06


class FaceTruth(NamedTuple):
    """An annotated face: its box in whole pixels, cut to the image, hairline to chin, what is hidden included.

    ``hidden`` share of its oval, 0 … 1; ``softness``: sigma of its blur over its height, the pixel grid counts as a
    sigma of half a pixel; the rest are WIDER FACE's codes.
    """

    box_xywh: tuple[int, int, int, int]
    hidden: float
    softness: float
    blur: int
    expression: int
    illumination: int
    invalid: int
    occlusion: int
    pose: int


class SyntheticImage(NamedTuple):
    """``image_rgb`` (H, W, 3) uint8, the event it belongs to, its faces, and the quality to store it with."""

    image_rgb: Image
    event: str
    faces: list[FaceTruth]
    jpeg_quality: int


def draw_image(
    rng: np.random.Generator, width: tuple[int, int] = (400, 480), height: tuple[int, int] = (320, 400)
) -> SyntheticImage:
    """Draw one image at random, with sides from the ranges given, ends included. Nothing but ``rng`` decides."""
    event = pick(rng, EVENTS, [odds for odds, _, _ in _EVENTS.values()])
    size_wh = (int(rng.integers(width[0], width[1] + 1)), int(rng.integers(height[0], height[1] + 1)))
    image = draw_background(rng, size_wh, event)
    for _ in range(int(rng.integers(2, 7)) if event != "Still_Life" else int(rng.integers(8, 26))):
        spot, size = _anywhere(rng, size_wh), _log_uniform(rng, 10, 110)
        THINGS[int(rng.integers(len(THINGS)))](rng, image, spot, size / 2)
    air, light_xy = random_color(rng), rng.normal(0, 0.1, 2)
    people = [_person(rng, place, event, air, light_xy) for place in _PLACES[event](rng, size_wh)]
    # A thing among the people now and then, else everything round would be behind them.
    among = set(np.flatnonzero(rng.random(len(people)) < 0.08).tolist())
    owner = np.full(image.shape[:2], -1, np.int32)
    drawn: list[Drawn] = []
    for number, person in enumerate(people):
        if number in among:
            spot = (person.center_xy[0] + person.height * float(rng.uniform(-1.5, 1.5)), person.center_xy[1])
            outline = draw_obstacle(rng, image, spot, person.height)
            cv2.fillPoly(owner, [np.round(outline).astype(np.int32)], -1)
        torso = draw_body(image, person)
        cv2.fillPoly(owner, [np.round(torso).astype(np.int32)], -1)
        head = draw_head(image, person)
        x, y = head.corner
        region = owner[y : y + head.oval.shape[0], x : x + head.oval.shape[1]]
        region[head.painted] = -1
        region[head.oval] = number
        drawn.append(head)
    if event != "Portrait" and rng.random() < 0.3:
        outline = draw_obstacle(rng, image, _anywhere(rng, size_wh), _log_uniform(rng, 30, 120))
        cv2.fillPoly(owner, [np.round(outline).astype(np.int32)], -1)
    shot = random_shot(rng, dim=event == "Stage")
    visible = np.bincount(owner.ravel() + 1, minlength=len(people) + 1)[1:]
    faces = [
        truth
        for person, head, pixels in zip(people, drawn, visible.tolist(), strict=True)
        if person.kind == "face" and (truth := _truth(person, head, pixels, shot, size_wh)) is not None
    ]
    return SyntheticImage(take(image, shot), event, faces, shot.quality)


def _truth(person: Person, head: Drawn, visible: int, shot: Shot, size_wh: tuple[int, int]) -> FaceTruth | None:
    """The annotation of a face, or None where too little of it is left to see."""
    seen = min(1.0, visible / max(1, head.area))
    x1, y1, x2, y2 = head.box_xyxy
    left, top = max(0, round(x1)), max(0, round(y1))
    right, bottom = min(size_wh[0], round(x2)), min(size_wh[1], round(y2))
    if seen < _LEAST_VISIBLE or right - left < 2 or bottom - top < 2:
        return None
    # Of what is worn, a mask hides a third of a face.
    worn = 0.33 * person.mask + 0.2 * bool(person.hand) + 0.12 * (person.glasses == "sun")
    hidden = 1 - seen * (1 - min(worn, 0.6))
    sigma = float(np.hypot(np.hypot(person.blur * person.height, max(shot.blur, shot.motion / 3)), 0.5))
    softness = sigma / person.height
    return FaceTruth(
        box_xywh=(left, top, right - left, bottom - top),
        hidden=hidden,
        softness=softness,
        blur=2 if softness > 0.045 else 1 if softness > 0.02 else 0,
        expression=int(person.mouth_open > 0.6),
        illumination=int(shot.extreme or not 0.5 < person.exposure < 1.4),
        invalid=int(hidden > 0.8),
        occlusion=2 if hidden > 0.3 else 1 if hidden > 0.03 else 0,
        pose=int(abs(person.yaw) > 0.9 or abs(person.tilt) > 0.5),
    )


class _Place(NamedTuple):
    x: float
    y: float
    height: float


def _person(rng: np.random.Generator, place: _Place, event: str, air: Color, light_xy: npt.ArrayLike) -> Person:
    kind = "face"
    _, hardship, impostors = _EVENTS[event]
    if rng.random() < impostors:
        # Too small to be told from a face, a scrambled one would only be a wrong label.
        odds = (0.4, 0.25, 0.2, 0.15) if place.height >= 26 else (1.0, 0.0, 0.0, 0.0)
        kind = pick(rng, ("back", "scrambled", "blank", "blobs"), odds)
    hardship = min(0.3, hardship * (1.3 if place.height < 40 else 1.0))
    return random_person(rng, place[:2], place.height, hardship=hardship, kind=kind, light_xy=light_xy, air=air)


def _crowd(rng: np.random.Generator, size_wh: tuple[int, int]) -> list[_Place]:
    """Rows, each hiding part of the one behind it."""
    width, height = size_wh
    y, face = rng.uniform(0.08, 0.35) * height, _log_uniform(rng, 7, 22)
    growth, spacing = rng.uniform(1.06, 1.3), rng.uniform(1.2, 2.8)
    places: list[_Place] = []
    while y < height + face * 0.3 and len(places) < 110:
        x = rng.uniform(0, face)
        while x < width and len(places) < 110:
            jitter = rng.normal(0, 0.18, 2) * face
            places.append(_Place(x + float(jitter[0]), y + float(jitter[1]), face * float(rng.uniform(0.88, 1.12))))
            x += face * spacing * rng.uniform(0.7, 1.4)
        y += face * rng.uniform(1.1, 2.0)
        face = min(face * growth, 60.0)
    return places


def _portrait(rng: np.random.Generator, size_wh: tuple[int, int]) -> list[_Place]:
    width, height = size_wh
    places = _apart(rng, size_wh, int(rng.integers(0, 4)), 12, 46, (0.2, 0.6))
    many = 1 if rng.random() < 0.65 else 2
    for number in range(many):
        largest = min(1.15 * height, 400) if many == 1 else 0.5 * height
        face = _log_uniform(rng, min(80, largest), largest)
        x = width * ((number + 0.5) / many + rng.normal(0, 0.07))
        places.append(_Place(float(x), height * float(rng.uniform(0.35, 0.55)), face))
    return sorted(places, key=lambda place: place.height)


def _street(rng: np.random.Generator, size_wh: tuple[int, int]) -> list[_Place]:
    """Heads near the horizon, whatever their distance, since the camera is held at the height of a head."""
    horizon = rng.uniform(0.25, 0.55)
    many = 1 + int(rng.geometric(0.17))
    return _apart(rng, size_wh, min(many, 18), 9, 130, (horizon - 0.12, horizon + 0.14))


def _group(rng: np.random.Generator, size_wh: tuple[int, int]) -> list[_Place]:
    width, height = size_wh
    face, rows = _log_uniform(rng, 30, 84), int(rng.integers(1, 4))
    y, places = rng.uniform(0.15, 0.4) * height, list[_Place]()
    for _ in range(rows):
        step = face * rng.uniform(1.25, 1.9)
        room = max(1, int(width * 0.9 / step))
        count = int(rng.integers(min(2, room), min(room, 8) + 1))
        x = width / 2 - (count - 1) * step / 2 + rng.normal(0, 0.04) * width
        for place in range(count):
            jitter = rng.normal(0, 0.12, 2) * face
            own = face * float(rng.uniform(0.88, 1.12))
            places.append(_Place(float(x + place * step + jitter[0]), float(y + jitter[1]), own))
        y += face * rng.uniform(1.3, 1.9)
        if y > height * 0.95:
            break
    return places


def _stage(rng: np.random.Generator, size_wh: tuple[int, int]) -> list[_Place]:
    width, height = size_wh
    places = _apart(rng, size_wh, int(rng.integers(1, 6)), 26, 100, (0.25, 0.5))
    face = _log_uniform(rng, 11, 32)
    for x in np.arange(0, width, face * rng.uniform(1.3, 3.0)):
        places.append(_Place(float(x), height * float(rng.uniform(0.75, 0.97)), face * float(rng.uniform(0.85, 1.2))))
    return places


def _still_life(rng: np.random.Generator, size_wh: tuple[int, int]) -> list[_Place]:
    return _apart(rng, size_wh, int(rng.integers(0, 5)), 20, 120, (0.2, 0.8))


_PLACES = dict(zip(EVENTS, (_crowd, _portrait, _street, _group, _stage, _still_life), strict=True))


def _apart(
    rng: np.random.Generator, size_wh: tuple[int, int], many: int, least: float, most: float, band: tuple[float, float]
) -> list[_Place]:
    """Heads of all sizes, far ones first, none wholly on another one; the ``band`` is in image heights."""
    heights = sorted(_log_uniform(rng, least, most) for _ in range(many))
    places: list[_Place] = []
    for face in heights:
        for _ in range(8):
            place = _Place(float(rng.uniform(0, size_wh[0])), float(rng.uniform(*band)) * size_wh[1], face)
            gaps = (max(abs(place.x - other.x), abs(place.y - other.y)) / (face + other.height) for other in places)
            if min(gaps, default=1.0) > 0.38:
                places.append(place)
                break
    return places


def _anywhere(rng: np.random.Generator, size_wh: tuple[int, int]) -> tuple[float, float]:
    return float(rng.uniform(0, size_wh[0])), float(rng.uniform(0, size_wh[1]))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_background(rng: np.random.Generator, size_wh: tuple[int, int], event: str) -> Image:
    """An image without people and things, (H, W, 3) uint8."""
    width, height = size_wh
    top, bottom = np.array(random_color(rng)), np.array(random_color(rng))
    if event == "Street":
        top, bottom = np.array([150.0, 185.0, 220.0]) * rng.uniform(0.6, 1.15), np.full(3, rng.uniform(60, 150))
    if event == "Stage":
        top, bottom = top * 0.25, bottom * 0.45
    # Clouds of two sizes, mostly of light and little of color: enough structure that no patch is flat.
    rows, columns = height // 8, width // 8
    share = np.linspace(0, 1, rows)[:, None, None]
    coarse = rng.normal(0, 18, (4, 6, 1)) + rng.normal(0, 5, (4, 6, 3))
    clouds = np.asarray(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC))
    grain = rng.normal(0, rng.uniform(1, 9), (rows, columns, 1))
    small = (top * (1 - share) + bottom * share + clouds + grain).clip(0, 255).astype(np.uint8)
    image: Image = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if event != "Portrait" and rng.random() < 0.6:
        floor, edge = random_color(rng), round(height * rng.uniform(0.55, 0.85))
        cv2.rectangle(image, (0, edge), (width, height), walk(floor, 0.8), -1)
    draw = rng.random()
    if event == "Street":
        for _ in range(int(rng.integers(2, 6))):
            _building(rng, image)
    elif draw < 0.2:
        _tiles(rng, image)
    elif draw < 0.4:
        _foliage(rng, image)
    elif draw < 0.55:
        _curtain(rng, image)
    if event == "Stage":
        for _ in range(int(rng.integers(2, 6))):
            _spotlight(rng, image)
    return image


def draw_obstacle(
    rng: np.random.Generator, image: Image, center_xy: tuple[float, float], size: float
) -> npt.NDArray[np.float64]:
    """Something that stands in front of people, in place; its outline, (N, 2) pixels."""
    x, y = center_xy
    draw = rng.random()
    if draw < 0.35:  # a pole or the edge of a door, from top to bottom
        half = size * rng.uniform(0.1, 0.25)
        slant = rng.normal(0, 0.06) * image.shape[0]
        outline = np.array(
            [(x - half, 0), (x + half, 0), (x + half + slant, image.shape[0]), (x - half + slant, image.shape[0])]
        )
    elif draw < 0.7:  # a board, a banner or a screen
        angle = rng.normal(0, 0.15)
        half_wh = np.array([rng.uniform(0.5, 1.3), rng.uniform(0.3, 0.7)]) * size
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half_wh
        outline = corners @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) + (x, y)
    else:  # a leaf, a balloon, a bag
        angles = np.linspace(0, 2 * math.pi, 18, endpoint=False)
        radii = size * rng.uniform(0.35, 0.7) * (1 + rng.normal(0, 0.12, 18))
        outline = np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)
    color = random_color(rng)
    fill_polygon(image, outline, color)
    if 0.35 <= draw < 0.7:
        _words(rng, image, (x, y), size * 0.35, walk(color, 0.35 if sum(color) > 300 else 2.5))
    return outline


def _ellipse(image: Image, center: Sequence[float], axes: Sequence[float], color: Color, angle: float = 0) -> None:
    at, half = fixed_point(np.array([center, axes])).tolist()
    cv2.ellipse(image, at, np.maximum(half, 1).tolist(), angle, 0, 360, color, -1, cv2.LINE_AA, BITS)


def _line(image: Image, points: Sequence[npt.ArrayLike], color: Color, width: float) -> None:
    cv2.polylines(image, [fixed_point(np.array(points))], False, color, max(1, round(width)), cv2.LINE_AA, BITS)


def _ball(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    color = between(rng, SKINS) if rng.random() < 0.5 else random_color(rng)
    x, y = center
    toward = rng.uniform(-0.35, 0.35, 2)
    for step in range(6):
        share = step / 6
        middle = (x + float(toward[0]) * half * share, y + float(toward[1]) * half * share)
        _ellipse(image, middle, (half * (1 - share), half * (1 - share)), walk(color, 0.7 + 0.5 * share))
    if rng.random() < 0.5:
        patch = walk(color, 0.3)
        for angle in rng.uniform(0, 2 * math.pi, 4):
            spot = (x + 0.6 * half * math.cos(angle), y + 0.6 * half * math.sin(angle))
            _ellipse(image, spot, (half * 0.2, half * 0.17), patch)


def _plate(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    color, flat = random_color(rng), float(rng.uniform(0.6, 1.0))
    for share, gain in ((1.0, 0.8), (0.92, 1.15), (0.62, 0.9), (0.58, 1.1)):
        _ellipse(image, center, (half * share, half * share * flat), walk(color, gain))


def _clock(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    x, y = center
    _ellipse(image, center, (half, half), random_color(rng))
    _ellipse(image, center, (half * 0.86, half * 0.86), walk((245.0, 238.0, 222.0), float(rng.uniform(0.6, 1))))
    dark = (30.0, 28.0, 30.0)
    for hour in range(12):
        angle = hour * math.pi / 6
        spot = (x + 0.7 * half * math.sin(angle), y - 0.7 * half * math.cos(angle))
        _ellipse(image, spot, (half * 0.06, half * 0.06), dark)
    for length in (0.4, 0.6):
        angle = rng.uniform(0, 2 * math.pi)
        end = (x + length * half * math.sin(angle), y - length * half * math.cos(angle))
        _line(image, [center, end], dark, half * 0.09)


def _traffic_light(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    x, y = center
    case = np.array([(-0.4, -1), (0.4, -1), (0.4, 1), (-0.4, 1)]) * half + center
    fill_polygon(image, case, (40.0, 42.0, 40.0))
    lit = int(rng.integers(3))
    for i, color in enumerate(((235.0, 50.0, 40.0), (240.0, 190.0, 50.0), (60.0, 210.0, 110.0))):
        spot = (x, y + (i - 1) * 0.62 * half)
        _ellipse(image, spot, (half * 0.25, half * 0.25), walk(color, 1.0 if i == lit else 0.3))


def _bare_oval(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    color = between(rng, SKINS)
    angle = float(rng.uniform(-40, 40))
    _ellipse(image, center, (half * 0.78, half), walk(color, 0.8), angle)
    _ellipse(image, (center[0] - half * 0.08, center[1] - half * 0.1), (half * 0.66, half * 0.84), color, angle)


def _blob_oval(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    _bare_oval(rng, image, center, half)
    for _ in range(int(rng.integers(2, 7))):
        du, dv = (rng.uniform(-0.5, 0.5, 2) * half).tolist()
        half_u, half_v = (rng.uniform(0.06, 0.25, 2) * half).tolist()
        _ellipse(image, (center[0] + du, center[1] + dv), (half_u, half_v), random_color(rng))


def _sign(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    color = random_color(rng)
    wide = half * float(rng.uniform(1.0, 2.4))
    fill_polygon(image, np.array([(-wide, -half), (wide, -half), (wide, half), (-wide, half)]) + center, color)
    _words(rng, image, center, half * 0.9, walk(color, 0.3 if sum(color) > 300 else 3))


def _socket(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    """A plate with two dots and a slot: the arrangement of a face without being one."""
    color = walk((235.0, 230.0, 220.0), float(rng.uniform(0.5, 1)))
    fill_polygon(image, np.array([(-0.8, -1), (0.8, -1), (0.8, 1), (-0.8, 1)]) * half + center, color)
    dark, x, y = walk(color, 0.3), center[0], center[1]
    for side in (-0.35, 0.35):
        _ellipse(image, (x + side * half, y - 0.2 * half), (half * 0.12, half * 0.16), dark)
    if rng.random() < 0.5:
        _ellipse(image, (x, y + 0.4 * half), (half * 0.2, half * 0.1), dark)


def _window(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    frame, glass = random_color(rng), random_color(rng)
    fill_polygon(image, np.array([(-0.8, -1), (0.8, -1), (0.8, 1), (-0.8, 1)]) * half + center, frame)
    for u in (-0.37, 0.37):
        for v in (-0.46, 0.46):
            pane = np.array([(u - 0.3, v - 0.4), (u + 0.3, v - 0.4), (u + 0.3, v + 0.4), (u - 0.3, v + 0.4)])
            fill_polygon(image, pane * half + np.array(center), walk(glass, float(rng.uniform(0.5, 1.2))))


def _arm(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float) -> None:
    """Skin that is no face: a forearm with a fist."""
    color = between(rng, SKINS)
    angle = rng.uniform(0, 2 * math.pi)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    wrist, elbow = np.array(center) + along * half * 0.4, np.array(center) + along * half * 2.6
    low, high = across * half * 0.32, across * half * 0.5
    fill_polygon(image, np.array([wrist - low, wrist + low, elbow + high, elbow - high]), walk(color, 0.85))
    _ellipse(image, center, (half * 0.62, half * 0.55), color, math.degrees(angle))
    for finger in range(3):
        low = np.array(center) - along * half * 0.5 + across * half * 0.28 * (finger - 1)
        _line(image, [low, low + along * half * 0.55], walk(color, 0.68), half * 0.07)


THINGS: tuple[Callable[[np.random.Generator, Image, tuple[float, float], float], None], ...] = (
    _ball, _plate, _clock, _traffic_light, _bare_oval, _blob_oval, _sign, _socket, _window, _arm,
)  # fmt: skip


def _words(rng: np.random.Generator, image: Image, center: tuple[float, float], half: float, color: Color) -> None:
    letters = "".join(chr(int(code)) for code in rng.integers(65, 91, int(rng.integers(3, 8))))
    scale = max(0.25, half / 24)
    (wide, high), _ = cv2.getTextSize(letters, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    origin = (round(center[0] - wide / 2), round(center[1] + high / 2))
    cv2.putText(image, letters, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, color, max(1, round(scale * 1.6)), cv2.LINE_AA)


def _building(rng: np.random.Generator, image: Image) -> None:
    height, width = image.shape[:2]
    left, wide = rng.uniform(-0.1, 0.9) * width, rng.uniform(0.15, 0.5) * width
    top, bottom = rng.uniform(-0.2, 0.4) * height, rng.uniform(0.6, 0.9) * height
    wall, glass = walk(random_color(rng), 0.8), random_color(rng)
    fill_polygon(image, np.array([(left, top), (left + wide, top), (left + wide, bottom), (left, bottom)]), wall)
    pitch = rng.uniform(14, 34)
    for y in np.arange(top + pitch * 0.4, bottom - pitch, pitch * 1.25):
        for x in np.arange(left + pitch * 0.3, left + wide - pitch * 0.7, pitch):
            tint = tuple(int(channel) for channel in walk(glass, 0.45 + 0.5 * rng.random()))
            cv2.rectangle(image, (round(x), round(y)), (round(x + pitch * 0.5), round(y + pitch * 0.8)), tint, -1)


def _tiles(rng: np.random.Generator, image: Image) -> None:
    height, width = image.shape[:2]
    step, joint = rng.uniform(12, 48), random_color(rng)
    for row, y in enumerate(np.arange(0, height, step)):
        cv2.line(image, (0, round(y)), (width, round(y)), joint, 1, cv2.LINE_AA)
        for x in np.arange((row % 2) * step, width, step * 2):
            cv2.line(image, (round(x), round(y)), (round(x), round(y + step)), joint, 1, cv2.LINE_AA)


def _foliage(rng: np.random.Generator, image: Image) -> None:
    height, width = image.shape[:2]
    green = walk((70.0, 110.0, 50.0), float(rng.uniform(0.5, 1.3)))
    for x, y, radius, gain in rng.uniform((0, 0, 4, 0.5), (width, height * 0.8, 26, 1.4), (90, 4)):
        cv2.circle(image, (round(x), round(y)), round(radius), walk(green, gain), -1, cv2.LINE_AA)


def _curtain(rng: np.random.Generator, image: Image) -> None:
    folds = np.sin(np.linspace(0, rng.uniform(20, 90), image.shape[1]) + rng.uniform(0, 6)) * rng.uniform(8, 30)
    shade = np.broadcast_to(folds.astype(np.int16)[None, :, None], image.shape).copy()
    cv2.add(image, shade, dst=image, dtype=cv2.CV_8U)


def _spotlight(rng: np.random.Generator, image: Image) -> None:
    height, width = image.shape[:2]
    x, foot, spread = rng.uniform(0, width), rng.uniform(0, width), rng.uniform(20, 90)
    beam = np.zeros((height, width, 3), np.uint8)
    outline = np.array([(x - 4, 0), (x + 4, 0), (foot + spread, height), (foot - spread, height)])
    fill_polygon(beam, outline, walk(random_color(rng), 0.5))
    cv2.add(image, beam, dst=image)
