"""The breakdown by attribute, slow and obvious: every group alone, by the official scorer; and runs to try it on."""

import math
from dataclasses import replace

import numpy as np

from fanet_lightning.score.analysis.attributes import Group
from fanet_lightning.score.bootstrap import ImageCounts, count_images
from fanet_lightning.score.curves import THRESHOLDS
from fanet_lightning.score.wider_face.average_precision import judge
from fanet_lightning.score.wider_face.ground_truth import ATTRIBUTE_VALUES, GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from tests.score import wider_oracle

Run = tuple[GroundTruth, Predictions]
# A face that no row looks at, for rows that are to count nowhere.
ASIDE = (1e6, 1e6, 10.0, 10.0)


def one_group(run: Run, group: Group, stray: list[int]) -> Run:
    """The run with the group as its only setting, for the official scorer.

    The faces outside are not counted. The rows on no face that do not count against the group are moved onto a face
    that is not counted either, so that they are no proposals, and the normalisation of the scores stays.
    """
    truth, predictions = run
    image_of_row = np.repeat(np.arange(len(truth.image_ids)), np.diff(predictions.starts))
    boxes, masks, moved, first = [], [], predictions.boxes_xywh.copy(), 0
    for faces in truth.boxes_xywh:
        own = group.faces[first : first + len(faces)]
        first += len(faces)
        # An image without a face stays one: its rows are nothing at all.
        boxes.append(np.concatenate([faces, [ASIDE]]) if len(faces) else faces)
        masks.append(np.concatenate([own, [False]]) if len(faces) else own)
    for row in stray:
        height = predictions.boxes_xywh[row, 3]
        of_image = group.images is None or group.images[image_of_row[row]]
        of_height = group.heights is None or group.heights[0] <= height < group.heights[1]
        if not (of_image and of_height):
            moved[row] = ASIDE
    return GroundTruth(truth.image_ids, boxes, {"group": masks}), replace(predictions, boxes_xywh=moved)


def stray_rows(run: Run) -> list[int]:
    """The rows whose overlap with every face of their image is below 0.5."""
    truth, predictions = run
    stray = []
    for i, faces in enumerate(truth.boxes_xywh):
        for row in range(predictions.starts[i], predictions.starts[i + 1]):
            box = predictions.boxes_xywh[row].tolist()
            if all(wider_oracle.overlap(box, face) < 0.5 for face in faces.tolist()):
                stray.append(row)
    return stray


def counts_alone(run: Run, group: Group, stray: list[int]) -> ImageCounts:
    return count_images(*one_group(run, group, stray))["group"]


def slow_normalised_ap(run: Run, group: Group, weights: list[int], all_faces: int) -> float:
    """A walk over the thresholds, with rows on the group's faces weighing ``all_faces`` / faces of the group."""
    truth, predictions = one_group(run, group, stray_rows(run))
    judged = judge(truth, predictions)
    group_faces = np.concatenate(truth.counted["group"])
    image = np.repeat(np.arange(len(truth.image_ids)), np.diff(predictions.starts))
    faces = sum(w * int(mask.sum()) for w, mask in zip(weights, truth.counted["group"], strict=True))
    if not faces:
        return math.nan
    low, high = min([1.0, *predictions.scores]), max([0.0, *predictions.scores])
    normalised = [1.0 if high == low else (s - low) / (high - low) for s in predictions.scores]
    rows = [row for row in np.argsort([-value for value in normalised]).tolist() if judged.in_play[row]]
    precision, recall = [], []
    hits = on_faces = background = 0
    for threshold in THRESHOLDS.tolist():
        while rows and normalised[rows[0]] >= threshold:
            row = rows.pop(0)
            times = weights[image[row]]
            if judged.face[row] < 0:
                background += times
            elif group_faces[judged.face[row]]:
                on_faces += times
                hits += times * bool(judged.first[row])
        share = all_faces / faces
        proposed = on_faces * share + background
        precision.append(hits * share / proposed if proposed else 0.0)
        recall.append(hits / faces)
    return wider_oracle.area(precision, recall)


def drawn_run(seed: int, images: int = 6, detector: int = 0, labelled: bool = True, levels: int = 50) -> Run:
    """Faces of all heights, some over each other, some of no setting; rows near them, twice, nowhere."""
    truth_rng, rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1, detector])
    ids, boxes, found = [], [], {}
    counted: dict[str, list[np.ndarray]] = {"easy": [], "hard": []}
    attributes: dict[str, list[np.ndarray]] = {name: [] for name in ATTRIBUTE_VALUES} if labelled else {}
    for i in range(images):
        faces = int(truth_rng.choice([0, 1, 3, 8]))
        height = np.round(4 * 2 ** truth_rng.uniform(0, 7, faces))
        xywh = np.stack([*truth_rng.integers(0, 300, (2, faces)).astype(float), np.round(height * 0.8), height], axis=1)
        ids.append(f"{i % 3}--Event_{i % 3}/{i}")
        boxes.append(xywh)
        hard = truth_rng.random(faces) < 0.8
        counted["hard"].append(hard)
        counted["easy"].append(hard & (height > 40))
        for name, labels in attributes.items():
            labels.append(truth_rng.integers(0, len(ATTRIBUTE_VALUES[name]), faces).astype(np.int8))
        near = np.repeat(xywh, rng.choice([0, 1, 1, 2], faces), axis=0)
        near += rng.normal(0, 0.12, near.shape) * near[:, 2:3]
        stray = np.concatenate([rng.uniform(0, 300, (5, 2)), 4 * 2 ** rng.uniform(0, 7, (5, 2))], axis=1)
        rows = np.concatenate([near, stray[: rng.integers(0, 6)]])
        rows[:, 2:] = np.abs(rows[:, 2:])
        scores = np.round(rng.random(len(rows)) * levels) / levels
        found[ids[-1]] = (np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1), scores)
    return GroundTruth(tuple(ids), boxes, counted, attributes=attributes), Predictions.from_detections(found, ids)
