"""WIDER FACE by attribute, from predictions to files and figures."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from fanet_lightning.report.error_gallery import report_by_attribute
from fanet_lightning.report.figures import attribute_figure
from fanet_lightning.score.analysis.attributes import group_label, score_attributes
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import write_predictions
from tests.score.attribute_oracle import drawn_run
from tests.score.helpers import rows_of

FILES = {f"attributes.{kind}" for kind in ("pdf", "png", "json", "csv", "md")}


def test_figures_show_each_group_with_its_faces() -> None:
    run, (_, other) = drawn_run(4, images=20), drawn_run(4, images=20, detector=1)
    compared = score_attributes(*run, samples=30, at_precision=0.5, against=other)
    figure = attribute_figure(compared, "drawn")
    texts = {tick.get_text() for tick in figure.axes[0].get_yticklabels()}
    shown = [own for own in compared.groups if own.faces and own.attribute != "event"]
    assert {f"{group_label(own.attribute, own.value)}  ({own.faces})" for own in shown[1:]} <= texts
    values = [getattr(own, name).value for own in shown for name in ("ap", "normalised_ap")]
    assert sorted(dots(figure)) == sorted(value for value in values if not math.isnan(value))
    aps = sorted((own.ap.value for own in compared.groups if own.attribute == "event"), reverse=True)
    assert dots(attribute_figure(compared, of_events=True)) == [compared.groups[0].ap.value, *aps]


def dots(figure: Figure) -> list[float]:
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    return [float(np.ravel(line.get_xdata())[0]) for line in lines]


@pytest.fixture
def run(tmp_path: Path) -> tuple[GroundTruth, Path]:
    """Twelve images of three events, and a folder of predictions."""
    truth, predictions = drawn_run(4, images=12)
    detections = {}
    for i, image_id in enumerate(truth.image_ids):
        x, y, w, h, values = np.array(rows_of(predictions, i)).reshape(-1, 5).T
        detections[image_id] = np.column_stack([x, y, x + w, y + h]), values
    write_predictions(tmp_path / "found", detections)
    return truth, tmp_path / "found"


def test_from_files_to_files(run: tuple[GroundTruth, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = run
    part, out = truth.select(truth.image_ids[:9]), tmp_path / "out"
    scores = report_by_attribute(part, found, out, title="WIDER FACE", bootstrap=5, against=found)
    assert (scores.images, scores.within) == (9, "hard")
    assert not any(own.ap.value for own in scores.differences if own.faces)
    printed = capsys.readouterr().out
    assert printed.startswith("WIDER FACE, hard\n")
    assert f"{scores.groups[0].ap.value:.4f}" in printed
    content = json.loads((out / "attributes.json").read_text())
    assert content["groups"]["all"]["all"]["ap"] == scores.groups[0].ap.value
    assert content["against"]["predictions"] == str(found)
    assert {path.name for path in out.iterdir()} == FILES | {"events.pdf", "events.png"}
    # Of one event there is no figure of events.
    one_event = truth.select([image_id for image_id in truth.image_ids if image_id.startswith("0--")])
    report_by_attribute(one_event, found, tmp_path / "one", title="WIDER FACE", bootstrap=0)
    assert {path.name for path in (tmp_path / "one").iterdir()} == FILES
