"""COCO: files, matching, AP and AR, the benchmark.

COCO's files: annotations and results, read with the entry at fault named, and results written.

An annotation file holds ``images`` (``id``, ``file_name``), ``annotations`` (``image_id``, ``category_id``, ``bbox``
``x y w h``, ``area``, ``iscrowd``) and ``categories`` (``id``, ``name``); a results file is a list of ``image_id``,
``category_id``, ``bbox``, ``score``. ``detections.json`` of ``detect`` is an annotation file whose annotations have
scores; its images are found by ``file_name``, for its ids are its own. Positions in messages count from 0, as JSON
tools do.

Where an annotation has no ``area`` it is that of its box; without ``iscrowd`` it is none. ``ignore`` is not read, as in
pycocotools. Numbers of annotations are not used: pycocotools counts a face that is number 0 as missed for ever.

COCO's matching of boxes, with all thresholds and areas at once, kept per image: what resampling needs.

Rules of pycocotools' ``COCOeval`` for boxes (Lin et al., Microsoft COCO, 2014, and its evaluation code); the tools hand
out numbers, or nothing that could be resampled. Per image and category the best ``max_detections`` rows are looked at,
by descending score, equal scores in file order. Each takes the face with the largest overlap that is still free, at
least the threshold, the last one of equals; faces that count before faces that do not (crowds, and faces outside the
area range). A crowd may be taken many times, and its overlap is the share of the detection inside it. A row on a face
that does not count is neither right nor wrong, nor is one without a face whose own area lies outside the range.

COCO's average precision of any multiset of images, from rows that were matched once.

Rules of pycocotools' ``COCOeval``: the rows of all images are sorted by score, equal scores in the order of the images;
precision is read from its monotone envelope at 101 recalls and averaged over them, over the ten thresholds 0.50 … 0.95
and over categories that have a face. The numbers of :mod:`fanet_lightning.score.coco` come from that tool
unless asked for otherwise; what is here is equal to them and says how they vary over images.

COCO as a benchmark: any annotation file in its format, scored by the reference tool itself.

The numbers are those of ``COCOeval`` in pycocotools, or of the compiled one in faster-coco-eval where that is
installed, read from ``eval["precision"]``. Two things differ from a plain call. At least 1,000 detections per image are
looked at unless asked for less: the default of 100 cuts faces off, so that 400 perfect detections in an image score
0.257. And ``summarize`` is not called: with other caps it prints -1.

A third backend, ``numpy``, is the matching of :mod:`fanet_lightning.score.coco`, made for resampling: the
same numbers, many times faster on images with many faces. It is taken where it is asked for.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, counted, first_line
from fanet_lightning.cli.files import (
    check_replaceable,
    decoded_text,
    find_listed,
    nearest_name,
    replaced,
    replaced_folder,
)
from fanet_lightning.score.bootstrap import image_weights
from fanet_lightning.score.curves import Curve
from fanet_lightning.score.results import (
    DetectionsByImage,
    Samples,
    Scores,
    is_clearly_better,
    layout_warning,
    on_faces,
)
from fanet_lightning.score.wider_face.ground_truth import ImageNames, name_parts

# What a COCO file numbers its images and categories by.
FileId = int | str


@dataclass(frozen=True, eq=False)
class CocoGroundTruth:
    """The faces of the images of a run.

    ``image_ids``    N of them, none twice: the file name without its extension. Their order decides between equal
                     scores; a file is read in the order of its own image numbers, as pycocotools sorts them.
    ``categories``   names of the K categories that are scored.
    ``starts``       (N + 1,) int64: the faces of image i are ``starts[i]`` … ``starts[i + 1]``.
    ``boxes_xywh``   (F, 4) float64, pixels; sides may be 0, never negative.
    ``category``     (F,) int64, index into ``categories``.
    ``areas``        (F,) float64 ≥ 0, square pixels, what the area ranges look at: the file's ``area``, which may be
                     that of a mask.
    ``crowd``        (F,) bool, the file's ``iscrowd``.
    ``file_images``  the file's number of an image → image id, of all images in the file, scored or not.
    ``file_categories`` the file's number of a category → name, likewise.
    ``sizes_wh``     (N, 2) float64, width and height in pixels as the file states them, NaN where not; None: nowhere.

    Raises:
        ValueError: lengths or shapes that do not fit, an image twice, a box that is not finite or has a negative side.
    """

    image_ids: tuple[str, ...]
    categories: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    category: npt.NDArray[np.int64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    file_images: Mapping[FileId, str] = field(default_factory=dict)
    file_categories: Mapping[FileId, str] = field(default_factory=dict)
    sizes_wh: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        faces = len(self.boxes_xywh)
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError("an image id twice")
        _check_packed(self.starts, len(self.image_ids), faces)
        if self.boxes_xywh.shape != (faces, 4) or not _are_boxes(self.boxes_xywh):
            raise ValueError(f"boxes_xywh {self.boxes_xywh.shape}, need (F, 4), finite, no side negative")
        for name in ("category", "areas", "crowd"):
            if getattr(self, name).shape != (faces,):
                raise ValueError(f"{name} {getattr(self, name).shape}, need ({faces},)")
        if not self.file_images:
            object.__setattr__(self, "file_images", dict(enumerate(self.image_ids, start=1)))
        if not self.file_categories:
            object.__setattr__(self, "file_categories", dict(enumerate(self.categories, start=1)))

    @classmethod
    def from_faces(
        cls, faces: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike | None]], category: str = "face"
    ) -> Self:
        """Pack ``image_id → (boxes_xyxy (F, 4), crowd (F,) or None)``, areas taken from the boxes.

        Raises:
            ValueError: as the class; or flags that are not one per box.
        """
        boxes = [_xywh(image_id, own) for image_id, (own, _) in faces.items()]
        flags = [
            np.zeros(len(xywh), np.bool_) if crowd is None else np.asarray(crowd, np.bool_).reshape(-1)
            for xywh, (_, crowd) in zip(boxes, faces.values(), strict=True)
        ]
        for image_id, xywh, crowd in zip(faces, boxes, flags, strict=True):
            if len(xywh) != len(crowd):
                raise ValueError(f"{image_id}: {len(xywh)} faces but {len(crowd)} flags")
        packed = np.concatenate([np.empty((0, 4)), *boxes])
        return cls(
            tuple(faces),
            (category,),
            np.cumsum([0, *(len(xywh) for xywh in boxes)], dtype=np.int64),
            packed,
            np.zeros(len(packed), np.int64),
            packed[:, 2] * packed[:, 3],
            np.concatenate([np.zeros(0, np.bool_), *flags]),
        )

    def select(self, image_ids: Iterable[str]) -> Self:
        """The ground truth of these images alone; their order stays that of the whole.

        Raises:
            ValueError: an image id that is not there.
        """
        wanted = set(image_ids)
        unknown = wanted - set(self.image_ids)
        if unknown:
            raise ValueError(f"{len(unknown)} image ids are not in the ground truth, the first is '{min(unknown)}'")
        images = [i for i, image_id in enumerate(self.image_ids) if image_id in wanted]
        counts = np.diff(self.starts)
        faces = np.isin(np.repeat(np.arange(len(self.image_ids)), counts), images)
        return type(self)(
            tuple(self.image_ids[i] for i in images),
            self.categories,
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[images], dtype=np.int64)]),
            self.boxes_xywh[faces],
            self.category[faces],
            self.areas[faces],
            self.crowd[faces],
            self.file_images,
            self.file_categories,
            None if self.sizes_wh is None else self.sizes_wh[images],
        )


@dataclass(frozen=True, eq=False)
class CocoDetections:
    """The rows of all images, packed image by image in the order of the ground truth.

    ``starts``     (N + 1,) int64: the rows of image i are ``starts[i]`` … ``starts[i + 1]``.
    ``boxes_xywh`` (R, 4) float64, pixels of the original image.
    ``scores``     (R,) float64, in any order.
    ``category``   (R,) int64, index into the ground truth's categories.
    ``missing``    images without a row.
    ``warnings``   one line each about the file that they are from.

    Raises:
        ValueError: lengths or shapes that do not fit, numbers that are not finite, negative sides.
    """

    starts: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    category: npt.NDArray[np.int64]
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rows = len(self.scores)
        _check_packed(self.starts, len(self.starts) - 1, rows)
        if self.boxes_xywh.shape != (rows, 4) or self.category.shape != (rows,):
            raise ValueError(f"boxes {self.boxes_xywh.shape}, categories {self.category.shape}, scores ({rows},)")
        if not _are_boxes(self.boxes_xywh) or not np.isfinite(self.scores).all():
            raise ValueError("a detection that is not finite or has a negative side")

    @classmethod
    def from_detections(
        cls,
        detections: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]],
        ground_truth: CocoGroundTruth,
        category: int = 0,
    ) -> Self:
        """Pack ``image_id → (boxes_xyxy (D, 4), scores (D,))``; an image that is not there has no detection.

        Raises:
            ValueError: as the class; or an image outside ``ground_truth``.
        """
        known = set(ground_truth.image_ids)
        surplus = [image_id for image_id in detections if image_id not in known]
        if surplus:
            raise ValueError(f"detections of {len(surplus)} images outside the run, the first is '{surplus[0]}'")
        boxes, scores, counts = [np.empty((0, 4))], [np.empty(0)], []
        for image_id in ground_truth.image_ids:
            own_boxes, own_scores = detections.get(image_id, ((), ()))
            boxes.append(_xywh(image_id, own_boxes))
            scores.append(np.asarray(own_scores, np.float64).reshape(-1))
            counts.append(len(boxes[-1]))
            if len(scores[-1]) != counts[-1]:
                raise ValueError(f"{image_id}: {counts[-1]} boxes but {len(scores[-1])} scores")
        packed = np.concatenate(scores)
        return cls(
            np.cumsum([0, *counts], dtype=np.int64),
            np.concatenate(boxes),
            packed,
            np.full(len(packed), category, np.int64),
            tuple(image_id for image_id, count in zip(ground_truth.image_ids, counts, strict=True) if not count),
        )

    def missing_line(self) -> str | None:
        """One line about the images without a row, or None."""
        if not self.missing:
            return None
        some = ", ".join(self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
        return f"{len(self.missing)} of {len(self.starts) - 1} images have no predictions and count as empty: {some}"


def _xywh(image_id: str, boxes_xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    xywh = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    if not _are_boxes(xywh):
        raise ValueError(f"{image_id}: a box that is not finite or has a negative side")
    return xywh


def _are_boxes(xywh: npt.NDArray[np.float64]) -> bool:
    return bool(np.isfinite(xywh).all() and (xywh[:, 2:] >= 0).all())


def _check_packed(starts: npt.NDArray[np.int64], images: int, total: int) -> None:
    if starts.shape != (images + 1,) or starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise ValueError(f"starts of {images} images must rise from 0 to {total}")


def read_json(path: Path, hint: str) -> Any:
    """The content of a file.

    Raises:
        InputError: no such file, a folder, or not JSON; ends with ``hint``.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; {hint}")
    try:
        return json.loads(decoded_text(path.read_bytes()))
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}; {hint}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {hint}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); {hint}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8; a number of thousands of digits; brackets without end
        raise InputError(f"{path}: not JSON ({first_line(error)}); {hint}") from error


def file_id(path: Path, where: str, entry: Mapping[str, Any], name: str) -> FileId:
    """The number, or text, that a COCO file calls something by; 7.0 is 7.

    Raises:
        InputError: missing, or anything else.
    """
    value = entry.get(name)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{path}: {where}: {name} {shown(value)} is no id; write a whole number")
    return value


def box_xywh(where: str, value: Any) -> list[float]:
    """Four finite numbers, no side negative.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, list) or len(value) != 4:
        raise InputError(f"{where}: bbox {shown(value)} is not a list of four numbers; write [x, y, width, height]")
    box = [finite(f"{where}: bbox", number) for number in value]
    for side, number in (("width", box[2]), ("height", box[3])):
        if number < 0:
            raise InputError(f"{where}: bbox {side} {number:g} is negative; boxes are x y width height, not corners")
    return box


def finite(where: str, value: Any) -> float:
    """A finite number.

    Raises:
        InputError: text (a comma decimal ends up as such), null, a truth value, NaN or an infinite number.
    """
    if isinstance(value, str):
        raise InputError(f"{where} {shown(value)} is text; write a number, 1.5, without quotes or comma")
    if not isinstance(value, bool) and isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InputError(f"{where} {shown(value)} is not a finite number; correct or remove the entry")


def sort_key(number: FileId) -> tuple[bool, FileId]:
    """Numbers by size, then texts."""
    return isinstance(number, str), number


def shown(value: Any) -> str:
    """A value as a message shows it, cut to a line."""
    return f"'{value[:80]}'" if isinstance(value, str) else str(value)[:80]


def kind_of(value: Any) -> str:
    """What JSON calls a value of this kind, with its article."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "a truth value"}
    return names.get(type(value), "a number")


RESULTS_FILE = "predictions.json"
DETECTIONS_FILE = "detections.json"
# Of so many best boxes or more, less than one in a hundred on a face is less than any detector's.
_FEWEST_TO_DOUBT, _STRANGERS = 100, 0.01
_ANNOTATIONS = "give a COCO annotation file with images, annotations and categories"
# Boxes of lower scores are too many to matter for AP.
HIGHEST_THRESHOLD = 0.05
_RESULTS = (
    f"give a results file, or a folder with {RESULTS_FILE}: [{{image_id, category_id, bbox, score}}, …]; "
    f"or {DETECTIONS_FILE} of detect"
)


def read_ground_truth(path: Path, images: Path | None = None, category: str | None = None) -> CocoGroundTruth:
    """Read an annotation file.

    Args:
        path: the file.
        images: a list of file names, with or without extension, that restricts everything.
        category: name of the only category that is scored; None takes all of the file.

    Raises:
        InputError: no such file, not JSON, something missing in it, an image, annotation or category twice, an
            annotation of an unknown image or category, a box that is not four finite numbers or has a negative side,
            a ``category`` that is not there, or a list that names other images.
    """
    content = read_json(path, _ANNOTATIONS)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {kind_of(content)}; {_ANNOTATIONS}")
    entries = _entries(path, content, "images")
    file_images = _images(path, entries)
    sizes = {number: _size(entry) for number, entry in zip(file_images, entries, strict=True)}
    file_categories = _categories(path, _entries(path, content, "categories"))
    scored = _scored_categories(path, file_categories, category)
    names = set(file_images.values()) if images is None else _selection(images, path, content, file_images)
    # The order that pycocotools sorts images in, which decides between equal scores.
    order = [number for number in sorted(file_images, key=sort_key) if file_images[number] in names]
    place = {number: i for i, number in enumerate(order)}
    rows = _annotations(path, _entries(path, content, "annotations"), file_images, file_categories)
    kept = [row for row in rows if row[0] in place and row[1] in scored]
    kept.sort(key=lambda row: place[row[0]])
    counts = np.bincount(np.array([place[row[0]] for row in kept], np.int64), minlength=len(order))
    return CocoGroundTruth(
        tuple(file_images[number] for number in order),
        tuple(file_categories[number] for number in scored),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        np.array([row[2] for row in kept], np.float64).reshape(-1, 4),
        np.array([scored[row[1]] for row in kept], np.int64),
        np.array([row[3] for row in kept], np.float64),
        np.array([row[4] for row in kept], np.bool_),
        file_images,
        file_categories,
        np.array([sizes[number] for number in order], np.float64).reshape(-1, 2),
    )


def read_results(path: Path, ground_truth: CocoGroundTruth, *, strict: bool = False) -> CocoDetections:
    """Read a results file, or ``detections.json`` of ``detect``; or the ``predictions.json``, else that, of a folder.

    Entries of images and categories that the annotation file has but that are not scored are skipped. A list of results
    cannot tell an image without a detection from one that was forgotten: both are in ``missing``.

    Raises:
        InputError: no such file, not JSON, neither of the two, an entry of an unknown image or category, a box that is
            not four finite numbers or has a negative side, a score that is not a finite number, a file name that may
            mean several images or none; with ``strict``, an image without an entry.
    """
    if path.is_dir():
        path = path / (DETECTIONS_FILE if _is_only_detect(path) else RESULTS_FILE)
    entries = read_json(path, _RESULTS)
    images, categories = ground_truth.file_images, ground_truth.file_categories
    is_list, listed, cut = isinstance(entries, list), set(), []
    if isinstance(entries, dict) and {"images", "annotations"} <= set(entries):
        images = _images_by_name(path, _entries(path, entries, "images"), ground_truth)
        categories = _categories_by_name(path, _entries(path, entries, "categories"), ground_truth)
        cut = _cut_short(path, entries)
        entries, listed = _entries(path, entries, "annotations"), set(images.values())
    elif not is_list:
        raise InputError(f"{path} holds {kind_of(entries)}, not a list; {_RESULTS}")
    boxes, scores = _rows(path, entries)
    place = {image_id: i for i, image_id in enumerate(ground_truth.image_ids)}
    category = {name: i for i, name in enumerate(ground_truth.categories)}
    image_of = {number: place.get(name, -1) for number, name in images.items()}
    category_of = {number: category.get(name, -1) for number, name in categories.items()}
    image = _places(path, entries, "image_id", image_of)
    kinds = _places(path, entries, "category_id", category_of)
    kept = np.flatnonzero((image >= 0) & (kinds >= 0))
    kept = kept[np.argsort(image[kept], kind="stable")]
    counts = np.bincount(image[kept], minlength=len(place))
    missing = tuple(
        image_id for image_id, count in zip(place, counts, strict=True) if not count and image_id not in listed
    )
    if missing and strict:
        raise InputError(
            f"{path}: {len(missing)} of {len(place)} images have no entry, the first is '{missing[0]}'; "
            "add them, or leave strict=true out and they count as images without a detection"
        )
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    found = CocoDetections(starts, boxes[kept], scores[kept], kinds[kept], missing)
    return replace(found, warnings=(*cut, *filter(None, _doubts(ground_truth, found, has_names=not is_list))))


def _cut_short(path: Path, content: dict[str, Any]) -> list[str]:
    """What ``detect`` has left out of the file, which AP goes without."""
    warnings = []
    if content.get("complete") is False:
        warnings.append(f"{path}: detect did not reach all of its inputs; run its command again")
    settings = content.get("settings")
    threshold = settings.get("threshold") if isinstance(settings, dict) else None
    if isinstance(threshold, int | float) and threshold > HIGHEST_THRESHOLD:
        warnings.append(f"{path}: it holds boxes above a score of {threshold:g} alone; AP wants detect threshold=0.01")
    return warnings


def _is_only_detect(folder: Path) -> bool:
    return (folder / DETECTIONS_FILE).is_file() and not (folder / RESULTS_FILE).exists()


def _images_by_name(path: Path, entries: list[dict[str, Any]], truth: CocoGroundTruth) -> dict[FileId, str]:
    """The number of each image in a file of detections → the image id of the ground truth."""
    known = ImageNames(truth.file_images.values())
    found: dict[FileId, str] = {}
    first: dict[str, str] = {}
    unknown: list[str] = []
    for i, entry in enumerate(entries):
        number, name = file_id(path, f"images[{i}]", entry, "id"), entry.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: images[{i}]: file_name {shown(name)} is no name; write the image's file name")
        if number in found:
            raise InputError(f"{path}: images[{i}]: id {number} stands there already; give each image its own")
        meant = known.find(name)
        if len(meant) > 1:
            raise InputError(
                f"{path}: images[{i}]: file_name {shown(name)} may be '{meant[0]}' or '{meant[1]}' of the annotations; "
                "write it with its folder, or run detect on the folder above"
            )
        if not meant:
            unknown.append(name)
            continue
        if meant[0] in first:
            raise InputError(
                f"{path}: images[{i}]: file_name {shown(name)} and {shown(first[meant[0]])} are both '{meant[0]}' of "
                "the annotations; remove one"
            )
        found[number], first[meant[0]] = meant[0], name
    if unknown:
        near = nearest_name("/".join(name_parts(unknown[0])), truth.image_ids)
        raise InputError(
            f"{path}: {len(unknown)} of {counted(len(entries), 'image')} are not in the annotations, the first is "
            f"{shown(unknown[0])}{f', where they have {near!r}' if near else ''}; remove them or give the annotations "
            "they belong to"
        )
    return found


def _categories_by_name(path: Path, entries: list[dict[str, Any]], truth: CocoGroundTruth) -> dict[FileId, str]:
    """The number of each category → its name in the ground truth; where each side has but one, they are the same."""
    own, names = _categories(path, entries), list(truth.file_categories.values())
    if len(own) == len(names) == 1:
        return dict.fromkeys(own, names[0])
    for name in own.values():
        if name not in names:
            raise InputError(f"{path}: category '{name}' is not in the annotations; they have {', '.join(names)}")
    return own


def _doubts(truth: CocoGroundTruth, found: CocoDetections, *, has_names: bool) -> Iterator[str | None]:
    """Boxes in another layout; ids that count the images of another list."""
    faces = [
        np.column_stack([own[:, :2], own[:, :2] + own[:, 2:]]) for own in np.split(truth.boxes_xywh, truth.starts[1:-1])
    ]
    rows, scores = (np.split(own, found.starts[1:-1]) for own in (found.boxes_xywh, found.scores))
    doubt = layout_warning(rows, scores, faces, sizes_wh=truth.sizes_wh)
    yield doubt
    if doubt or has_names:
        return
    on_face, looked_at = on_faces(rows, scores, faces)
    hint = f"give {DETECTIONS_FILE} of detect, whose images are found by file name, or the annotations' ids"
    for numbering, targets in _other_numberings(truth, [len(own) > 0 for own in rows]):
        other, looked_at_there = on_faces(rows, scores, [faces[target] for target in targets])
        if is_clearly_better(other, looked_at_there, on_face):
            yield (
                f"the image ids seem to number the images {numbering}, not as the annotations do: so read {other:,} "
                f"of {looked_at_there:,} boxes looked at are on a face, by the annotations' ids {on_face:,}; {hint}"
            )
            return
    if looked_at >= _FEWEST_TO_DOUBT and on_face < _STRANGERS * looked_at:
        yield (
            f"{on_face:,} of {looked_at:,} boxes looked at are on a face, as where the ids are those of another list; "
            f"if the detector is better than that, {hint}"
        )


def _other_numberings(truth: CocoGroundTruth, has_rows: Sequence[bool]) -> Iterator[tuple[str, list[int]]]:
    """How else ids may have been given, and the place that the rows at each place would then belong to."""
    if len(truth.image_ids) < len(truth.file_images):
        return  # of a selection the ids of the other images are not seen
    place = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    ids = {place[image_id]: number for number, image_id in truth.file_images.items()}
    in_file = list(truth.file_images.values())
    for name, order in (("by name", sorted(in_file)), ("in the order of the annotation file", in_file)):
        for start in (1, 0):
            numbered: dict[FileId, int] = {number: place[image_id] for number, image_id in enumerate(order, start)}
            targets = [numbered.get(ids[i], -1) if has_rows[i] else i for i in range(len(place))]
            if min(targets, default=-1) >= 0 and targets != list(range(len(place))):
                yield f"{name} from {start}", targets


def write_results(folder: Path, ground_truth: CocoGroundTruth, detections: DetectionsByImage) -> None:
    """Write detections as ``predictions.json`` in ``folder``, best score first within an image.

    Boxes get four decimals, scores eight. The folder appears by rename.

    Raises:
        InputError: ``folder`` holds something else, or cannot be written; or several categories are scored, so that
            it is not known which one the detections are of.
        ValueError: a detection that is not finite or has a negative side, or is of an image outside ``ground_truth``.
    """
    if len(ground_truth.categories) != 1:
        raise InputError(
            f"detections are of one category, the annotations have {len(ground_truth.categories)}; "
            f"give category= one of {', '.join(ground_truth.categories)}"
        )
    check_replaceable(folder, "predictions", lambda entry: entry.name == RESULTS_FILE and entry.is_file())
    packed = CocoDetections.from_detections(detections, ground_truth)
    numbers = {image_id: number for number, image_id in ground_truth.file_images.items()}
    category = next(
        number for number, name in ground_truth.file_categories.items() if name == ground_truth.categories[0]
    )
    entries = []
    for i, image_id in enumerate(ground_truth.image_ids):
        rows = np.arange(packed.starts[i], packed.starts[i + 1])
        for row in rows[np.argsort(-packed.scores[rows], kind="stable")].tolist():
            entries.append(
                {
                    "image_id": numbers[image_id],
                    "category_id": category,
                    "bbox": [round(value, 4) for value in packed.boxes_xywh[row].tolist()],
                    "score": round(float(packed.scores[row]), 8),
                }
            )
    with replaced_folder(folder) as temporary:
        (temporary / RESULTS_FILE).write_text(json.dumps(entries, allow_nan=False), encoding="utf-8")


def _size(entry: dict[str, Any]) -> tuple[float, float]:
    """Width and height of an image as the file states them, NaN where it does not."""
    sides = [entry.get(side, math.nan) for side in ("width", "height")]
    is_stated = all(isinstance(side, int | float) and not isinstance(side, bool) and 0 < side < 1e9 for side in sides)
    return (float(sides[0]), float(sides[1])) if is_stated else (math.nan, math.nan)


def _entries(path: Path, content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = content.get(name)
    if not isinstance(entries, list):
        raise InputError(f"{path}: there is no list '{name}' in it; {_ANNOTATIONS}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {name}[{i}] is {kind_of(entry)}, not an object; {_ANNOTATIONS}")
    if not entries and name != "annotations":
        raise InputError(f"{path}: '{name}' is empty; {_ANNOTATIONS}")
    return entries


def _images(path: Path, entries: list[dict[str, Any]]) -> dict[FileId, str]:
    """The file's number of each image → image id."""
    found: dict[FileId, str] = {}
    first: dict[str, int] = {}
    for i, entry in enumerate(entries):
        number, name = file_id(path, f"images[{i}]", entry, "id"), entry.get("file_name")
        if number in found:
            raise InputError(f"{path}: images[{i}]: id {number} stands there already; give each image its own")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: images[{i}]: file_name {shown(name)} is no name; write the image's file name")
        try:
            image_id = str(PurePosixPath(name.strip()).with_suffix(""))
        except ValueError as error:  # a lone dot or slash
            raise InputError(f"{path}: images[{i}]: file_name {shown(name)} names no file; correct it") from error
        if image_id in first:
            raise InputError(
                f"{path}: images[{i}]: '{image_id}' is the name of images[{first[image_id]}] too; "
                "names must differ before their extension"
            )
        found[number], first[image_id] = image_id, i
    if len({isinstance(number, str) for number in found}) > 1:
        raise InputError(f"{path}: some ids of images are numbers and some are text; write all of them alike")
    return found


def _categories(path: Path, entries: list[dict[str, Any]]) -> dict[FileId, str]:
    found: dict[FileId, str] = {}
    for i, entry in enumerate(entries):
        number, name = file_id(path, f"categories[{i}]", entry, "id"), entry.get("name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: categories[{i}]: name {shown(name)} is no name; write the category's name")
        if number in found or name in found.values():
            raise InputError(f"{path}: categories[{i}]: id {number} or name '{name}' stands there already; remove one")
        found[number] = name
    return found


def _scored_categories(path: Path, found: Mapping[FileId, str], category: str | None) -> dict[FileId, int]:
    """The file's number of each category that is scored → its place."""
    chosen = [number for number in sorted(found, key=sort_key) if category is None or found[number] == category]
    if not chosen:
        raise InputError(f"category={category} is not in {path}; choose one of {', '.join(found.values())}")
    return {number: i for i, number in enumerate(chosen)}


def _selection(images: Path, path: Path, content: dict[str, Any], file_images: Mapping[FileId, str]) -> set[str]:
    by_name = {entry["file_name"].strip(): file_images[entry["id"]] for entry in content["images"]}
    by_name |= {image_id: image_id for image_id in file_images.values()}
    chosen: set[str] = set()
    for line, written, name in find_listed(images, by_name):
        if name is None:
            raise InputError(f"{images}:{line}: '{written}' is not in {path}; write file names as there")
        if by_name[name] in chosen:
            raise InputError(f"{images}:{line}: '{by_name[name]}' stands there already; keep one of them")
        chosen.add(by_name[name])
    return chosen


def _annotations(
    path: Path,
    entries: list[dict[str, Any]],
    images: Mapping[FileId, str],
    categories: Mapping[FileId, str],
) -> list[tuple[FileId, FileId, list[float], float, bool]]:
    """Image number, category number, box, area and crowd of each."""
    rows = []
    numbers: dict[FileId, int] = {}
    for i, entry in enumerate(entries):
        where = f"{path}: annotations[{i}]"
        if "id" in entry:
            number = file_id(path, f"annotations[{i}]", entry, "id")
            if number in numbers:
                raise InputError(f"{where}: id {number} is that of annotations[{numbers[number]}] too; remove one")
            numbers[number] = i
        image, category = (file_id(path, f"annotations[{i}]", entry, name) for name in ("image_id", "category_id"))
        if image not in images:
            raise InputError(f"{where}: image_id {image} is not among the images; use files of one release")
        if category not in categories:
            raise InputError(f"{where}: category_id {category} is not among the categories; use files of one release")
        box = box_xywh(where, entry.get("bbox"))
        area = box[2] * box[3] if entry.get("area") is None else finite(f"{where}: area", entry["area"])
        if area < 0:
            raise InputError(f"{where}: area {area:g} is negative; correct or remove it")
        crowd = entry.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise InputError(f"{where}: iscrowd {shown(crowd)} is neither 0 nor 1; correct it")
        rows.append((image, category, box, area, bool(crowd)))
    return rows


def _rows(path: Path, entries: list[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Boxes (R, 4) and scores (R,) of all entries: at once where nothing is in doubt, else one after the other."""
    try:
        values = [[*entry["bbox"], entry["score"]] for entry in entries]
        if {len(row) for row in values} <= {5} and {type(value) for row in values for value in row} <= {int, float}:
            numbers = np.array(values, np.float64).reshape(-1, 5)
            if np.isfinite(numbers).all() and (numbers[:, 2:4] >= 0).all():
                return numbers[:, :4], numbers[:, 4]
    except (KeyError, TypeError, OverflowError):
        pass
    rows = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: [{i}] is {kind_of(entry)}, not an object; {_RESULTS}")
        rows.append(
            [*box_xywh(f"{path}: [{i}]", entry.get("bbox")), finite(f"{path}: [{i}]: score", entry.get("score"))]
        )
    numbers = np.array(rows, np.float64).reshape(-1, 5)
    return numbers[:, :4], numbers[:, 4]


def _places(path: Path, entries: list[dict[str, Any]], name: str, known: Mapping[FileId, int]) -> npt.NDArray[np.int64]:
    """Place of each entry's image or category, (R,); -1 where it is known but not scored."""
    try:
        # True would be found as 1.
        if not any(isinstance(entry[name], bool) for entry in entries):
            return np.array([known[entry[name]] for entry in entries], np.int64)
    except (KeyError, TypeError):
        pass
    unknown: list[FileId] = []
    first = ""
    for i, entry in enumerate(entries):
        number = file_id(path, f"[{i}]", entry, name)
        if number not in known:
            unknown.append(number)
            first = first or f"[{i}]: {name} {shown(number)}"
    by_name = f", or {DETECTIONS_FILE} of detect, whose images are found by file name" if name == "image_id" else ""
    raise InputError(
        f"{path}: {first} is not in the annotations, among {len(unknown)} such entries with {len(set(unknown))} ids; "
        f"remove them or give the annotations they belong to{by_name}"
    )


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


# As pycocotools evaluates them.
RECALLS: npt.NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
# Setting → thresholds and area that its AP is the mean over.
SETTINGS: Mapping[str, tuple[slice, int]] = {
    "all": (slice(None), 0),
    "50": (slice(0, 1), 0),
    "75": (slice(5, 6), 0),
    "small": (slice(None), 1),
    "medium": (slice(None), 2),
    "large": (slice(None), 3),
}

# Bounds of what is in memory at a time; the results do not depend on them.
_NUMBERS_AT_ONCE = 4_000_000
_CURVES_AT_ONCE = 500


def average_precision(
    categories: list[MatchedRows], weights: npt.NDArray[np.floating] | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """Setting (:data:`SETTINGS`) → AP of multisets of images, (b,) in [0, 1]; NaN where no face counts.

    Equal to pycocotools on a set with every image copied that often, the copies under new ids beside each other. Rows
    of equal score *within* one image are the exception: here all copies of the first come before the second.

    Args:
        categories: of :func:`match`.
        weights: (b, N) whole numbers ≥ 0, how often each image is in; None takes each once, and b is 1.

    Raises:
        ValueError: no category, or weights of another shape.
    """
    if not categories:
        raise ValueError("no category to average over")
    images = categories[0].faces.shape[1]
    if weights is None:
        weights = np.ones((1, images))
    if weights.ndim != 2 or weights.shape[1] != images:
        raise ValueError(f"weights {weights.shape} for {images} images, need (b, {images})")
    parts = [weights[first : first + _CURVES_AT_ONCE] for first in range(0, len(weights), _CURVES_AT_ONCE)]
    # (K, b, T, A)
    cells = np.stack([np.concatenate([_curves(own, part).mean(axis=-1) for part in parts]) for own in categories])
    return {
        name: _mean_over_categories(cells[..., thresholds, area].mean(axis=-1))
        for name, (thresholds, area) in SETTINGS.items()
    }


def precision_at_recalls(categories: list[MatchedRows]) -> npt.NDArray[np.float64]:
    """Precision of the envelope, (T, R, K, A): thresholds, :data:`RECALLS`, categories, areas; -1 without a face.

    What pycocotools calls ``eval["precision"]``.

    Raises:
        ValueError: no category.
    """
    if not categories:
        raise ValueError("no category to average over")
    whole = np.ones((1, categories[0].faces.shape[1]))
    # (K, T, A, R)
    curves = np.stack([_curves(own, whole)[0] for own in categories])
    return np.where(np.isnan(curves), -1.0, curves).transpose(1, 3, 0, 2)


def faces_per_setting(ground_truth: CocoGroundTruth) -> dict[str, int]:
    """Setting → faces that count, over all categories."""
    counted = (in_ranges(ground_truth.areas) & ~ground_truth.crowd).sum(axis=1)
    return {name: int(counted[area]) for name, (_, area) in SETTINGS.items()}


def _mean_over_categories(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K, b) → (b,), categories without a face left out."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    means: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)
    return means


class _Cell(NamedTuple):
    """Where the rows of one threshold and area stand, whatever the weights; H hits, C changed rows.

    ``hits``           (H,) images of the hits, best score first.
    ``inside_before``  (H,) rows whose own area is in the range, up to each hit, the hit included.
    ``changed``        (C,) images of matched rows that count although their area is outside, or do not although inside.
    ``sign``           (C,) +1 and -1.
    ``changed_before`` (H,) changed rows up to each hit, the hit included.
    """

    hits: npt.NDArray[np.int64]
    inside_before: npt.NDArray[np.int64]
    changed: npt.NDArray[np.int64]
    sign: npt.NDArray[np.float64]
    changed_before: npt.NDArray[np.int64]


def _curves(rows: MatchedRows, weights: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(b, N) weights → precision of one category, (b, T, A, R); NaN where no face counts.

    A recall is first reached at a hit, and the envelope there is a maximum over hits: between hits precision falls.
    So precision is computed at hits alone. How many rows count by then hardly depends on the threshold: it is the
    number of rows in the area, more or less the few matched rows that the threshold decides about.
    """
    thresholds, areas, _ = rows.hits.shape
    result = np.full((len(weights), thresholds, areas, len(RECALLS)), np.nan)
    step = max(1, _NUMBERS_AT_ONCE // max(1, len(rows.image), rows.faces.shape[1]))
    for area in range(areas):
        inside = np.flatnonzero(rows.in_area[area])
        cells = [_cell(rows, threshold, area, inside) for threshold in range(thresholds)]
        for first in range(0, len(weights), step):
            block = weights[first : first + step].astype(np.float64)
            faces = block @ rows.faces[area]
            proposed_inside = _cumulated(block, rows.image[inside])
            for threshold, cell in enumerate(cells):
                proposed = proposed_inside[:, cell.inside_before]
                if len(cell.changed):
                    proposed += _cumulated(block, cell.changed, cell.sign)[:, cell.changed_before]
                hit = _cumulated(block, cell.hits)[:, 1:]
                result[first : first + step, threshold, area] = _at_recalls(hit, proposed, faces)
    return result


def _cell(rows: MatchedRows, threshold: int, area: int, inside: npt.NDArray[np.int64]) -> _Cell:
    hits = np.flatnonzero(rows.hits[threshold, area])
    changed = np.flatnonzero(rows.ignored[threshold, area] == rows.in_area[area])
    return _Cell(
        rows.image[hits],
        np.searchsorted(inside, hits, side="right"),
        rows.image[changed],
        np.where(rows.in_area[area, changed], -1.0, 1.0),
        np.searchsorted(changed, hits, side="right"),
    )


def _cumulated(
    weights: npt.NDArray[np.float64], image: npt.NDArray[np.int64], sign: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """(b, N), (R,) → (b, R + 1): sum of the rows' weights before each row, and of all."""
    sums = np.zeros((len(weights), len(image) + 1))
    own = np.take(weights, image, axis=1)
    if sign is not None:
        own *= sign
    np.cumsum(own, axis=1, out=sums[:, 1:])
    return sums


def _at_recalls(
    hit: npt.NDArray[np.float64], proposed: npt.NDArray[np.float64], faces: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Hits and proposals at each hit, (b, H); faces (b,) → precision at :data:`RECALLS`, (b, R), NaN without a face."""
    # The tool's guard against 0 / 0, kept because it moves the last bits.
    precision = hit / (proposed + np.spacing(1))
    envelope = np.zeros((len(hit), hit.shape[1] + 1))
    envelope[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.full((len(hit), len(RECALLS)), np.nan)
    for i in np.flatnonzero(faces > 0).tolist():
        result[i] = envelope[i, np.searchsorted(hit[i] / faces[i], RECALLS, side="left")]
    return result


# Name → distribution that it comes with.
TOOLS = {"pycocotools": "pycocotools", "faster_coco_eval": "faster-coco-eval"}
BACKENDS = {**TOOLS, "numpy": "fanet-lightning"}
CURVES_FILE = "pr_curves.npz"

# The tool and our own matching follow the same rules; sums of floats may differ in their last bits.
_TOLERANCE = 1e-9


class CocoBenchmark:
    """Average precision of boxes by COCO's rules.

    Values, under ``ap``: ``all`` (mean over IoU 0.50 … 0.95), ``50``, ``75``, ``small``, ``medium``, ``large`` (by the
    annotation's area: below 32², to 96², above); in [0, 1], NaN where no face counts. Faces with ``iscrowd`` count
    neither way. With several categories each number is the mean over those that have a face.

    Args:
        category: name of the only category that is scored; None takes all of the annotation file.
        max_detections: rows looked at per image and category, the best ones, 1 or more.
        backend: ``pycocotools``, ``faster_coco_eval``, ``numpy``, or ``auto``: the second where it is installed, else
            the first.

    Raises:
        InputError: ``max_detections`` below 1, an unknown backend, or one that is not installed.
    """

    name = "coco"

    def __init__(
        self, category: str | None = None, max_detections: int = MAX_DETECTIONS, backend: str = "auto"
    ) -> None:
        if isinstance(max_detections, bool) or not isinstance(max_detections, int) or max_detections < 1:
            raise InputError(f"benchmark.max_detections={max_detections} is no number of detections; give 1 or more")
        if backend not in ("auto", *BACKENDS):
            raise InputError(f"benchmark.backend={backend} is not known; choose one of auto, {', '.join(BACKENDS)}")
        if backend == "auto":
            backend = "faster_coco_eval" if importlib.util.find_spec("faster_coco_eval") else "pycocotools"
        if importlib.util.find_spec(backend) is None:
            raise InputError(
                f"benchmark.backend={backend} is not installed; pip install {BACKENDS[backend]}, or take auto"
            )
        self.category = category
        self.max_detections = max_detections
        self.backend = backend

    def read_ground_truth(self, path: Path, images: Path | None = None) -> CocoGroundTruth:
        """Read an annotation file (:func:`read_ground_truth`).

        Raises:
            InputError: as there.
        """
        return read_ground_truth(path, images, self.category)

    def score(self, ground_truth: CocoGroundTruth, predictions: Path, *, strict: bool = False) -> Scores:
        """Score a results file, or a folder that holds ``predictions.json``.

        Raises:
            InputError: see :func:`read_results`.
        """
        return self.score_detections(ground_truth, read_results(predictions, ground_truth, strict=strict))

    def score_detections(self, ground_truth: CocoGroundTruth, detections: CocoDetections) -> Scores:
        """Score arrays.

        Raises:
            ValueError: the two are not about the same number of images.
        """
        rows = cache(lambda: match(ground_truth, detections, self.max_detections))
        if self.backend == "numpy":
            precision = precision_at_recalls(rows())
        else:
            precision = reference_precision(ground_truth, detections, self.max_detections, self.backend)
        values = {setting: _mean(precision[part[0], :, :, part[1]]) for setting, part in SETTINGS.items()}
        warnings = tuple(filter(None, (detections.missing_line(), *detections.warnings)))
        return Scores(
            benchmark=self.name,
            title="COCO",
            image_ids=ground_truth.image_ids,
            images_of_benchmark=len(ground_truth.file_images),
            faces=faces_per_setting(ground_truth),
            values={"ap": values},
            resampled=_resampling(rows, values, len(ground_truth.image_ids)),
            write_curves=lambda folder: _write_curves(folder, precision, ground_truth.categories),
            rules={
                "category": self.category,
                "categories": list(ground_truth.categories),
                "max_detections": self.max_detections,
                "backend": f"{BACKENDS[self.backend]} {version(BACKENDS[self.backend])}",
            },
            warnings=warnings,
        )

    def write_predictions(self, folder: Path, ground_truth: CocoGroundTruth, detections: DetectionsByImage) -> None:
        """Write ``predictions.json`` (:func:`write_results`).

        Raises:
            InputError: as there.
        """
        write_results(folder, ground_truth, detections)


def reference_precision(
    ground_truth: CocoGroundTruth, detections: CocoDetections, max_detections: int, backend: str
) -> npt.NDArray[np.float64]:
    """``eval["precision"]`` of the tool, (T, R, K, A): thresholds, recalls, categories, areas; -1 without a face.

    Images, faces and rows are numbered anew, in their order: the order decides between equal scores, and pycocotools
    takes a face that is number 0 for missed.

    Raises:
        ValueError: detections of another number of images, or an unknown backend.
    """
    images = len(ground_truth.image_ids)
    if len(detections.starts) != images + 1:
        raise ValueError(f"ground truth of {images} images, detections of {len(detections.starts) - 1}")
    if backend not in TOOLS:
        raise ValueError(f"backend '{backend}' is none of {', '.join(TOOLS)}")
    # Neither package has types, and only one of them need be installed.
    coco: Any
    evaluation: Any
    if backend == "pycocotools":
        coco = importlib.import_module("pycocotools.coco").COCO
        evaluation = importlib.import_module("pycocotools.cocoeval").COCOeval
    else:
        module = importlib.import_module("faster_coco_eval")
        coco, evaluation = module.COCO, module.COCOeval_faster
    shared = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(ground_truth.categories, start=1)],
    }
    # pycocotools tells its progress by print.
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for entries in (_faces_as_entries(ground_truth), _rows_as_entries(detections)):
            side = coco()
            side.dataset = {**shared, "annotations": entries}
            side.createIndex()
            sides.append(side)
        tool = evaluation(*sides, iouType="bbox")
        tool.params.iouThrs = IOU_THRESHOLDS.copy()
        tool.params.recThrs = RECALLS.copy()
        tool.params.areaRng = [list(limits) for limits in AREAS.values()]
        tool.params.areaRngLbl = list(AREAS)
        tool.params.maxDets = [max_detections]
        tool.evaluate()
        tool.accumulate()
    precision: npt.NDArray[np.float64] = np.asarray(tool.eval["precision"], np.float64)[..., 0]
    return precision


def _faces_as_entries(ground_truth: CocoGroundTruth) -> list[dict[str, Any]]:
    image = np.repeat(np.arange(1, len(ground_truth.image_ids) + 1), np.diff(ground_truth.starts))
    columns = zip(
        image.tolist(),
        (ground_truth.category + 1).tolist(),
        ground_truth.boxes_xywh.tolist(),
        ground_truth.areas.tolist(),
        ground_truth.crowd.astype(int).tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": i, "category_id": k, "bbox": box, "area": area, "iscrowd": crowd}
        for number, (i, k, box, area, crowd) in enumerate(columns, start=1)
    ]


def _rows_as_entries(detections: CocoDetections) -> list[dict[str, Any]]:
    image = np.repeat(np.arange(1, len(detections.starts)), np.diff(detections.starts))
    columns = zip(
        image.tolist(),
        (detections.category + 1).tolist(),
        detections.boxes_xywh.tolist(),
        (detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3]).tolist(),
        detections.scores.tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": i, "category_id": k, "bbox": box, "area": area, "score": score, "iscrowd": 0}
        for number, (i, k, box, area, score) in enumerate(columns, start=1)
    ]


def _mean(precision: npt.NDArray[np.float64]) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if len(defined) else float("nan")


def _resampling(rows: Callable[[], Any], values: dict[str, float], images: int) -> Callable[[int, int], Samples]:
    def resampled(samples: int, seed: int) -> Samples:
        matched = rows()
        own = average_precision(matched)
        for setting, value in values.items():
            if not np.isclose(own[setting][0], value, rtol=0, atol=_TOLERANCE, equal_nan=True):
                raise RuntimeError(f"AP {setting} is {own[setting][0]!r} here and {value!r} in the reference tool")
        drawn = {setting: np.empty(samples) for setting in SETTINGS}
        for part, weights in image_weights(images, samples, seed):
            for setting, found in average_precision(matched, weights).items():
                drawn[setting][part] = found
        return {"ap": drawn}

    return resampled


def _write_curves(folder: Path, precision: npt.NDArray[np.float64], categories: tuple[str, ...]) -> list[Path]:
    """``precision`` (T, R, K, A), NaN where no face counts, and what its axes are."""
    path = folder / CURVES_FILE
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            precision=np.where(precision > -1, precision, np.nan),
            iou_thresholds=IOU_THRESHOLDS,
            recall=RECALLS,
            categories=np.array(categories, np.str_),
            areas=np.array(list(AREAS), np.str_),
        )
    return [path]


def read_coco_curves(path: Path) -> dict[str, Curve]:
    """Curves at IoU 0.50 and 0.75 over all sizes, the mean over categories, from what ``score`` has written.

    ``thresholds`` is empty (the tool reads precision at 101 recalls, not at scores) and ``faces`` 0: not in the file.

    Raises:
        InputError: the file is missing, damaged, or holds no such curves.
    """
    curves = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            precision, recall = arrays["precision"], arrays["recall"]
            area = arrays["areas"].tolist().index("all")
            for iou in (0.5, 0.75):
                place = int(np.abs(arrays["iou_thresholds"] - iou).argmin())
                own = precision[place, :, :, area]
                counted = ~np.isnan(own).all(axis=0)
                mean = own[:, counted].mean(axis=1) if counted.any() else np.zeros(len(recall))
                ap = float(mean.mean()) if counted.any() else float("nan")
                curves[f"IoU {iou:.2f}"] = Curve(mean, recall, np.zeros(0), ap, 0)
    except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged archive
        raise InputError(f"{path} cannot be read ({first_line(error)}); score the predictions again") from error
    return curves
