"""WIDER FACE in its official layout: annotations and images → records.

::

    ROOT/WIDER_train/images/<event>/<name>.jpg      also WIDER_val, WIDER_test
    ROOT/wider_face_split/wider_face_{train,val}_bbx_gt.txt | .mat, wider_face_test_filelist.txt
    ROOT/wider_face_split.zip                       instead of the folder

Boxes are those of the files: ``x y w h`` → x1 = x, y1 = y, x2 = x + w, y2 = y + h, pixels of the stored image.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fanet_lightning.data.records import ATTRIBUTES, ImageRecord
from fanet_lightning.data.wider_annotations import SPLITS, AnnotationTable, Split, read_annotations
from fanet_lightning.errors import InputError
from fanet_lightning.image_lists import find_listed, nearest_name

__all__ = ["SPLITS", "AnnotationTable", "Split", "load_wider_face", "read_annotations", "records_of"]

SCRIPT = "python scripts/download_wider_face.py"
WAYS_ON = "set data.root to where it is, or take data=synthetic"


def load_wider_face(
    root: Path, split: Split, images: Path | None = None, annotations: Path | None = None
) -> list[ImageRecord]:
    """The records of a split, or of a list of images within it, each image checked to be on disk.

    Args:
        root: the folder that holds ``WIDER_{split}``.
        split: where the annotations and images come from. A list within val can serve for training as well.
        images: text file of images, one a line (:func:`~fanet_lightning.image_lists.find_listed`). Its order is kept.
            A relative path that does not exist is looked for under ``root`` too.
        annotations: folder or zip of the official annotations; by default ``root/wider_face_split``, else
            ``root/wider_face_split.zip``.

    Raises:
        InputError: a missing folder or image, a malformed annotation line, or a listed name that the split does not
            have.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"split={split} is unknown; take one of {', '.join(SPLITS)}")
    folder = root / f"WIDER_{split}" / "images"
    source = Path(annotations) if annotations is not None else default_annotations(root)
    if not folder.is_dir():
        raise InputError(
            f"no WIDER FACE here: {folder} is no folder (expected {folder}/<event>/<name>.jpg)"
            f"{_other_case(folder, root)}; get WIDER FACE with {fetch_command(root, split)}, {WAYS_ON}"
        )
    if not source.exists():
        raise InputError(
            f"no WIDER FACE annotations here: {source} does not exist{_other_case(source, root)} (expected a folder "
            f"with wider_face_{split}_bbx_gt.txt, or the official wider_face_split.zip: data.annotations=PATH); "
            f"get them with {fetch_command(root, 'annotations')}, {WAYS_ON}"
        )
    table = read_annotations(source, split)
    chosen = list(range(len(table.image_ids)))
    if images is not None:
        list_path = listed_path(Path(images), root)
        position = {image_id: index for index, image_id in enumerate(table.image_ids)}
        chosen = []
        for line, written, image_id in find_listed(list_path, position, folder=folder, root=root):
            if image_id is None:
                near = nearest_name(written, position)
                raise InputError(
                    f"{list_path}, line {line}: {written} is not among the {len(position)} images of the {split} "
                    f"split ({table.source}); correct the name{f' ({near}?)' if near else ''}, or name the split "
                    "that has it"
                )
            chosen.append(position[image_id])
    whole = f"the {split} split" if images is None else "the list"
    image_ids = [table.image_ids[index] for index in chosen]
    elsewhere = _require_on_disk(image_ids, folder, whole, fetch_command(root, split))
    return records_of(table, folder, chosen, elsewhere)


def default_annotations(root: Path) -> Path:
    """The folder of the annotations under ``root``, or the official zip where there is no folder."""
    folder, archive = root / "wider_face_split", root / "wider_face_split.zip"
    return archive if archive.is_file() and not folder.is_dir() else folder


def listed_path(path: Path, root: Path) -> Path:
    """Where a list of images lies: as it is written, else under ``root``."""
    return root / path if not path.exists() and (root / path).exists() else path


def records_of(
    table: AnnotationTable, folder: Path, chosen: list[int] | None = None, paths: Mapping[str, Path] | None = None
) -> list[ImageRecord]:
    """The records of the chosen images (default: all), usable faces apart from the flagged and the empty ones.

    ``paths`` says by image id where the images are that are not at ``folder/<image id>.jpg``.
    """
    records = []
    for index in range(len(table.image_ids)) if chosen is None else chosen:
        rows = table.of_image(index)
        boxes_xyxy = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1).astype(np.float32)
        codes = rows[:, 4:].astype(np.int8)
        # After rounding to float32 a sliver of a box may have no side left, so the sides are taken there.
        usable = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1) & (codes[:, ATTRIBUTES.index("invalid")] == 0)
        image_id = table.image_ids[index]
        records.append(
            ImageRecord(
                image_id=image_id,
                path=(paths or {}).get(image_id, folder / f"{image_id}.jpg"),
                boxes_xyxy=boxes_xyxy[usable],
                attributes={name: codes[usable, column] for column, name in enumerate(ATTRIBUTES)},
                ignored_xyxy=boxes_xyxy[~usable],
            )
        )
    return records


def fetch_command(root: Path, part: str) -> str:
    """The line that fetches a part (``train``, ``annotations``, ``ground_truth``, …), in quotes, for messages."""
    return f"'{SCRIPT} --root {shlex.quote(str(root))} --parts {part}'"


def _other_case(path: Path, root: Path) -> str:
    """A remark where ``path`` is there in another letter case, else nothing."""
    place = root
    for name in path.relative_to(root).parts if path.is_relative_to(root) else ():
        if not (place / name).exists():
            for variant in _variants(_names(place), name):
                return f"; {place / variant} differs in letter case, rename it to {name}"
            return ""
        place = place / name
    return ""


def _variants(names: Sequence[str], name: str) -> list[str]:
    """Those of ``names`` that are ``name`` in any letter case, itself first."""
    return sorted((other for other in names if other.lower() == name.lower()), key=lambda other: (other != name, other))


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _require_on_disk(image_ids: list[str], folder: Path, whole: str, command: str) -> dict[str, Path]:
    """The paths of those images whose event folder or file has another letter case than the annotations.

    One listing per event folder: fast on network drives, where a stat per image is not.
    """
    listings: dict[str, tuple[str, set[str], dict[str, list[str]]]] = {}
    events: list[str] | None = None
    elsewhere: dict[str, Path] = {}
    missing = []
    for image_id in image_ids:
        event, _, name = image_id.rpartition("/")
        if event not in listings:
            actual, names = event, _names(folder / event)
            if not names:
                events = _names(folder) if events is None else events
                actual = _only(folder, event, _variants(events, event)) or event
                names = _names(folder / actual)
            by_lower: dict[str, list[str]] = {}
            for other in names:
                by_lower.setdefault(other.lower(), []).append(other)
            listings[event] = (actual, set(names), by_lower)
        actual, present, by_lower = listings[event]
        file = f"{name}.jpg"
        if file not in present:
            file = _only(folder / actual, file, by_lower.get(file.lower(), [])) or ""
        if not file:
            missing.append(image_id)
        elif actual != event or file != f"{name}.jpg":
            elsewhere[image_id] = folder / actual / file
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(image_ids)} images of {whole} are missing, the first is "
            f"{folder / missing[0]}.jpg; complete the folder with {command}, or name those at hand with "
            "data.val.images=LIST or data.train.images=LIST"
        )
    return elsewhere


def _only(folder: Path, name: str, variants: list[str]) -> str | None:
    """The one name of ``variants``, None where there is none.

    Raises:
        InputError: several; nobody can know which of them is meant.
    """
    if len(variants) > 1:
        raise InputError(
            f"{folder}: {' and '.join(sorted(variants)[:2])} differ from {name} in letter case alone; keep one of them"
        )
    return variants[0] if variants else None
