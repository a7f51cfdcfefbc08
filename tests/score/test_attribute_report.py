"""What a breakdown by attribute writes and prints: every number is the one of the scores, whatever is not there."""

import csv
import json
import math
from pathlib import Path

import pytest

from fanet_lightning.score.analysis.attributes import (
    MEASURES,
    AttributeScores,
    group_label,
    print_attributes,
    score_attributes,
    write_attributes,
)
from tests.score.attribute_oracle import drawn_run


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
                numbers = [None if math.isnan(number) else number for number in own.measure(measure)[:3]]
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
