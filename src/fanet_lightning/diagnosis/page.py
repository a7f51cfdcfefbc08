"""The doctor's report as a folder of static files: ``index.html``, its figures, and small pictures of the worst."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fanet_lightning.diagnosis.coverage import Coverage, SizedImage, range_label
from fanet_lightning.diagnosis.figures import write_figures
from fanet_lightning.diagnosis.findings import Finding, Report
from fanet_lightning.diagnosis.page_pictures import Sheet, draw_sheet
from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced_folder

INDEX_FILE = "index.html"
FIGURES, THUMBNAILS = "figures", "thumbnails"
# Rows of the list of all findings; a set with more needs mending by rule, not by reading.
MAX_ROWS = 20_000

_TEMPLATES = Path(__file__).parent / "templates"
_OWN = {INDEX_FILE, FIGURES, THUMBNAILS}


def write_page(
    folder: Path,
    report: Report,
    *,
    parts: Mapping[str, Sequence[SizedImage | None]] | None = None,
    coverages: Sequence[Coverage] = (),
    worst: int = 12,
) -> Path:
    """Write the page into ``folder``, which appears whole or not at all; an earlier page there is replaced.

    The page loads nothing from elsewhere, so the folder can be moved and sent.

    Args:
        parts: ``train``, ``val`` → images with their sizes, for the figures; None: no figure.
        coverages: anchor coverage, one table and figure each.
        worst: at most so many pictures of a kind, or pairs of pictures, are shown; 0 for none.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: ``folder`` holds something else than such a page, or cannot be written.
        ValueError: ``worst`` below 0, or a finding of a kind that the report does not list.
    """
    if worst < 0:
        raise ValueError(f"worst={worst}: at least 0")
    if strangers := {finding.kind for finding in report.findings} - {kind.name for kind in report.kinds}:
        raise ValueError(f"findings of the kind '{min(strangers)}', which the report does not list")
    check_page_folder(folder)
    try:
        with replaced_folder(folder) as temporary:
            figures = write_figures(temporary / FIGURES, parts, coverages) if parts is not None else []
            content = {
                "report": report,
                "severities": _severities(report),
                "sections": _sections(temporary, report, worst),
                "figures": figures,
                "coverages": [_coverage_rows(coverage) for coverage in coverages],
                "rows": _rows(report),
                "left_out": max(0, len(report.findings) - MAX_ROWS),
            }
            (temporary / INDEX_FILE).write_text(_rendered(content), encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); free it or give another folder") from error
    return folder / INDEX_FILE


def check_page_folder(folder: Path, images: Sequence[Path] = ()) -> None:
    """Refuse, before any work, a folder that the page must not be written into.

    Args:
        images: the folders of the data set's images: pictures of a page in there would be taken for images.

    Raises:
        InputError: ``folder`` holds something else than such a page, or lies in one of ``images``.
    """
    if folder.exists() and not _is_replaceable(folder):
        raise InputError(f"{folder} holds something else than the doctor's page; give an empty or new folder")
    for place in images:
        if folder.resolve().is_relative_to(place.resolve()):
            raise InputError(
                f"the pictures in {folder} would lie among the images in {place} and be taken for some of them; "
                "give another out, or page=false"
            )


def _severities(report: Report) -> dict[str, int]:
    counts = {"error": 0, "warning": 0, "note": 0}
    severity = {kind.name: kind.severity for kind in report.kinds}
    for finding in report.findings:
        counts[severity[finding.kind]] += 1
    return counts


def _sections(folder: Path, report: Report, worst: int) -> list[dict[str, Any]]:
    """One entry per kind, in the report's order: its counts by part, and its worst findings with their pictures."""
    thumbnails = folder / THUMBNAILS
    thumbnails.mkdir()
    by_part: dict[str, dict[str, int]] = {}
    for finding in report.findings:
        counts = by_part.setdefault(finding.kind, {})
        counts[finding.part] = counts.get(finding.part, 0) + 1
    sections = []
    for kind in report.kinds:
        count = sum(by_part.get(kind.name, {}).values())
        shown = _worst(report.of_kind(kind.name), worst) if count else []
        cards = [
            {"finding": own, "more": more, "sheets": _sheets(thumbnails, f"{kind.name}-{number:03d}", own)}
            for number, (own, more) in enumerate(shown, start=1)
        ]
        sections.append({"kind": kind, "count": count, "by_part": by_part.get(kind.name, {}), "cards": cards})
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


def _sheets(thumbnails: Path, stem: str, finding: Finding) -> list[Sheet]:
    """The picture of a finding; of a pair both. A finding about a label file has none."""
    if not finding.image_id and finding.other_path is None and finding.kind != "unlabelled_image":
        return []
    sheets = [draw_sheet(finding.path, thumbnails / f"{stem}.jpg", finding.boxes_xyxy)]
    if finding.other_path is not None:
        sheets.append(draw_sheet(finding.other_path, thumbnails / f"{stem}-other.jpg"))
    return sheets


def _rows(report: Report) -> list[list[Any]]:
    """Number of the kind, part, image or file, detail, second image, badness: what the list of findings is made of."""
    number = {kind.name: place for place, kind in enumerate(report.kinds)}
    # The most severe first, and within a kind the worst: what is left out is what matters least.
    ordered = sorted(report.findings, key=lambda finding: (number[finding.kind], -finding.badness))
    return [
        [
            number[finding.kind],
            finding.part,
            finding.image_id or str(finding.path),
            finding.detail,
            "" if finding.other_path is None else f"{finding.other_part or finding.part}: {finding.other_path}",
            finding.badness if math.isfinite(finding.badness) else None,
        ]
        for finding in ordered[:MAX_ROWS]
    ]


def _coverage_rows(coverage: Coverage) -> dict[str, Any]:
    table, overall = coverage.by_size(), coverage.overall()
    rows = []
    for source, label in [(table, None), (overall, "all")]:
        for row in range(len(source.faces)):
            if source.faces[row]:
                by_map = source.anchors_by_map[1, row]
                rows.append(
                    {
                        "label": label or range_label(source.edges, row),
                        "faces": int(source.faces[row]),
                        "anchors": source.anchors_per_face[:, row].tolist(),
                        "without": source.without[:, row].tolist(),
                        "few": source.few[:, row].tolist(),
                        "maps": (by_map / max(float(by_map.sum()), 1e-9)).tolist(),
                    }
                )
    return {"coverage": coverage, "seen": len(coverage.face_sizes), "rows": rows}


def _rendered(content: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    # Names of files may hold bytes that are no text; a page is text.
    environment.filters["text"] = lambda value: str(value).encode("utf-8", "replace").decode("utf-8")
    return environment.get_template("doctor.html.jinja").render(
        **content,
        # Valid JSON of ASCII alone, and nothing that could end the script element.
        data=json.dumps(content["rows"], allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        style=(_TEMPLATES / "doctor.css").read_text(encoding="utf-8"),
        script=(_TEMPLATES / "doctor.js").read_text(encoding="utf-8"),
        max_rows=MAX_ROWS,
        figures_folder=FIGURES,
        thumbnails_folder=THUMBNAILS,
    )


def _is_replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {entry.name for entry in folder.iterdir()}
    return not names or (INDEX_FILE in names and names <= _OWN)
