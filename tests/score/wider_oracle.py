"""The rules of the WIDER FACE evaluation, one after the other, in plain Python: slow, and nothing to get wrong."""

from collections.abc import Sequence

Box = Sequence[float]
Row = tuple[float, float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    ax2, ay2, bx2, by2 = a[0] + a[2], a[1] + a[3], b[0] + b[2], b[1] + b[3]
    width = min(ax2, bx2) - max(a[0], b[0]) + 1
    height = min(ay2, by2) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a = (ax2 - a[0] + 1) * (ay2 - a[1] + 1)
    area_b = (bx2 - b[0] + 1) * (by2 - b[1] + 1)
    return width * height / (area_a + area_b - width * height)


def judge_image(rows: list[Row], faces: list[Box], counted: list[bool]) -> tuple[list[int], list[int]]:
    """Rows by descending score → after each row: hits so far, proposals so far."""
    taken = [False] * len(faces)
    hits, proposals = 0, 0
    hits_after, proposals_after = [], []
    for row in rows:
        overlaps = [overlap(row, face) for face in faces]
        best = overlaps.index(max(overlaps))
        if overlaps[best] < 0.5:
            proposals += 1
        elif counted[best]:
            proposals += 1
            if not taken[best]:
                hits += 1
                taken[best] = True
        hits_after.append(hits)
        proposals_after.append(proposals)
    return hits_after, proposals_after


def curve(images: list[tuple[list[Box], list[bool], list[Row]]]) -> tuple[list[float], list[float], float]:
    """Per image (faces, which count, rows in file order) → precision, recall at the 1,000 thresholds, and AP."""
    scores = [row[4] for _, _, rows in images for row in rows]
    low, high = min([1.0, *scores]), max([0.0, *scores])
    total = sum(sum(counted) for _, counted, _ in images)
    judged = []
    for faces, counted, rows in images:
        if not faces or not rows:
            continue
        ordered = sorted(rows, key=lambda row: -row[4])
        normalised = [1.0 if high == low else (row[4] - low) / (high - low) for row in ordered]
        judged.append((normalised, *judge_image(ordered, faces, counted)))
    precision, recall = [], []
    for i in range(1000):
        threshold = 1 - (i + 1) / 1000
        hits = proposals = 0
        for normalised, hits_after, proposals_after in judged:
            reached = [k for k, value in enumerate(normalised) if value >= threshold]
            if reached:
                hits += hits_after[reached[-1]]
                proposals += proposals_after[reached[-1]]
        precision.append(hits / proposals if proposals else 0.0)
        recall.append(hits / total if total else 0.0)
    return precision, recall, area(precision, recall)


def area(precision: list[float], recall: list[float]) -> float:
    r = [0.0, *recall, 1.0]
    p = [0.0, *precision, 0.0]
    for i in range(len(p) - 1, 0, -1):
        p[i - 1] = max(p[i - 1], p[i])
    return sum((r[i + 1] - r[i]) * p[i + 1] for i in range(len(r) - 1) if r[i + 1] != r[i])
