"""AP and recall by height, scale, label and event of WIDER FACE, with intervals over images, and their files.

A group is scored as the official tool scores a setting: every face outside it is not counted, so a row whose best face
is outside is no proposal (:mod:`score.wider_face.average_precision`). What remains are the rows on no face. Whether
such an alarm is a blurred one is unknown, so it counts against every group that it could belong to: by event only the
rows of that event's images count, by height only those of that height, as COCO has it for its areas.

Rows are judged once, and the product of a resample's weights with the counts is taken over the entries that exist: the
84 groups of WIDER val hold a few per mille of the dense matrices that :mod:`score.bootstrap` multiplies.

* ``ap`` of groups of different size does not compare: all false positives stand against the few hits of a small group.
  ``normalised_ap`` and the recalls do compare: rows on the group's faces weigh as if the group had as many faces as
  the setting (normalised precision: Hoiem et al., Diagnosing Error in Object Detectors, ECCV 2012; there with a
  constant of their own). It is not defined by height and by event, where the false positives are a group's own.
* ``recall`` is read at one threshold for all groups: the lowest at which all faces of the setting together have a
  precision of at least 0.9; in the resamples it stays. ``max_recall`` takes every row.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import replaced
from fanet_lightning.score.bootstrap import SAMPLES, Interval, image_weights, interval_of, method
from fanet_lightning.score.curves import (
    POINTS,
    THRESHOLDS,
    Bools,
    Floats,
    Ints,
    area_under_envelope,
    first_bins,
    score_range,
)
from fanet_lightning.score.inputs import check_choice
from fanet_lightning.score.results import interval_text, markdown_table, print_rows, write_json
from fanet_lightning.score.wider_face.average_precision import judge
from fanet_lightning.score.wider_face.ground_truth import ATTRIBUTE_VALUES, GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

if TYPE_CHECKING:
    from scipy.sparse import csr_array


# Height of the box in pixels of the original image, [low, high): the sides of the network's anchors, and the 10 px
# below which WIDER's settings hold hardly a face.
HEIGHTS = {
    "<10": (-np.inf, 10.0), "10-16": (10.0, 16.0), "16-32": (16.0, 32.0), "32-64": (32.0, 64.0),
    "64-128": (64.0, 128.0), "128-256": (128.0, 256.0), ">=256": (256.0, np.inf),
}  # fmt: skip
# Yang et al., WIDER FACE: A Face Detection Benchmark, CVPR 2016, section 3.2: small, medium and large faces.
SCALES = {"small": (10.0, 50.0), "medium": (50.0, 300.0), "large": (300.0, np.inf)}
LABELS = ("blur", "occlusion", "pose", "expression", "illumination")
ATTRIBUTES = ("all", "height", "scale", *LABELS, "event")


@dataclass(frozen=True, eq=False)
class Group:
    """Faces that share a value of an attribute, and the rows on no face that count against them.

    ``attribute`` one of :data:`ATTRIBUTES`; ``value`` one of its values: "heavy", "10-16", "0--Parade".
    ``faces``     (F,) bool over the faces of all images, packed image by image.
    ``images``    (N,) bool, rows on no face of other images do not count; None: all do.
    ``heights``   [low, high) pixels, rows on no face of other heights do not count; None: all do.
    """

    attribute: str
    value: str
    faces: Bools
    images: Bools | None = None
    heights: tuple[float, float] | None = None


MEASURES = ("ap", "normalised_ap", "recall", "max_recall")
AT_PRECISION = 0.9


def attribute_groups(ground_truth: GroundTruth, within: str = "hard") -> list[Group]:
    """All groups, those without a face too; the first, "all", is the setting ``within`` itself.

    Attributes without labels, and events where there is but one, give no group (:func:`left_out`).
    """
    check_choice("within", within, ground_truth.counted)
    counted = ground_truth.counts(within)
    height = np.concatenate([np.empty((0, 4)), *ground_truth.boxes_xywh])[:, 3]
    groups = [Group("all", "all", counted)]
    for attribute, ranges in (("height", HEIGHTS), ("scale", SCALES)):
        for name, (low, high) in ranges.items():
            groups.append(Group(attribute, name, counted & (height >= low) & (height < high), heights=(low, high)))
    for attribute in LABELS:
        if attribute in ground_truth.attributes:
            labels = np.concatenate([np.zeros(0, np.int8), *ground_truth.attributes[attribute]])
            for label, name in enumerate(ATTRIBUTE_VALUES[attribute]):
                groups.append(Group(attribute, name, counted & (labels == label)))
    events = np.array([image_id.rpartition("/")[0].partition("/")[0] for image_id in ground_truth.image_ids])
    distinct = sorted(set(events.tolist()), key=_by_number)
    for event in distinct if len(distinct) > 1 else ():
        images = events == event
        groups.append(Group("event", event, counted & images[ground_truth.image_of_faces], images))
    return groups


def left_out(groups: Sequence[Group]) -> tuple[str, ...]:
    """One line per attribute that has no group."""
    reasons = dict.fromkeys(LABELS, "no labels in the ground truth") | {"event": "all images are of one"}
    present = {group.attribute for group in groups}
    return tuple(f"{name}: {reason}" for name, reason in reasons.items() if name not in present)


def _by_number(event: str) -> tuple[int, str]:
    # WIDER numbers its events: "2--Demonstration" stands before "10--People_Marching".
    number = event.partition("--")[0]
    return (int(number) if number.isdecimal() else -1), event


class GroupCounts(NamedTuple):
    """Entries (image, threshold, rows first seen there) of one group, not cumulated.

    ``on_faces`` (T, N) rows on a face of the group, ``hits`` (T, N) those that take it, both sparse.
    ``background`` (T, N) rows on no face that count against the group; groups may share the object.
    ``faces``      (N,) faces of the group per image.
    """

    on_faces: "csr_array"
    hits: "csr_array"
    background: "csr_array"
    faces: Ints


def count_groups(groups: Sequence[Group], ground_truth: GroundTruth, predictions: Predictions) -> list[GroupCounts]:
    """The counts of each group; rows are judged once, as :func:`score.wider_face.average_precision.score` does."""
    # A part of scipy that no other score needs.
    from scipy.sparse import csr_array

    judged = judge(ground_truth, predictions)
    bins, image, images = first_bins(predictions.scores), predictions.image_of_rows, len(predictions.image_ids)
    height, image_of_faces = predictions.boxes_xywh[:, 3], ground_truth.image_of_faces
    # A row on no face of an image that has one is a proposal in every group that it could belong to.
    looking, off = np.flatnonzero(judged.face >= 0), np.flatnonzero(judged.in_play & (judged.face < 0))
    face, first = judged.face[looking], judged.first[looking]

    def entries(rows: Ints) -> "csr_array":
        return csr_array((np.ones(len(rows)), (bins[rows], image[rows])), shape=(POINTS, images))

    everywhere = entries(off)
    counts = []
    for group in groups:
        kept = off if group.images is None else off[group.images[image[off]]]
        if group.heights is not None:
            kept = kept[(height[kept] >= group.heights[0]) & (height[kept] < group.heights[1])]
        background = everywhere if kept is off else entries(kept)
        own = group.faces[face]
        faces = np.bincount(image_of_faces[group.faces], minlength=images)
        counts.append(GroupCounts(entries(looking[own]), entries(looking[own & first]), background, faces))
    return counts


def measured(
    groups: Sequence[Group], counts: Sequence[GroupCounts], weights: npt.ArrayLike, point: int | None
) -> Floats:
    """:data:`MEASURES` of every group on multisets of images: (b, N) whole numbers → (groups, 4, b).

    NaN where a group has no face, or no such number. The first group is the universe of all faces; ``point`` is the
    threshold of ``recall``, index into :data:`score.curves.THRESHOLDS`, None where there is none.
    """
    # (N, b): one row per image, so that an entry adds a run of memory.
    columns = np.ascontiguousarray(np.asarray(weights).T, np.float64)
    values = np.full((len(groups), len(MEASURES), columns.shape[1]), np.nan)
    all_faces = counts[0].faces @ columns
    shared = None
    for group, own, found in zip(groups, counts, values, strict=True):
        if own.background is not shared:
            shared, background = own.background, _cumulated(own.background, columns)
        on_faces, hits = _cumulated(own.on_faces, columns), _cumulated(own.hits, columns)
        faces = own.faces @ columns
        recall = _ratio(hits, faces[:, None])
        found[0] = area_under_envelope(_ratio(hits, on_faces + background), recall)
        # By height and by event the false positives are the group's own, so there is no share to put right.
        if group.images is None and group.heights is None:
            share = _ratio(all_faces, faces)[:, None]
            found[1] = area_under_envelope(_ratio(hits * share, on_faces * share + background), recall)
        if point is not None:
            found[2] = recall[:, point]
        found[3] = recall[:, -1]
        found[:, faces == 0] = np.nan
    return values


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


def _cumulated(part: "csr_array", columns: Floats) -> Floats:
    """(T, N) entries, (N, b) weights → (b, T) rows seen at each threshold. Whole numbers below 2**53: exact."""
    return np.cumsum(np.ascontiguousarray((part @ columns).T), axis=1)


class GroupScore(NamedTuple):
    """What a run is worth on a group. Numbers in [0, 1], NaN where there is none: no face, or no such number.

    ``attribute``, ``value``  of the group; ``faces`` it has, in ``images`` of the images.
    ``ap`` … ``max_recall``   as the module says. In a difference they are this run minus the other.
    """

    attribute: str
    value: str
    faces: int
    images: int
    ap: Interval
    normalised_ap: Interval
    recall: Interval
    max_recall: Interval


@dataclass(frozen=True, eq=False)
class AttributeScores:
    """All groups of a run; the first, "all", is the setting itself.

    ``within``          the setting whose faces are broken down.
    ``images``          how many were scored.
    ``at_precision``    the precision that ``recall`` is read at.
    ``score_threshold`` the score of the predictions where ``recall`` is read; NaN where there is none.
    ``groups``          in the order of :func:`attribute_groups`.
    ``left_out``        one line per attribute that the ground truth cannot tell.
    ``samples``         resamples behind the intervals.
    ``against``         the other run on the same groups; None without one.
    ``differences``     per group this run minus the other, paired over images; empty without one.
    """

    within: str
    images: int
    at_precision: float
    score_threshold: float
    groups: tuple[GroupScore, ...]
    left_out: tuple[str, ...]
    samples: int
    against: "AttributeScores | None" = None
    differences: tuple[GroupScore, ...] = ()


def score_attributes(
    ground_truth: GroundTruth,
    predictions: Predictions,
    samples: int = SAMPLES,
    *,
    within: str = "hard",
    at_precision: float = AT_PRECISION,
    against: Predictions | None = None,
) -> AttributeScores:
    """Score every group of :func:`attribute_groups`, with 95 % intervals over images.

    Args:
        ground_truth, predictions: of the same images in the same order.
        samples: resamples, of the same images as in :mod:`score.bootstrap`; 0: no intervals.
        within: a setting of ``ground_truth``; InputError where it has no such one.
        at_precision: where ``recall`` is read.
        against: another run on the same images, for paired differences; it has a threshold of its own.
    """
    groups = attribute_groups(ground_truth, within)
    counts = count_groups(groups, ground_truth, predictions)
    images = len(ground_truth.image_ids)
    on_faces, hits, background = (_cumulated(part, np.ones((images, 1)))[0] for part in counts[0][:3])
    reached = np.flatnonzero(_ratio(hits, on_faces + background) >= at_precision)
    point = int(reached[-1]) if len(reached) else None
    # The normalised threshold as a score of the predictions; see score.curves.first_bins.
    low, high = score_range(predictions.scores)
    threshold = float("nan") if point is None else low + float(THRESHOLDS[point]) * (high - low)
    values = measured(groups, counts, np.ones((1, images)), point)[..., 0]
    drawn = np.empty((*values.shape, samples))
    for part, weights in image_weights(images, samples) if samples else ():
        drawn[..., part] = measured(groups, counts, weights, point)
    scores = []
    for group, own, found, resampled in zip(groups, counts, values.tolist(), drawn, strict=True):
        intervals = map(interval_of, found, resampled)
        faces, images_with_faces = int(own.faces.sum()), int(np.count_nonzero(own.faces))
        scores.append(GroupScore(group.attribute, group.value, faces, images_with_faces, *intervals))
    ours = AttributeScores(within, images, at_precision, threshold, tuple(scores), left_out(groups), samples)
    if against is None:
        return ours
    other = score_attributes(ground_truth, against, samples, within=within, at_precision=at_precision)
    differences = []
    for a, b in zip(ours.groups, other.groups, strict=True):
        paired = (interval_of(x.value - y.value, x.samples - y.samples) for x, y in zip(a[4:], b[4:], strict=True))
        differences.append(GroupScore(*a[:4], *paired))
    return replace(ours, against=other, differences=tuple(differences))


def write_attributes(
    out: Path,
    scores: AttributeScores,
    *,
    title: str,
    against: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Write ``attributes.json``, ``attributes.csv`` and ``attributes.md`` into ``out``, each by rename.

    A number that is not defined is null in the one, empty in the other and "–" in the third. ``title`` is data and
    protocol for people, ``against`` the name of the other run.
    """
    content: dict[str, Any] = {
        "title": title,
        "within": scores.within,
        "images": scores.images,
        "at_precision": scores.at_precision,
        "score_threshold": scores.score_threshold,
        "groups": _by_attribute(scores.groups),
        "left_out": list(scores.left_out),
        "intervals_method": method(scores.samples) if scores.samples else None,
        "made_by": made_by,
    }
    columns = {"": scores.groups}
    if scores.against is not None:
        content["against"] = {
            "predictions": against,
            "score_threshold": scores.against.score_threshold,
            "groups": _by_attribute(scores.against.groups),
            "differences": _by_attribute(scores.differences),
        }
        columns |= {"other_": scores.against.groups, "difference_": scores.differences}
    write_json(out / "attributes.json", content)
    names = [f"{prefix}{name}{end}" for prefix in columns for name in MEASURES for end in ("", "_low", "_high")]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["attribute", "value", "faces", "images", *names])
    for rows in zip(*columns.values(), strict=True):
        numbers = [number for row in rows for interval in row[4:] for number in interval[:3]]
        writer.writerow([*rows[0][:4], *("" if math.isnan(number) else f"{number:.6f}" for number in numbers)])
    text = []
    for level, (name, head, table_rows) in zip(("#", "##"), _tables(scores, title, against), strict=False):
        text += [f"{level} {name}", "", *markdown_table(head, table_rows), ""]
    text += [f"* {line}" for line in _notes(scores)]
    for suffix, written in {"csv": table.getvalue(), "md": "\n".join(text) + "\n"}.items():
        with replaced(out / f"attributes.{suffix}") as path:
            path.write_text(written, encoding="utf-8", newline="")


def _by_attribute(groups: Sequence[GroupScore]) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = {}
    for score in groups:
        intervals = dict(zip(MEASURES, score[4:], strict=True))
        values = {name: interval.value for name, interval in intervals.items()}
        entry = {"faces": score.faces, "images": score.images, **values, "intervals": intervals}
        content.setdefault(score.attribute, {})[score.value] = entry
    return content


def print_attributes(scores: AttributeScores, title: str, against: str | None = None) -> None:
    """The groups but the events in a table; with another run a table of the differences too."""
    for name, head, rows in _tables(scores, title, against, events=False):
        print_rows(name, head, rows)
    print("\n".join(_notes(scores)))


_HEAD = ("group", "faces", "AP", "95 % interval", "normalised AP", "recall", "max recall")
_DIFFERENCE_HEAD = ("group", "faces", "other AP", "difference", "95 % interval", "recall", "95 % interval")


def _tables(
    scores: AttributeScores, title: str, against: str | None, events: bool = True
) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, head and rows: of the groups, and with another run of the differences to it."""

    def first(own: GroupScore) -> list[str]:
        label = group_label(own.attribute, own.value)
        return [label if own.attribute == "all" else f"{own.attribute}: {label}", f"{own.faces:,}"]

    # The events come last.
    shown = [own for own in scores.groups if events or own.attribute != "event"]
    rows = [
        [*first(own), _number(own.ap.value), interval_text(own.ap), *(_number(one.value) for one in own[5:])]
        for own in shown
    ]
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = [(title, _HEAD, rows)]
    if scores.against is not None:
        rows = []
        for own, other in zip(scores.differences[: len(shown)], scores.against.groups, strict=False):
            texts = [
                text for one in (own.ap, own.recall) for text in (_number(one.value, "+"), interval_text(one, "+"))
            ]
            rows.append([*first(own), _number(other.ap.value), *texts])
        heading = f"Difference to {against or 'the other run'}, paired over images"
        tables.append((heading, _DIFFERENCE_HEAD, rows))
    return tables


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


def _number(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.4f}"


def _notes(scores: AttributeScores) -> list[str]:
    found = "no threshold has that precision"
    if not math.isnan(scores.score_threshold):
        found = f"score {scores.score_threshold:.4g}"
    return [
        f"recall: where all faces together have precision {scores.at_precision:g} ({found}); max recall: all rows",
        "AP of groups of different size does not compare; normalised AP and the recalls do",
        *(f"left out: {line}" for line in scores.left_out),
    ]
