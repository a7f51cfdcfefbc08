"""Inventories and files → everything that is to be said of a data set."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fanet_lightning.cli.files import without_extension
from fanet_lightning.data.folder.labels import odd_boxes
from fanet_lightning.data.records import Inventory, LabelledImage
from fanet_lightning.doctor.checks import (
    KINDS,
    Facts,
    FileFacts,
    Finding,
    Listing,
    Report,
    examine_files,
    frame_fault,
    label_findings,
)
from fanet_lightning.doctor.duplicates import NEAR_BITS, equal_groups, near_pairs


@dataclass(frozen=True, eq=False)
class Examined:
    """A report, and what it rests on.

    ``located``  label path → path on disk, for every image that is there; the two differ in letter case at most.
    ``files``    path on disk → what the file is.
    """

    report: Report
    inventories: list[Inventory]
    located: dict[Path, Path]
    files: dict[Path, FileFacts]

    def facts_of(self, image: LabelledImage) -> FileFacts | None:
        """What the image's file is; None where there is none, or none that can be read."""
        facts = self.files.get(self.located.get(image.path, image.path))
        return None if facts is None or facts.trouble else facts


def examine(
    inventories: Sequence[Inventory],
    *,
    title: str,
    decode: bool = True,
    near_bits: int = NEAR_BITS,
    workers: int = 1,
    on_start: Callable[[int], Callable[[int], None]] | None = None,
) -> Examined:
    """Look at every image and label of a data set.

    Args:
        inventories: of its parts.
        title: of the report.
        decode: read the images' pixels: finds what cannot be decoded, blank images and near copies as well.
        near_bits: how many bits of their hashes near copies may differ in, see :mod:`duplicates`.
        workers: processes that read images.
        on_start: called with the number of files; what it returns is called with the files done since the last call.

    Raises:
        InputError: a worker process was killed.
    """
    began = time.perf_counter()
    listing = Listing()
    located: dict[Path, Path] = {}
    for image in (image for inventory in inventories for image in inventory.images):
        path = listing.find(image.path)
        if path is not None:
            located[image.path] = path
    paths = list(dict.fromkeys(located.values()))
    progress = None if on_start is None else on_start(len(paths))
    files = examine_files(paths, decode=decode, workers=workers, progress=progress)
    examined = Examined(Report(title, list(KINDS)), list(inventories), located, files)
    findings: list[Finding] = []
    findings += _unlabelled(examined)
    for inventory in inventories:
        findings += _part_findings(inventory, examined)
    findings += _copies(examined, near_bits)
    rank = {kind.name: position for position, kind in enumerate(KINDS)}
    # Stable, so that the labels' order remains within a kind.
    examined.report.findings = sorted(findings, key=lambda finding: rank[finding.kind])
    examined.report.facts = [_facts(inventory, examined) for inventory in inventories]
    examined.report.seconds = time.perf_counter() - began
    return examined


def _unlabelled(examined: Examined) -> list[Finding]:
    """Files that no part's labels speak of, each under the first part that has its folder: parts may share one."""
    seen = set(examined.located.values())
    findings = []
    for inventory in examined.inventories:
        for path in inventory.unlabelled:
            if path not in seen:
                seen.add(path)
                findings.append(Finding("unlabelled_image", inventory.part, "", path, "no label speaks of it"))
    return findings


def _part_findings(inventory: Inventory, examined: Examined) -> list[Finding]:
    part = inventory.part
    findings = [
        Finding(
            "malformed_label",
            part,
            "",
            problem.path,
            (f"line {problem.line}: " if problem.line is not None else "") + f"'{problem.value}' {problem.reason}",
        )
        for problem in inventory.problems
    ]
    odd = odd_boxes(
        [image.boxes_xyxy[~image.ignored] for image in inventory.images],
        [_frame_wh(image, examined.facts_of(image)) for image in inventory.images],
    )
    if odd is not None:
        image = inventory.images[odd.first]
        detail = f"{odd.text}, the first of {image.path.name}"
        findings.append(Finding("label_convention", part, "", image.label_path or image.path, detail))
    times = Counter(image.image_id for image in inventory.images)
    for image in inventory.images:
        count = times.pop(image.image_id, 1)
        if count > 1:
            detail = f"named {count} times in {image.label_path or 'the labels'}"
            findings.append(Finding("labelled_twice", part, image.image_id, image.path, detail, badness=float(count)))
        findings += _file_findings(part, image, examined)
        findings += label_findings(part, image, examined.facts_of(image))
    return findings


def _frame_wh(image: LabelledImage, facts: FileFacts | None) -> tuple[int, int] | None:
    """The size of an image that its labels are about; None for others, and where there is none."""
    return None if facts is None or frame_fault(image, facts) is not None else facts.upright_wh


def _file_findings(part: str, image: LabelledImage, examined: Examined) -> list[Finding]:
    path = examined.located.get(image.path)

    def finding(kind: str, detail: str, badness: float = 0.0) -> Finding:
        return Finding(kind, part, image.image_id, path or image.path, detail, badness=badness)

    faces = float(len(image.boxes_xyxy))
    if path is None:
        return [finding("missing_image", f"{_boxes(image)} without an image", faces)]
    found = []
    if path != image.path or _other_letter_case(image, path):
        named = image.written or image.image_id
        found.append(finding("letter_case", f"the labels name it {named}, the file is {path.name}", faces))
    facts = examined.files[path]
    if facts.trouble:
        found.append(finding(facts.trouble, facts.reason, faces))
    elif facts.damage:
        found.append(finding("damaged_image", facts.damage, faces))
    elif facts.blank:
        detail = f"one colour alone, {facts.width} × {facts.height}, {_boxes(image)}"
        found.append(finding("blank_image", detail, faces))
    return found


def _other_letter_case(image: LabelledImage, path: Path) -> bool:
    """Whether the file's name differs from the labels' in letter case; a reader may have looked past that."""
    labels_say = PurePosixPath((image.written or image.image_id).replace("\\", "/"))
    name = PurePosixPath(*path.parts[-len(labels_say.parts) :]).as_posix()
    if image.written is None:  # an image id has no extension
        name = without_extension(name)
    return name != labels_say.as_posix() and name.casefold() == labels_say.as_posix().casefold()


def _boxes(image: LabelledImage) -> str:
    count = len(image.boxes_xyxy)
    return f"{count} box{'es' if count != 1 else ''}"


class _Entry(NamedTuple):
    """An image of a part, its path on disk and what the file is."""

    part: str
    image: LabelledImage
    path: Path
    facts: FileFacts

    def copy_of(self, other: "_Entry", kind: str, detail: str, badness: float) -> Finding:
        return Finding(
            kind, self.part, self.image.image_id, self.path, detail,
            other_part=other.part, other_path=other.path, badness=badness,
        )  # fmt: skip


def _copies(examined: Examined, near_bits: int) -> list[Finding]:
    """Equal files and near copies, within the parts and across them.

    An image is named once a kind: beside the first of its equals, or the nearest of its near copies. Across the parts
    it is the one trained on that is named.
    """
    entries = list(_entries(examined))
    findings: list[Finding] = []
    for group in equal_groups([entry.facts.digest for entry in entries]):
        findings += _equal(sorted((entries[index] for index in group), key=lambda entry: entry.part != "val"))
    distinct: dict[tuple[str, bytes], _Entry] = {}
    for entry in entries:
        if entry.facts.thumbnail is not None and not entry.facts.blank:
            # Of equal files in a part one is enough: the others are named already.
            distinct.setdefault((entry.part, entry.facts.digest), entry)
    chosen = list(distinct.values())
    if not chosen:
        return findings
    nearest: dict[tuple[str, int], tuple[float, int, str]] = {}
    thumbnails = np.stack([entry.facts.thumbnail for entry in chosen if entry.facts.thumbnail is not None])
    for i, j, bits, correlation, mirrored in near_pairs(thumbnails, most_bits=near_bits):
        first, second = chosen[i], chosen[j]
        if first.facts.digest == second.facts.digest:
            continue
        kind = "near_duplicate" if first.part == second.part else "near_leak"
        own, other = (i, j) if kind == "near_leak" and second.part == "val" else (j, i)
        detail = f"{bits} of 63 bits differ, correlation {correlation:.2f}{', mirrored' if mirrored else ''}"
        known = nearest.get((kind, own))
        if known is None or correlation > known[0]:
            nearest[kind, own] = (correlation, other, detail)
    for (kind, own), (correlation, other, detail) in nearest.items():
        findings.append(chosen[own].copy_of(chosen[other], kind, detail, correlation))
    return findings


def _entries(examined: Examined) -> Iterable[_Entry]:
    for inventory in examined.inventories:
        seen = set()
        for image in inventory.images:
            facts = examined.facts_of(image)
            # An image that the labels name twice is no copy of itself.
            if facts is not None and image.image_id not in seen:
                seen.add(image.image_id)
                yield _Entry(inventory.part, image, facts.path, facts)


def _equal(group: list[_Entry]) -> list[Finding]:
    """``group``: equal files, those of ``val`` first."""
    first = group[0]
    # Copies in the training part of an image of val are leaks alone: all of them have to go.
    return [
        entry.copy_of(
            first,
            "leak" if entry.part != first.part else "duplicate_in_val" if entry.part == "val" else "duplicate",
            "the same file",
            1.0,
        )
        for entry in group[1:]
    ]


def _facts(inventory: Inventory, examined: Examined) -> Facts:
    usable = [
        int((~image.ignored & (image.boxes_xyxy[:, 2:] > image.boxes_xyxy[:, :2]).all(axis=1)).sum())
        for image in inventory.images
    ]
    own = {examined.located[image.path] for image in inventory.images if image.path in examined.located}
    return Facts(
        part=inventory.part,
        images=len(inventory.images),
        faces=sum(usable),
        ignored_faces=sum(len(image.boxes_xyxy) for image in inventory.images) - sum(usable),
        images_without_faces=sum(count == 0 for count in usable),
        bytes=sum(examined.files[path].length for path in own),
    )
