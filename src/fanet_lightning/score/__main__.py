"""``fanet score``: predictions and ground truth → numbers with intervals, for every benchmark."""

import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable, read_image_list
from fanet_lightning.cli.main import check_whole, run, verb_config
from fanet_lightning.cli.provenance import (
    PREDICTIONS_FOLDER,
    TrainedOn,
    list_beside,
    made_by,
    scores_entry,
    trained_on_by_list,
)
from fanet_lightning.score.bootstrap import method
from fanet_lightning.score.results import (
    SCORES_FILE,
    Benchmark,
    Intervals,
    Scores,
    check_out,
    comparison,
    differences_of,
    intervals_of,
    print_difference,
    print_scores,
    write_scores,
)
from fanet_lightning.score.wider_face.predictions import write_submission

if TYPE_CHECKING:
    from omegaconf import DictConfig


# Name → module and class. A benchmark imports scipy, OpenCV or pycocotools; only what the one asked for needs is waited
# for.
_CLASSES = {
    "wider_face": ("wider_face.benchmark", "WiderFaceBenchmark"),
    "fddb": ("fddb.benchmark", "FddbBenchmark"),
    "pascal_face": ("pascal_face.benchmark", "PascalFaceBenchmark"),
    "afw": ("pascal_face.benchmark", "AfwBenchmark"),
    "coco": ("coco", "CocoBenchmark"),
}
NAMES = tuple(_CLASSES)


def build_benchmark(name: str, **options: Any) -> Benchmark[Any]:
    """The benchmark of a ``benchmark`` group of the configuration: its ``name``, the rest as arguments.

    Raises:
        InputError: an unknown name, or an argument that this benchmark does not take.
    """
    if name not in NAMES:
        raise InputError(f"benchmark={name} is not known; choose one of {', '.join(NAMES)}")
    module, class_name = _CLASSES[name]
    try:
        built: Benchmark[Any] = getattr(import_module(f"fanet_lightning.score.{module}"), class_name)(**options)
    except TypeError as error:
        raise InputError(f"benchmark={name}: {error}") from error
    return built


USAGE = (
    "fanet score [benchmark=wider_face] predictions=DIR ground_truth=DIR [against=DIR] "
    "[images=LIST] [trained_on=LIST] [out=DIR] [bootstrap=1000] [strict=true] [attributes=true] "
    "[errors=true pictures=DIR]"
)
SPLITS = ("val", "test")
TEST_NAMES = "wider_face_test_filelist.txt"


@dataclass(frozen=True, eq=False)
class Scored:
    """Numbers of predictions, with what can be said about other images and other predictions.

    ``intervals``   of each number, over images; empty where none were asked for.
    ``truth``       the ground truth that was scored against, of the benchmark's own kind.
    ``other``       scores of the predictions that these are compared with.
    ``differences`` paired intervals of scored - other.
    ``trained_on``  how many of the images the detector was trained on; None where nothing tells.
    ``other_trained_on`` the same of ``other``.
    """

    scores: Scores
    intervals: Intervals
    truth: Any
    other: Scores | None = None
    differences: Intervals = field(default_factory=dict)
    trained_on: TrainedOn | None = None
    other_trained_on: TrainedOn | None = None


def score_predictions(
    predictions: Path,
    ground_truth: Path,
    *,
    benchmark: Benchmark[Any] | str = "wider_face",
    images: Path | None = None,
    strict: bool = False,
    bootstrap: int = 1000,
    against: Path | None = None,
    trained_on: Path | None = None,
) -> Scored:
    """Score prediction files against official ground truth.

    Args:
        predictions: what is scored, in the benchmark's own format.
        ground_truth: the benchmark's official files.
        benchmark: one of those that :func:`build_benchmark` knows, or its name.
        images: a list that restricts everything, the normalisation of WIDER's scores too, to its images.
        strict: an image without predictions is an error.
        bootstrap: resamples behind the intervals; 0: no intervals.
        against: other predictions for the same images; adds the paired differences to them.
        trained_on: list of the images that the detector was trained on; by default the one that ``evaluate`` has put
            next to ``predictions``.

    Raises:
        InputError: an unknown benchmark, files that are missing or do not hold what they should, or no ``bootstrap``
            with ``against``.
    """
    if against is not None and not bootstrap:
        raise InputError("bootstrap=0 leaves nothing to say about a difference; with against= give a number above 0")
    if isinstance(benchmark, str):
        benchmark = build_benchmark(benchmark)
    truth = benchmark.read_ground_truth(ground_truth, images)
    scores = benchmark.score(truth, predictions, strict=strict)
    seen = _trained_on(scores, predictions, trained_on)
    samples = scores.resampled(bootstrap, 0) if bootstrap else {}
    intervals = intervals_of(scores, samples) if bootstrap else {}
    if against is None:
        return Scored(scores, intervals, truth, trained_on=seen)
    other = benchmark.score(truth, against, strict=strict)
    differences = differences_of(scores, other, samples, other.resampled(bootstrap, 0))
    return Scored(scores, intervals, truth, other, differences, seen, _trained_on(other, against, None))


def predictions_of(path: Path) -> Path:
    """``path``, or the predictions in it where it is the folder of a whole evaluation, ``out`` of ``evaluate``."""
    inside = path / PREDICTIONS_FOLDER
    return inside if (path / SCORES_FILE).is_file() and inside.is_dir() else path


def _trained_on(scores: Scores, predictions: Path, given: Path | None) -> TrainedOn | None:
    path = given or list_beside(predictions)
    return None if path is None else trained_on_by_list(path, scores.image_ids, scores.benchmark)


def main(argv: list[str]) -> int:
    """Print the table, write ``out`` where it is given; 0 when all went well."""
    config = verb_config("score", argv, USAGE, ("predictions", "ground_truth"))
    if config is None:
        return 0
    _check_values(config)
    out, images, against, pictures, trained_on = (
        None if config[key] is None else Path(str(config[key]))
        for key in ("out", "images", "against", "pictures", "trained_on")
    )
    predictions, ground_truth = predictions_of(Path(str(config.predictions))), Path(str(config.ground_truth))
    against = None if against is None else predictions_of(against)
    if out is not None:
        check_writable(out)
    if config.split == "test":
        _pack(predictions, ground_truth, out)
        return 0
    if out is not None:
        check_out(out)
    scored = score_predictions(
        predictions,
        ground_truth,
        benchmark=build_benchmark(**plain(config)["benchmark"]),
        images=images,
        strict=config.strict,
        bootstrap=config.bootstrap,
        against=against,
        trained_on=trained_on,
    )
    _report(scored, against)
    origin = made_by(["python", "-m", "fanet_lightning.score", *argv])
    if out is not None:
        write_scores(
            out,
            scored.scores,
            scored.intervals,
            protocol=None,
            made_by=origin,
            intervals_method=method(config.bootstrap) if config.bootstrap else None,
            against=None if scored.other is None else comparison(str(against), scored.other, scored.differences),
            further=scores_entry(scored.trained_on),
        )
        print(f"written: {out / SCORES_FILE}, the curves and what belongs to them")
    if config.attributes or config.errors:
        # Draws with matplotlib.
        from fanet_lightning.report.error_gallery import report_by_attribute, report_errors

        title = scored.scores.headline
        if config.attributes:
            report_by_attribute(
                scored.truth, predictions, out, title=title, bootstrap=config.bootstrap, against=against, made_by=origin
            )
        if config.errors:
            title = f"{title}: {predictions.name}"
            missing = report_errors(scored.truth, predictions, out, title=title, pictures=pictures, worst=config.worst)
            if missing:
                print(f"warning: {missing}", file=sys.stderr)
    return 0


def _check_values(config: "DictConfig") -> None:
    check_whole(config, worst=1, bootstrap=0)
    if config.split not in SPLITS:
        raise InputError(f"split={config.split} is unknown; take val, or test for the archive that is sent in")
    of_wider = {"attributes": config.attributes, "errors": config.errors, "split=test": config.split == "test"}
    asked = [word for word, is_given in of_wider.items() if is_given]
    if asked and config.benchmark.name != "wider_face":
        raise InputError(f"{asked[0]} is for benchmark=wider_face; leave it out for {config.benchmark.name}")
    if config.pictures is not None and not (config.errors and Path(str(config.pictures)).is_dir()):
        raise InputError(f"pictures={config.pictures}: give the folder of the event folders, and errors=true")


def _pack(predictions: Path, names: Path, out: Path | None) -> None:
    """``split=test``: no labels are public, so nothing is scored; the archive for the test server is written."""
    listed = next((path for path in (names, names / TEST_NAMES) if path.is_file()), None)
    if out is None or listed is None:
        raise InputError(f"split=test writes an archive: give out=DIR, and {TEST_NAMES} or its folder as ground_truth=")
    archive = out / "submission.zip"
    packed = write_submission(archive, predictions, [image_id for _, image_id in read_image_list(listed)])
    print(f"written: {archive}, {len(packed.scores):,} boxes of {len(packed.image_ids):,} images, read back and whole")


def _report(scored: Scored, against: Path | None) -> None:
    warnings = [*scored.scores.warnings, scored.trained_on and scored.trained_on.warning]
    if scored.other is not None:
        others = [*scored.other.warnings, scored.other_trained_on and scored.other_trained_on.warning]
        warnings += [f"{against}: {warning}" for warning in others if warning]
    for warning in filter(None, warnings):
        print(f"warning: {warning}", file=sys.stderr)
    print_scores(scored.scores, scored.intervals)
    if scored.other is not None:
        print_difference(f"difference to {against}, paired over images", scored.other, scored.differences)


if __name__ == "__main__":
    run(main)
