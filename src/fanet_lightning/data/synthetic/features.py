"""What a head is made of: colored shapes in head coordinates, back to front.

Head coordinates: u to the right, v down, the oval spans v = -1 (hairline) … 1 (chin); the unit is half the height of
the face. A feature at (u, v) is on the surface of a cylinder, so that yaw and pitch move and foreshorten it.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.data.synthetic.people import Color, Person, turned, walk

Points = npt.NDArray[np.float64]

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


def _moved(points: Points, u: float, v: float) -> Points:
    moved: Points = points + np.array((u, v))
    return moved


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
        shapes.append(Shape(_moved(oval_outline(person) * (1.06, 1.0), 0, -0.12), cover))
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
    nose = turned(_moved(_NOSE_AND_NOSTRILS, 0, at["nose"]), person)
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
            shapes.append(Shape(_moved(lid, u, at["eyes"]), dark, 0, 0.045))
        brow = np.array([(-0.2 * side, 0.02 + 0.1 * person.frown), (0.0, -0.05), (0.2 * side, 0.03)])
        shapes.append(Shape(_moved(brow, u, at["eyes"] - 0.24), walk(person.hair, 0.8), 0, 0.075))
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
