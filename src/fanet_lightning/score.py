"""``python -m fanet_lightning.score``: predictions and ground truth → numbers with intervals, for every benchmark."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fanet_lightning.scoring.benchmark import Benchmark, Scores
    from fanet_lightning.scoring.results import Intervals

USAGE = (
    "python -m fanet_lightning.score predictions=DIR ground_truth=DIR "
    "[against=DIR] [benchmark=wider_face] [images=LIST] [out=DIR] [bootstrap=1000] [strict=true]"
)


@dataclass(frozen=True, eq=False)
class Scored:
    """Numbers of predictions, with what can be said about other images and other predictions.

    ``intervals``   of each number, over images; empty where none were asked for.
    ``other``       scores of the predictions that these are compared with.
    ``differences`` paired intervals of scored - other.
    """

    scores: "Scores"
    intervals: "Intervals"
    other: "Scores | None" = None
    differences: "Intervals" = field(default_factory=dict)


def score_predictions(
    predictions: Path,
    ground_truth: Path,
    *,
    benchmark: "Benchmark[Any] | str" = "wider_face",
    images: Path | None = None,
    strict: bool = False,
    bootstrap: int = 1000,
    against: Path | None = None,
) -> Scored:
    """Score prediction files against official ground truth.

    Args:
        predictions: what is scored, in the benchmark's own format.
        ground_truth: the benchmark's official files.
        benchmark: one of :mod:`fanet_lightning.scoring.benchmarks`, or its name.
        images: a list that restricts everything, the normalisation of WIDER's scores too, to its images.
        strict: an image without predictions is an error.
        bootstrap: resamples behind the intervals; 0: no intervals.
        against: other predictions for the same images; adds the paired differences to them.

    Raises:
        InputError: an unknown benchmark, files that are missing or do not hold what they should, a negative
            ``bootstrap``, or none of it with ``against``.
    """
    if bootstrap < 0:
        raise InputError(f"bootstrap={bootstrap} is no number of resamples; give one above 0, or 0 for no intervals")
    if against is not None and bootstrap == 0:
        raise InputError("bootstrap=0 leaves nothing to say about a difference; with against= give a number above 0")
    # scipy takes a quarter of a second; --help and a mistaken key must not wait for it.
    from fanet_lightning.scoring.benchmarks import build_benchmark
    from fanet_lightning.scoring.results import differences_of, intervals_of

    if isinstance(benchmark, str):
        benchmark = build_benchmark(benchmark)
    truth = benchmark.read_ground_truth(ground_truth, images)
    scores = benchmark.score(truth, predictions, strict=strict)
    other = None if against is None else benchmark.score(truth, against, strict=strict)
    if not bootstrap:
        return Scored(scores, {})
    samples = scores.resampled(bootstrap, 0)
    differences = {} if other is None else differences_of(scores, other, samples, other.resampled(bootstrap, 0))
    return Scored(scores, intervals_of(scores, samples), other, differences)


def main(argv: list[str]) -> int:
    """Print the table, write ``out`` where it is given; 0 when all went well."""
    from fanet_lightning.cli import verb_config

    config = verb_config("score", argv, USAGE, ("predictions", "ground_truth"))
    if config is None:
        return 0
    _check_types(config)
    out, images, against = (
        None if config[key] is None else Path(str(config[key])) for key in ("out", "images", "against")
    )
    from fanet_lightning.config import plain
    from fanet_lightning.scoring.benchmarks import build_benchmark

    benchmark = build_benchmark(**plain(config)["benchmark"])
    if out is not None:
        check_writable(out)
    scored = score_predictions(
        Path(str(config.predictions)),
        Path(str(config.ground_truth)),
        benchmark=benchmark,
        images=images,
        strict=config.strict,
        bootstrap=config.bootstrap,
        against=against,
    )
    _report(scored, against)
    if out is not None:
        _write(scored, out, argv, against, config.bootstrap)
    return 0


def _check_types(config: "DictConfig") -> None:
    if not isinstance(config.strict, bool):
        raise InputError(f"strict={config.strict} is neither true nor false")
    if not isinstance(config.bootstrap, int) or isinstance(config.bootstrap, bool):
        raise InputError(
            f"bootstrap={config.bootstrap} is not a whole number; it counts the resamples, 0: no intervals"
        )


def _report(scored: Scored, against: Path | None) -> None:
    from fanet_lightning.scoring.results import print_difference, print_scores

    other = () if scored.other is None else tuple(f"{against}: {warning}" for warning in scored.other.warnings)
    for warning in (*scored.scores.warnings, *other):
        print(f"warning: {warning}", file=sys.stderr)
    print_scores(scored.scores, scored.intervals)
    if scored.other is not None:
        print_difference(f"difference to {against}, paired over images", scored.other, scored.differences)


def _write(scored: Scored, out: Path, argv: list[str], against: Path | None, bootstrap: int) -> None:
    from fanet_lightning.scoring.bootstrap import method
    from fanet_lightning.scoring.results import SCORES_FILE, comparison, made_by, write_scores

    write_scores(
        out,
        scored.scores,
        scored.intervals,
        protocol=None,
        made_by=made_by(["python", "-m", "fanet_lightning.score", *argv]),
        intervals_method=method(bootstrap) if bootstrap else None,
        against=None if scored.other is None else comparison(str(against), scored.other, scored.differences),
    )
    print(f"written: {out / SCORES_FILE}, the curves and what belongs to them beside it")


if __name__ == "__main__":
    from fanet_lightning.cli import run

    run(main)
