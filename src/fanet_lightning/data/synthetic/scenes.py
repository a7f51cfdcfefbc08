"""Whole images: who stands where, what hides whom, and the boxes and attributes that follow from it."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.synthetic.distractors import draw_background, draw_obstacle, draw_thing
from fanet_lightning.data.synthetic.faces import Drawn, draw_body, draw_head
from fanet_lightning.data.synthetic.people import Color, Kind, Person, pick, random_color, random_person

Image = npt.NDArray[np.uint8]


class Shot(NamedTuple):
    """``blur`` sigma and ``motion`` length (0: none) in pixels, ``noise`` sigma in grey levels, JPEG ``quality``."""

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
    reach = length / 2
    dx, dy = reach * np.cos(angle), reach * np.sin(angle)
    ends = [(round((length + sign * dx) * 16), round((length + sign * dy) * 16)) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    kernel /= kernel.sum()
    return kernel


_TILE = 256


@lru_cache(maxsize=1)
def _noise_tile() -> npt.NDArray[np.float32]:
    """White noise of sigma 1, (1280, 1280, 3); to draw it again for every image would take longest of all."""
    return np.random.default_rng(7).standard_normal((1024 + _TILE, 1024 + _TILE, 3), dtype=np.float32)


# In the order of their numbers, "0--Crowd" …; the odds give some 11 faces an image, and 8 % of images without one.
EVENTS = ("Crowd", "Portrait", "Street", "Group", "Stage", "Still_Life")
_ODDS = (0.09, 0.17, 0.27, 0.27, 0.12, 0.08)
_HARDSHIP = {"Crowd": 0.16, "Portrait": 0.1, "Street": 0.16, "Group": 0.08, "Stage": 0.2, "Still_Life": 0.2}
# How often a head is not part of a face (a back, a scrambled face …).
_IMPOSTORS = {"Crowd": 0.12, "Portrait": 0.05, "Street": 0.2, "Group": 0.06, "Stage": 0.2, "Still_Life": 1.0}
# No one would see a face of which so little is left, so it is not annotated.
_LEAST_VISIBLE = 0.06


class FaceTruth(NamedTuple):
    """An annotated face.

    ``box_xywh``  whole pixels, cut to the image: hairline to chin, what is hidden included.
    ``hidden``    share of the oval that is covered or out of the image, 0 … 1.
    ``softness``  sigma of its blur over its height; the pixel grid counts as a sigma of half a pixel.
    ``blur`` … ``pose``  WIDER FACE's codes.
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


@dataclass(frozen=True, eq=False)
class SyntheticImage:
    """``image_rgb`` (H, W, 3) uint8, the event it belongs to, its faces, and the quality to store it with."""

    image_rgb: Image
    event: str
    faces: list[FaceTruth]
    jpeg_quality: int


def draw_image(
    rng: np.random.Generator, width: tuple[int, int] = (400, 480), height: tuple[int, int] = (320, 400)
) -> SyntheticImage:
    """Draw one image at random, with sides from the ranges given, ends included. Nothing but ``rng`` decides."""
    event = pick(rng, EVENTS, _ODDS)
    size_wh = (int(rng.integers(width[0], width[1] + 1)), int(rng.integers(height[0], height[1] + 1)))
    image = draw_background(rng, size_wh, event)
    for _ in range(int(rng.integers(2, 7)) if event != "Still_Life" else int(rng.integers(8, 26))):
        draw_thing(rng, image, _anywhere(rng, size_wh), _log_uniform(rng, 10, 110))
    air = random_color(rng)
    light = rng.normal(0, 0.1, 2)
    people = [
        _person(rng, place, event, air, (float(light[0]), float(light[1]))) for place in _PLACES[event](rng, size_wh)
    ]
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


def _person(rng: np.random.Generator, place: _Place, event: str, air: Color, light_xy: tuple[float, float]) -> Person:
    kind: Kind = "face"
    if rng.random() < _IMPOSTORS[event]:
        # Too small to be told from a face, a scrambled one would only be a wrong label.
        odds = (0.4, 0.25, 0.2, 0.15) if place.height >= 26 else (1.0, 0.0, 0.0, 0.0)
        kinds: tuple[Kind, ...] = ("back", "scrambled", "blank", "blobs")
        kind = pick(rng, kinds, odds)
    hardship = min(0.3, _HARDSHIP[event] * (1.3 if place.height < 40 else 1.0))
    center = (place.x, place.y)
    return random_person(rng, center, place.height, hardship=hardship, kind=kind, light_xy=light_xy, air=air)


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
