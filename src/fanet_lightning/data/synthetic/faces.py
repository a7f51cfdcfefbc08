"""Painting one person: body, head, light, blur.

Colors are RGB, 0 … 255. Head coordinates: u to the right, v down, the oval spans v = -1 (hairline) … 1 (chin); the unit
is half the height of the face. A feature at (u, v) is on the surface of a cylinder, so that yaw and pitch move and
foreshorten it. Small heads are drawn enlarged and shrunk by area, so that a head of eight pixels is what a head of
eighty pixels becomes when it is shrunk.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.synthetic.people import Color, Person, turned, walk

Points = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]

BITS = 4  # fractional bits of cv2's coordinates
# The head and what stands out of it (hair, hat, ears, hand) lies within these (u, v).
_REACH = (1.75, 1.9)


_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
# From the right ear over the top to the left one.
_CROWN = np.array([(math.cos(angle), -0.2 - math.sin(angle)) for angle in np.linspace(0, math.pi, 13)])
_LOW = CIRCLE[:, 1].clip(0, 1) ** 1.5
_NOSE = np.array([(0.0, -0.38), (0.15, -0.02), (0.0, 0.05), (-0.15, -0.02)])
_NOSTRIL = CIRCLE[::3] * (0.045, 0.03)
_NOSE_AND_NOSTRILS = np.concatenate([_NOSE, _NOSTRIL - np.array((0.09, 0)), _NOSTRIL + np.array((0.09, 0))])


class Shape(NamedTuple):
    """A polygon or, with a thickness, a line."""

    points: Points  # (N, 2) head coordinates
    color: Color
    flat: int | None = None  # so many leading points do not turn with yaw and pitch; None: all
    thickness: float = 0.0  # 0 fills; else a line of this width in head units


def ellipse(u: float, v: float, half_u: float, half_v: float) -> Points:
    """(24, 2)"""
    outline: Points = CIRCLE * np.array((half_u, half_v)) + np.array((u, v))
    return outline


def oval_outline(person: Person) -> Points:
    """(24, 2): full at the temples, narrower at the jaw."""
    u = CIRCLE[:, 0] * person.breadth * (1 - person.jaw * _LOW)
    return np.stack([u, CIRCLE[:, 1]], axis=1)


def head_shapes(person: Person) -> list[Shape]:
    """Back to front."""
    w = person.breadth
    hair, skin = person.hair, person.skin
    shapes = []
    if person.hair_style in ("long", "bob"):
        low = 1.5 if person.hair_style == "long" else 0.75
        back = [(-1.16 * w, -0.3), (-0.8 * w, -1.1), (0, -1.28), (0.8 * w, -1.1), (1.16 * w, -0.3)]
        shapes.append(Shape(np.array([*back, (1.22 * w, low), (-1.22 * w, low)]), hair))
    elif person.hair_style == "afro":
        shapes.append(Shape(ellipse(0, -0.5, 1.5 * w, 1.15), hair))
    elif person.hair_style == "scarf":
        shapes.append(Shape(ellipse(0, 0.12, 1.3 * w, 1.38), person.hat))
    if person.hair_style not in ("long", "scarf"):
        for side in (-1, 1):
            ear = ellipse(side * w * 0.98 - 0.25 * math.sin(person.yaw), -0.02, 0.12, 0.2)
            shapes.append(Shape(ear, walk(skin, 0.85)))
    shapes.append(Shape(oval_outline(person), skin))
    if person.kind == "back":
        cover = person.hat if person.hair_style == "scarf" else hair
        shapes.append(Shape(oval_outline(person) * (1.06, 1.0) + (0, -0.12), cover))
        return shapes
    if person.kind in ("face", "scrambled"):
        shapes += _features(person)
    elif person.kind == "blobs":
        rng = np.random.default_rng(person.texture)
        for _ in range(int(rng.integers(3, 9))):
            u, v = rng.uniform((-0.6 * w, -0.8), (0.6 * w, 0.8)).tolist()
            half_u, half_v = rng.uniform(0.05, 0.25, 2).tolist()
            shapes.append(Shape(ellipse(u, v, half_u, half_v), walk(skin, float(rng.choice([0.3, 0.6, 1.3])))))
    shapes += _hair_in_front(person)
    if person.kind == "face":
        shapes += _worn(person)
    return shapes


def _features(person: Person) -> list[Shape]:
    """Beard, nose, mouth, eyes, brows; scrambled heads have them in the wrong places."""
    skin, dark = person.skin, walk(person.skin, 0.45)
    detailed = person.height >= 16  # below that, nostrils and lids are a fraction of a pixel
    at = {"eyes": -0.12, "nose": 0.28, "mouth": 0.56}
    spread = person.eye_distance
    if person.kind == "scrambled":
        shuffle = np.random.default_rng(person.texture)
        ranges = {"eyes": (0.3, 0.65), "nose": (-0.6, -0.3), "mouth": (-0.4, 0)}
        at = {name: shuffle.uniform(*bounds) for name, bounds in ranges.items()}
        spread = shuffle.uniform(0.05, 0.6) * person.breadth
    shapes = []
    if person.beard:
        w = person.breadth * 0.97
        rim = [(-w, 0.05), (-0.8 * w, 0.3), (-0.3, 0.36), (0, 0.32), (0.3, 0.36), (0.8 * w, 0.3), (w, 0.05)]
        chin = 1.0 + 0.12 * person.beard
        low = [(0.74 * w, 0.74), (0.4 * w, chin), (-0.4 * w, chin), (-0.74 * w, 0.74)]
        shapes.append(Shape(np.array(rim + low), walk(person.hair, 1.1), 0))
    # The bridge is on the surface, the tip stands out of it: in profile it leaves the oval.
    nose = turned(np.add(_NOSE_AND_NOSTRILS, (0, at["nose"])), person)
    nose[1:, 0] += math.sin(person.yaw) * 0.24
    shapes.append(Shape(nose[:4], walk(skin, 0.86)))
    if detailed:
        shapes += [Shape(nose[4:12], dark), Shape(nose[12:], dark)]
    shapes += _mouth(person, at["mouth"])
    for side in (-1, 1):
        u = side * spread
        shapes.append(Shape(ellipse(u, at["eyes"] - 0.01, 0.19, 0.13), walk(skin, 0.8), 0))
        if person.eye_open > 0.25:
            white = ellipse(u, at["eyes"], 0.15, 0.085 * person.eye_open)
            shapes.append(Shape(white, (238.0, 238.0, 232.0), 0))
            iris = ellipse(u + 0.06 * person.gaze, at["eyes"], 0.072, 0.072 * min(1.0, person.eye_open))
            shapes.append(Shape(iris, person.iris, 0))
        if detailed or person.eye_open <= 0.25:
            lift = -0.085 * person.eye_open
            lid = np.array([(-0.17, 0.0), (-0.08, lift), (0.08, lift), (0.17, 0.0)])
            shapes.append(Shape(np.add(lid, (u, at["eyes"])), dark, 0, 0.045))
        brow = np.array([(-0.2 * side, 0.02 + 0.1 * person.frown), (0.0, -0.05), (0.2 * side, 0.03)])
        shapes.append(Shape(np.add(brow, (u, at["eyes"] - 0.24)), walk(person.hair, 0.8), 0, 0.075))
    return shapes


def _mouth(person: Person, v: float) -> list[Shape]:
    lips, dark = person.lips, (58.0, 18.0, 22.0)
    half, curve = person.mouth_width, 0.12 * person.smile
    u = (-half, -half / 2, 0.0, half / 2, half)
    # Corners, halves, middle: where the lips meet.
    seam = np.array((-curve, curve * 0.3, curve * 0.6, curve * 0.3, -curve)) + v

    def band(above: float, below: float) -> Points:
        """Between the seam raised and the seam lowered; the corners stay."""
        swell = np.array((0.0, 1.0, 1.0, 1.0, 0.0))
        upper = np.stack([u, seam - above * swell], axis=1)
        lower = np.stack([u, seam + below * swell], axis=1)
        return np.concatenate([upper, lower[::-1]])

    if person.mouth_open < 0.15:
        line = np.stack([u, seam], axis=1)
        return [Shape(band(0.055, 0.075), lips, 0), Shape(line, walk(lips, 0.5), 0, 0.03)]
    gape = 0.26 * person.mouth_open
    teeth = band(gape * 0.3, gape * 0.12)[[1, 2, 3, 6, 7, 8]]
    return [
        Shape(band(gape * 0.35 + 0.05, gape + 0.06), lips, 0),
        Shape(band(gape * 0.35, gape), dark, 0),
        Shape(teeth, (236.0, 232.0, 220.0), 0),
    ]


def _hair_in_front(person: Person) -> list[Shape]:
    w = person.breadth
    if person.kind == "blank" or person.hair_style == "bald":
        return []
    line = person.hairline
    left = [(-0.97 * w, -0.18), (-0.86 * w, line + 0.16), (-0.4 * w, line), (person.parting, line - 0.06)]
    right = [(0.45 * w, line), (0.86 * w, line + 0.16), (0.97 * w, -0.18)]
    points = np.concatenate([_CROWN * (1.07 * w, 1.0), left, right])
    color = person.hat if person.hair_style == "scarf" else person.hair
    shapes = [Shape(points, color, len(_CROWN))]
    if person.hair_style == "hat":
        right = [(1.1 * w, -0.55), (0.95 * w, -1.2), (0.5 * w, -1.45)]
        shapes.append(Shape(np.array([*right, *((-u, v) for u, v in reversed(right))]), person.hat))
        brim = person.brim * w
        rim = [(-brim, -0.5), (brim, -0.5), (brim * 0.95, -0.66), (-brim * 0.95, -0.66)]
        shapes.append(Shape(np.array(rim), walk(person.hat, 0.7)))
    return shapes


def _worn(person: Person) -> list[Shape]:
    """Spectacles, mask and a hand, which cover the features."""
    shapes = []
    if person.glasses != "none":
        for side in (-1, 1):
            rim = ellipse(side * person.eye_distance, -0.11, 0.25, 0.19)
            if person.glasses == "sun":
                shapes.append(Shape(rim, (24.0, 22.0, 26.0), 0))
            else:
                shapes.append(Shape(np.concatenate([rim, rim[:1]]), (40.0, 36.0, 36.0), 0, 0.04))
        bar = np.array([(-person.breadth, -0.16), (0.0, -0.15), (person.breadth, -0.16)])
        shapes.append(Shape(bar, (34.0, 30.0, 30.0), 0, 0.05))
    if person.mask:
        w = person.breadth
        edge = [(-0.9 * w, 0.12), (-0.3, 0.06), (0, 0.02), (0.3, 0.06), (0.9 * w, 0.12)]
        shapes.append(Shape(np.array([*edge, (0.72 * w, 0.72), (0, 0.98), (-0.72 * w, 0.72)]), person.hat, 0))
        shapes.append(Shape(np.array([(-0.8 * w, 0.4), (0, 0.45), (0.8 * w, 0.4)]), walk(person.hat, 0.85), 0, 0.03))
    if person.hand:
        u = 0.55 * person.hand
        palm = ellipse(u, 0.62, 0.36, 0.42)
        shapes.append(Shape(palm, walk(person.skin, 0.93)))
        for finger in range(4):
            root = (u - 0.27 + 0.18 * finger, 0.45)
            tip = (u * 0.85 - 0.3 + 0.19 * finger, -0.02 - 0.07 * math.sin(finger + 0.6))
            shapes.append(Shape(np.array([root, tip]), walk(person.skin, 0.9 + 0.05 * (finger % 2)), thickness=0.16))
    return shapes


class Drawn(NamedTuple):
    """Where a head has been drawn: ``box_xyxy`` of its oval in pixels, not clipped; ``area`` its pixels, those outside
    the image too; ``corner`` (x, y) of the part of the image that was worked on; ``oval`` and ``painted`` (h, w) bool:
    where in it the oval lies and where anything (hair, hat, ears, hand) was painted."""

    box_xyxy: tuple[float, float, float, float]
    area: int
    corner: tuple[int, int]
    oval: npt.NDArray[np.bool_]
    painted: npt.NDArray[np.bool_]


def draw_body(image: Image, person: Person) -> Points:
    """Draw neck, torso and legs, in place; the torso's outline, (N, 2) pixels."""
    half = person.height / 2
    lean = math.sin(person.tilt) * -0.6
    shoulder, waist = 1.75 * person.build, 1.25 * person.build
    right = [(shoulder / 1.75, 1.5), (shoulder, 1.95), (shoulder + 0.2, 4.4), (waist, 4.9)]
    left = [(-u, v) for u, v in reversed(right)]
    torso = np.array([(-0.42 + lean, 1.0), (0.42 + lean, 1.0), *right, *left])
    neck = np.array([(-0.42 + lean, 0.3), (0.42 + lean, 0.3), (0.5, 1.55), (0.0, 1.85), (-0.5, 1.55)])
    (x, y), reach = person.center_xy, (shoulder + 0.7) * half
    x1, y1 = max(math.floor(x - reach), 0), max(math.floor(y), 0)
    x2, y2 = min(math.ceil(x + reach), image.shape[1]), min(math.ceil(y + 14 * half), image.shape[0])
    outline = torso * half + person.center_xy
    if x2 <= x1 or y2 <= y1:
        return outline
    before = image[y1:y2, x1:x2]
    after = before.copy()

    offset = np.array(person.center_xy) - (x1, y1)
    cloth, second, skin = _lit(np.array([person.cloth, person.cloth_second, walk(person.skin, 0.82)]), person)

    def fill(points: Points, color: Color) -> None:
        fill_polygon(after, points * half + offset, color)

    fill(np.array([(-waist, 4.4), (waist, 4.4), (waist * 0.8, 13.5), (-waist * 0.8, 13.5)]), second)
    fill(torso, cloth)
    if person.height >= 12 and person.pattern == "stripes":
        for v in (2.1, 2.6, 3.1, 3.6, 4.1):
            fill(np.array([(-shoulder, v), (shoulder, v), (shoulder, v + 0.22), (-shoulder, v + 0.22)]), second)
    elif person.height >= 12 and person.pattern == "dots":
        # Two dots and a patch on a shirt look like a face to a careless detector.
        for u, v, radius in ((-0.5, 2.5, 0.16), (0.5, 2.5, 0.16), (0.0, 3.3, 0.3)):
            fill(ellipse(u, v, radius, radius), second)
    elif person.height >= 12 and person.pattern == "open":
        fill(np.array([(-0.35, 1.5), (0.35, 1.5), (0.12, 4.6), (-0.12, 4.6)]), second)
    fill(neck, skin)
    if person.blur * person.height >= 0.3:
        after = _blurred(before, after, _changed(before, after), person)
    image[y1:y2, x1:x2] = after
    return outline


def draw_head(image: Image, person: Person) -> Drawn:
    """Draw ``person``'s head into ``image`` in place, and say which pixels its oval covers."""
    half = person.height / 2
    factor = 4 if person.height < 20 else 3 if person.height < 40 else 2 if person.height < 90 else 1
    x, y = person.center_xy
    left, top = math.floor(x - _REACH[0] * half) - 1, math.floor(y - _REACH[1] * half) - 1
    right, bottom = math.ceil(x + _REACH[0] * half) + 1, math.ceil(y + _REACH[1] * half) + 1
    outline = _to_pixels(oval_outline(person), person)
    box_xyxy = (*outline.min(axis=0).tolist(), *outline.max(axis=0).tolist())
    cover = np.zeros(((bottom - top) * factor, (right - left) * factor), np.uint8)
    fill_polygon(cover, (outline - (left, top)) * factor, 255)
    if factor > 1:
        cover = np.asarray(cv2.resize(cover, (right - left, bottom - top), interpolation=cv2.INTER_AREA), np.uint8)
    oval = cover > 127
    area = int(np.count_nonzero(oval))
    # The part of it that is in the image.
    x1, y1 = min(max(left, 0), image.shape[1]), min(max(top, 0), image.shape[0])
    x2, y2 = max(min(right, image.shape[1]), x1), max(min(bottom, image.shape[0]), y1)
    oval = oval[y1 - top : y2 - top, x1 - left : x2 - left]
    if not oval.size:
        return Drawn(box_xyxy, area, (x1, y1), oval, oval)
    before = image[y1:y2, x1:x2]
    # Nearest up and area down by whole factors leave what is not painted as it was.
    patch = np.asarray(cv2.resize(before, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), np.uint8)
    _paint(patch, head_shapes(person), person, (x1, y1), factor)
    after = np.asarray(cv2.resize(patch, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA), np.uint8)
    painted = _changed(before, after)
    after = _shaded(after, painted, person, (x1, y1))
    image[y1:y2, x1:x2] = _blurred(before, after, painted, person)
    return Drawn(box_xyxy, area, (x1, y1), oval, painted)


def _paint(patch: Image, shapes: list[Shape], person: Person, corner: tuple[int, int], factor: int) -> None:
    """All points are turned and placed in one go: a head has some thirty shapes, a crowd a hundred heads."""
    sizes = [len(shape.points) for shape in shapes]
    points = np.concatenate([shape.points for shape in shapes])
    flat = [size if shape.flat is None else shape.flat for shape, size in zip(shapes, sizes, strict=True)]
    runs = np.stack([flat, np.subtract(sizes, flat)], axis=1).ravel()
    on_surface = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    points[on_surface] = turned(points[on_surface], person)
    fixed = fixed_point((_to_pixels(points, person) - corner) * factor)
    colors = _lit(np.array([shape.color for shape in shapes]), person)
    start = 0
    for shape, size, color in zip(shapes, sizes, colors, strict=True):
        own, start = fixed[start : start + size], start + size
        if shape.thickness:
            width = max(1, round(shape.thickness * person.height / 2 * factor))
            cv2.polylines(patch, [own], False, color, width, lineType=cv2.LINE_AA, shift=BITS)
        else:
            cv2.fillPoly(patch, [own], color, lineType=cv2.LINE_AA, shift=BITS)


def _to_pixels(points: Points, person: Person) -> Points:
    half = person.height / 2
    cos, sin = math.cos(person.tilt) * half, math.sin(person.tilt) * half
    placed: Points = points @ np.array([[cos, sin], [-sin, cos]]) + np.array(person.center_xy)
    return placed


def _lit(colors: Points, person: Person) -> list[Color]:
    """(N, 3) colors under the person's own exposure, seen through the haze between them and the camera."""
    lit: list[Color] = (
        np.minimum(255, colors * person.exposure) * (1 - person.haze) + np.array(person.air) * person.haze
    ).tolist()
    return lit


def fixed_point(points: Points) -> npt.NDArray[np.int32]:
    """Pixels as cv2 takes them with ``shift=BITS``."""
    return np.round(points * (1 << BITS)).astype(np.int32)


def fill_polygon(image: Image, points: Points, color: Color | float) -> None:
    """In place, (N, 2) pixels."""
    cv2.fillPoly(image, [fixed_point(points)], color, lineType=cv2.LINE_AA, shift=BITS)


def _shaded(patch: Image, painted: npt.NDArray[np.bool_], person: Person, corner: tuple[int, int]) -> Image:
    """Light from ``light_xy`` on a ball, where the head is."""
    half = person.height / 2
    x, y = (np.arange(size, dtype=np.float32) + 0.5 for size in (patch.shape[1], patch.shape[0]))
    gu = ((x + corner[0] - person.center_xy[0]) / (half * person.breadth)).clip(-1.4, 1.4)
    gv = ((y + corner[1] - person.center_xy[1]) / half).clip(-1.4, 1.4)
    across = person.light_xy[0] * gu - 0.16 * gu * gu
    down = person.light_xy[1] * gv - 0.1 * gv * gv
    gain = 1 + (across[None, :] + down[:, None]) * painted
    gain.clip(0.12, 1.9, out=gain)
    return np.asarray(cv2.multiply(patch, cv2.merge([gain, gain, gain]), dtype=cv2.CV_8U), np.uint8)


def _changed(before: Image, after: Image) -> npt.NDArray[np.bool_]:
    difference = np.asarray(cv2.absdiff(before, after), np.uint8)
    return (difference[..., 0] | difference[..., 1] | difference[..., 2]) > 0


def _blurred(before: Image, after: Image, painted: npt.NDArray[np.bool_], person: Person) -> Image:
    """Blur what was painted and leave what was there: the head is out of focus or moves, the scene is not."""
    sigma = person.blur * person.height
    if sigma < 0.3:
        return after
    # Color times cover and cover are blurred alike, so that nothing below shines through an opaque head.
    cover = painted.astype(np.float32)[..., None]
    layers = np.concatenate([after * cover, cover], axis=2)
    if person.motion:
        layers = cv2.blur(layers, (1 + 2 * max(1, round(sigma * 1.5)), 1))
    else:
        # A wide blur at a coarser grid looks the same and takes a tenth of the time.
        coarse = max(1, int(sigma / 2))
        size_wh = (layers.shape[1], layers.shape[0])
        small = cv2.resize(layers, (-(-size_wh[0] // coarse), -(-size_wh[1] // coarse)), interpolation=cv2.INTER_AREA)
        layers = cv2.resize(cv2.GaussianBlur(small, (0, 0), sigma / coarse), size_wh, interpolation=cv2.INTER_LINEAR)
    return (before * (1 - layers[..., 3:]) + layers[..., :3] + 0.5).clip(0, 255).astype(np.uint8)
