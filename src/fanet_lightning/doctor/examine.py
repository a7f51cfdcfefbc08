"""Inventories and files → everything that is to be said of a data set."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from fanet_lightning.cli.errors import counted
from fanet_lightning.data.folder.parts import odd_boxes
from fanet_lightning.data.records import Inventory, LabelledImage
from fanet_lightning.doctor.checks import (
    BY_NAME,
    SMALL_PIXELS,
    TINY_PIXELS,
    FileFacts,
    Finding,
    examine_files,
    frame_fault,
    label_findings,
)

NEAR_BITS = 12
NEAR_CORRELATION = 0.4
# Detail is what is left of a thumbnail without its blur of so many pixels; copies are tried up to so many pixels apart.
_BLUR_PIXELS, _SHIFT_PIXELS = 2.0, 3

Hashes = npt.NDArray[np.uint64]
Thumbnails = npt.NDArray[np.uint8]


def perceptual_hashes(thumbnails: Thumbnails) -> Hashes:
    """(N, 32, 32) uint8 gray → (N,) uint64. The constant term is no part of it: its bit is 0."""
    low = dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(thumbnails), 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def hamming_pairs(first: Hashes, second: Hashes, most_bits: int) -> npt.NDArray[np.int64]:
    """All (i, j) with i < j and at most ``most_bits`` different bits between ``first[i]`` and ``second[j]``, sorted;
    (P, 2). Every pair is looked at: 16,000 hashes take half a second."""
    near = (np.bitwise_count(second[i:] ^ own) <= most_bits for i, own in enumerate(first, start=1))
    found = [np.flatnonzero(own) + i for i, own in enumerate(near, start=1)]
    rows = np.repeat(np.arange(len(first)), [*map(len, found)])
    return np.stack([rows, np.concatenate([np.zeros(0, np.int64), *found])], axis=1)


def near_pairs(images: Sequence[Thumbnails], *, most_bits: int = NEAR_BITS) -> list[tuple[int, int, int, float, bool]]:
    """Pairs of near copies: (i, j, bits that differ, correlation, mirrored) with i < j, sorted, each pair once.

    Of ``images``, (32, 32) uint8 each, ones without detail are near to nothing; ``most_bits``: of the hashes.
    """
    if not len(images):
        return []
    thumbnails = np.stack(images)
    hashes = perceptual_hashes(thumbnails)
    flipped = np.ascontiguousarray(thumbnails[:, :, ::-1])
    best: dict[tuple[int, int], tuple[int, float, bool]] = {}
    for others, other_hashes, mirrored in ((thumbnails, hashes, False), (flipped, perceptual_hashes(flipped), True)):
        for i, j in hamming_pairs(hashes, other_hashes, most_bits).tolist():
            correlation = detail_correlation(thumbnails[i], others[j])
            if correlation >= NEAR_CORRELATION and ((i, j) not in best or correlation > best[i, j][1]):
                bits = int(np.bitwise_count(hashes[i] ^ other_hashes[j]))
                best[i, j] = (bits, correlation, mirrored)
    return [(i, j, *rest) for (i, j), rest in sorted(best.items())]


def detail_correlation(first: Thumbnails, second: Thumbnails) -> float:
    """Pearson's correlation of two thumbnails' details, (H, W) uint8 each, shifted to where it is largest.

    The middle of one is laid over the other at every whole shift of up to three pixels, and the other way round. 0
    where either has no detail.
    """
    pixels = [thumbnail.astype(np.float32) for thumbnail in (first, second)]
    details = [own - cv2.GaussianBlur(own, (0, 0), _BLUR_PIXELS) for own in pixels]
    margin, best = _SHIFT_PIXELS, 0.0
    for whole, other in (details, details[::-1]):
        middle = other[margin:-margin, margin:-margin]
        # Below half a gray level it is rounding, and OpenCV finds that zero correlates with anything.
        if middle.std() >= 0.5 and whole[margin:-margin, margin:-margin].std() >= 0.5:
            scores = cv2.matchTemplate(whole, middle, cv2.TM_CCOEFF_NORMED)
            best = max(best, float(np.asarray(scores)[np.isfinite(scores)].max(initial=0.0)))
    return best


@dataclass(eq=False)
class Report:
    """All of one examination.

    ``files``     path of an image → what the file is, ``missing_image`` among its troubles.
    ``findings``  in the order of :data:`~fanet_lightning.doctor.checks.KINDS`, most severe first.
    ``facts``     part → numbers of it, see :func:`part_facts`.
    """

    title: str
    inventories: list[Inventory] = field(default_factory=list)
    files: dict[Path, FileFacts] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    def facts_of(self, image: LabelledImage) -> FileFacts | None:
        """What the image's file is; None where there is none, or none that can be read."""
        facts = self.files[image.path]
        return None if facts.trouble else facts

    def of_kind(self, name: str) -> list[Finding]:
        """The findings of a kind, worst first."""
        return sorted((finding for finding in self.findings if finding.kind == name), key=lambda f: -f.badness)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if BY_NAME[finding.kind].severity == "error"]


def examine(
    inventories: Sequence[Inventory], *, title: str, decode: bool = True, near_bits: int = NEAR_BITS, workers: int = 1
) -> Report:
    """Look at every image and label of a data set's parts.

    ``decode``: read the pixels too, which finds what cannot be decoded, blank images and near copies; ``near_bits``:
    how many bits of their hashes these may differ in; ``workers``: threads that read images.
    """
    began = time.perf_counter()
    paths = [image.path for inventory in inventories for image in inventory.images]
    report = Report(title, list(inventories), examine_files(paths, decode=decode, workers=workers))
    # Files that no part's labels speak of, each under the first part that has its folder: parts may share one.
    unlabelled = {path: own.part for own in reversed(inventories) for path in own.unlabelled}
    findings = [
        Finding("unlabelled_image", part, "", path, "no label speaks of it")
        for path, part in sorted(unlabelled.items())
        if path not in report.files
    ]
    findings += [own for inventory in inventories for own in _part_findings(inventory, report)]
    findings += _copies(report, near_bits)
    # Stable, so that the labels' order remains within a kind.
    report.findings = sorted(findings, key=lambda finding: list(BY_NAME).index(finding.kind))
    report.facts = {inventory.part: part_facts(inventory, report) for inventory in inventories}
    report.seconds = time.perf_counter() - began
    return report


def _part_findings(inventory: Inventory, report: Report) -> list[Finding]:
    part, images, findings = inventory.part, inventory.images, list[Finding]()
    for problem in inventory.problems:
        line = f"line {problem.line}: " if problem.line is not None else ""
        findings.append(Finding("malformed_label", part, "", problem.path, f"{line}'{problem.value}' {problem.reason}"))
    facts = [report.facts_of(image) for image in images]
    frames = [
        None if own is None or frame_fault(image, own) is not None else own.frame.upright_wh
        for image, own in zip(images, facts, strict=True)
    ]
    if odd := odd_boxes([image.boxes_xyxy[~image.ignored] for image in images], frames):
        image = images[odd.first]
        detail = f"{odd.text}, the first of {image.path.name}"
        findings.append(Finding("label_convention", part, "", image.label_path or image.path, detail))
    times, named_so = Counter(image.path for image in images), defaultdict[str, set[str]](set)
    for image in images:
        named_so[image.image_id].add(image.path.name)
    for image, own in zip(images, facts, strict=True):
        file, boxes = report.files[image.path], counted(len(image.boxes_xyxy), "box")
        named = {}
        if (count := times.pop(image.path, 1)) > 1:
            named["labelled_twice"] = f"named {count} times in {image.label_path or 'the labels'}"
        if len(alike := named_so.pop(image.image_id, ())) > 1:
            named["labelled_twice"] = f"{' and '.join(sorted(alike))} differ in the ending alone; rename one"
        if file.trouble:
            named[file.trouble] = f"{file.reason}; {boxes}"
        elif file.blank:
            named["blank_image"] = f"one color alone, {file.frame.width} × {file.frame.height}, {boxes}"
        findings += [Finding(kind, part, image.image_id, image.path, detail) for kind, detail in named.items()]
        findings += label_findings(part, image, own)
    return findings


class _Entry(NamedTuple):
    part: str
    image_id: str
    facts: FileFacts


def _pair(kind: str, own: _Entry, other: _Entry, detail: str, badness: float = 1.0) -> Finding:
    return Finding(kind, own.part, own.image_id, own.facts.path, detail, (), other.part, other.facts.path, badness)


def _copies(report: Report, near_bits: int) -> list[Finding]:
    """Equal files and near copies, within the parts and across them.

    An image is named once a kind: with the first of its equals, or the nearest of its near copies. Across the parts
    it is the one trained on that is named.
    """
    groups: dict[bytes, dict[tuple[str, Path], _Entry]] = defaultdict(dict)
    for inventory in report.inventories:
        for image in inventory.images:
            # An image that the labels name twice is no copy of itself.
            if (facts := report.facts_of(image)) is not None:
                entry = _Entry(inventory.part, image.image_id, facts)
                groups[facts.digest].setdefault((inventory.part, image.path), entry)
    findings: list[Finding] = []
    distinct: list[_Entry] = []
    for group in groups.values():
        first, *others = sorted(group.values(), key=lambda entry: entry.part != "val")
        for copy in others:
            # Copies in the training part of an image of val are leaks alone: all of them have to go.
            kind = "leak" if copy.part != first.part else "duplicate_in_val" if copy.part == "val" else "duplicate"
            findings.append(_pair(kind, copy, first, "the same file"))
        # Of equal files one is enough: the others are named already.
        if first.facts.thumbnail is not None and not first.facts.blank:
            distinct.append(first)
    nearest: dict[tuple[str, int], Finding] = {}
    thumbnails = [entry.facts.thumbnail for entry in distinct if entry.facts.thumbnail is not None]
    for i, j, bits, correlation, mirrored in near_pairs(thumbnails, most_bits=near_bits):
        kind = "near_duplicate" if distinct[i].part == distinct[j].part else "near_leak"
        own, other = (i, j) if kind == "near_leak" and distinct[j].part == "val" else (j, i)
        detail = f"{bits} of 63 bits differ, correlation {correlation:.2f}{', mirrored' if mirrored else ''}"
        if (kind, own) not in nearest or correlation > nearest[kind, own].badness:
            nearest[kind, own] = _pair(kind, distinct[own], distinct[other], detail, correlation)
    return [*findings, *nearest.values()]


def part_facts(inventory: Inventory, report: Report) -> dict[str, Any]:
    """``images``, ``faces``, ``ignored_faces``, ``images_without_faces``, ``bytes`` of a part, and ``face_sizes``:
    root of the area in pixels of the image, as quantiles and counts of small ones. ``below_1_px`` is by the shorter
    side, since such a face has no pixel; ``below_8_px`` by the size."""
    boxes = np.concatenate([np.zeros((0, 4)), *(image.boxes_xyxy for image in inventory.images)])
    ignored = np.concatenate([np.zeros(0, np.bool_), *(image.ignored for image in inventory.images)])
    usable = ~ignored & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    counts = np.array([len(image.boxes_xyxy) for image in inventory.images], dtype=np.int64)
    images = np.repeat(np.arange(len(counts)), counts)
    finite = boxes[usable & np.isfinite(boxes).all(axis=1)]
    sides = finite[:, 2:] - finite[:, :2]
    sizes = np.sqrt(sides.prod(axis=1))
    p05, median, p95 = np.quantile(sizes, [0.05, 0.5, 0.95]).tolist() if len(sizes) else (None, None, None)
    return {
        "images": len(counts), "faces": int(usable.sum()), "ignored_faces": int((~usable).sum()),
        "images_without_faces": len(counts) - len(np.unique(images[usable])),
        "bytes": sum(report.files[path].length for path in {image.path for image in inventory.images}),
        "face_sizes": {
            "faces": len(sizes), "median": median, "p05": p05, "p95": p95,
            "below_1_px": int((sides.min(axis=1, initial=np.inf) < TINY_PIXELS).sum()),
            "below_8_px": int((sizes < SMALL_PIXELS).sum()),
        },
    }  # fmt: skip
