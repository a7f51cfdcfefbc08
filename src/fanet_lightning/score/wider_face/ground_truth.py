"""WIDER FACE's ground truth: the official .mat files, read and written; parts of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import replaced
from fanet_lightning.score.inputs import load_mat, places_of, reading

# Where the official files are below the folder of a whole data set; the last is where the official tools unpack to.
GROUND_TRUTH_FOLDERS = ("eval_gt", "ground_truth", "eval_tools/ground_truth")
SETTINGS = ("easy", "medium", "hard")
FACES_FILE = "wider_face_val.mat"
_REMEDY = f"give the folder of the official tools with {FACES_FILE} and wider_{{easy,medium,hard}}_val.mat"

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
                   have no label are not there.
    """

    image_ids: tuple[str, ...]
    boxes_xywh: Sequence[npt.NDArray[np.float64]]
    counted: Mapping[str, Sequence[npt.NDArray[np.bool_]]]
    whole_ids: tuple[str, ...] | None = None
    attributes: Mapping[str, Sequence[npt.NDArray[np.int8]]] = field(default_factory=dict)

    @property
    def faces_per_setting(self) -> dict[str, int]:
        """Number of faces that count, per setting: the denominator of recall."""
        return {setting: sum(int(mask.sum()) for mask in masks) for setting, masks in self.counted.items()}

    def select(self, image_ids: Iterable[str]) -> Self:
        """The ground truth of these images alone, in the order given; ValueError: an image that is not there."""
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

    Labels of the faces are read where the file has them. ``folder`` may also be that of a data set which holds theirs,
    see :data:`GROUND_TRUTH_FOLDERS`.

    Raises:
        InputError: the folder or a file is missing, cannot be read, or does not fit the others.
    """
    places = (Path(folder), *(Path(folder) / name for name in GROUND_TRUTH_FOLDERS))
    folder = next((place for place in places if (place / FACES_FILE).is_file()), Path(folder))
    content = load_mat(folder / FACES_FILE, ("event_list", "file_list", "face_bbx_list"), _REMEDY)
    with reading(folder / FACES_FILE, _REMEDY):
        events = zip(_flat(content["event_list"]), content["file_list"].ravel(), strict=True)
        image_ids = tuple(f"{_text(event)}/{_text(name)}" for event, names in events for name in _flat(names))
        boxes = [np.asarray(own, np.float64).reshape(-1, 4) for own in _of_images(content["face_bbx_list"], image_ids)]
        if len(set(image_ids)) < len(image_ids) or not np.isfinite(np.concatenate([np.zeros((0, 4)), *boxes])).all():
            raise ValueError("an image twice, or a box that is not finite")
        attributes = {}
        for attribute, values in ATTRIBUTE_VALUES.items():
            if (name := f"{attribute}_label_list") in content:
                labels = [own.ravel().astype(np.int8) for own in _of_images(content[name], image_ids)]
                known = np.isin(np.concatenate([np.zeros(0), *labels]), range(len(values))).all()
                if [len(own) for own in labels] != [len(own) for own in boxes] or not known:
                    raise ValueError(f"the labels of {attribute} are not one of its values per face")
                attributes[attribute] = labels
    counted = {setting: _counted(folder / f"wider_{setting}_val.mat", image_ids, boxes) for setting in settings}
    return GroundTruth(image_ids, boxes, counted, attributes=attributes)


def write_ground_truth(folder: Path, ground_truth: GroundTruth) -> None:
    """Write the files that :func:`read_ground_truth` reads, by event in order of appearance; ValueError: an image id
    that is not "event/name"."""
    events: dict[str, list[int]] = {}
    for i, image_id in enumerate(ground_truth.image_ids):
        event, _, name = image_id.partition("/")
        if not event or not name or "/" in name:
            raise ValueError(f"image id '{image_id}' is not event/name")
        events.setdefault(event, []).append(i)

    def by_event(values: Callable[[int], Any]) -> npt.NDArray[Any]:
        return _cells([_cells([values(i) for i in rows]) for rows in events.values()])

    folder.mkdir(parents=True, exist_ok=True)
    names = {"event_list": _cells(list(events)), "file_list": by_event(lambda i: _name(ground_truth.image_ids[i]))}
    for setting, masks in ground_truth.counted.items():
        indices = [(np.flatnonzero(mask) + 1).astype(np.uint16).reshape(-1, 1) for mask in masks]
        _save(folder / f"wider_{setting}_val.mat", {**names, "gt_list": by_event(indices.__getitem__)})
    boxes = [np.asarray(own, np.float64) for own in ground_truth.boxes_xywh]
    labels = {
        f"{attribute}_label_list": by_event([own.astype(np.uint8).reshape(-1, 1) for own in each].__getitem__)
        for attribute, each in ground_truth.attributes.items()
    }
    _save(folder / FACES_FILE, {**names, "face_bbx_list": by_event(boxes.__getitem__), **labels})


def _counted(path: Path, image_ids: Sequence[str], boxes: list[npt.NDArray[np.float64]]) -> list[npt.NDArray[np.bool_]]:
    content = load_mat(path, ("file_list", "gt_list"), _REMEDY)
    masks = []
    with reading(path, _REMEDY):
        if [_text(name) for name in _of_images(content["file_list"], image_ids)] != [_name(own) for own in image_ids]:
            raise ValueError(f"its images are not those of {FACES_FILE}, in that order")
        for image_id, indices, own in zip(image_ids, _of_images(content["gt_list"], image_ids), boxes, strict=True):
            if indices.size and not (indices.min() >= 1 and indices.max() <= len(own)):
                raise ValueError(f"face {indices.max()} of {image_id} counts, but there are {len(own)}")
            masks.append(np.zeros(len(own), np.bool_))
            masks[-1][indices.ravel().astype(np.int64) - 1] = True
    return masks


def _of_images(cells: npt.NDArray[Any], image_ids: Sequence[str]) -> list[npt.NDArray[Any]]:
    """What a cell of events of cells of images holds, image by image."""
    own = [np.asarray(image) for event in cells.ravel() for image in _flat(event)]
    if len(own) != len(image_ids):
        raise ValueError(f"{len(own)} images where there are {len(image_ids)}")
    return own


def _save(path: Path, content: dict[str, npt.NDArray[Any]]) -> None:
    from scipy.io import savemat

    with replaced(path) as temporary, temporary.open("wb") as file:
        savemat(file, content, do_compression=True)


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
