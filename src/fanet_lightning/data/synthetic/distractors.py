"""Backgrounds, and things that are no faces though some look like one."""

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.synthetic.faces import BITS, Image, fill_polygon, fixed_point
from fanet_lightning.data.synthetic.people import SKINS, Color, between, random_color, walk


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


def draw_thing(rng: np.random.Generator, image: Image, center_xy: tuple[float, float], size: float) -> None:
    """One thing out of :data:`THINGS`, about ``size`` pixels high, in place."""
    THINGS[int(rng.integers(len(THINGS)))](rng, image, center_xy, size / 2)


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


def _ellipse(
    image: Image, center: tuple[float, float], axes: tuple[float, float], color: Color, angle: float = 0
) -> None:
    unit = 1 << BITS
    at = (round(center[0] * unit), round(center[1] * unit))
    half = (max(1, round(axes[0] * unit)), max(1, round(axes[1] * unit)))
    cv2.ellipse(image, at, half, angle, 0, 360, color, -1, cv2.LINE_AA, BITS)


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
        end = np.array([(x, y), (x + length * half * math.sin(angle), y - length * half * math.cos(angle))])
        fixed = fixed_point(end)
        cv2.polylines(image, [fixed], False, dark, max(1, round(half * 0.09)), cv2.LINE_AA, BITS)


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
        high = low + along * half * 0.55
        fixed = fixed_point(np.array([low, high]))
        cv2.polylines(image, [fixed], False, walk(color, 0.68), max(1, round(half * 0.07)), cv2.LINE_AA, BITS)


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
