"""COCO's matching of boxes, with all thresholds and areas at once, kept per image: what resampling needs.

Rules of pycocotools' ``COCOeval`` for boxes (Lin et al., Microsoft COCO, 2014, and its evaluation code); the tools hand
out numbers, or nothing that could be resampled. Per image and category the best ``max_detections`` rows are looked at,
by descending score, equal scores in file order. Each takes the face with the largest overlap that is still free, at
least the threshold, the last one of equals; faces that count before faces that do not (crowds, and faces outside the
area range). A crowd may be taken many times, and its overlap is the share of the detection inside it. A row on a face
that does not count is neither right nor wrong, nor is one without a face whose own area lies outside the range.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from fanet_lightning.scoring.coco_arrays import CocoDetections, CocoGroundTruth

# As pycocotools evaluates them: 0.5 + 0.05 * i differs in the last bits, and overlaps fall on thresholds.
IOU_THRESHOLDS: npt.NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
# Square pixels, both ends included.
AREAS: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MAX_DETECTIONS = 1000

_RANGES = np.array(list(AREAS.values()))


@dataclass(frozen=True, eq=False)
class MatchedRows:
    """What the rows of one category found; R rows of all images by descending score, T thresholds, A areas, N images.

    ``image``   (R,) int64, place of the row's image.
    ``scores``  (R,) float64.
    ``in_area`` (A, R) bool, the detection's own area lies in the range.
    ``hits``    (T, A, R) bool, the row takes a face that counts.
    ``ignored`` (T, A, R) bool, neither right nor wrong; never a hit.
    ``faces``   (A, N) int64, faces of each image that count.
    """

    image: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    in_area: npt.NDArray[np.bool_]
    hits: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    faces: npt.NDArray[np.int64]


def match(
    ground_truth: CocoGroundTruth, detections: CocoDetections, max_detections: int = MAX_DETECTIONS
) -> list[MatchedRows]:
    """Match the rows of every image, category by category.

    Args:
        ground_truth: N images.
        detections: of the same images in the same order.
        max_detections: rows kept per image and category.

    Raises:
        ValueError: the two are not about the same number of images, or ``max_detections`` is below 1.
    """
    images = len(ground_truth.image_ids)
    if len(detections.starts) != images + 1:
        raise ValueError(f"ground truth of {images} images, detections of {len(detections.starts) - 1}")
    if max_detections < 1:
        raise ValueError(f"max_detections {max_detections}, need at least 1")
    return [
        _match_category(ground_truth, detections, category, max_detections)
        for category in range(len(ground_truth.categories))
    ]


def _match_category(
    ground_truth: CocoGroundTruth, detections: CocoDetections, category: int, max_detections: int
) -> MatchedRows:
    own_faces = np.flatnonzero(ground_truth.category == category)
    own_rows = np.flatnonzero(detections.category == category)
    face_starts = np.searchsorted(own_faces, ground_truth.starts).tolist()
    row_starts = np.searchsorted(own_rows, detections.starts).tolist()
    images = len(ground_truth.image_ids)
    kept_rows, hits, ignored = [], [], []
    faces_that_count = np.zeros((len(_RANGES), images), np.int64)
    for i in range(images):
        faces = own_faces[face_starts[i] : face_starts[i + 1]]
        rows = own_rows[row_starts[i] : row_starts[i + 1]]
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")[:max_detections]]
        crowd = ground_truth.crowd[faces]
        no_count = crowd | ~in_ranges(ground_truth.areas[faces])
        faces_that_count[:, i] = (~no_count).sum(axis=1)
        matched, on_ignored = _match_image(detections.boxes_xywh[rows], ground_truth.boxes_xywh[faces], crowd, no_count)
        kept_rows.append(rows)
        hits.append(matched & ~on_ignored)
        outside = ~in_ranges(detections.boxes_xywh[rows, 2] * detections.boxes_xywh[rows, 3])
        ignored.append(on_ignored | (~matched & outside))
    all_rows = np.concatenate([np.zeros(0, np.int64), *kept_rows])
    order = np.argsort(-detections.scores[all_rows], kind="stable")
    nothing = np.zeros((len(IOU_THRESHOLDS), len(_RANGES), 0), np.bool_)
    sorted_rows = all_rows[order]
    return MatchedRows(
        image=np.repeat(np.arange(images), [len(rows) for rows in kept_rows])[order],
        scores=detections.scores[sorted_rows],
        in_area=in_ranges(detections.boxes_xywh[sorted_rows, 2] * detections.boxes_xywh[sorted_rows, 3]),
        hits=np.concatenate([nothing, *hits], axis=2)[:, :, order],
        ignored=np.concatenate([nothing, *ignored], axis=2)[:, :, order],
        faces=faces_that_count,
    )


def in_ranges(areas: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(n,) square pixels → (A, n), whether each lies in each of :data:`AREAS`."""
    return (areas >= _RANGES[:, :1]) & (areas <= _RANGES[:, 1:])


def _match_image(
    rows_xywh: npt.NDArray[np.float64],
    faces_xywh: npt.NDArray[np.float64],
    crowd: npt.NDArray[np.bool_],
    no_count: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Rows (D, 4) by descending score, faces (F, 4), (F,), (A, F) → took a face, and one that does not count.

    Both (T, A, D). The state is which faces are taken, for all thresholds and areas at once; most rows overlap no face
    enough for any threshold and are skipped.
    """
    cells = len(IOU_THRESHOLDS), len(_RANGES)
    matched, on_ignored = np.zeros((2, len(rows_xywh), *cells), np.bool_)
    if len(rows_xywh) and len(faces_xywh):
        from pycocotools.mask import iou

        overlaps = iou(rows_xywh, faces_xywh, crowd.astype(np.uint8))
        row_of_pair, face_of_pair = np.nonzero(overlaps >= IOU_THRESHOLDS[0])
        overlap = overlaps[row_of_pair, face_of_pair]
        enough = (overlap[:, None] >= IOU_THRESHOLDS)[:, :, None]
        ignored_of_face = no_count.T[:, None, :]
        free = np.ones((len(faces_xywh), *cells), np.bool_)
        first_pairs = np.flatnonzero(np.diff(row_of_pair, prepend=-1))
        bounds = pairwise([*first_pairs.tolist(), len(overlap)])
        for row, (first, last) in zip(row_of_pair[first_pairs].tolist(), bounds, strict=True):
            if last == first + 1:
                face = face_of_pair[first]
                found = free[face] & enough[first]
                on_ignored[row] = found & ignored_of_face[face]
                if not crowd[face]:
                    free[face] &= ~found
            else:
                faces = face_of_pair[first:last]
                # Whole numbers, no two equal: by overlap, the later of equals, faces that count above all others.
                preference = np.empty(last - first, np.int64)
                preference[np.argsort(overlap[first:last], kind="stable")] = np.arange(last - first)
                preferred = preference[:, None, None] + (last - first) * ~ignored_of_face[faces]
                ranked = np.where(free[faces] & enough[first:last], preferred, -1)
                found = ranked.max(axis=0) >= 0
                taken = (ranked.argmax(axis=0) == np.arange(last - first)[:, None, None]) & found
                on_ignored[row] = (taken & ignored_of_face[faces]).any(axis=0)
                free[faces] &= ~taken | crowd[faces, None, None]
            matched[row] = found
    return matched.transpose(1, 2, 0), on_ignored.transpose(1, 2, 0)
