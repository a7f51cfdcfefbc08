"""The doctor's report as static files: tables, figures, small images."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_replaceable, replaced_folder
from fanet_lightning.data.images import UnreadableImage, read_image_rgb
from fanet_lightning.doctor.checks import Finding, Report
from fanet_lightning.doctor.coverage import Coverage, SizedImage, range_label
from fanet_lightning.doctor.figures import write_figures
from fanet_lightning.report.html import render

Box = tuple[float, ...]

# Longer side of an image, pixels: two columns of cards on a screen of high density.
SIDE = 480
_QUALITY = 70
# A box takes at least this share of the image's longer side, or a part around it is cut out …
_SMALLEST_SHARE = 1 / 6
# … of at least so many pixels of the image, so that it is still seen what is there.
_SMALLEST_CUT = 96
_MAX_BOXES = 400

INDEX_FILE = "index.html"
FIGURES, THUMBNAILS = "figures", "thumbnails"
# Rows of the list of all findings; a set with more needs fixing by rule, not by reading.
MAX_ROWS = 20_000


class Tile(NamedTuple):
    """What is shown of an image.

    ``path``      of the image.
    ``file``      name of the JPEG, or None where the image cannot be read.
    ``reason``    of that, or None.
    ``view_xywh``  what the tile shows, pixels of the image: more than the JPEG where boxes reach outside.
    ``image_wh``  width and height of the image, or None.
    ``cut_xywh``  where the JPEG is, pixels of the image.
    ``boxes_xywh``  the boxes that can be drawn.
    """

    path: Path
    file: str | None
    reason: str | None
    view_xywh: Box
    image_wh: tuple[int, int] | None
    cut_xywh: Box
    boxes_xywh: tuple[Box, ...]

    @property
    def is_cut(self) -> bool:
        """Whether a part of the image is shown in place of the whole."""
        return self.image_wh is not None and (self.cut_xywh[2], self.cut_xywh[3]) != self.image_wh


def write_tile(path: Path, jpeg: Path, boxes_xyxy: Sequence[Box] = ()) -> Tile:
    """Write ``jpeg``, upright, and say where the boxes go. An image that cannot be read gives an empty tile.

    Boxes that are not finite cannot be drawn and are left out; inverted ones are drawn between their corners.
    """
    finite = [box for box in boxes_xyxy if all(map(math.isfinite, box))][:_MAX_BOXES]
    boxes = tuple((min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)) for x1, y1, x2, y2 in finite)
    try:
        image = read_image_rgb(path)
    except UnreadableImage as error:
        view: Box = (0.0, 0.0, 640.0, 480.0)
        if boxes:
            x1, y1, x2, y2 = _extent(boxes)
            margin = max(x2 - x1, y2 - y1, 8.0) * 0.1
            view = (x1 - margin, y1 - margin, x2 - x1 + 2 * margin, y2 - y1 + 2 * margin)
        return Tile(path, None, error.reason, view, None, view, boxes)
    height, width = image.shape[:2]
    left, top, across, down = _cut(boxes, width, height)
    part = image[top : top + down, left : left + across]
    scale = min(1.0, SIDE / max(across, down))
    size = (max(1, round(across * scale)), max(1, round(down * scale)))
    shrunk = cv2.cvtColor(cv2.resize(part, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    # Not cv2.imwrite, which does not tell when the disk is full.
    jpeg.write_bytes(cv2.imencode(".jpg", shrunk, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())
    cut = (float(left), float(top), float(across), float(down))
    return Tile(path, jpeg.name, None, _view(cut, boxes), (width, height), cut, boxes)


def _extent(boxes_xywh: Sequence[Box]) -> Box:
    """x1, y1, x2, y2 around all boxes."""
    boxes = np.array(boxes_xywh)
    return (*boxes[:, :2].min(axis=0).tolist(), *(boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist())


def _cut(boxes_xywh: Sequence[Box], width: int, height: int) -> tuple[int, int, int, int]:
    """x, y, width, height: the whole image, or where its boxes are small a square around them, within the image."""
    whole = (0, 0, width, height)
    if not boxes_xywh:
        return whole
    x1, y1, x2, y2 = _extent(boxes_xywh)
    largest = max(max(w, h) for _, _, w, h in boxes_xywh)
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    # A part that does not show the boxes shows nothing.
    if largest >= _SMALLEST_SHARE * max(width, height) or not (0 <= centre_x <= width and 0 <= centre_y <= height):
        return whole
    side = max(largest / _SMALLEST_SHARE, 1.25 * max(x2 - x1, y2 - y1), _SMALLEST_CUT)
    across, down = min(math.ceil(side), width), min(math.ceil(side), height)
    left = min(max(math.floor(centre_x - side / 2), 0), width - across)
    top = min(max(math.floor(centre_y - side / 2), 0), height - down)
    return left, top, across, down


def _view(cut_xywh: Box, boxes_xywh: Sequence[Box]) -> Box:
    """The cut, and beyond it what of the boxes is outside: by half its sides at most on each of its four."""
    x, y, width, height = cut_xywh
    if not boxes_xywh:
        return cut_xywh
    x1, y1, x2, y2 = _extent(boxes_xywh)
    pad = 0.02 * max(width, height)
    over = (x - x1, y - y1, x2 - x - width, y2 - y - height)
    most = (width / 2, height / 2) * 2
    left, top, right, bottom = (min(own + pad, half) if own > 0 else 0.0 for own, half in zip(over, most, strict=True))
    return x - left, y - top, width + left + right, height + top + bottom


def write_page(
    folder: Path,
    report: Report,
    *,
    parts: Mapping[str, Sequence[SizedImage | None]] | None = None,
    coverages: Sequence[Coverage] = (),
    worst: int = 12,
) -> Path:
    """Write the report into ``folder``, which appears whole or not at all; an earlier one there is replaced.

    It loads nothing from elsewhere, so the folder can be moved and sent.

    Args:
        parts: ``train``, ``val`` → images with their sizes, for the figures; None: no figure.
        coverages: anchor coverage, one table and figure each.
        worst: at most so many images of a kind, or pairs of images, are shown; 0 for none.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: ``folder`` holds something else than such a report, or cannot be written.
    """
    check_page_folder(folder)
    templates = Path(__file__).parent / "templates"
    with replaced_folder(folder) as temporary:
        rows = _rows(report)
        severities = {kind.name: kind.severity for kind in report.kinds}
        counts = Counter(severities[finding.kind] for finding in report.findings)
        text = render(
            templates / "doctor.html.jinja",
            report=report,
            severities={severity: counts[severity] for severity in ("error", "warning", "note")},
            sections=_sections(temporary / THUMBNAILS, report, worst),
            figures=write_figures(temporary / FIGURES, parts, coverages) if parts is not None else [],
            coverages=[_coverage_rows(coverage) for coverage in coverages],
            left_out=len(report.findings) - len(rows),
            # Valid JSON of ASCII alone, and nothing that could end the script element.
            data=json.dumps(rows, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
            max_rows=MAX_ROWS,
            figures_folder=FIGURES,
            thumbnails_folder=THUMBNAILS,
        )
        (temporary / INDEX_FILE).write_text(text, encoding="utf-8", errors="replace")
    return folder / INDEX_FILE


def check_page_folder(folder: Path, images: Sequence[Path] = ()) -> None:
    """Refuse, before any work, a folder that the report must not be written into.

    Args:
        images: the folders of the data set's images: thumbnails in there would be taken for images of it.

    Raises:
        InputError: ``folder`` holds something else than such a report, or is in one of ``images``.
    """
    own = (INDEX_FILE, FIGURES, THUMBNAILS)
    check_replaceable(folder, "the doctor's page", lambda entry: entry.name in own and (folder / INDEX_FILE).is_file())
    for place in images:
        if folder.resolve().is_relative_to(place.resolve()):
            raise InputError(
                f"the thumbnails in {folder} would be among the images in {place} and be taken for some of them; "
                "give another out, or page=false"
            )


def _sections(thumbnails: Path, report: Report, worst: int) -> list[dict[str, Any]]:
    """One entry per kind, in the report's order: its counts by part, and its worst findings with their images."""
    thumbnails.mkdir()
    sections = []
    for kind in report.kinds:
        findings = report.of_kind(kind.name)
        cards = [
            {"finding": own, "more": more, "tiles": _tiles(thumbnails, f"{kind.name}-{number:03d}", own)}
            for number, (own, more) in enumerate(_worst(findings, worst), start=1)
        ]
        by_part = Counter(finding.part for finding in findings)
        sections.append({"kind": kind, "count": len(findings), "by_part": by_part, "cards": cards})
    return sections


def _worst(findings: list[Finding], count: int) -> list[tuple[Finding, int]]:
    """The worst findings and how many more there are of the same image: one of each, or one image would fill the page.

    A finding about a label file, or of a pair, stands for itself.
    """
    groups: dict[Any, list[Finding]] = {}
    for place, finding in enumerate(findings):
        alone = not finding.image_id or finding.other_path is not None
        groups.setdefault(place if alone else (finding.part, finding.path), []).append(finding)
    return [(group[0], len(group) - 1) for group in list(groups.values())[:count]]


def _tiles(thumbnails: Path, stem: str, finding: Finding) -> list[Tile]:
    """The image of a finding; of a pair both. A finding about a label file has none."""
    if not finding.image_id and finding.other_path is None and finding.kind != "unlabelled_image":
        return []
    tiles = [write_tile(finding.path, thumbnails / f"{stem}.jpg", finding.boxes_xyxy)]
    if finding.other_path is not None:
        tiles.append(write_tile(finding.other_path, thumbnails / f"{stem}-other.jpg"))
    return tiles


def _rows(report: Report) -> list[list[Any]]:
    """Number of the kind, part, image or file, detail, second image, badness: what the list of findings is made of."""
    number = {kind.name: place for place, kind in enumerate(report.kinds)}
    # The most severe first, and within a kind the worst: what is left out is what matters least.
    ordered = sorted(report.findings, key=lambda finding: (number[finding.kind], -finding.badness))
    return [
        [
            number[own.kind],
            own.part,
            own.image_id or str(own.path),
            own.detail,
            "" if own.other_path is None else f"{own.other_part or own.part}: {own.other_path}",
            own.badness if math.isfinite(own.badness) else None,
        ]
        for own in ordered[:MAX_ROWS]
    ]


def _coverage_rows(coverage: Coverage) -> dict[str, Any]:
    rows = []
    for table in (coverage.by_size(), coverage.overall()):
        for row in np.flatnonzero(table.faces).tolist():
            by_map = table.anchors_by_map[1, row]
            rows.append(
                {
                    "label": "all" if len(table.faces) == 1 else range_label(table.edges, row),
                    "faces": int(table.faces[row]),
                    "anchors": table.anchors_per_face[:, row].tolist(),
                    "without": table.without[:, row].tolist(),
                    "few": table.few[:, row].tolist(),
                    "maps": (by_map / max(float(by_map.sum()), 1e-9)).tolist(),
                }
            )
    return {"coverage": coverage, "seen": len(coverage.face_sizes), "rows": rows}
