"""WIDER FACE's ground truth: the official .mat files, read and written; parts of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import replaced
from fanet_lightning.score.curves import Bools, Floats, Ints
from fanet_lightning.score.inputs import SelectableImages, load_mat, reading

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
class GroundTruth(SelectableImages):
    """All faces of the images of a run, and which of them count in each setting.

    ``image_ids``  "event/name" without extension, N of them, none twice.
    ``boxes_xywh`` N arrays (F_i, 4) float64, pixels; every annotated face, counted or not. Sides may be 0 or negative:
                   the official files have one of width -2, which counts and which nothing can hit.
    ``counted``    per setting N arrays (F_i,) bool.
    ``attributes`` per attribute of :data:`ATTRIBUTE_VALUES` N arrays (F_i,) int8, the label of each face. Those that
                   have no label are not there.
    """

    image_ids: tuple[str, ...]
    boxes_xywh: Sequence[Floats]
    counted: Mapping[str, Sequence[Bools]]
    whole_ids: tuple[str, ...] | None = None
    attributes: Mapping[str, Sequence[npt.NDArray[np.int8]]] = field(default_factory=dict)
    per_image = ("boxes_xywh", "counted", "attributes")

    @property
    def image_of_faces(self) -> Ints:
        """(F,) the place of the image of each face, packed image by image."""
        return np.repeat(np.arange(len(self.image_ids)), [len(boxes) for boxes in self.boxes_xywh])

    def counts(self, setting: str) -> Bools:
        """(F,) whether each face counts, packed image by image."""
        return np.concatenate([np.zeros(0, np.bool_), *self.counted[setting]])

    @property
    def faces_per_setting(self) -> dict[str, int]:
        """Number of faces that count, per setting: the denominator of recall."""
        return {setting: int(self.counts(setting).sum()) for setting in self.counted}


def read_ground_truth(folder: Path | str) -> GroundTruth:
    """Read ``wider_face_val.mat`` and ``wider_<setting>_val.mat`` of :data:`SETTINGS`, as the official tools ship them.

    Labels of the faces are read where the file has them. ``folder`` may also be that of a data set which holds theirs,
    see :data:`GROUND_TRUTH_FOLDERS`. InputError: a file is missing, cannot be read, or does not fit the others.
    """
    places = (Path(folder), *(Path(folder) / name for name in GROUND_TRUTH_FOLDERS))
    folder = next((place for place in places if (place / FACES_FILE).is_file()), Path(folder))
    content = load_mat(folder / FACES_FILE, _REMEDY)
    with reading(folder / FACES_FILE, _REMEDY):
        events = zip(content["event_list"].ravel(), content["file_list"].ravel(), strict=True)
        image_ids = tuple(f"{_text(event)}/{_text(name)}" for event, names in events for name in names.ravel())
        boxes = [own.astype(np.float64).reshape(-1, 4) for own in _of_images(content["face_bbx_list"])]
        if not len(set(image_ids)) == len(image_ids) == len(boxes) or not np.isfinite(np.concatenate(boxes)).all():
            raise ValueError("an image twice or without a list of boxes, or a box that is not finite")
        attributes = {}
        for attribute, values in ATTRIBUTE_VALUES.items():
            if (name := f"{attribute}_label_list") in content:
                labels = [own.ravel().astype(np.int8) for own in _of_images(content[name])]
                known = np.isin(np.concatenate(labels), np.arange(len(values))).all()
                if not known or list(map(len, labels)) != list(map(len, boxes)):
                    raise ValueError(f"the labels of {attribute} are not one of its values per face")
                attributes[attribute] = labels
    counted = {setting: _counted(folder / f"wider_{setting}_val.mat", image_ids, boxes) for setting in SETTINGS}
    return GroundTruth(image_ids, boxes, counted, attributes=attributes)


def _counted(path: Path, image_ids: Sequence[str], boxes: list[Floats]) -> list[Bools]:
    content = load_mat(path, _REMEDY)
    with reading(path, _REMEDY):
        names = [own.partition("/")[2] for own in image_ids]
        if [_text(name) for name in _of_images(content["file_list"])] != names:
            raise ValueError(f"its images are not those of {FACES_FILE}, in that order")
        # Faces count from 1.
        masks = [np.zeros(1 + len(own), np.bool_) for own in boxes]
        for mask, indices in zip(masks, _of_images(content["gt_list"]), strict=True):
            mask[indices.ravel().astype(np.int64)] = True
    return [mask[1:] for mask in masks]


def _of_images(cells: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """What a cell of events of cells of images holds, image by image."""
    return [np.asarray(image) for event in cells.ravel() for image in event.ravel()]


def _text(cell: Any) -> str:
    return str(np.asarray(cell).ravel()[0])


def write_ground_truth(folder: Path, ground_truth: GroundTruth) -> None:
    """Write the files that :func:`read_ground_truth` reads, by event in order of appearance."""
    from scipy.io import savemat

    events: dict[str, list[int]] = {}
    for i, image_id in enumerate(ground_truth.image_ids):
        events.setdefault(image_id.partition("/")[0], []).append(i)

    def cells(items: Iterable[Any]) -> npt.NDArray[Any]:
        return np.fromiter(items, object).reshape(-1, 1)

    def by_event(values: Sequence[Any]) -> npt.NDArray[Any]:
        return cells(cells(values[i] for i in rows) for rows in events.values())

    file_names = [own.partition("/")[2] for own in ground_truth.image_ids]
    names = {"event_list": cells(events), "file_list": by_event(file_names)}
    files = {FACES_FILE: {"face_bbx_list": by_event([np.asarray(own, np.float64) for own in ground_truth.boxes_xywh])}}
    for attribute, labels in ground_truth.attributes.items():
        columns = [own.astype(np.uint8).reshape(-1, 1) for own in labels]
        files[FACES_FILE][f"{attribute}_label_list"] = by_event(columns)
    for setting, masks in ground_truth.counted.items():
        indices = [(np.flatnonzero(mask) + 1).astype(np.uint16).reshape(-1, 1) for mask in masks]
        files[f"wider_{setting}_val.mat"] = {"gt_list": by_event(indices)}
    for name, content in files.items():
        with replaced(folder / name) as path:
            savemat(path, {**names, **content}, do_compression=True)
