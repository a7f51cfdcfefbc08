"""What a breakdown by attribute leaves behind: ``attributes.json``, ``.csv`` and ``.md``, and a table for the eye."""

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced
from fanet_lightning.scoring.attribute_groups import SCALES
from fanet_lightning.scoring.attributes import MEASURES, AttributeScores, GroupScore
from fanet_lightning.scoring.bootstrap import method
from fanet_lightning.scoring.results import bounds_of, defined, interval_text, prepare_out, print_rows

STEM = "attributes"
# Of WIDER's 61 events a terminal shows the ones that matter most; the files hold all of them.
EVENTS_SHOWN = 10


def write_attributes(
    out: Path,
    scores: AttributeScores,
    *,
    title: str,
    against: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``attributes.json``, ``attributes.csv`` and ``attributes.md`` into ``out``, each by rename.

    A number that is not defined is null in the one, empty in the other and "–" in the third.

    Args:
        out: folder, made if need be.
        scores: from :func:`fanet_lightning.scoring.attributes.score_attributes`.
        title: data and protocol, for people.
        against: name of the other run.
        made_by: see :func:`fanet_lightning.scoring.results.made_by`.

    Returns:
        What was written.

    Raises:
        InputError: ``out`` cannot be written.
    """
    content = _as_json(scores, title, against, made_by)
    texts = {
        ".csv": _as_csv(scores),
        ".md": _as_markdown(scores, title, against),
        ".json": json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    prepare_out(out)
    paths = []
    try:
        for suffix, text in texts.items():
            with replaced(out / f"{STEM}{suffix}") as path:
                path.write_text(text, encoding="utf-8", newline="")
            paths.append(out / f"{STEM}{suffix}")
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror}); free it or give another folder") from error
    return paths


def print_attributes(
    scores: AttributeScores, title: str, against: str | None = None, file: TextIO | None = None
) -> None:
    """The groups in a table, of the events the ten with the lowest AP; with another run a table of the differences too,
    there the events that differ most.
    """
    file = file or sys.stdout
    lowest = _shown(scores.groups, lambda score: score.ap.value)
    print_rows(title, _HEAD, [_row(score) for score in lowest], file)
    if scores.differences:
        most = _shown(scores.differences, lambda difference: -abs(difference.ap.value))
        print_rows(
            f"difference to {against or 'the other run'}, paired over images", *_difference_rows(scores, most), file
        )
    for line in _notes(scores):
        print(line, file=file)


def group_label(attribute: str, value: str) -> str:
    """A group's value for people: "10–16 px", "small, 10–50 px", "Press Conference"."""
    if attribute == "height":
        return value.replace("-", "–").replace(">=", "≥") + " px"
    if attribute == "scale":
        low, high = SCALES[value]
        return f"{value}, ≥{low:g} px" if math.isinf(high) else f"{value}, {low:g}–{high:g} px"
    if attribute == "event":
        return value.partition("--")[2].replace("--", " ").replace("_", " ") or value
    return "all faces" if attribute == "all" else value


_HEAD = ("group", "faces", "AP", "95 % interval", "normalised AP", "recall", "max recall")


def _row(score: GroupScore) -> list[str]:
    ap, normalised, recall, most = (_number(score.measure(name).value) for name in MEASURES)
    return [_name(score), f"{score.faces:,}", ap, interval_text(score.ap), normalised, recall, most]


def _difference_rows(
    scores: AttributeScores, differences: Sequence[GroupScore]
) -> tuple[tuple[str, ...], list[list[str]]]:
    others = {(other.attribute, other.value): other for other in (scores.against or scores).groups}
    head = ("group", "faces", "other AP", "difference", "95 % interval", "recall", "95 % interval")
    rows = []
    for difference in differences:
        other = others[difference.attribute, difference.value]
        rows.append(
            [
                _name(difference),
                f"{difference.faces:,}",
                _number(other.ap.value),
                _number(difference.ap.value, "+"),
                interval_text(difference.ap, "+"),
                _number(difference.recall.value, "+"),
                interval_text(difference.recall, "+"),
            ]
        )
    return head, rows


def _shown(groups: Sequence[GroupScore], order: Callable[[GroupScore], float]) -> list[GroupScore]:
    events = [score for score in groups if score.attribute == "event" and not math.isnan(score.ap.value)]
    return [score for score in groups if score.attribute != "event"] + sorted(events, key=order)[:EVENTS_SHOWN]


def _name(score: GroupScore) -> str:
    label = group_label(score.attribute, score.value)
    return label if score.attribute == "all" else f"{score.attribute}: {label}"


def _number(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.4f}"


def _notes(scores: AttributeScores, all_shown: bool = False) -> list[str]:
    found = "no threshold has that precision"
    if not math.isnan(scores.score_threshold):
        found = f"score {scores.score_threshold:.4g}"
    events = sum(score.attribute == "event" for score in scores.groups)
    return [
        f"recall: where all faces together have precision {scores.at_precision:g} ({found}); max recall: all rows",
        "AP of groups of different size does not compare; normalised AP and the recalls do",
        *([f"of {events} events {EVENTS_SHOWN} are shown"] if events > EVENTS_SHOWN and not all_shown else []),
        *(f"left out: {line}" for line in scores.left_out),
    ]


def _as_json(
    scores: AttributeScores, title: str, against: str | None, made_by: Mapping[str, Any] | None
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "title": title,
        "within": scores.within,
        "images": scores.images,
        "at_precision": scores.at_precision,
        "score_threshold": defined(scores.score_threshold),
        "groups": _groups_as_json(scores.groups),
        "left_out": list(scores.left_out),
        "intervals_method": method(scores.samples, scores.seed) if scores.samples else None,
        "made_by": None if made_by is None else dict(made_by),
    }
    if scores.against is not None:
        content["against"] = {
            "predictions": against,
            "score_threshold": defined(scores.against.score_threshold),
            "groups": _groups_as_json(scores.against.groups),
            "differences": _groups_as_json(scores.differences),
        }
    return content


def _groups_as_json(groups: Sequence[GroupScore]) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = {}
    for score in groups:
        intervals = {name: score.measure(name) for name in MEASURES}
        content.setdefault(score.attribute, {})[score.value] = {
            "faces": score.faces,
            "images": score.images,
            **{name: defined(interval.value) for name, interval in intervals.items()},
            "intervals": {name: bounds_of(interval) for name, interval in intervals.items()},
        }
    return content


def _as_csv(scores: AttributeScores) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [("", scores.groups)]
    if scores.against is not None:
        parts += [("other_", scores.against.groups), ("difference_", scores.differences)]
    columns = [f"{prefix}{name}{end}" for prefix, _ in parts for name in MEASURES for end in ("", "_low", "_high")]
    writer.writerow(["attribute", "value", "faces", "images", *columns])
    for rows in zip(*(groups for _, groups in parts), strict=True):
        intervals = [row.measure(name) for row in rows for name in MEASURES]
        numbers = [number for interval in intervals for number in (interval.value, interval.low, interval.high)]
        cells = ["" if math.isnan(number) else f"{number:.6f}" for number in numbers]
        writer.writerow([rows[0].attribute, rows[0].value, rows[0].faces, rows[0].images, *cells])
    return text.getvalue()


def _as_markdown(scores: AttributeScores, title: str, against: str | None) -> str:
    lines = [f"# {title}", "", *_markdown_table(_HEAD, [_row(score) for score in scores.groups])]
    if scores.differences:
        lines += ["", f"## Difference to {against or 'the other run'}, paired over images", ""]
        lines += _markdown_table(*_difference_rows(scores, scores.differences))
    return "\n".join([*lines, "", *(f"* {line}" for line in _notes(scores, all_shown=True))]) + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
