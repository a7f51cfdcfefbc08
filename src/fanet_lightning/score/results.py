"""Scores of any benchmark: the interface, scores.json, the table that is printed."""

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fanet_lightning.cli.files import check_names_free, replaced
from fanet_lightning.score.bootstrap import Interval, interval_of
from fanet_lightning.score.curves import Floats
from fanet_lightning.score.inputs import DetectionsByImage

# Benchmark, as scores.json names it → its name for people.
TITLES = {
    "wider_face": "WIDER FACE", "synthetic": "synthetic faces", "fddb": "FDDB", "pascal_face": "PASCAL face",
    "afw": "AFW", "coco": "COCO", "folder": "own data",
}  # fmt: skip
# measure ("ap", "discrete", …) → setting ("easy", "all", "1000", …) → number.
Values = Mapping[str, Mapping[str, float]]
# The same keys → (B,) float64, one value per resample; NaN where a resample has none.
Samples = Mapping[str, Mapping[str, Floats]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores(ABC):
    """What one set of predictions is worth on one benchmark, whose own class adds what resampling and the curves need.

    ``benchmark``           its name as on the command line; ``title`` the same for people: "WIDER FACE".
    ``image_ids``           images that were scored, in their order.
    ``images_of_benchmark`` images that the whole ground truth has.
    ``faces``               setting → faces that count.
    ``values``              measure → setting → number, as in ``scores.json``; NaN where no face counts.
    ``rules``               options that the numbers depend on, for the record: labels, alignment, caps.
    ``warnings``            one line each for the person at the command line.
    """

    benchmark: str
    title: str
    image_ids: Sequence[str]
    images_of_benchmark: int
    faces: Mapping[str, int]
    values: Values
    rules: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @abstractmethod
    def resampled(self, samples: int, seed: int) -> Samples:
        """(B,) values over the images that :func:`fanet_lightning.score.bootstrap.image_weights` draws, by the keys of
        ``values``: two runs over the same images can be paired."""

    @abstractmethod
    def write_curves(self, folder: Path) -> list[Path]:
        """Write the curves, and what else belongs to the numbers, each by rename; what was written is returned."""

    @property
    def headline(self) -> str:
        """Names the part where it is not the whole: such a number does not compare with published ones."""
        if len(self.image_ids) == self.images_of_benchmark:
            return f"{self.title}, {len(self.image_ids):,} images"
        return f"{self.title} sample, {len(self.image_ids):,} of {self.images_of_benchmark:,} images"


G = TypeVar("G")


class Benchmark(Protocol[G]):
    """A benchmark by its rules; options that change numbers are constructor arguments. G is its ground truth.

    Its methods raise ``InputError`` for files that are missing, malformed, or of other images.
    """

    @property
    def name(self) -> str:
        """As on the command line."""

    def read_ground_truth(self, path: Path, images: Path | None = None) -> G:
        """The official files; ``images`` is a list (:mod:`fanet_lightning.cli.files`) that restricts everything."""

    def score(self, ground_truth: G, predictions: Path, *, strict: bool = False) -> Scores:
        """Score a file or folder in the benchmark's own format.

        Images without predictions count as images without a detection and are named in a warning; with ``strict`` they
        are an error.
        """

    def write_predictions(self, folder: Path, ground_truth: G, detections: DetectionsByImage) -> None:
        """Write detections in the benchmark's own format, so that ``score`` reads them; earlier predictions in
        ``folder`` are replaced, anything else is not."""


SCORES_FILE = "scores.json"
# All that scoring may write, of any benchmark.
SCORE_PATTERNS = (
    SCORES_FILE, "per_image.npz", "pr_curve*", "roc.*", "DiscROC.txt", "ContROC.txt", "attributes*", "events.*",
    "errors", "errors.json",
)  # fmt: skip

# What is drawn and counted from scores after they are written, and what is in the page of errors.
_DERIVED = ("attributes.json", "attributes.csv", "attributes.md", "attributes.pdf", "attributes.png", "events.pdf",
            "events.png", "errors.json", "pr_curves.pdf", "pr_curves.png", "roc.pdf", "roc.png")  # fmt: skip
ERROR_PAGE_FILES = ("data.js", "index.html", "page.css", "model.js", "view.js", "page.js", "pictures", "thumbnails")

# measure → setting → interval; empty where none were asked for.
Intervals = Mapping[str, Mapping[str, Interval]]


def is_scores(path: Path) -> bool:
    """Whether this is a ``scores.json`` of ours; False where there is none, or one that cannot be read."""
    return "benchmark" in _content(path)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_out(out: Path) -> None:
    """Refuse, before any work, a folder in which scores would be written over what are no scores (InputError)."""
    if not is_scores(out / SCORES_FILE):
        check_names_free(out, SCORE_PATTERNS, "earlier scores")


def write_scores(
    out: Path,
    scores: Scores,
    intervals: Intervals,
    *,
    protocol: str | None,
    made_by: Mapping[str, Any],
    intervals_method: str | None = None,
    against: Mapping[str, Any] | None = None,
    further: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the curves and then ``scores.json`` into ``out``, each by rename, and return what the latter holds.

    A number or interval that is not defined (no face counts) is null. What an earlier scoring left in ``out``, its
    curves, analyses and page of errors, is removed: it would not belong to these scores.

    Args:
        intervals: :func:`intervals_of`, empty for none. In the file those of ``ap`` stand without their measure.
        protocol: the test scale by name, None for predictions made elsewhere.
        against: what :func:`comparison` made.
        further: entries that the file ends with, e.g. :func:`fanet_lightning.cli.provenance.scores_entry`.
    """
    listed = _content(out / SCORES_FILE).get("files")
    earlier = {name for name in listed if Path(str(name)).name == name} if isinstance(listed, list) else set()
    content: dict[str, Any] = {
        "benchmark": scores.benchmark,
        "protocol": protocol,
        "rules": dict(scores.rules),
        "images": len(scores.image_ids),
        "images_of_benchmark": scores.images_of_benchmark,
        "faces": dict(scores.faces),
        **defined(scores.values),
        "intervals": _by_setting(defined(intervals)),
        "intervals_method": intervals_method if intervals else None,
        "made_by": dict(made_by),
        **({} if against is None else {"against": dict(against)}),
        "files": [path.name for path in scores.write_curves(out)],
        **(further or {}),
    }
    if is_scores(out / SCORES_FILE):
        for name in {*earlier, *_DERIVED} - set(content["files"]):
            (out / name).unlink(missing_ok=True)
        page = out / "errors"
        if page.is_dir() and not page.is_symlink() and {path.name for path in page.iterdir()} <= {*ERROR_PAGE_FILES}:
            shutil.rmtree(page)
    write_json(out / SCORES_FILE, content)
    return content


def write_json(path: Path, content: Any) -> None:
    """Write what :func:`defined` makes of it; appears by rename."""
    text = json.dumps(defined(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def intervals_of(scores: Scores, samples: Samples) -> Intervals:
    """The interval of each number, from its resamples."""
    return {
        measure: {setting: interval_of(value, samples[measure][setting]) for setting, value in own.items()}
        for measure, own in scores.values.items()
    }


def comparison(
    name: str, scores: Scores, other: Scores, samples: Samples, other_samples: Samples
) -> tuple[Intervals, dict[str, Any]]:
    """Paired intervals of scores - other, both resampled over the same images, and their entry in ``scores.json``."""
    if tuple(scores.image_ids) != tuple(other.image_ids) or dict(scores.faces) != dict(other.faces):
        raise ValueError("the two are not about the same images and faces")
    pairs: Any = (scores.values, other.values), (samples, other_samples)
    values, drawn = (
        {
            measure: {setting: own[measure][setting] - its[measure][setting] for setting in own[measure]}
            for measure in own
        }
        for own, its in pairs
    )
    differences = intervals_of(replace(scores, values=values), drawn)
    return differences, {
        "predictions": name,
        **defined(other.values),
        "difference": _by_setting(defined(values)),
        "intervals": _by_setting(defined(differences)),
    }


def print_scores(scores: Scores, intervals: Intervals, title: str | None = None) -> None:
    """Setting, faces, number and its interval, one line each."""
    rows = []
    for label, measure, setting in _labelled(scores.values):
        faces = scores.faces.get(setting, sum(scores.faces.values()))
        row = [label, f"{faces:,}", number_text(scores.values[measure][setting])]
        rows.append([*row, interval_text(intervals[measure][setting])] if intervals else row)
    head = ["setting", "faces", _heading(scores.values), *(["95 % interval"] if intervals else [])]
    print_rows(title or scores.headline, head, rows)


def print_difference(title: str, other: Scores, differences: Intervals) -> None:
    """Setting, number of the other run, the difference to it and the paired interval, one line each."""
    rows = []
    for label, measure, setting in _labelled(differences):
        own = differences[measure][setting]
        value = "–" if math.isnan(own.value) else f"{own.value:+.6f}"
        rows.append([label, number_text(other.values[measure][setting]), value, interval_text(own, "+")])
    print_rows(title, ["setting", f"other {_heading(other.values)}", "difference", "95 % interval"], rows)


def print_rows(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print(title)
    for row in [head, *rows]:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """The lines of a Markdown table, the columns ``left`` to the left, the others to the right."""
    rule = ["---" if i in left else "---:" for i in range(len(head))]
    clean = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [head, rule, *clean]]


def interval_text(interval: Interval, sign: str = "") -> str:
    """ "0.4000 … 0.6100", or a dash where there is none."""
    return "–" if math.isnan(interval.low) else f"{interval.low:{sign}.4f} … {interval.high:{sign}.4f}"


def defined(value: Any) -> Any:
    """A number, an interval, or mappings of them as JSON takes it: NaN, where no face counts, is null, an interval its
    bounds."""
    if isinstance(value, Mapping):
        return {key: defined(own) for key, own in value.items()}
    if isinstance(value, Interval):
        return None if math.isnan(value.low) else [value.low, value.high]
    return None if isinstance(value, float) and math.isnan(value) else value


def _by_setting(numbers: Mapping[str, Any]) -> Any:
    return numbers["ap"] if list(numbers) == ["ap"] else numbers


def _heading(values: Mapping[str, Any]) -> str:
    return "AP" if list(values) == ["ap"] else "rate"


def _labelled(values: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(label, measure, setting) of each number; the only measure AP goes without saying."""
    return [
        (setting if list(values) == ["ap"] else f"{measure} {setting}", measure, setting)
        for measure, own in values.items()
        for setting in own
    ]


def number_text(value: float, form: str = ".6f") -> str:
    return "no face" if math.isnan(value) else format(value, form)
