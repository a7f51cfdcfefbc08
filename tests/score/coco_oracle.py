"""COCO's evaluation of boxes, one rule after the other, in plain Python: slow, and nothing to get wrong."""

from collections.abc import Sequence
from typing import NamedTuple

# As the tool evaluates them, since overlaps and recalls fall on thresholds: 0.6000000000000001, 0.29.
THRESHOLDS = (*(0.5 + i * ((0.95 - 0.5) / 9) for i in range(9)), 0.95)
RECALLS = (*(i * 0.01 for i in range(100)), 1.0)
RANGES = {"all": (0.0, 1e10), "small": (0.0, 1024.0), "medium": (1024.0, 9216.0), "large": (9216.0, 1e10)}


class Face(NamedTuple):
    box: Sequence[float]  # x y w h
    area: float
    crowd: bool


class Row(NamedTuple):
    box: Sequence[float]  # x y w h
    score: float


class Image(NamedTuple):
    faces: list[Face]
    rows: list[Row]


def overlap(row: Sequence[float], face: Sequence[float], crowd: bool) -> float:
    width = min(row[0] + row[2], face[0] + face[2]) - max(row[0], face[0])
    height = min(row[1] + row[3], face[1] + face[3]) - max(row[1], face[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (row[2] * row[3] if crowd else row[2] * row[3] + face[2] * face[3] - both)


def judge(image: Image, threshold: float, limits: tuple[float, float], cap: int) -> list[tuple[float, str]]:
    """The best rows of an image, each with what it is: hit, miss or nothing."""
    counts = [not face.crowd and limits[0] <= face.area <= limits[1] for face in image.faces]
    taken: set[int] = set()
    judged = []
    for row in sorted(image.rows, key=lambda row: -row.score)[:cap]:
        best, best_overlap, best_counts = None, threshold, False
        for wanted in (True, False):
            for number, face in enumerate(image.faces):
                if counts[number] != wanted or (number in taken and not face.crowd):
                    continue
                own = overlap(row.box, face.box, face.crowd)
                if own >= best_overlap:
                    best, best_overlap, best_counts = number, own, wanted
            if best is not None:
                break
        if best is not None:
            taken.add(best)
            judged.append((row.score, "hit" if best_counts else "nothing"))
        else:
            inside = limits[0] <= row.box[2] * row.box[3] <= limits[1]
            judged.append((row.score, "miss" if inside else "nothing"))
    return judged


def precision_at_recalls(images: list[Image], threshold: float, area: str, cap: int = 1000) -> list[float] | None:
    """Precision of the envelope at the recalls 0, 0.01 … 1; None where no face counts."""
    limits = RANGES[area]
    total = sum(not face.crowd and limits[0] <= face.area <= limits[1] for image in images for face in image.faces)
    if total == 0:
        return None
    rows = [row for image in images for row in judge(image, threshold, limits, cap)]
    hits = misses = 0
    points = []
    for _, what in sorted(rows, key=lambda row: -row[0]):
        hits += what == "hit"
        misses += what == "miss"
        points.append((hits / total, hits / max(hits + misses, 1)))
    return [max((precision for recall, precision in points if recall >= least), default=0.0) for least in RECALLS]


def average_precision(images: list[Image], setting: str, cap: int = 1000) -> float:
    """NaN where no face counts."""
    thresholds = {"50": THRESHOLDS[:1], "75": THRESHOLDS[5:6]}.get(setting, THRESHOLDS)
    area = setting if setting in RANGES else "all"
    curves = [precision_at_recalls(images, threshold, area, cap) for threshold in thresholds]
    values = [value for curve in curves if curve is not None for value in curve]
    return sum(values) / len(values) if values else float("nan")
