"""A data set of synthetic faces in WIDER FACE's own layout: written once, then read like the real one.

Nothing here is copied from a data set; :mod:`scenes` draws every image from (seed, split, index).
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fanet_lightning.cli.errors import InputError, is_whole
from fanet_lightning.data.synthetic.scenes import EVENTS, FaceTruth, draw_image
from fanet_lightning.score.wider_face.ground_truth import ATTRIBUTE_VALUES, GroundTruth, write_ground_truth

# Part of the key: raise it with every change that draws other images.
VERSION = 3
SPLITS = ("train", "val")
MANIFEST = "manifest.json"


class Limits(NamedTuple):
    """Which faces count in a setting: at least so many pixels high, hidden and soft (``FaceTruth``) at most so far."""

    height: int
    hidden: float
    softness: float


# Each contains the next. Chosen so that the settings' sizes stand as WIDER FACE's 31,958 : 13,319 : 7,211 do.
SETTINGS = {
    "hard": Limits(9, 0.75, 1.0),
    "medium": Limits(27, 0.5, 0.2),
    "easy": Limits(38, 0.3, 0.045),
}

_SIDES = (64, 1024)
_README = """Synthetic faces in the layout of WIDER FACE, by fanet_lightning.data.synthetic.
manifest.json holds the parameters. The folder can be deleted: it is written again when it is needed.
"""


def prepare_synthetic(root: Path, **parameters: Any) -> Path:
    """Write the data set below ``root``, unless it is there already; where it is: ``root/<key of parameters and
    VERSION>``.

    It has ``WIDER_train``, ``WIDER_val``, ``wider_face_split`` and ``eval_gt``, and appears by one rename when it is
    whole. If several processes prepare it at once, the first one's is kept. ``parameters``: see
    :func:`synthetic_parameters`.
    """
    parameters = synthetic_parameters(**parameters)
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    root = Path(root)
    folder = root / f"v{VERSION}-{digest[:12]}"
    if (folder / MANIFEST).is_file():
        return folder
    if folder.exists():
        raise InputError(f"{folder} has no {MANIFEST}, so it is not whole; delete the folder to have it drawn again")
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder.name}."))
    try:
        _write(temporary, parameters)
        temporary.chmod(0o755)
        try:
            temporary.replace(folder)
        except OSError:
            if not (folder / MANIFEST).is_file():
                raise
            # Another process was faster; what it wrote is the same.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def synthetic_parameters(
    train_images: int = 400,
    val_images: int = 120,
    seed: int = 0,
    image_width: Sequence[int] = (400, 480),
    image_height: Sequence[int] = (320, 400),
) -> dict[str, Any]:
    """Checked: the images of each split, and their least and largest sides, 64 … 1024 pixels."""
    numbers = {"train_images": train_images, "val_images": val_images, "seed": seed}
    for name, value in numbers.items():
        least = 0 if name == "seed" else 1
        if not is_whole(value, least):
            raise InputError(f"data.{name}={value}: give a whole number from {least}")
    ranges = {"image_width": image_width, "image_height": image_height}
    low, high = _SIDES
    for name, given in ranges.items():
        sides = list(given) if isinstance(given, Sequence) else []
        good = len(sides) == 2 and all(isinstance(side, int) for side in sides)
        if not (good and low <= sides[0] <= sides[1] <= high):
            raise InputError(
                f"data.{name}={sides or given}: give [least, largest] in whole pixels from {low} to {high}"
            )
    return {"version": VERSION, **numbers, **{name: tuple(sides) for name, sides in ranges.items()}}


def _write(folder: Path, parameters: dict[str, Any]) -> None:
    (folder / "wider_face_split").mkdir()
    for split in SPLITS:
        for number, event in enumerate(EVENTS):
            (folder / f"WIDER_{split}" / "images" / f"{number}--{event}").mkdir(parents=True)
        annotated = [_draw(folder, parameters, split, index) for index in range(parameters[f"{split}_images"])]
        annotated.sort()
        text = "".join(_annotation(image_id, faces) for image_id, faces in annotated)
        (folder / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text(text, encoding="utf-8")
    counts = _write_ground_truth(folder / "eval_gt", annotated)
    (folder / "README.txt").write_text(_README, encoding="utf-8")
    manifest = {**parameters, "val_faces": counts}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _draw(folder: Path, parameters: dict[str, Any], split: str, index: int) -> tuple[str, list[FaceTruth]]:
    """Draw and store one image; its id and faces."""
    rng = np.random.default_rng([parameters["seed"], SPLITS.index(split), index])
    drawn = draw_image(rng, parameters["image_width"], parameters["image_height"])
    number = EVENTS.index(drawn.event)
    image_id = f"{number}--{drawn.event}/{number}_{drawn.event}_{split}_{index:05d}"
    options = [cv2.IMWRITE_JPEG_QUALITY, drawn.jpeg_quality]
    coded = cv2.imencode(".jpg", cv2.cvtColor(drawn.image_rgb, cv2.COLOR_RGB2BGR), options)[1]
    (folder / f"WIDER_{split}" / "images" / f"{image_id}.jpg").write_bytes(coded.tobytes())
    return image_id, drawn.faces


def _annotation(image_id: str, faces: list[FaceTruth]) -> str:
    """The lines of one image; one without a face has a row of zeros under the count 0, as in the official lists."""
    rows = [(*f.box_xywh, f.blur, f.expression, f.illumination, f.invalid, f.occlusion, f.pose) for f in faces]
    lines = [f"{image_id}.jpg", str(len(rows)), *(" ".join(map(str, row)) for row in rows or [(0,) * 10])]
    return "\n".join(lines) + "\n"


def _write_ground_truth(folder: Path, entries: list[tuple[str, list[FaceTruth]]]) -> dict[str, int]:
    # In the official files, too, an image without a face has a box of zeros: what is found in it is a false alarm.
    boxes = [np.array([f.box_xywh for f in faces] or [(0, 0, 0, 0)], np.float64) for _, faces in entries]
    counted = {
        setting: [np.array([counts(face, limits) for face in faces] or [False], np.bool_) for _, faces in entries]
        for setting, limits in reversed(SETTINGS.items())
    }
    attributes = {
        name: [np.array([getattr(face, name) for face in faces] or [0], np.int8) for _, faces in entries]
        for name in ATTRIBUTE_VALUES
    }
    truth = GroundTruth(tuple(image_id for image_id, _ in entries), boxes, counted, attributes=attributes)
    write_ground_truth(folder, truth)
    return truth.faces_per_setting


def counts(face: FaceTruth, limits: Limits) -> bool:
    """Whether the face counts in a setting; one that is flagged invalid counts in none."""
    fits = face.box_xywh[3] >= limits.height and face.hidden <= limits.hidden and face.softness <= limits.softness
    return fits and not face.invalid
