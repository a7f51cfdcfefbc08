"""COCO's files: annotations and results, read with the entry at fault named, and results written.

An annotation file holds ``images`` (``id``, ``file_name``), ``annotations`` (``image_id``, ``category_id``, ``bbox``
``x y w h``, ``area``, ``iscrowd``) and ``categories`` (``id``, ``name``); a results file is a list of ``image_id``,
``category_id``, ``bbox``, ``score``. ``detections.json`` of ``detect`` is an annotation file whose annotations have
scores; its images are found by ``file_name``, for its ids are its own. Positions in messages count from 0, as JSON
tools do.

Where an annotation has no ``area`` it is that of its box; without ``iscrowd`` it is none. ``ignore`` is not read, as in
pycocotools. Numbers of annotations are not used: pycocotools counts a face that is number 0 as missed for ever.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced_folder
from fanet_lightning.image_lists import find_listed, nearest_name
from fanet_lightning.scoring.benchmark import DetectionsByImage, is_clearly_better, layout_warning, on_faces
from fanet_lightning.scoring.coco_arrays import CocoDetections, CocoGroundTruth, FileId
from fanet_lightning.scoring.coco_json import box_xywh, file_id, finite, kind_of, read_json, shown, sort_key
from fanet_lightning.scoring.selection import ImageNames, name_parts
from fanet_lightning.wording import counted

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
    if folder.exists() and not (
        folder.is_dir() and all(entry.name == RESULTS_FILE and entry.is_file() for entry in folder.iterdir())
    ):
        raise InputError(f"{folder} holds something else than predictions; give an empty or new folder")
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
    try:
        with replaced_folder(folder) as temporary:
            (temporary / RESULTS_FILE).write_text(json.dumps(entries, allow_nan=False), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); free it or give another folder") from error


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
