"""A data set of synthetic faces in WIDER FACE's own layout: written once, then read like the real one.

Nothing here is copied from a data set; :mod:`scenes` draws every image from (seed, split, index), so any number
of processes writes the same bytes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fanet_lightning.cli.cores import usable_cores
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
_STALE_SECONDS = 24 * 3600
_README = """Synthetic faces in the layout of WIDER FACE, by fanet_lightning.data.synthetic (docs/synthetic.md).
manifest.json holds the parameters. The folder can be deleted: it is written again when it is needed.
"""


class _Annotated(NamedTuple):
    split: str
    image_id: str
    faces: list[FaceTruth]


def prepare_synthetic(
    root: Path,
    *,
    train_images: int = 400,
    val_images: int = 120,
    seed: int = 0,
    image_width: Sequence[int] = (400, 480),
    image_height: Sequence[int] = (320, 400),
    processes: int | None = None,
) -> Path:
    """Write the data set below ``root``, unless it is there already, and say where.

    It appears by one rename when it is whole. If several processes prepare it at once, the first one's is kept.

    Args:
        root: folder of all synthetic data sets; made if missing.
        train_images, val_images: how many images of each split.
        seed: other seeds give other images.
        image_width, image_height: least and largest side in pixels, 64 … 1024; drawn at random per image.
        processes: how many draw at once; the result does not depend on it. Default: one per core, eight at most.

    Returns:
        ``root/<key>``, where the key stands for the parameters and :data:`VERSION`. It holds ``WIDER_train``,
        ``WIDER_val``, ``wider_face_split`` and, in the official ``.mat`` layout, ``eval_gt``.

    Raises:
        InputError: a parameter out of range, or ``root`` cannot be written.
    """
    parameters = synthetic_parameters(train_images, val_images, seed, image_width, image_height)
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    root = Path(root)
    folder = root / f"v{VERSION}-{digest[:12]}"
    if (folder / MANIFEST).is_file():
        return folder
    if folder.exists():
        raise InputError(f"{folder} has no {MANIFEST}, so it is not whole; delete the folder to have it drawn again")
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root, folder.name)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=f".{folder.name}."))
    except OSError as error:
        raise InputError(f"data.root={root} cannot be written ({error.strerror}); choose another data.root") from error
    try:
        _write(temporary, parameters, processes)
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
    """What a synthetic set is made from, as :func:`prepare_synthetic` has it.

    Raises:
        InputError: a parameter out of range.
    """
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


def _write(folder: Path, parameters: dict[str, Any], processes: int | None) -> None:
    for split in SPLITS:
        for number, event in enumerate(EVENTS):
            (folder / f"WIDER_{split}" / "images" / f"{number}--{event}").mkdir(parents=True)
    total = parameters["train_images"] + parameters["val_images"]
    wanted = min(8, usable_cores()) if processes is None else max(1, processes)
    # A process takes half a second to start, in which thirty images are drawn.
    parts = max(1, min(wanted, total if processes is not None else total // 60))
    annotated = _draw_in_processes(folder, parameters, parts) if parts > 1 else _draw_part(folder, parameters, 0, 1)
    annotated.sort(key=lambda entry: (entry.split, int(entry.image_id.partition("--")[0]), entry.image_id))
    (folder / "wider_face_split").mkdir()
    for split in SPLITS:
        own = [entry for entry in annotated if entry.split == split]
        text = "".join(_annotation(entry) for entry in own)
        (folder / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text(text, encoding="utf-8")
    counts = _write_ground_truth(folder / "eval_gt", [entry for entry in annotated if entry.split == "val"])
    (folder / "README.txt").write_text(_README, encoding="utf-8")
    manifest = {**parameters, "val_faces": counts}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _draw_part(folder: Path, parameters: dict[str, Any], part: int, parts: int) -> list[_Annotated]:
    """Draw and store every ``parts``-th image."""
    tasks = [(split, index) for split in SPLITS for index in range(parameters[f"{split}_images"])]
    annotated = []
    for split, index in tasks[part::parts]:
        rng = np.random.default_rng([parameters["seed"], SPLITS.index(split), index])
        drawn = draw_image(rng, parameters["image_width"], parameters["image_height"])
        number = EVENTS.index(drawn.event)
        image_id = f"{number}--{drawn.event}/{number}_{drawn.event}_{split}_{index:05d}"
        options = [cv2.IMWRITE_JPEG_QUALITY, drawn.jpeg_quality]
        coded = cv2.imencode(".jpg", cv2.cvtColor(drawn.image_rgb, cv2.COLOR_RGB2BGR), options)[1]
        (folder / f"WIDER_{split}" / "images" / f"{image_id}.jpg").write_bytes(coded.tobytes())
        annotated.append(_Annotated(split, image_id, drawn.faces))
    return annotated


def _draw_in_processes(folder: Path, parameters: dict[str, Any], parts: int) -> list[_Annotated]:
    """Fresh interpreters rather than ``multiprocessing``: no forked threads, and no need for a guarded ``__main__``."""
    code = f"from {__name__} import _serve_part; _serve_part()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    workers = []
    try:
        for part in range(parts):
            task = json.dumps([str(folder), parameters, part, parts])
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, task], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
        annotated = []
        for worker in workers:
            out, problem = worker.communicate()
            if worker.returncode:
                raise RuntimeError(f"drawing stopped with code {worker.returncode}: {problem.decode().strip()[-2000:]}")
            for split, image_id, faces in json.loads(out):
                annotated.append(_Annotated(split, image_id, [FaceTruth(tuple(face[0]), *face[1:]) for face in faces]))
        return annotated
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _serve_part() -> None:
    cv2.setNumThreads(1)
    folder, parameters, part, parts = json.loads(sys.argv[1])
    json.dump(_draw_part(Path(folder), parameters, part, parts), sys.stdout)


def _annotation(entry: _Annotated) -> str:
    """The lines of one image; one without a face has a row of zeros under the count 0, as in the official lists."""
    rows = [(*f.box_xywh, f.blur, f.expression, f.illumination, f.invalid, f.occlusion, f.pose) for f in entry.faces]
    lines = [f"{entry.image_id}.jpg", str(len(rows))]
    lines += [" ".join(map(str, row)) for row in rows or [(0,) * 10]]
    return "\n".join(lines) + "\n"


def _write_ground_truth(folder: Path, entries: list[_Annotated]) -> dict[str, int]:
    # In the official files, too, an image without a face has a box of zeros: what is found in it is a false alarm.
    boxes = [np.array([f.box_xywh for f in entry.faces] or [(0, 0, 0, 0)], np.float64) for entry in entries]
    counted = {
        setting: [np.array([counts(face, limits) for face in entry.faces] or [False], np.bool_) for entry in entries]
        for setting, limits in reversed(SETTINGS.items())
    }
    attributes = {
        name: [np.array([getattr(face, name) for face in entry.faces] or [0], np.int8) for entry in entries]
        for name in ATTRIBUTE_VALUES
    }
    truth = GroundTruth(tuple(entry.image_id for entry in entries), boxes, counted, attributes=attributes)
    write_ground_truth(folder, truth)
    return truth.faces_per_setting


def counts(face: FaceTruth, limits: Limits) -> bool:
    """Whether the face counts in a setting; one that is flagged invalid counts in none."""
    fits = face.box_xywh[3] >= limits.height and face.hidden <= limits.hidden and face.softness <= limits.softness
    return fits and not face.invalid


def _remove_stale(root: Path, key: str) -> None:
    """What a killed process left behind a day ago or more."""
    for path in root.glob(f".{key}.*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
