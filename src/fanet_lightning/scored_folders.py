"""Folders that ``score`` or ``evaluate`` has written: what may stand in one figure, under which names and title."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanet_lightning.errors import InputError

TITLES = {
    "wider_face": "WIDER FACE", "synthetic": "drawn faces", "fddb": "FDDB", "pascal_face": "PASCAL face", "afw": "AFW",
    "coco": "COCO", "folder": "own data",
}  # fmt: skip
# What must be the same before curves may stand in one figure: another number of faces is another question. Of the rules
# those that a person chooses; a fitted transform differs from detector to detector.
SAME = ("benchmark", "images", "faces")
SAME_RULES = ("labels", "alignment", "ellipses", "folds", "categories", "max_detections")
# The official val split, which alone the published curves are about: images, and faces that count per setting.
WIDER_VAL_IMAGES = 3226
WIDER_VAL_FACES = {"easy": 7211, "medium": 13319, "hard": 31958}
ROC_FILES = {"discrete": "DiscROC.txt", "continuous": "ContROC.txt"}


@dataclass(frozen=True)
class ScoredFolder:
    """A folder and what its ``scores.json`` holds; ``scores`` is empty for somebody's FDDB curve files alone."""

    path: Path
    scores: Mapping[str, Any]

    @property
    def benchmark(self) -> str:
        return str(self.scores.get("benchmark", "fddb"))

    @property
    def protocol(self) -> str:
        return str(self.scores.get("protocol") or "not stated")

    @property
    def is_wider_val(self) -> bool:
        """Whether these are all images and faces of WIDER FACE val, so that the published curves compare."""
        scores = self.scores
        return (self.benchmark, scores.get("images"), scores.get("faces")) == (
            "wider_face", WIDER_VAL_IMAGES, WIDER_VAL_FACES,
        )  # fmt: skip

    def roc_files(self) -> dict[str, Path]:
        """``discrete`` and ``continuous`` → curve file in the official format, with whatever prefix.

        Raises:
            InputError: one is missing, or there are several.
        """
        files = {}
        for score, ending in ROC_FILES.items():
            found = sorted(path for path in self.path.glob(f"*{ending}") if not path.name.startswith("."))
            if len(found) > 1:
                raise InputError(
                    f"{self.path} holds {found[0].name} and {found[1].name}; give a folder with one of them"
                )
            if not found:
                raise InputError(f"{self.path / ending} is missing; score the predictions again")
            files[score] = found[0]
        return files


def read_scored_folder(path: Path) -> ScoredFolder:
    """``scores.json``, or nothing of it where there are but curve files of FDDB's program.

    Raises:
        InputError: neither is in it, or a ``scores.json`` that cannot be read or is no such thing.
    """
    file = path / "scores.json"
    if not file.exists() and any(path.glob(f"*{ROC_FILES['discrete']}")):
        return ScoredFolder(path, {})
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); give a folder that score has written") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); score the predictions again") from error
    if not isinstance(content, dict) or content.get("benchmark") not in list(TITLES):
        raise InputError(f"{file} names no benchmark; give a folder that score or evaluate has written")
    for key, kind in (("images", int), ("images_of_benchmark", int), ("faces", dict), ("rules", dict)):
        # Older files lack some of them.
        if key in content and not isinstance(content[key], kind):
            raise InputError(f"{file}: {key} {_short(content[key])} is no such thing; score the predictions again")
    if "images" not in content:
        raise InputError(f"{file} does not say how many images there were; score the predictions again")
    return ScoredFolder(path, content)


def check_comparable(read: Sequence[ScoredFolder]) -> None:
    """Same benchmark, images, faces and rules. Of curve files alone only the benchmark is known.

    Raises:
        InputError: two folders that differ, with what they differ in.
    """
    if {"fddb"} < {folder.benchmark for folder in read} and any(not folder.scores for folder in read):
        bare = next(folder for folder in read if not folder.scores)
        other = next(folder for folder in read if folder.benchmark != "fddb")
        raise InputError(
            f"{bare.path} holds curves of FDDB and {other.path} of {TITLES[other.benchmark]}; plot them apart"
        )
    known = [folder for folder in read if folder.scores]
    for other in known[1:]:
        first = known[0]
        pairs = [(key, first.scores.get(key), other.scores.get(key)) for key in SAME]
        rules, other_rules = (folder.scores.get("rules", {}) for folder in (first, other))
        pairs += [(key, rules.get(key), other_rules.get(key)) for key in SAME_RULES]
        for key, here, there in pairs:
            if here != there:
                raise InputError(
                    f"{first.path} and {other.path} do not compare: {key} {_short(here)} and {_short(there)}; "
                    "plot them apart"
                )
        if not _same_images(first, other):
            raise InputError(
                f"{first.path} and {other.path} do not compare: as many images, but not the same ones; plot them apart"
            )


def _same_images(first: ScoredFolder, other: ScoredFolder) -> bool:
    """In whatever order; True also where one of them has kept no counts per image, which alone name the images."""
    import numpy as np

    names = []
    for folder in (first, other):
        try:
            with np.load(folder.path / "per_image.npz", allow_pickle=False) as arrays:
                names.append(sorted(arrays["image_ids"].tobytes().split(b"\n")))
        except Exception:  # numpy and zipfile raise a dozen kinds; the figure does not need this file
            return True
    return bool(names[0] == names[1])


def names_of(read: Sequence[ScoredFolder], names: Sequence[str] | None) -> list[str]:
    """A name for each folder: those given, else the folders' own with the protocol where it differs.

    Raises:
        InputError: another number of names than folders, an empty one, or the same name twice.
    """
    if names is not None:
        if len(names) != len(read):
            raise InputError(f"{len(names)} names for {len(read)} folders; give one for each, in their order")
        chosen = [str(name) for name in names]
        if not all(name.strip() for name in chosen):
            raise InputError(f"names={list(chosen)} has an empty name; a curve needs one")
    else:
        chosen = [_own_name(folder) for folder in read]
        if len(set(chosen)) < len(chosen):  # evaluations of several runs are all called that
            chosen = ["/".join(folder.path.resolve().parts[-2:]) for folder in read]
        if len({folder.protocol for folder in read if folder.scores}) > 1:
            chosen = [
                f"{name}, {folder.protocol if folder.protocol != 'not stated' else 'protocol not stated'}"
                for name, folder in zip(chosen, read, strict=True)
            ]
    repeated = [name for name, count in Counter(chosen).items() if count > 1]
    if repeated:
        raise InputError(f"'{repeated[0]}' names two folders; give names=[…], one for each")
    return chosen


def _own_name(folder: ScoredFolder) -> str:
    prefix = "" if folder.scores else folder.roc_files()["discrete"].name.removesuffix(ROC_FILES["discrete"])
    return prefix.strip("-_. ") or folder.path.resolve().name


def title_of(runs: Mapping[str, ScoredFolder]) -> str:
    """Benchmark, images, rules and protocol. Where protocols differ, each name with its own."""
    known = {name: folder for name, folder in runs.items() if folder.scores}
    if not known:
        return "FDDB, from curve files"
    first = next(iter(known.values()))
    scores = first.scores
    text = TITLES[first.benchmark] + (" val" if first.is_wider_val else "")
    images, whole = scores["images"], scores.get("images_of_benchmark", scores["images"])
    if first.benchmark == "wider_face" and "images_of_benchmark" not in scores:
        whole = max(whole, WIDER_VAL_IMAGES)
    text += f", {images:,} images" if images == whole else f" sample, {images:,} of {whole:,} images"
    rules = scores.get("rules", {})
    if rules.get("labels") not in (None, "corrected"):
        text += f", {rules['labels']} labels"
    if rules.get("alignment") is False:
        text += ", not aligned"
    if rules.get("ellipses") not in (None, "as_given"):
        text += f", ellipses {rules['ellipses']}"
    if len({folder.protocol for folder in known.values()}) == 1:
        return f"{text}, protocol {first.protocol}"
    return f"{text}, protocols: {', '.join(f'{name} {folder.protocol}' for name, folder in known.items())}"


def note_of(runs: Mapping[str, ScoredFolder]) -> str:
    """Names the runs of which nothing is known but their curves."""
    bare = [name for name, folder in runs.items() if not folder.scores]
    return f"From curve files, images and protocol not stated: {', '.join(bare)}" if bare else ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
