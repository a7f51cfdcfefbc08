"""COCO's average precision of boxes: the reference tool scores, resamples come from the matches per image.

``detections.json`` of ``detect`` is an annotation file whose annotations have scores; its images are found by
``file_name``, for its ids are its own. Positions in messages count from 0.

Two things differ from a plain call of pycocotools. At least 1,000 detections per image are looked at unless asked for
less: the default of 100 cuts faces off, so that 400 perfect detections in an image score 0.257. And images, faces and
rows are numbered afresh: the tool takes a face that is number 0 for missed. Without an ``area`` a face has that of its
box; ``ignore`` is not read, as in pycocotools.

The bootstrap matches each image once, for all thresholds and areas together, by the tool's rules (which hands out its
matches too slowly or not at all), and rebuilds AP of a multiset of images: rows of all images by score, equal scores in
the order of the images, precision read from its monotone envelope at 101 recalls, averaged over them, over the
thresholds 0.50 … 0.95 and over the categories that have a face (Lin et al., Microsoft COCO, 2014, and its evaluation
code). On the images as they are it must agree with the tool, else RuntimeError.
"""

import contextlib
import importlib.util
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fanet_lightning.cli.errors import InputError, is_whole
from fanet_lightning.cli.files import check_replaceable, decoded_text, replaced, replaced_folder
from fanet_lightning.score.bootstrap import image_weights
from fanet_lightning.score.curves import Bools, Curve, Floats, Ints
from fanet_lightning.score.inputs import (
    DetectionsByImage,
    ImageNames,
    as_xywh,
    missing_warning,
    packed_detections,
    places_of,
    read_selection,
    reading,
)
from fanet_lightning.score.results import Samples, Scores

# What a COCO file numbers its images and categories by.
FileId = int | str

# As pycocotools evaluates them: 0.5 + 0.05 * i differs in the last bits, and overlaps and recalls fall on them.
IOU_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
# Square pixels, both ends included.
AREAS: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10),
}  # fmt: skip
_RANGES = np.array(list(AREAS.values()))
# Setting → thresholds and area that its AP is the mean over.
SETTINGS: Mapping[str, tuple[slice, int]] = {
    "all": (slice(None), 0), "50": (slice(0, 1), 0), "75": (slice(5, 6), 0),
    "small": (slice(None), 1), "medium": (slice(None), 2), "large": (slice(None), 3),
}  # fmt: skip
MAX_DETECTIONS = 1000
# Name → distribution that it comes with.
BACKENDS = {"pycocotools": "pycocotools", "faster_coco_eval": "faster-coco-eval"}
RESULTS_FILE, DETECTIONS_FILE, CURVES_FILE = "predictions.json", "detections.json", "pr_curves.npz"
# Boxes of lower scores are too many to matter for AP.
HIGHEST_THRESHOLD = 0.05
_PARTS = ("images", "categories", "annotations")
_ANNOTATIONS = "give a COCO annotation file with images, annotations and categories; bbox is [x, y, width, height]"
_RESULTS = (
    f"give a results file, or a folder with {RESULTS_FILE}: [{{image_id, category_id, bbox: [x, y, width, height], "
    f"score}}, …]; or {DETECTIONS_FILE} of detect, whose images are found by file name"
)


@dataclass(frozen=True, eq=False)
class CocoGroundTruth:
    """The faces of the images of a run.

    ``image_ids``    N of them: the file name without its extension. Their order decides between equal scores; a file is
                     read in the order of its own image numbers, as pycocotools sorts them.
    ``categories``   names of the K categories that are scored.
    ``image``        (F,) int64, ascending: the image of each face.
    ``boxes_xywh``   (F, 4) float64, pixels; sides may be 0, never negative.
    ``category``     (F,) int64, index into ``categories``.
    ``areas``        (F,) float64, square pixels, what the area ranges look at: may be that of a mask.
    ``crowd``        (F,) bool, the file's ``iscrowd``.
    ``file_images``  the file's number of an image → image id, of all images in the file, scored or not.
    ``file_categories`` the file's number of a category → name, likewise.
    """

    image_ids: tuple[str, ...]
    categories: tuple[str, ...]
    image: Ints
    boxes_xywh: Floats
    category: Ints
    areas: Floats
    crowd: Bools
    file_images: Mapping[FileId, str]
    file_categories: Mapping[FileId, str]

    @classmethod
    def from_faces(cls, faces: DetectionsByImage) -> Self:
        """Pack ``image_id → (boxes_xyxy (F, 4), crowd (F,))`` of one category, areas taken from the boxes. ValueError:
        as :func:`fanet_lightning.score.inputs.packed_detections`."""
        starts, boxes_xyxy, crowd = packed_detections(faces, tuple(faces))
        xywh = as_xywh(boxes_xyxy)
        return cls(
            tuple(faces),
            ("face",),
            np.repeat(np.arange(len(faces)), np.diff(starts)),
            xywh,
            np.zeros(len(xywh), np.int64),
            xywh[:, 2] * xywh[:, 3],
            crowd > 0,
            dict(enumerate(faces, start=1)),
            {1: "face"},
        )

    def select(self, image_ids: Iterable[str]) -> Self:
        """These images alone, in the order of the whole; ValueError: an image that is not there."""
        images = np.array(sorted(places_of(tuple(image_ids), self.image_ids)), np.int64)
        faces = np.isin(self.image, images)
        columns = {name: getattr(self, name)[faces] for name in ("boxes_xywh", "category", "areas", "crowd")}
        ids = tuple(self.image_ids[i] for i in images.tolist())
        return replace(self, image_ids=ids, image=np.searchsorted(images, self.image[faces]), **columns)


@dataclass(frozen=True, eq=False)
class CocoDetections:
    """The rows of all images, image by image in the order of the ground truth, within an image in that of the file.

    ``image``      (R,) int64, ascending: the image of each row.
    ``boxes_xywh`` (R, 4) float64, pixels of the original image.
    ``scores``     (R,) float64, in any order.
    ``category``   (R,) int64, index into the ground truth's categories.
    ``missing``    images without a row.
    ``warnings``   one line each about the file that they are from.
    """

    image: Ints
    boxes_xywh: Floats
    scores: Floats
    category: Ints
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_detections(cls, detections: DetectionsByImage, ground_truth: CocoGroundTruth) -> Self:
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))`` of the first category; an image that is not there has no
        detection. ValueError: as :func:`fanet_lightning.score.inputs.packed_detections`."""
        starts, boxes_xyxy, scores = packed_detections(detections, ground_truth.image_ids)
        counts = np.diff(starts)
        return cls(
            np.repeat(np.arange(len(counts)), counts),
            as_xywh(boxes_xyxy),
            scores,
            np.zeros(len(scores), np.int64),
            tuple(image_id for image_id, count in zip(ground_truth.image_ids, counts, strict=True) if not count),
        )


# Files


def read_ground_truth(path: Path, images: Path | None = None, category: str | None = None) -> CocoGroundTruth:
    """Read an annotation file; ``images`` is a list that restricts everything, ``category`` the only one scored.

    InputError: the file cannot be read or is not JSON; an entry lacks something, holds numbers that are not finite or
    negative sides, or names an unknown image or category; an id or name twice.
    """
    with reading(path, _ANNOTATIONS):
        content = json.loads(decoded_text(path.read_bytes()))
        parts = {key: content[key] for key in _PARTS}
    file_images = _named(path, parts, "images", lambda entry: str(PurePosixPath(entry["file_name"]).with_suffix("")))
    file_categories = _named(path, parts, "categories", lambda entry: str(entry["name"]))
    # The order that pycocotools sorts in: that of images decides between equal scores.
    scored = [own for own in sorted(file_categories, key=_number_first) if category in (None, file_categories[own])]
    if not scored or not file_images:
        choices = ", ".join(file_categories.values())
        raise InputError(f"{path}: there is no image in it, or category={category} is not one of {choices}")
    known = list(file_images.values())
    names = set(known if images is None else read_selection(images, known))
    order = [number for number in sorted(file_images, key=_number_first) if file_images[number] in names]
    place = dict.fromkeys(file_images, -1) | {number: i for i, number in enumerate(order)}
    kind = dict.fromkeys(file_categories, -1) | {number: i for i, number in enumerate(scored)}

    def area_and_crowd(entry: Mapping[str, Any], of_box: float) -> list[float]:
        return [of_box if entry.get("area") is None else float(entry["area"]), float(entry.get("iscrowd") or 0)]

    rows = _rows(path, "annotations", parts["annotations"], (place, kind), area_and_crowd, _ANNOTATIONS)
    return CocoGroundTruth(
        tuple(file_images[number] for number in order),
        tuple(file_categories[number] for number in scored),
        rows[:, 0].astype(np.int64),
        rows[:, 2:6],
        rows[:, 1].astype(np.int64),
        rows[:, 6],
        rows[:, 7] > 0,
        file_images,
        file_categories,
    )


def _number_first(number: FileId) -> tuple[bool, FileId]:
    return isinstance(number, str), number


def read_results(path: Path, ground_truth: CocoGroundTruth) -> CocoDetections:
    """Read a results file, or ``detections.json`` of ``detect``; or the ``predictions.json``, else that, of a folder.

    Entries of images and categories that the annotation file has but that are not scored are skipped. A list of results
    cannot tell an image without a detection from one that was forgotten: both are in ``missing``.
    """
    if path.is_dir():
        path /= next((name for name in (RESULTS_FILE, DETECTIONS_FILE) if (path / name).exists()), RESULTS_FILE)
    with reading(path, _RESULTS):
        entries = json.loads(decoded_text(path.read_bytes()))
    images, categories = ground_truth.file_images, ground_truth.file_categories
    looked_at: set[str] = set()
    warnings: tuple[str, ...] = ()
    if isinstance(entries, dict) and set(_PARTS) <= set(entries):
        names_of_truth = ImageNames(images.values())

        def found(entry: Mapping[str, Any]) -> str:
            meant = names_of_truth.find(entry["file_name"])
            if len(meant) != 1:
                several = f"may be {meant[0]} or {meant[1]}" if meant else "is not in the annotations"
                raise ValueError(f"'{entry['file_name']}' {several}")
            return meant[0]

        images = _named(path, entries, "images", found)
        own = _named(path, entries, "categories", lambda entry: str(entry["name"]))
        # Where each side has but one, they are the same.
        categories = dict.fromkeys(own, ground_truth.categories[0]) if len(own) == len(categories) == 1 else own
        looked_at = set(images.values())
        threshold = (entries.get("settings") or {}).get("threshold", 0)
        if isinstance(threshold, list):  # by size
            threshold = max(score for _, score in threshold)
        if threshold > HIGHEST_THRESHOLD:
            warnings = (f"{path} holds boxes above a score of {threshold:g} alone; AP wants detect threshold=0.01",)
        entries = entries["annotations"]
    ids = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
    names = dict.fromkeys(ground_truth.file_categories.values(), -1)
    names |= {name: i for i, name in enumerate(ground_truth.categories)}
    place = {number: ids.get(image_id, -1) for number, image_id in images.items()}
    kind = {number: names[name] for number, name in categories.items() if name in names}
    rows = _rows(path, "results", entries, (place, kind), lambda entry, _: [float(entry["score"]), 0.0], _RESULTS)
    image = rows[:, 0].astype(np.int64)
    looked_at |= {ground_truth.image_ids[i] for i in np.unique(image).tolist()}
    missing = tuple(image_id for image_id in ids if image_id not in looked_at)
    return CocoDetections(image, rows[:, 2:6], rows[:, 6], rows[:, 1].astype(np.int64), missing, warnings)


def _each(path: Path, key: str, entries: Any, fields: Callable[[Any], Any], remedy: str) -> list[Any]:
    """``fields`` of each entry of a file's list; an error names the entry."""
    found: list[Any] = []
    try:
        for entry in entries:
            found.append(fields(entry))
    except Exception:
        with reading(f"{path}: {key}[{len(found)}]", remedy):
            raise
    return found


def _named(path: Path, content: Mapping[str, Any], key: str, name: Callable[[Any], str]) -> dict[FileId, str]:
    """Number → name of a file's images or categories; neither may stand twice."""
    listed = _each(path, key, content[key], lambda entry: (entry["id"], name(entry)), _ANNOTATIONS)
    numbers = dict(listed)
    if len(set(numbers.values())) < len(listed):
        raise InputError(f"{path}: an id or name of {key} is there twice; remove one")
    return numbers


def _rows(
    path: Path,
    key: str,
    entries: Any,
    places: tuple[Mapping[FileId, int], Mapping[FileId, int]],
    more: Callable[[Any, float], list[float]],
    remedy: str,
) -> Floats:
    """Rows ``image category x y w h`` and what ``more`` makes of an entry and its box's area, (R, 8), by image.

    ``places`` of images and categories by their numbers; what has a negative one is left out.
    """

    def row(entry: Any) -> list[float]:
        x, y, w, h = map(float, entry["bbox"])
        own = [places[0][entry["image_id"]], places[1][entry["category_id"]], x, y, w, h, *more(entry, w * h)]
        if not all(map(math.isfinite, own)) or w < 0 or h < 0:
            raise ValueError(f"{own[2:]} is not finite or has a negative side")
        return own

    rows = np.array(_each(path, key, entries, row, remedy), np.float64).reshape(-1, 8)
    rows = rows[(rows[:, :2] >= 0).all(axis=1)]
    return rows[np.argsort(rows[:, 0], kind="stable")]


# The tool


def evaluated(
    ground_truth: CocoGroundTruth, detections: CocoDetections, max_detections: int, backend: str = "pycocotools"
) -> Any:
    """The tool's ``COCOeval`` after ``accumulate``; images, faces and rows are numbered from 1, in their order.
    ``eval["precision"]`` is (T, R, K, A, 1): thresholds, recalls, categories, areas; -1 without a face."""
    coco, evaluation = COCO, COCOeval
    if backend == "faster_coco_eval":
        import faster_coco_eval

        coco, evaluation = faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
    shared = {
        "images": [{"id": i} for i in range(1, len(ground_truth.image_ids) + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(ground_truth.categories, start=1)],
    }
    areas = detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3]
    # pycocotools tells its progress by print.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for side, more in (
            (ground_truth, {"area": ground_truth.areas, "iscrowd": ground_truth.crowd.astype(np.int64)}),
            (detections, {"area": areas, "iscrowd": np.zeros(len(areas), np.int64), "score": detections.scores}),
        ):
            own = {"image_id": side.image + 1, "category_id": side.category + 1, "bbox": side.boxes_xywh, **more}
            own["id"] = np.arange(1, len(side.image) + 1)
            rows = zip(*(column.tolist() for column in own.values()), strict=True)
            sides.append(coco())
            sides[-1].dataset = {**shared, "annotations": [dict(zip(own, row, strict=True)) for row in rows]}
            sides[-1].createIndex()
        tool = evaluation(*sides, iouType="bbox")
        tool.params.iouThrs = IOU_THRESHOLDS.copy()
        tool.params.recThrs = RECALLS.copy()
        tool.params.areaRng = [list(limits) for limits in AREAS.values()]
        tool.params.areaRngLbl = list(AREAS)
        tool.params.maxDets = [max_detections]
        tool.evaluate()
        tool.accumulate()
    return tool


# Matches of the bootstrap


@dataclass(frozen=True, eq=False)
class MatchedRows:
    """What the rows of one category found; R rows of all images by descending score, T thresholds, A areas, N images.

    ``image``   (R,) int64, place of the row's image.
    ``in_area`` (A, R) bool, the detection's own area is in the range.
    ``hits``    (T, A, R) bool, the row takes a face that counts.
    ``ignored`` (T, A, R) bool, neither right nor wrong; never a hit.
    ``faces``   (A, N) int64, faces of each image that count.
    """

    image: Ints
    in_area: Bools
    hits: Bools
    ignored: Bools
    faces: Ints


def matched_rows(
    ground_truth: CocoGroundTruth, detections: CocoDetections, max_detections: int = MAX_DETECTIONS
) -> list[MatchedRows]:
    """The matches of each category, by the rules of pycocotools."""
    counts = in_ranges(ground_truth.areas) & ~ground_truth.crowd
    in_area = in_ranges(detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3])
    images = np.arange(len(ground_truth.image_ids) + 1)
    categories = []
    for category in range(len(ground_truth.categories)):
        faces = np.flatnonzero(ground_truth.category == category)
        rows = np.flatnonzero(detections.category == category)
        # The best rows of each image, by descending score, equal scores in file order.
        rows = rows[np.lexsort((-detections.scores[rows], detections.image[rows]))]
        rank = np.arange(len(rows)) - np.searchsorted(detections.image[rows], detections.image[rows])
        rows = rows[rank < max_detections]
        matched, ignored = np.zeros((2, len(rows), len(IOU_THRESHOLDS), len(_RANGES)), np.bool_)
        row_starts = np.searchsorted(detections.image[rows], images).tolist()
        face_starts = np.searchsorted(ground_truth.image[faces], images).tolist()
        for (row, row_end), (face, face_end) in zip(pairwise(row_starts), pairwise(face_starts), strict=True):
            if row < row_end and face < face_end:
                own, found = faces[face:face_end], slice(row, row_end)
                crowd = ground_truth.crowd[own]
                boxes = detections.boxes_xywh[rows[found]], ground_truth.boxes_xywh[own]
                overlaps = coco_mask.iou(*boxes, crowd.astype(np.uint8))
                _match_image(overlaps, crowd, ~counts[:, own], matched[found], ignored[found])
        order = np.argsort(-detections.scores[rows], kind="stable")
        rows, matched, ignored = rows[order], matched[order].transpose(1, 2, 0), ignored[order].transpose(1, 2, 0)
        ignored = ignored | ~matched & ~in_area[:, rows]
        counted = [np.bincount(ground_truth.image[faces[own]], minlength=len(images) - 1) for own in counts[:, faces]]
        hits = matched & ~ignored
        categories.append(MatchedRows(detections.image[rows], in_area[:, rows], hits, ignored, np.stack(counted)))
    return categories


def in_ranges(areas: Floats) -> Bools:
    """(n,) square pixels → (A, n), whether each is in each of :data:`AREAS`."""
    return (areas >= _RANGES[:, :1]) & (areas <= _RANGES[:, 1:])


def _match_image(overlaps: Floats, crowd: Bools, no_count: Bools, matched: Bools, on_ignored: Bools) -> None:
    """Overlaps (D, F) of rows by descending score, (F,), (A, F) → fills in who took a face, and who one that does not
    count, both (D, T, A).

    Each row takes the free face with the largest overlap, at least the threshold, the last one of equals; faces that
    count before others (crowds, and faces outside the area range). A crowd may be taken many times. The state is which
    faces are taken, for all thresholds and areas at once.
    """
    row_of_pair, face_of_pair = np.nonzero(overlaps >= IOU_THRESHOLDS[0])
    overlap = overlaps[row_of_pair, face_of_pair]
    enough = (overlap[:, None] >= IOU_THRESHOLDS)[:, :, None]
    ignored_of_face = no_count.T[:, None, :]
    free = np.ones((len(crowd), *matched.shape[1:]), np.bool_)
    first_pairs = np.flatnonzero(np.diff(row_of_pair, prepend=-1))
    for first, last in pairwise([*first_pairs.tolist(), len(overlap)]):
        row, faces = row_of_pair[first], face_of_pair[first:last]
        # Whole numbers, no two equal: by overlap, the later of equals, faces that count above all others.
        preference = np.argsort(np.argsort(overlap[first:last], kind="stable"))[:, None, None]
        preferred = preference + (last - first) * ~ignored_of_face[faces]
        ranked = np.where(free[faces] & enough[first:last], preferred, -1)
        taken = (ranked == ranked.max(axis=0)) & (ranked >= 0)
        matched[row] = taken.any(axis=0)
        on_ignored[row] = (taken & ignored_of_face[faces]).any(axis=0)
        free[faces] &= ~taken | crowd[faces, None, None]


def average_precision(
    categories: list[MatchedRows], weights: npt.NDArray[np.floating] | None = None
) -> dict[str, Floats]:
    """Setting (:data:`SETTINGS`) → AP of multisets of images, (b,) in [0, 1]; NaN where no face counts.

    Equal to pycocotools on a set with every image copied that often, the copies under new ids next to each other. Rows
    of equal score *within* one image are the exception: here all copies of the first come before the second.

    ``weights`` (b, N) are whole numbers ≥ 0, how often each image is in; None takes each once, and b is 1.
    """
    times = np.ones((1, categories[0].faces.shape[1])) if weights is None else weights.astype(np.float64)
    # (K, b, T, A)
    means = np.stack([_curves(own, times).mean(axis=-1) for own in categories])
    found = {}
    for name, (thresholds, area) in SETTINGS.items():
        values = means[..., thresholds, area].mean(axis=-1)
        # The mean over the categories that have a face.
        count = (~np.isnan(values)).sum(axis=0)
        total = np.nan_to_num(values).sum(axis=0)
        found[name] = np.divide(total, count, out=np.full(len(times), np.nan), where=count > 0)
    return found


def _curves(rows: MatchedRows, weights: Floats) -> Floats:
    """(b, N) weights → precision of one category, (b, T, A, R); NaN where no face counts.

    Precision is computed at hits alone: the envelope at a recall is a maximum over hits. How many rows count by then is
    the number of rows in the area, more or less the few matched rows that the threshold decides about.
    """
    thresholds, areas, _ = rows.hits.shape
    result = np.full((len(weights), thresholds, areas, len(RECALLS)), np.nan)
    for area in range(areas):
        faces = weights @ rows.faces[area]
        inside = np.flatnonzero(rows.in_area[area])
        proposed_inside = _cumulated(weights, rows.image[inside])
        for threshold in range(thresholds):
            hits = np.flatnonzero(rows.hits[threshold, area])
            # Matched rows that count although their own area is outside, or do not although it is inside.
            changed = np.flatnonzero(rows.ignored[threshold, area] == rows.in_area[area])
            sign = np.where(rows.in_area[area, changed], -1.0, 1.0)
            proposed = proposed_inside[:, np.searchsorted(inside, hits, side="right")]
            more = _cumulated(weights, rows.image[changed], sign)
            proposed += more[:, np.searchsorted(changed, hits, side="right")]
            hit = _cumulated(weights, rows.image[hits])[:, 1:]
            result[:, threshold, area] = _at_recalls(hit, proposed, faces)
    return result


def _cumulated(weights: Floats, image: Ints, sign: Floats | float = 1.0) -> Floats:
    """(b, N), (R,) → (b, R + 1): sum of the rows' weights before each row, and of all."""
    sums = np.zeros((len(weights), len(image) + 1))
    np.cumsum(np.take(weights, image, axis=1) * sign, axis=1, out=sums[:, 1:])
    return sums


def _at_recalls(hit: Floats, proposed: Floats, faces: Floats) -> Floats:
    """Hits and proposals at each hit, (b, H); faces (b,) → precision at :data:`RECALLS`, (b, R), NaN without a face."""
    # The tool's guard against 0 / 0, kept because it moves the last bits.
    precision = hit / (proposed + np.spacing(1))
    envelope = np.zeros((len(hit), hit.shape[1] + 1))
    envelope[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.full((len(hit), len(RECALLS)), np.nan)
    for i in np.flatnonzero(faces > 0).tolist():
        result[i] = envelope[i, np.searchsorted(hit[i] / faces[i], RECALLS, side="left")]
    return result


# The tool and our own matching follow the same rules; sums of floats may differ in their last bits.
_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False, kw_only=True)
class CocoScores(Scores):
    """``precision``: the tool's (T, R, K, A), NaN where no face counts."""

    ground_truth: CocoGroundTruth
    detections: CocoDetections
    precision: Floats

    def resampled(self, samples: int, seed: int) -> Samples:
        rows = matched_rows(self.ground_truth, self.detections, self.rules["max_detections"])
        own = average_precision(rows)
        for setting, value in self.values["ap"].items():
            if not np.isclose(own[setting][0], value, rtol=0, atol=_TOLERANCE, equal_nan=True):
                raise RuntimeError(f"AP {setting} is {own[setting][0]!r} here and {value!r} in the reference tool")
        drawn = {setting: np.empty(samples) for setting in SETTINGS}
        numbers = max(1000, *(len(each.image) for each in rows))
        for part, weights in image_weights(len(self.image_ids), samples, seed, 2 * numbers):
            for setting, found in average_precision(rows, weights).items():
                drawn[setting][part] = found
        return {"ap": drawn}

    def write_curves(self, folder: Path) -> list[Path]:
        path = folder / CURVES_FILE
        with replaced(path) as temporary:
            np.savez_compressed(
                temporary,
                precision=self.precision,
                iou_thresholds=IOU_THRESHOLDS,
                recall=RECALLS,
                categories=np.array(self.ground_truth.categories, np.str_),
                areas=np.array(list(AREAS), np.str_),
            )
        return [path]


class CocoBenchmark:
    """Average precision of boxes by COCO's rules.

    Values, under ``ap``: ``all`` (mean over IoU 0.50 … 0.95), ``50``, ``75``, ``small``, ``medium``, ``large`` (by the
    annotation's area: below 32², to 96², above); in [0, 1], NaN where no face counts. Faces with ``iscrowd`` count
    neither way. With several categories each number is the mean over those that have a face.

    Args:
        category: name of the only category that is scored; None takes all of the annotation file.
        max_detections: rows looked at per image and category, the best ones, 1 or more.
        backend: ``pycocotools``; ``faster_coco_eval``; or ``auto``: the latter where it is installed.
    """

    name = "coco"

    def __init__(
        self, category: str | None = None, max_detections: int = MAX_DETECTIONS, backend: str = "auto"
    ) -> None:
        if not is_whole(max_detections, 1):
            raise InputError(f"benchmark.max_detections={max_detections} is no number of detections; give 1 or more")
        available = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
        if backend not in ("auto", *available):
            raise InputError(
                f"benchmark.backend={backend} is not known or not installed (pip install faster-coco-eval); "
                f"choose one of auto, {', '.join(BACKENDS)}"
            )
        self.category = category
        self.max_detections = max_detections
        self.backend = available[-1] if backend == "auto" else backend

    def read_ground_truth(self, path: Path, images: Path | None = None) -> CocoGroundTruth:
        return read_ground_truth(path, images, self.category)

    def score(self, ground_truth: CocoGroundTruth, predictions: Path, *, strict: bool = False) -> CocoScores:
        """Score a results file, or a folder that holds one (:func:`read_results`)."""
        detections = read_results(predictions, ground_truth)
        missing_warning(detections.missing, len(ground_truth.image_ids), predictions if strict else None)
        return self.score_detections(ground_truth, detections)

    def score_detections(self, ground_truth: CocoGroundTruth, detections: CocoDetections) -> CocoScores:
        tool = evaluated(ground_truth, detections, self.max_detections, self.backend)
        precision = np.asarray(tool.eval["precision"], np.float64)[..., 0]
        precision = np.where(precision > -1, precision, np.nan)
        counted = (in_ranges(ground_truth.areas) & ~ground_truth.crowd).sum(axis=1)
        return CocoScores(
            benchmark=self.name,
            title="COCO",
            image_ids=ground_truth.image_ids,
            images_of_benchmark=len(ground_truth.file_images),
            faces={name: int(counted[area]) for name, (_, area) in SETTINGS.items()},
            values={"ap": {name: _mean(precision[part, :, :, area]) for name, (part, area) in SETTINGS.items()}},
            rules={
                "category": self.category,
                "categories": list(ground_truth.categories),
                "max_detections": self.max_detections,
                "backend": f"{BACKENDS[self.backend]} {version(BACKENDS[self.backend])}",
            },
            warnings=(*missing_warning(detections.missing, len(ground_truth.image_ids)), *detections.warnings),
            ground_truth=ground_truth,
            detections=detections,
            precision=precision,
        )

    def write_predictions(self, folder: Path, ground_truth: CocoGroundTruth, detections: DetectionsByImage) -> None:
        """Write ``predictions.json``, best score first within an image: boxes with four decimals, scores with eight."""
        if len(ground_truth.categories) != 1:
            raise InputError(
                f"detections are of one category, the annotations have {len(ground_truth.categories)}; "
                f"give category= one of {', '.join(ground_truth.categories)}"
            )
        check_replaceable(folder, "predictions", lambda entry: entry.name == RESULTS_FILE and entry.is_file())
        packed = CocoDetections.from_detections(detections, ground_truth)
        numbers = {image_id: number for number, image_id in ground_truth.file_images.items()}
        names = {name: number for number, name in ground_truth.file_categories.items()}
        entries = [
            {
                "image_id": numbers[ground_truth.image_ids[packed.image[row]]],
                "category_id": names[ground_truth.categories[0]],
                "bbox": [round(value, 4) for value in packed.boxes_xywh[row].tolist()],
                "score": round(float(packed.scores[row]), 8),
            }
            for row in np.lexsort((-packed.scores, packed.image)).tolist()
        ]
        with replaced_folder(folder) as temporary:
            (temporary / RESULTS_FILE).write_text(json.dumps(entries, allow_nan=False), encoding="utf-8")


def _mean(precision: Floats) -> float:
    defined = precision[~np.isnan(precision)]
    return float(defined.mean()) if len(defined) else float("nan")


def read_coco_curves(path: Path) -> dict[str, Curve]:
    """Curves at IoU 0.50 and 0.75 over all sizes, the mean over categories, from what ``score`` has written.

    ``thresholds`` is empty (the tool reads precision at 101 recalls, not at scores) and ``faces`` 0: not in the file.
    InputError: it is missing, damaged, or holds no such curves.
    """
    curves = {}
    with reading(path, "score the predictions again"), np.load(path, allow_pickle=False) as arrays:
        precision, recall = arrays["precision"], arrays["recall"]
        area = arrays["areas"].tolist().index("all")
        for iou in (0.5, 0.75):
            own = precision[int(np.abs(arrays["iou_thresholds"] - iou).argmin()), :, :, area]
            counted = ~np.isnan(own).all(axis=0)
            mean = own[:, counted].mean(axis=1) if counted.any() else np.zeros(len(recall))
            curves[f"IoU {iou:.2f}"] = Curve(mean, recall, np.zeros(0), _mean(own), 0)
    return curves
