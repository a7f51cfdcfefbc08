"""WIDER FACE's ground truth: the official .mat files, read and written; parts of it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.inputs import places_of

# Where the official files lie below the folder of a whole data set; the last is where the official tools unpack to.
GROUND_TRUTH_FOLDERS = ("eval_gt", "ground_truth", "eval_tools/ground_truth")
_HINT = "give the folder of the official tools with wider_face_val.mat and wider_{easy,medium,hard}_val.mat"
SETTINGS = ("easy", "medium", "hard")
FACES_FILE = "wider_face_val.mat"

# Attribute → what its labels 0, 1, … mean: readme.txt of WIDER's annotations.
ATTRIBUTE_VALUES = {
    "blur": ("clear", "normal", "heavy"),
    "expression": ("typical", "exaggerate"),
    "illumination": ("normal", "extreme"),
    "invalid": ("valid", "invalid"),
    "occlusion": ("none", "partial", "heavy"),
    "pose": ("typical", "atypical"),
}


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """All faces of the images of a run, and which of them count in each setting.

    ``image_ids``  "event/name" without extension, N of them, none twice.
    ``boxes_xywh`` N arrays (F_i, 4) float64, pixels; every annotated face, counted or not. Sides may be 0 or negative:
                   the official files have one of width -2, which counts and which nothing can hit.
    ``counted``    per setting N arrays (F_i,) bool.
    ``whole_ids``  images of the whole that this was selected from; None: it is the whole. Predictions of those others
                   are no mistake, and the number is labelled as one on a sample.
    ``attributes`` per attribute of :data:`ATTRIBUTE_VALUES` N arrays (F_i,) int8, the label of each face. Those that
                   nobody has labelled are not there.

    Raises:
        ValueError: lengths or shapes that do not fit, an image twice, a box that is not finite, an unknown attribute
            or label.
    """

    image_ids: tuple[str, ...]
    boxes_xywh: Sequence[npt.NDArray[np.float64]]
    counted: Mapping[str, Sequence[npt.NDArray[np.bool_]]]
    whole_ids: tuple[str, ...] | None = None
    attributes: Mapping[str, Sequence[npt.NDArray[np.int8]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.boxes_xywh) != len(self.image_ids):
            raise ValueError(f"{len(self.image_ids)} image ids but boxes of {len(self.boxes_xywh)} images")
        if len(set(self.image_ids)) != len(self.image_ids):
            raise ValueError(f"image id twice: {_first_repeated(self.image_ids)}")
        for image_id, boxes in zip(self.image_ids, self.boxes_xywh, strict=True):
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise ValueError(f"{image_id}: boxes of shape {boxes.shape}, need (F, 4)")
            if not np.isfinite(boxes).all():
                raise ValueError(f"{image_id}: a box that is not finite")
        for setting, masks in self.counted.items():
            if len(masks) != len(self.image_ids):
                raise ValueError(f"setting {setting}: masks of {len(masks)} images, need {len(self.image_ids)}")
            for image_id, boxes, mask in zip(self.image_ids, self.boxes_xywh, masks, strict=True):
                if mask.shape != (len(boxes),) or mask.dtype != np.bool_:
                    raise ValueError(f"{image_id}: {setting} mask {mask.dtype}{mask.shape}, need bool({len(boxes)},)")
        for attribute, labels in self.attributes.items():
            if attribute not in ATTRIBUTE_VALUES:
                raise ValueError(f"attribute '{attribute}' is none of {', '.join(ATTRIBUTE_VALUES)}")
            if len(labels) != len(self.image_ids):
                raise ValueError(f"{attribute}: labels of {len(labels)} images, need {len(self.image_ids)}")
            for image_id, boxes, own in zip(self.image_ids, self.boxes_xywh, labels, strict=True):
                if own.shape != (len(boxes),) or own.dtype != np.int8:
                    raise ValueError(f"{image_id}: {attribute} {own.dtype}{own.shape}, need int8({len(boxes)},)")
            joined, last = np.concatenate([np.zeros(0, np.int8), *labels]), len(ATTRIBUTE_VALUES[attribute]) - 1
            if joined.min(initial=0) < 0 or joined.max(initial=0) > last:
                raise ValueError(f"{attribute} labels {joined.min()} … {joined.max()}, need 0 … {last}")

    @property
    def faces_per_setting(self) -> dict[str, int]:
        """Number of faces that count, per setting: the denominator of recall."""
        return {setting: sum(int(mask.sum()) for mask in masks) for setting, masks in self.counted.items()}

    def select(self, image_ids: Iterable[str]) -> Self:
        """The ground truth of these images alone, in the order given.

        Raises:
            ValueError: an image id that is not there, or one given twice.
        """
        wanted = tuple(image_ids)
        rows = places_of(wanted, self.image_ids)
        return type(self)(
            wanted,
            [self.boxes_xywh[i] for i in rows],
            {setting: [masks[i] for i in rows] for setting, masks in self.counted.items()},
            self.image_ids if self.whole_ids is None else self.whole_ids,
            {attribute: [labels[i] for i in rows] for attribute, labels in self.attributes.items()},
        )


def read_ground_truth(folder: Path | str, settings: Sequence[str] = SETTINGS) -> GroundTruth:
    """Read ``wider_face_val.mat`` and one ``wider_<setting>_val.mat`` per setting, as the official tools ship them.

    The lists of the settings hold 1-based indices of the faces that count. Labels of the faces are read where the file
    has them; one without is as good for scoring. ``folder`` may also be that of a data set which holds theirs, see
    :data:`GROUND_TRUTH_FOLDERS`.

    Raises:
        InputError: the folder or a file is missing, cannot be read, or does not fit the others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"ground truth: {folder} is not a folder; {_HINT}")
    places = (folder, *(folder / name for name in GROUND_TRUTH_FOLDERS))
    folder = next((place for place in places if (place / FACES_FILE).is_file()), folder)
    path = folder / FACES_FILE
    lists = {f"{attribute}_label_list": attribute for attribute in ATTRIBUTE_VALUES}
    faces = _load(path, ("event_list", "file_list", "face_bbx_list"), tuple(lists))
    try:
        events, names = _flat(faces["event_list"]), [_flat(event) for event in faces["file_list"].ravel()]
        image_ids = [f"{_text(event)}/{_text(name)}" for event, own in zip(events, names, strict=True) for name in own]
        cells = [cell for event in faces["face_bbx_list"].ravel() for cell in _flat(event)]
        boxes = [np.asarray(cell, np.float64).reshape(-1, 4) for cell in cells]
        GroundTruth(tuple(image_ids), boxes, {})
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} has not the official layout ({_reason(error)}); fetch the official files") from error
    counted = {setting: _counted(folder / f"wider_{setting}_val.mat", image_ids, boxes) for setting in settings}
    labels = {
        attribute: _labels(path, name, faces[name], image_ids, boxes)
        for name, attribute in lists.items()
        if name in faces
    }
    return GroundTruth(tuple(image_ids), boxes, counted, attributes=labels)


def write_ground_truth(folder: Path, ground_truth: GroundTruth) -> None:
    """Write the same files that :func:`read_ground_truth` reads; images are grouped by event, in order of appearance.

    Raises:
        ValueError: an image id that is not "event/name".
    """
    events: dict[str, list[int]] = {}
    for i, image_id in enumerate(ground_truth.image_ids):
        event, _, name = image_id.partition("/")
        if not event or not name or "/" in name:
            raise ValueError(f"image id '{image_id}' is not event/name")
        events.setdefault(event, []).append(i)
    folder.mkdir(parents=True, exist_ok=True)
    own_names = [[_name(ground_truth.image_ids[i]) for i in rows] for rows in events.values()]
    names = {"event_list": _cells(list(events)), "file_list": _cells([_cells(own) for own in own_names])}
    for setting, masks in ground_truth.counted.items():
        indices = [
            _cells([(np.flatnonzero(masks[i]) + 1).astype(np.uint16).reshape(-1, 1) for i in rows])
            for rows in events.values()
        ]
        _save(folder / f"wider_{setting}_val.mat", {**names, "gt_list": _cells(indices)})
    boxes = [_cells([np.asarray(ground_truth.boxes_xywh[i], np.float64) for i in rows]) for rows in events.values()]
    labels = {
        f"{attribute}_label_list": _cells(
            [_cells([own[i].astype(np.uint8).reshape(-1, 1) for i in rows]) for rows in events.values()]
        )
        for attribute, own in ground_truth.attributes.items()
    }
    _save(folder / FACES_FILE, {**names, "face_bbx_list": _cells(boxes), **labels})


def _counted(path: Path, image_ids: list[str], boxes: list[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.bool_]]:
    content = _load(path, ("file_list", "gt_list"))
    try:
        names = [_text(name) for event in content["file_list"].ravel() for name in _flat(event)]
        lists = [np.asarray(cell).ravel() for event in content["gt_list"].ravel() for cell in _flat(event)]
        lists = [indices.astype(np.int64) for indices in lists]
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path} has not the official layout ({_reason(error)}); fetch the official files") from error
    if names != [_name(image_id) for image_id in image_ids] or len(lists) != len(names):
        raise InputError(f"{path}: its images are not those of {FACES_FILE}, in that order; use files of one release")
    masks = []
    for image_id, indices, image_boxes in zip(image_ids, lists, boxes, strict=True):
        outside = indices[(indices < 1) | (indices > len(image_boxes))]
        if len(outside):
            raise InputError(
                f"{path}: face {outside[0]} of {image_id} counts, but there are {len(image_boxes)}; "
                "use files of one release"
            )
        mask = np.zeros(len(image_boxes), np.bool_)
        mask[indices - 1] = True
        masks.append(mask)
    return masks


def _labels(
    path: Path, name: str, cells: npt.NDArray[Any], image_ids: list[str], boxes: list[npt.NDArray[np.float64]]
) -> list[npt.NDArray[np.int8]]:
    last = len(ATTRIBUTE_VALUES[name.removesuffix("_label_list")]) - 1
    try:
        found = [np.asarray(cell).ravel() for event in cells.ravel() for cell in _flat(event)]
        lengths = [len(own) for own in found]
        joined = np.concatenate([np.zeros(0, np.uint8), *found])
        wrong = np.flatnonzero(~np.isin(joined, np.arange(last + 1)))
        labels = joined.astype(np.int8) if not len(wrong) else joined
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{path}: '{name}' has not the official layout ({_reason(error)}); fetch it again") from error
    if len(found) != len(image_ids):
        raise InputError(f"{path}: '{name}' is about {len(found)} images, need {len(image_ids)}; fetch it again")
    for image_id, length, image_boxes in zip(image_ids, lengths, boxes, strict=True):
        if length != len(image_boxes):
            raise InputError(
                f"{path}: '{name}' has {length} labels for the {len(image_boxes)} faces of {image_id}; fetch it again"
            )
    if len(wrong):
        image_id = image_ids[int(np.searchsorted(np.cumsum(lengths), wrong[0], side="right"))]
        raise InputError(
            f"{path}: '{name}' has the label {joined[wrong[0]]} in {image_id}, need 0 … {last}; fetch it again"
        )
    return np.split(labels, np.cumsum(lengths)[:-1])[: len(lengths)]


def _load(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, npt.NDArray[Any]]:
    # Half of the start-up time of a score, and --help needs none of it.
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError(f"ground truth: there is no {path}; {_HINT}")
    try:
        content = loadmat(str(path), variable_names=names + optional)
    except Exception as error:  # scipy lets zlib, struct, index and value errors of a damaged file through
        raise InputError(f"{path} is not a readable .mat file ({_reason(error)}); fetch it again") from error
    absent = [name for name in names if name not in content]
    if absent:
        raise InputError(f"{path}: there is no '{absent[0]}' in it; {_HINT}")
    return {name: content[name] for name in names + optional if name in content}


def _save(path: Path, content: dict[str, npt.NDArray[Any]]) -> None:
    from scipy.io import savemat

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            savemat(file, content, do_compression=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _cells(items: Sequence[Any]) -> npt.NDArray[Any]:
    cells = np.empty((len(items), 1), dtype=object)
    for i, item in enumerate(items):
        cells[i, 0] = item
    return cells


def _flat(cells: npt.NDArray[Any]) -> list[Any]:
    if cells.dtype != object:
        raise ValueError(f"an array of {cells.dtype} where cells belong")
    return list(cells.ravel())


def _text(cell: Any) -> str:
    return str(np.asarray(cell).ravel()[0])


def _name(image_id: str) -> str:
    return image_id.partition("/")[2]


def _first_repeated(items: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(item for item in items if item in seen or seen.add(item))  # type: ignore[func-returns-value]


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
