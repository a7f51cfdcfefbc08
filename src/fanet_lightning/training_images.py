"""The images that a model was trained on: a list that travels with it to whatever scores it.

A score on images that a model has seen says nothing about other images. So every checkpoint names its training images,
and :mod:`evaluate` and :mod:`score` say how many of them they are scoring. This module knows no torch.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from fanet_lightning.errors import InputError
from fanet_lightning.files import decoded_text, replaced

TRAINING_IMAGES_FILE = "training_images.txt"
# Name of the folder that `evaluate` writes predictions into; beside it lies the list.
PREDICTIONS_FOLDER = "predictions"
# Key in a checkpoint of `train`.
CHECKPOINT_KEY = "training_images"
# Key in scores.json.
SCORES_KEY = "trained_on_images"
_HEADING = re.compile(r"#\s*(trained on|scored):\s*data=(\S+)\s+split=(\S+)(?:\s+images=(\d+))?\s*$")
_UNKNOWN = "?"


@dataclass(frozen=True)
class TrainingImages:
    """Images of one part of one data set.

    ``data``      its name as on the command line, None where nobody has said so.
    ``split``     the part as the data set names it, None where unknown.
    ``image_ids`` as in ``ImageRecord``; ``.jpg`` at the end does not count, as in every list of images.
    """

    data: str | None
    split: str | None
    image_ids: tuple[str, ...]


class Listed(NamedTuple):
    """What a file holds: the training images, and (data, split) of what was scored where ``evaluate`` wrote it."""

    parts: list[TrainingImages]
    scored: tuple[str | None, str | None]


@dataclass(frozen=True)
class TrainedOn:
    """How many of the scored images were trained on, and which comes first."""

    count: int
    images: int
    first: str | None = None

    @property
    def share(self) -> float:
        return self.count / self.images if self.images else 0.0

    @property
    def warning(self) -> str | None:
        """One line for the person at the command line; None where no scored image was trained on."""
        if not self.count:
            return None
        verb = "was" if self.count == 1 else "were"
        return (
            f"{self.count:,} of {self.images:,} scored images {verb} trained on; these numbers say nothing about "
            f"unseen images{f' (the first is {self.first})' if self.first else ''}"
        )


def trained_on(
    parts: Iterable[TrainingImages], image_ids: Iterable[str], data: str | None = None, split: str | None = None
) -> TrainedOn:
    """How many of ``image_ids`` are among the training images.

    Images are the same by their id. Two data sets that share images (a copy in another format, say) are so recognised;
    numbered images of two splits of one data set are not mistaken for each other where both splits are known.

    Args:
        parts: the training images.
        image_ids: the scored images, each once.
        data, split: what the scored images are of; None where unknown.
    """
    seen = {
        name
        for part in parts
        if not (data is not None and part.data == data and None not in (part.split, split) and part.split != split)
        for image_id in part.image_ids
        for name in ([_bare(image_id)] if part.data is not None else _names_meant(image_id))
    }
    scored = [_bare(image_id) for image_id in image_ids]
    among = [image_id for image_id in scored if image_id in seen]
    return TrainedOn(len(among), len(scored), among[0] if among else None)


def merged(parts: Iterable[TrainingImages]) -> list[TrainingImages]:
    """The same images, each data set and split once and each id once, in the order of their first appearance.

    ``a`` and ``a.jpg`` are one image, as in :func:`trained_on`, and keep the name that comes first.
    """
    found: dict[tuple[str | None, str | None], dict[str, str]] = {}
    for part in parts:
        names = found.setdefault((part.data, part.split), {})
        for image_id in part.image_ids:
            names.setdefault(_bare(image_id), image_id)
    return [TrainingImages(data, split, tuple(names.values())) for (data, split), names in found.items()]


def to_plain(parts: Iterable[TrainingImages]) -> list[dict[str, Any]]:
    """Plain containers for a checkpoint: ``[{"data": …, "split": …, "ids": […]}, …]``."""
    return [{"data": part.data, "split": part.split, "ids": list(part.image_ids)} for part in parts]


def from_plain(value: Any, where: Path) -> list[TrainingImages]:
    """The inverse of :func:`to_plain`.

    Raises:
        InputError: ``value`` is no such thing; names ``where``.
    """
    try:
        parts = [TrainingImages(part["data"], part["split"], tuple(part["ids"])) for part in value]
        texts = [text for part in parts for text in (part.data, part.split, *part.image_ids) if text is not None]
        if all(isinstance(text, str) for text in texts):
            return parts
    except (TypeError, KeyError):
        pass
    raise InputError(f"{where}: {CHECKPOINT_KEY} is not a list of images; take another checkpoint")


def images_of(checkpoint: Mapping[str, Any], where: Path) -> list[TrainingImages] | None:
    """The training images that a checkpoint names; None for an older one, which names none.

    Raises:
        InputError: see :func:`from_plain`.
    """
    value = checkpoint.get(CHECKPOINT_KEY)
    return None if value is None else from_plain(value, where)


def write_training_images(
    path: Path, parts: Iterable[TrainingImages], scored: tuple[str | None, str | None] | None = None
) -> None:
    """Write the list by rename: one image id a line, under a heading per part; also a list for ``images=``.

    Args:
        path: the file.
        parts: the training images.
        scored: (data, split) of the images that the predictions beside the list are about.
    """
    lines = [f"# scored: {_named(*scored)}"] if scored is not None else []
    for part in parts:
        lines.append(f"# trained on: {_named(part.data, part.split)} images={len(part.image_ids)}")
        lines += [_line(image_id) for image_id in part.image_ids]
    with replaced(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def read_training_images(path: Path) -> Listed:
    """A list of :func:`write_training_images`, or any other list of images, of which then no data set is known.

    Raises:
        InputError: no such file, not text, a heading that counts other images than follow it, no image at all.
    """
    try:
        lines = decoded_text(path.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(
            f"cannot read the list of training images {path}: {reason}; give a text file with one image a line"
        ) from error
    scored: tuple[str | None, str | None] = (None, None)
    sections: list[tuple[str | None, str | None, int | None, list[str]]] = [(None, None, None, [])]
    for number, line in enumerate(lines, start=1):
        heading = _HEADING.match(line)
        if heading:
            kind, data, split, count = heading.groups()
            names = (_known(data), _known(split))
            if kind == "scored":
                scored = names
            else:
                sections.append((*names, None if count is None else int(count), []))
            continue
        image_id = _image_id(line, path, number)
        if image_id:
            sections[-1][3].append(image_id)
    for data, split, stated, ids in sections:
        if stated is not None and stated != len(ids):
            raise InputError(
                f"{path}: {len(ids):,} images of {data} {split}, the heading says {stated:,}; the list is damaged, "
                "write it again"
            )
    parts = [TrainingImages(data, split, tuple(ids)) for data, split, _, ids in sections if ids]
    if not parts:
        raise InputError(f"the list of training images {path} names no image; write one image a line")
    return Listed(parts, scored)


def list_beside(predictions: Path) -> Path | None:
    """The list that ``evaluate`` has written beside these predictions; None for predictions of another origin."""
    for folder in (predictions.absolute(), predictions.absolute().parent):
        if folder.name == PREDICTIONS_FOLDER:
            path = folder.with_name(TRAINING_IMAGES_FILE)
            return path if path.is_file() else None
    return None


def trained_on_by_list(path: Path, image_ids: Sequence[str], data: str | None = None) -> TrainedOn:
    """:func:`trained_on` with a list on disk; ``data``: what is scored, where the list does not say so.

    Raises:
        InputError: see :func:`read_training_images`.
    """
    listed = read_training_images(path)
    scored_data, scored_split = listed.scored
    return trained_on(listed.parts, image_ids, scored_data or data, scored_split)


def scores_entry(found: TrainedOn | None) -> dict[str, Any]:
    """What ``scores.json`` says: ``trained_on_images`` with ``count`` and ``share``, null where it is not known."""
    return {SCORES_KEY: None if found is None else {"count": found.count, "share": found.share}}


def _names_meant(written: str) -> list[str]:
    """The ids that a line of a list of no known data set may mean: itself, and as a path in folders of any name.

    Names without a folder are no ends of paths: different images have them (``train/0001.jpg``, ``val/0001.jpg``).
    """
    parts = PurePosixPath(_bare(written).replace("\\", "/")).parts
    return [_bare(written), *("/".join(parts[start:]) for start in range(max(1, len(parts) - 1)))]


def _bare(image_id: str) -> str:
    return image_id.removesuffix(".jpg")


def _named(data: str | None, split: str | None) -> str:
    texts = (quote(text) if text else _UNKNOWN for text in (data, split))
    return "data={} split={}".format(*texts)


def _known(text: str) -> str | None:
    return None if text == _UNKNOWN else unquote(text)


def _line(image_id: str) -> str:
    """The id, as a JSON string where a list of images would read something else in it."""
    plain = image_id.isprintable() and image_id == image_id.strip() and image_id[:1] not in ("", "#", '"')
    return image_id if plain and " #" not in image_id else json.dumps(image_id)


def _image_id(line: str, path: Path, number: int) -> str | None:
    if line.startswith('"'):
        try:
            return str(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {line[:60]} is no image in quotes; write its name alone") from error
    return None if line.lstrip().startswith("#") else line.partition(" #")[0].strip() or None
