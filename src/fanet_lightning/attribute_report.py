"""The breakdown by attribute of WIDER FACE predictions from end to end: files in; table, files and figures out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fanet_lightning.attribute_plots import attribute_figure, event_figure
from fanet_lightning.errors import InputError
from fanet_lightning.figure_style import save_figure
from fanet_lightning.scoring.attribute_results import print_attributes, write_attributes
from fanet_lightning.scoring.attributes import AT_PRECISION, AttributeScores, score_attributes
from fanet_lightning.scoring.bootstrap import SAMPLES
from fanet_lightning.scoring.ground_truth import GroundTruth
from fanet_lightning.scoring.predictions import Predictions, read_predictions


def report_attributes(
    ground_truth: GroundTruth,
    predictions: Path,
    out: Path | None = None,
    *,
    title: str = "WIDER FACE",
    samples: int = SAMPLES,
    seed: int = 0,
    within: str = "hard",
    at_precision: float = AT_PRECISION,
    against: Path | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> AttributeScores:
    """Print the table of a folder or ``.zip`` of predictions, and write everything into ``out`` where it is given.

    Args:
        ground_truth: of the images to score; a selection is scored as such.
        predictions: in the official text layout; an image without a file counts as one without a detection.
        out: folder of :func:`write_report`.
        title: data and protocol, over table and figures.
        samples, seed, within, at_precision: see :func:`fanet_lightning.scoring.attributes.score_attributes`.
        against: other predictions for the same images; adds the paired differences to them.
        made_by: see :func:`fanet_lightning.scoring.results.made_by`.

    Raises:
        InputError: predictions that are missing or malformed, no such setting, numbers out of range, ``out`` cannot be
            written.
    """
    if not 0 < at_precision <= 1:
        raise InputError(f"at_precision={at_precision} is no precision; give a number above 0, at most 1")
    if samples < 0:
        raise InputError(f"bootstrap={samples} is no number of resamples; give one above 0, or 0 for no intervals")
    scores = score_attributes(
        ground_truth,
        _read(predictions, ground_truth),
        samples,
        seed,
        within=within,
        at_precision=at_precision,
        against=None if against is None else _read(against, ground_truth),
    )
    other = None if against is None else str(against)
    title = f"{title}, {within}"
    print_attributes(scores, title, other)
    if out is not None:
        write_report(out, scores, title=title, against=other, made_by=made_by)
    return scores


def write_report(
    out: Path,
    scores: AttributeScores,
    *,
    title: str,
    against: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> list[Path]:
    """``attributes.json``, ``.csv``, ``.md`` and the figures ``attributes`` and ``events`` (PDF, PNG) in ``out``.

    An ``events`` figure of an earlier report is removed where the images are of one event.

    Args:
        out: folder, made if need be.
        scores: of a run.
        title: data, protocol and setting.
        against: name of the other run.
        made_by: see :func:`fanet_lightning.scoring.results.made_by`.

    Returns:
        What was written.

    Raises:
        InputError: ``out`` cannot be written.
    """
    paths = write_attributes(out, scores, title=title, against=against, made_by=made_by)
    figures = {"attributes": attribute_figure(scores, title)}
    if any(score.attribute == "event" for score in scores.groups):
        figures["events"] = event_figure(scores, title)
    try:
        for name, figure in figures.items():
            paths += save_figure(figure, out / name)
        if "events" not in figures:
            for suffix in (".pdf", ".png"):
                (out / f"events{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror}); free it or give another folder") from error
    return paths


def _read(source: Path, ground_truth: GroundTruth) -> Predictions:
    return read_predictions(source, ground_truth.image_ids, known_ids=ground_truth.whole_ids)
