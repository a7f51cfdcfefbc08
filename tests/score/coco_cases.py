"""Random COCO files with all that an evaluation can stumble over, and the reference tool called plainly on them."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

AREAS = ("all", "small", "medium", "large")

# x and y from 0, width and height from 1.
SIDES = np.array([0, 0, 1, 1])
SETTINGS = ["all", "50", "75", "small", "medium", "large"]


def random_case(
    seed: int, *, images: int = 6, categories: int = 1, ties: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations and results. Boxes on a coarse grid, so that overlaps are equal and fall on thresholds.

    ``ties``: scores of one digit, so that many are equal, within an image too.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    # Numbers in no order: the tool sorts them, and that decides between equal scores.
    numbers = rng.permutation(np.arange(1, images + 1) * 7).tolist()
    for number in numbers:
        for category in range(1, categories + 1):
            scale = float(rng.choice([4.0, 20.0]))
            faces = (rng.integers(0, 9, (rng.integers(0, 5), 4)) + SIDES) * scale
            for x, y, w, h in faces.tolist():
                # Sometimes that of a mask, or exactly a limit of the ranges.
                area = float(rng.choice([w * h, w * h * 0.7, 1024.0, 9216.0]))
                face = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category * 3,
                    "bbox": [x, y, w, h],
                }
                annotations.append({**face, "area": area, "iscrowd": int(rng.random() < 0.15)})
            near = faces[rng.integers(0, len(faces), rng.integers(0, 9))] if len(faces) else np.empty((0, 4))
            near = near + rng.integers(-1, 2, near.shape) * rng.choice([0.0, 1.0, scale / 2], (len(near), 1))
            far = (rng.integers(0, 9, (rng.integers(0, 4), 4)) + SIDES) * scale
            rows = np.concatenate([near, far])
            rows[:, 2:] = np.maximum(rows[:, 2:], 0)
            for box in rows[rng.permutation(len(rows))].tolist():
                score = float(rng.integers(1, 6)) / 10 if ties else float(rng.random())
                results.append({"image_id": number, "category_id": category * 3, "bbox": box, "score": score})
    return {
        "images": [{"id": number, "file_name": f"event/{number:03d}.jpg"} for number in numbers],
        "categories": [{"id": k * 3, "name": f"kind {k}"} for k in range(1, categories + 1)],
        "annotations": annotations,
    }, results


def plain(annotations: dict[str, Any], results: list[dict[str, Any]], cap: int = 1000) -> COCOeval:
    """pycocotools on these files, as its documentation says."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        if results:
            found = truth.loadRes(copy.deepcopy(results))
        else:  # which loadRes cannot take
            found = COCO()
            found.dataset = {**annotations, "annotations": []}
            found.createIndex()
        tool = COCOeval(truth, found, "bbox")
        tool.params.maxDets = [cap]
        tool.evaluate()
        tool.accumulate()
    return tool


def plain_ap(tool: COCOeval) -> dict[str, float]:
    """Setting → mean of the tool's precision where it has one, else NaN."""
    parts = {"50": (slice(0, 1), 0), "75": (slice(5, 6), 0)} | {a: (slice(None), i) for i, a in enumerate(AREAS)}
    values = {}
    for setting in SETTINGS:
        own = tool.eval["precision"][parts[setting][0], :, :, parts[setting][1], 0]
        values[setting] = float(own[own > -1].mean()) if (own > -1).any() else float("nan")
    return values
