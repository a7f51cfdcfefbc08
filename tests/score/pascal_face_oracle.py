"""PASCAL face and AFW scored in the slowest, plainest way, one box at a time, from the written rules alone."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.score import wider_oracle

# x1, y1, x2, y2, ignore flag.
Face = tuple[float, float, float, float, bool]
# image, score, x1, y1, x2, y2.
Detection = tuple[str, float, float, float, float, float]


class OracleScores(NamedTuple):
    """``outcomes``: "hit", "false" or "neither" per detection that was kept, best score first, as in ``detections``."""

    ap: float | None
    outcomes: list[str]
    detections: list[Detection]
    alignment: tuple[float, float, float, float]


def oracle_scores(
    faces: Mapping[str, Sequence[Face]],
    detections: Sequence[Detection],
    passes: int = 5,
    overlap: float = 0.5,
    size_filter: bool = True,
) -> OracleScores:
    kept = [d for d in detections if not size_filter or d[4] - d[2] > 21 or d[5] - d[3] > 21]
    ranked = sorted(kept, key=lambda d: -d[1])  # behind everything that is as good
    sum_x = sum_y = 0.0
    product_x = product_y = 1.0
    for number in range(passes):
        outcomes, hits = match(faces, ranked, overlap)
        tx, ty, sx, sy = offset(hits)
        sum_x, sum_y, product_x, product_y = sum_x + tx, sum_y + ty, product_x * sx, product_y * sy
        if number < passes - 1:
            ranked = [move(detection, tx, ty, sx, sy) for detection in ranked]
    counted = sum(not ignored(face) for own in faces.values() for face in own)
    ap = oracle_ap(outcomes, counted) if counted else None
    return OracleScores(ap, outcomes, ranked, (sum_x, sum_y, product_x, product_y))


def ignored(face: Face) -> bool:
    x1, y1, x2, y2, flag = face
    return flag or abs(x2 - x1) < 30 or abs(y2 - y1) < 30


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    area_a = (abs(a[2] - a[0]) + 1) * (abs(a[3] - a[1]) + 1)
    area_b = (abs(b[2] - b[0]) + 1) * (abs(b[3] - b[1]) + 1)
    if not (a[2] > b[0] and b[2] > a[0] and a[3] > b[1] and b[3] > a[1]):
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return width * height / (area_a + area_b - width * height)


def match(
    faces: Mapping[str, Sequence[Face]], ranked: Sequence[Detection], overlap: float
) -> tuple[list[str], list[tuple[Detection, Face]]]:
    taken: set[tuple[str, int]] = set()
    outcomes, hits = [], []
    for detection in ranked:
        image, box = detection[0], detection[2:]
        best, chosen = 0.0, -1
        for i, face in enumerate(faces[image]):
            found = iou(box, face[:4])
            if found >= best:
                best, chosen = found, i
        if best <= overlap:
            outcomes.append("false")
        elif ignored(faces[image][chosen]):
            outcomes.append("neither")
        elif (image, chosen) in taken:
            outcomes.append("false")
        else:
            taken.add((image, chosen))
            outcomes.append("hit")
            hits.append((detection, faces[image][chosen]))
    return outcomes, hits


def offset(hits: Sequence[tuple[Detection, Face]]) -> tuple[float, float, float, float]:
    if not hits:
        return 0.0, 0.0, 1.0, 1.0
    tx = ty = sx = sy = 0.0
    for (_, _, x1, y1, x2, y2), (fx1, fy1, fx2, fy2, _) in hits:
        tx += ((fx1 + fx2) / 2 - (x1 + x2) / 2) / (x2 - x1)
        ty += ((fy1 + fy2) / 2 - (y1 + y2) / 2) / (y2 - y1)
        sx += (fx2 - fx1) / (x2 - x1)
        sy += (fy2 - fy1) / (y2 - y1)
    return tx / len(hits), ty / len(hits), sx / len(hits), sy / len(hits)


def move(detection: Detection, tx: float, ty: float, sx: float, sy: float) -> Detection:
    image, score, x1, y1, x2, y2 = detection
    width, height = x2 - x1, y2 - y1
    x, y = (x1 + x2) / 2 + tx * width, (y1 + y2) / 2 + ty * height
    return (image, score, x - width * sx / 2, y - height * sy / 2, x + width * sx / 2, y + height * sy / 2)


def oracle_ap(outcomes: Sequence[str], counted: int) -> float:
    precision, recall = [], []
    hits = wrong = 0
    for outcome in outcomes:
        hits += outcome == "hit"
        wrong += outcome == "false"
        precision.append(hits / (hits + wrong) if hits + wrong else 0.0)
        recall.append(hits / counted)
    return wider_oracle.area(precision, recall)
