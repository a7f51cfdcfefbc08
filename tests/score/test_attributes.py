"""AP and recall by attribute, against scoring every group on its own with the official rules; what is written."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.score.analysis.attributes import (
    HEIGHTS,
    LABELS,
    MEASURES,
    AttributeScores,
    attribute_groups,
    group_label,
    left_out,
    print_attributes,
    score_attributes,
    write_attributes,
)
from fanet_lightning.score.bootstrap import bootstrap_ap, bootstrap_difference, curve_from_counts
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from tests.score.attribute_oracle import counts_alone, drawn_run, one_group, slow_normalised_ap, stray_rows


@settings(max_examples=80)
@given(seed=st.integers(0, 10**6), within=st.sampled_from(["hard", "easy"]), levels=st.sampled_from([1, 9, 99]))
def test_each_group_is_a_setting_of_the_official_scorer(seed: int, within: str, levels: int) -> None:
    run = drawn_run(seed, levels=levels)
    groups = attribute_groups(run[0], within)
    scores = score_attributes(*run, samples=0, within=within, at_precision=0.5)
    assert [(own.attribute, own.value) for own in scores.groups] == [(own.attribute, own.value) for own in groups]
    stray = stray_rows(run)
    whole = curve_from_counts(counts_alone(run, groups[0], stray))
    reached = [i for i in range(1000) if whole.precision[i] >= 0.5]
    low, high = min([1.0, *run[1].scores]), max([0.0, *run[1].scores])
    threshold = low + whole.thresholds[reached[-1]] * (high - low) if reached else math.nan
    assert scores.score_threshold == pytest.approx(threshold, nan_ok=True)
    for group, own in zip(groups, scores.groups, strict=True):
        curve = score(*one_group(run, group, stray))["group"]
        assert own.faces == curve.faces
        np.testing.assert_array_equal(own.ap.value, curve.ap)
        np.testing.assert_array_equal(own.max_recall.value, curve.recall[-1] if curve.faces else math.nan)
        expected = curve.recall[reached[-1]] if reached and curve.faces else math.nan
        np.testing.assert_array_equal(own.recall.value, expected)
        if group.attribute in ("height", "scale", "event"):
            assert math.isnan(own.normalised_ap.value)
    assert scores.groups[0].ap.value == pytest.approx(score(*run)[within].ap, abs=0, nan_ok=True)
    np.testing.assert_array_equal(scores.groups[0].normalised_ap.value, scores.groups[0].ap.value)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_resamples_are_those_of_the_bootstrap_to_the_last_bit(seed: int) -> None:
    run, other = drawn_run(seed), drawn_run(seed, detector=1)
    truth = run[0]
    scores = score_attributes(*run, samples=8, at_precision=0.5, against=other[1])
    assert scores.against is not None
    groups = attribute_groups(truth)
    rng = np.random.default_rng(0)
    images = len(truth.image_ids)
    weights = [np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(8)]
    counts, other_counts = ([counts_alone(own, group, stray_rows(own)) for group in groups] for own in (run, other))
    reached = np.flatnonzero(curve_from_counts(counts[0]).precision >= 0.5)
    for number, (group, own) in enumerate(zip(groups, scores.groups, strict=True)):
        mine, theirs = {"group": counts[number]}, {"group": other_counts[number]}
        expected = bootstrap_ap(mine, 8)["group"]
        np.testing.assert_array_equal(own.ap.samples, expected.samples)
        np.testing.assert_array_equal(own.ap[:3], expected[:3])
        difference = bootstrap_difference(mine, theirs, 8)["group"]
        np.testing.assert_array_equal(scores.differences[number].ap.samples, difference.samples)
        np.testing.assert_array_equal(scores.differences[number].ap[:3], difference[:3])
        for sample, weight in enumerate(weights):
            curve = curve_from_counts(counts[number], weight)
            wanted = curve.recall[[reached[-1], -1]] if len(reached) and curve.faces else [math.nan, math.nan]
            np.testing.assert_array_equal(own.recall.samples[sample], wanted[0])
            if curve.faces:
                assert own.max_recall.samples[sample] == curve.recall[-1]
            if sample < 2 and group.attribute == "blur":
                all_faces = int(weight @ counts[0].faces)
                slow = slow_normalised_ap(run, group, weight.tolist(), all_faces)
                assert own.normalised_ap.samples[sample] == pytest.approx(slow, abs=1e-12, nan_ok=True)


def test_a_height_on_an_edge_belongs_to_the_bin_above() -> None:
    boxes = np.array([[0.0, 0, 1, edge] for edge, _ in list(HEIGHTS.values())[1:]] + [[0, 0, 1, 9.99], [0, 0, 1, -2]])
    truth = GroundTruth(("e/a",), [boxes], {"hard": [np.ones(len(boxes), np.bool_)]})
    heights = [np.flatnonzero(group.faces).tolist() for group in attribute_groups(truth) if group.attribute == "height"]
    assert heights == [[6, 7], [0], [1], [2], [3], [4], [5]]


def test_events_stand_in_the_order_of_their_numbers() -> None:
    ids = ("10--Ten/a", "2--Two/b", "other/c", "2--Two/d")
    truth = GroundTruth(ids, [np.empty((0, 4))] * 4, {"hard": [np.zeros(0, np.bool_)] * 4})
    events = {own.value: own.images for own in attribute_groups(truth) if own.images is not None}
    assert list(events) == ["other", "2--Two", "10--Ten"]
    assert [np.flatnonzero(images).tolist() for images in events.values()] == [[2], [1, 3], [0]]


def test_without_labels_height_and_event_remain() -> None:
    truth, predictions = drawn_run(1, labelled=False)
    scores = score_attributes(truth, predictions, samples=2)
    assert {own.attribute for own in scores.groups} == {"all", "height", "scale", "event"}
    assert scores.left_out == tuple(f"{name}: no labels in the ground truth" for name in LABELS)
    one = attribute_groups(GroundTruth(("e/a",), [np.empty((0, 4))], {"hard": [np.zeros(0, np.bool_)]}))
    assert left_out(one)[-1] == "event: all images are of one"
    assert {group.attribute for group in one} == {"all", "height", "scale"}
    flat = GroundTruth(("a", "b"), [np.empty((0, 4))] * 2, {"hard": [np.zeros(0, np.bool_)] * 2})  # without folders
    assert {group.attribute for group in attribute_groups(flat)} == {"all", "height", "scale"}


def test_nothing_found_and_equal_scores() -> None:
    truth, predictions = drawn_run(2)
    nothing = Predictions.from_detections({}, truth.image_ids)
    scores = score_attributes(truth, nothing, samples=10, against=predictions)
    assert math.isnan(scores.score_threshold)
    for own in scores.groups:
        assert own.ap.value == 0 if own.faces else math.isnan(own.ap.value)
        assert own.max_recall.value == 0 if own.faces else math.isnan(own.max_recall.value)
    assert scores.differences[0].ap.value < 0
    equal = replace(predictions, scores=np.full(len(predictions.scores), 0.25))
    same = score_attributes(truth, equal, samples=0, at_precision=0.01)
    assert same.score_threshold == 0.25
    assert same.groups[0].recall.value == same.groups[0].max_recall.value > 0


@pytest.fixture(scope="module")
def compared() -> AttributeScores:
    run, (_, other) = drawn_run(4, images=20), drawn_run(4, images=20, detector=1)
    return score_attributes(*run, samples=30, at_precision=0.5, against=other)


@pytest.mark.parametrize("labelled", [True, False])
def test_json_and_csv_hold_every_number(tmp_path: Path, compared: AttributeScores, labelled: bool) -> None:
    scores = compared if labelled else score_attributes(*drawn_run(4, images=20, labelled=False), samples=0)
    write_attributes(tmp_path, scores, title="drawn", against="other", made_by={"command": ["x"]})
    content = json.loads((tmp_path / "attributes.json").read_text())
    with (tmp_path / "attributes.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    parts = [("", scores.groups, content["groups"])]
    if scores.against is not None:
        parts.append(("other_", scores.against.groups, content["against"]["groups"]))
        parts.append(("difference_", scores.differences, content["against"]["differences"]))
    assert len(lines[0]) == 4 + 12 * len(parts)
    for prefix, groups, found in parts:
        assert sum(map(len, found.values())) == len(groups)
        for line, own in zip(lines, groups, strict=True):
            entry = found[own.attribute][own.value]
            assert (line["attribute"], line["value"], int(line["faces"])) == own[:3]
            assert (entry["faces"], entry["images"]) == own[2:4]
            for measure in MEASURES:
                numbers = [None if math.isnan(number) else number for number in getattr(own, measure)[:3]]
                assert [entry[measure], *(entry["intervals"][measure] or [None, None])] == numbers
                for end, number in zip(("", "_low", "_high"), numbers, strict=True):
                    cell = line[f"{prefix}{measure}{end}"]
                    assert cell == "" if number is None else abs(float(cell) - number) <= 5e-7
    assert content["score_threshold"] == (None if math.isnan(scores.score_threshold) else scores.score_threshold)
    assert (content["title"], content["within"], content["images"]) == ("drawn", "hard", 20)
    assert content["made_by"] == {"command": ["x"]}
    said = "bootstrap over images, 30 samples, 95% percentile interval, seed 0"
    assert content["intervals_method"] == (said if labelled else None)


def test_markdown_has_a_line_per_group_and_the_terminal_all_but_the_events(
    tmp_path: Path, compared: AttributeScores, capsys: pytest.CaptureFixture[str]
) -> None:
    write_attributes(tmp_path, compared, title="drawn", against="other")
    lines = (tmp_path / "attributes.md").read_text().splitlines()
    assert sum(line.startswith("|") for line in lines) == 2 * (2 + len(compared.groups))
    blur = next(own for own in compared.groups if own.value == "clear")
    start = f"| blur: clear | {blur.faces} | {blur.ap.value:.4f} | {blur.ap.low:.4f} … {blur.ap.high:.4f} |"
    assert any(line.startswith(start) for line in lines)
    assert "## Difference to other, paired over images" in lines
    print_attributes(compared, "title", "other")
    printed = capsys.readouterr().out
    shown = [own for own in compared.groups if own.attribute != "event"]
    assert len(printed.splitlines()) == 2 * (2 + len(shown)) + 2 and "event:" not in printed


def test_labels_for_people() -> None:
    assert [group_label("height", value) for value in ("<10", "10-16", ">=256")] == ["<10 px", "10–16 px", "≥256 px"]
    assert [group_label("scale", value) for value in ("small", "large")] == ["small, 10–50 px", "large, ≥300 px"]
    events = ("0--Press_Conference", "59--people--driving--car", "plain")
    assert [group_label("event", value) for value in events] == ["Press Conference", "people driving car", "plain"]
    assert (group_label("blur", "heavy"), group_label("all", "all")) == ("heavy", "all faces")
