"""A data set of synthetic faces in WIDER FACE's layout: written once, then read like the real one."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fanet_lightning.data.synthetic.scenes import EVENTS, FaceTruth, draw_image
from fanet_lightning.data.transforms import check_numbers
from fanet_lightning.data.wider_face import list_entry
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
SETTINGS = {"hard": Limits(9, 0.75, 1.0), "medium": Limits(27, 0.5, 0.2), "easy": Limits(38, 0.3, 0.045)}

_README = """Synthetic faces in the layout of WIDER FACE, by fanet_lightning.data.synthetic.
manifest.json holds the parameters. The folder can be deleted: it is written again when it is needed.
"""


def prepare_synthetic(root: Path, **parameters: Any) -> Path:
    """Write the data set below ``root``, unless it is there already; where it is: ``root/<key of them and VERSION>``.

    It has the layout of WIDER FACE with ``eval_gt``, and appears by one rename when it is whole; if several processes
    prepare it at once, the first one's is kept. ``parameters``: see :func:`synthetic_parameters`.
    """
    parameters = synthetic_parameters(**parameters)
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    root = Path(root)
    folder = root / f"v{VERSION}-{digest[:12]}"
    if (folder / MANIFEST).is_file():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary, folder.name)
        _write(whole, parameters)
        try:
            whole.replace(folder)
        except OSError:
            if not (folder / MANIFEST).is_file():
                raise
            # Another process was faster; what it wrote is the same.
    return folder


def synthetic_parameters(
    train_images: int = 400,
    val_images: int = 120,
    seed: int = 0,
    image_width: Sequence[int] = (400, 480),
    image_height: Sequence[int] = (320, 400),
) -> dict[str, Any]:
    """Checked: the images of each split, and their least and largest sides, 64 … 1024 pixels."""
    given = {"train_images": train_images, "val_images": val_images, "seed": seed}
    for name, number in given.items():
        check_numbers(f"data.{name}", number, 400, name != "seed", 1 << 63)
    sides = {"image_width": image_width, "image_height": image_height}
    for name, side in sides.items():
        check_numbers(f"data.{name}", side, (400, 480), 64, 1024)
    return {"version": VERSION, **given, **{name: tuple(side) for name, side in sides.items()}}


def _write(folder: Path, parameters: dict[str, Any]) -> None:
    (folder / "wider_face_split").mkdir(parents=True)
    for split in SPLITS:
        for number, event in enumerate(EVENTS):
            (folder / f"WIDER_{split}" / "images" / f"{number}--{event}").mkdir(parents=True)
        images = range(parameters[f"{split}_images"])
        annotated = sorted(_draw(folder, parameters, split, index) for index in images)
        text = "".join(
            list_entry(f"{image_id}.jpg", [(*f.box_xywh, *f[3:]) for f in faces]) for image_id, faces in annotated
        )
        (folder / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text(text, encoding="utf-8")
    manifest = {**parameters, "val_faces": _write_ground_truth(folder / "eval_gt", annotated)}
    (folder / "README.txt").write_text(_README, encoding="utf-8")
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


def _write_ground_truth(folder: Path, entries: list[tuple[str, list[FaceTruth]]]) -> dict[str, int]:
    # In the official files, too, an image without a face has a box of zeros: what is found in it is a false positive.
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
