"""Who is drawn: the parameters of one person, and how they are drawn at random."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Color = tuple[float, ...]

# From light to dark; people are anywhere between two neighbours.
SKINS = (
    (250, 226, 209), (238, 203, 178), (222, 176, 142), (194, 142, 104),
    (158, 106, 72), (118, 76, 52), (84, 54, 40), (58, 40, 33),
)  # fmt: skip
HAIRS = (
    (24, 20, 20), (48, 34, 26), (82, 54, 34), (128, 86, 48),
    (186, 146, 88), (222, 196, 140), (150, 62, 32), (176, 174, 172),
)  # fmt: skip
IRISES = ((40, 26, 20), (66, 42, 26), (70, 96, 120), (74, 92, 62))
HAIR_STYLES = {"short": 0.34, "long": 0.2, "bob": 0.13, "bald": 0.08, "afro": 0.06, "hat": 0.13, "scarf": 0.06}


@dataclass(frozen=True)
class Person:
    """Everything that the drawing of a person depends on. Angles in radians, colors RGB 0 … 255.

    ``center_xy``, ``height``: the face's oval in pixels, hairline to chin, before it is tilted; ``breadth``: half width
    over half height; ``jaw``: how much narrower the chin is; ``kind``: a ``face``, or what only looks like one: the
    ``back`` of a head, a ``scrambled`` face, a ``blank`` head, a head with random ``blobs``; ``gaze``, ``smile``: -1 …
    1; ``light_xy``: brightness gained per half face to the right and down, a negative y lights the brow; ``exposure``:
    gain; ``haze``: how far the colors fade into the ``air``; ``blur``: sigma over the face's height, ``motion``:
    sideways instead of round; ``hand``: 0 none, else the side (-1, 1) of the face that it covers.
    """

    center_xy: tuple[float, float]
    height: float
    kind: str
    tilt: float
    yaw: float
    pitch: float
    breadth: float
    jaw: float
    build: float
    skin: Color
    lips: Color
    hair: Color
    hair_style: str
    hairline: float
    parting: float
    hat: Color
    brim: float
    iris: Color
    cloth: Color
    cloth_second: Color
    pattern: str
    eye_distance: float
    eye_open: float
    gaze: float
    frown: float
    mouth_width: float
    mouth_open: float
    smile: float
    beard: float
    glasses: Literal["none", "clear", "sun"]
    mask: bool
    hand: int
    light_xy: tuple[float, float]
    exposure: float
    haze: float
    air: Color
    blur: float
    motion: bool
    texture: int


def random_person(
    rng: np.random.Generator,
    center_xy: tuple[float, float],
    height: float,
    *,
    hardship: float,
    kind: str = "face",
    light_xy: npt.ArrayLike = (0.0, 0.0),
    air: Color = (200.0, 205.0, 210.0),
) -> Person:
    """Drawn by ``rng`` alone; ``hardship``: 0 … 1, how often the head is turned, veiled, blurred or badly lit."""
    unusual = rng.random(8) < hardship
    skin = between(rng, SKINS)
    style = pick(rng, list(HAIR_STYLES), HAIR_STYLES.values())
    hair = between(rng, HAIRS) if sum(skin) > 380 or rng.random() < 0.1 else walk(HAIRS[0], rng.uniform(0.8, 1.8))
    turn = _side(rng) * float(rng.uniform(0.55, 1.25)) if unusual[0] else float(rng.normal(0, 0.28))
    yaw = turn if unusual[0] else max(-0.9, min(0.9, turn))
    tilt = float(rng.uniform(-0.61, 0.61)) if unusual[1] else max(-0.25, min(0.25, float(rng.normal(0, 0.09))))
    excited = rng.random() < 0.05
    light = rng.normal(0, 0.06, 2) + np.asarray(light_xy)
    if unusual[2] and rng.random() < 0.6:
        angle = rng.uniform(0, 2 * math.pi)
        light = 0.5 * np.array([math.cos(angle), math.sin(angle)])
    worn = rng.random(4)
    return Person(
        center_xy=center_xy,
        height=height,
        kind=kind,
        tilt=tilt,
        yaw=yaw,
        pitch=float(rng.normal(0, 0.07)) + (float(rng.uniform(-0.22, 0.28)) if unusual[3] else 0.0),
        breadth=max(0.66, min(0.87, float(rng.normal(0.76, 0.045)))),
        jaw=float(rng.uniform(0.1, 0.3)),
        build=float(rng.uniform(0.85, 1.2)),
        skin=skin,
        lips=_blend(walk(skin, 0.78), (176.0, 62.0, 70.0), float(rng.uniform(0.15, 0.75))),
        hair=hair,
        hair_style=style,
        hairline=float(rng.uniform(-0.84, -0.52)),
        parting=float(rng.uniform(-0.5, 0.5)),
        hat=random_color(rng),
        brim=float(rng.uniform(1.1, 1.8)),
        iris=IRISES[int(rng.integers(len(IRISES)))],
        cloth=random_color(rng),
        cloth_second=random_color(rng),
        pattern=pick(rng, ("plain", "stripes", "dots", "open"), (0.5, 0.2, 0.12, 0.18)),
        eye_distance=float(rng.uniform(0.32, 0.39)),
        eye_open=float(rng.uniform(0.55, 1.2)) if rng.random() < 0.93 else 0.1,
        gaze=float(rng.uniform(-1, 1)),
        frown=float(rng.uniform(-1, 1)) * (1.6 if excited else 0.6),
        mouth_width=float(rng.uniform(0.22, 0.36)),
        mouth_open=float(rng.uniform(0.7, 1.5)) if excited else float(max(0.0, rng.normal(0.1, 0.25))),
        smile=float(rng.uniform(-0.6, 1.0)),
        beard=float(rng.uniform(0.2, 1.6)) if worn[0] < 0.14 else 0.0,
        glasses="sun" if worn[1] < 0.03 + 0.12 * hardship else "clear" if worn[1] < 0.24 else "none",
        mask=bool(worn[2] < 0.12 * hardship),
        hand=_side(rng) if worn[3] < 0.12 * hardship else 0,
        light_xy=(float(light[0]), float(light[1])),
        exposure=float(rng.uniform(0.88, 1.1))
        * (pick(rng, (0.45, 0.65, 1.35), (0.34, 0.33, 0.33)) if unusual[4] else 1.0),
        haze=float(rng.uniform(0.25, 0.6)) if unusual[5] else float(rng.uniform(0, 0.12)),
        air=air,
        blur=float(rng.uniform(0.02, 0.07)) if unusual[6] else 0.0,
        motion=bool(rng.random() < 0.35),
        texture=int(rng.integers(1 << 31)),
    )


def turned(points: npt.NDArray[np.float64], person: Person) -> npt.NDArray[np.float64]:
    """Move surface points, (N, 2) head coordinates, by yaw and pitch; what turns out of sight stays at the rim."""
    reach = person.breadth * 1.02
    u, v = points[:, 0], points[:, 1]
    angle = (np.arcsin((u / reach).clip(-1, 1)) + person.yaw).clip(-math.pi / 2, math.pi / 2)
    placed = np.empty_like(points)
    # The jaw is narrower than the temples, and so is the path of what turns there.
    placed[:, 0] = reach * np.sin(angle) * (1 - person.jaw * 0.6 * abs(math.sin(person.yaw)) * v.clip(0, 1))
    placed[:, 1] = v + person.pitch * np.sqrt((1 - v * v).clip(0))
    return placed


def walk(color: Color, gain: float) -> Color:
    """Lighter or darker, within 0 … 255."""
    return tuple(min(255.0, channel * gain) for channel in color)


def between(rng: np.random.Generator, palette: Sequence[Color]) -> Color:
    """A color between two neighbours of the palette, with a little of its own."""
    place = rng.random() * (len(palette) - 1)
    low = int(place)
    mixed = _blend(palette[low], palette[low + 1], place - low)
    gain = rng.uniform(0.92, 1.08)
    return tuple(min(255.0, a * gain + own) for a, own in zip(mixed, rng.uniform(-3, 3, 3).tolist(), strict=True))


def random_color(rng: np.random.Generator) -> Color:
    """Clothes and things: grays, dull and bright colors, now and then one like skin."""
    draw = rng.random()
    if draw < 0.08:
        return between(rng, SKINS)
    gray = rng.uniform(15, 245)
    spread = 20 if draw < 0.45 else 90 if draw < 0.8 else 220
    return tuple(min(250.0, max(5.0, gray + (own - 0.5) * spread)) for own in rng.random(3).tolist())


def pick(rng: np.random.Generator, options: Sequence[T], odds: Iterable[float]) -> T:
    """One of the options; the odds add up to 1. A tenth of the time that ``Generator.choice`` takes."""
    draw = rng.random()
    for option, share in zip(options, odds, strict=True):
        draw -= share
        if draw < 0:
            return option
    return options[-1]


def _blend(first: Color, second: Color, share: float) -> Color:
    return tuple(a + (b - a) * share for a, b in zip(first, second, strict=True))


def _side(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1
