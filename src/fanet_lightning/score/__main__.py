"""``fanet score``: predictions and ground truth → numbers with intervals, for every benchmark."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError, check
from fanet_lightning.cli.files import check_writable, read_image_list
from fanet_lightning.cli.main import check_whole, run, verb_config
from fanet_lightning.cli.provenance import (
    PREDICTIONS_FOLDER,
    TrainedOn,
    list_beside,
    made_by,
    read_training_images,
    scores_entry,
    trained_on,
)
from fanet_lightning.score.bootstrap import method
from fanet_lightning.score.inputs import check_choice
from fanet_lightning.score.results import (
    SCORES_FILE,
    Benchmark,
    Scores,
    check_out,
    comparison,
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
USAGE = (
    "fanet score [benchmark=wider_face] predictions=DIR ground_truth=DIR [against=DIR] "
    "[images=LIST] [trained_on=LIST] [out=DIR] [bootstrap=1000] [strict=true] [attributes=true] "
    "[errors=true pictures=DIR]"
)
TEST_NAMES = "wider_face_test_filelist.txt"


def main(argv: list[str]) -> int:
    """Print the table, write ``out`` where it is given; 0 when all went well."""
    config = verb_config("score", argv, USAGE, ("predictions", "ground_truth"))
    if config is None:
        return 0
    _check_values(config)
    out, images, against, pictures, listed = (
        None if config[key] is None else Path(str(config[key]))
        for key in ("out", "images", "against", "pictures", "trained_on")
    )
    predictions, ground_truth = _predictions_of(Path(str(config.predictions))), Path(str(config.ground_truth))
    against = None if against is None else _predictions_of(against)
    if out is not None:
        check_writable(out)
    if config.split == "test":
        _pack(predictions, ground_truth, out)
        return 0
    if out is not None:
        check_out(out)
    options = plain(config)["benchmark"]
    module, class_name = _CLASSES[options.pop("name")]
    benchmark: Benchmark[Any] = getattr(import_module(f"fanet_lightning.score.{module}"), class_name)(**options)
    truth = benchmark.read_ground_truth(ground_truth, images)
    scores, seen = _scored(benchmark, truth, predictions, config.strict, listed)
    samples = scores.resampled(config.bootstrap, 0) if config.bootstrap else {}
    intervals = intervals_of(scores, samples) if samples else {}
    said = None
    if against is not None:
        other, _ = _scored(benchmark, truth, against, config.strict, None, f"{against}: ")
        differences, said = comparison(str(against), scores, other, samples, other.resampled(config.bootstrap, 0))
    print_scores(scores, intervals)
    if against is not None:
        print_difference(f"difference to {against}, paired over images", other, differences)
    origin = made_by(["python", "-m", "fanet_lightning.score", *argv])
    if out is not None:
        write_scores(
            out, scores, intervals, protocol=None, made_by=origin, against=said, further=scores_entry(seen),
            intervals_method=method(config.bootstrap),
        )  # fmt: skip
        print(f"written: {out / SCORES_FILE}, the curves and what belongs to them")
    if config.attributes or config.errors:
        # Draws with matplotlib.
        from fanet_lightning.report.error_gallery import report_by_attribute, report_errors

        if config.attributes:
            report_by_attribute(
                truth, predictions, out, title=scores.headline, bootstrap=config.bootstrap, against=against,
                made_by=origin,
            )  # fmt: skip
        if config.errors:
            title = f"{scores.headline}: {predictions.name}"
            report_errors(truth, predictions, out, title=title, pictures=pictures, worst=config.worst)
    return 0


def _check_values(config: "DictConfig") -> None:
    check_whole(config, worst=1, bootstrap=0)
    name = config.benchmark.name
    check_choice("benchmark", name, _CLASSES)
    check_choice("split", config.split, ("val", "test"))
    of_wider = {"attributes": config.attributes, "errors": config.errors, "split=test": config.split == "test"}
    for word, asked in of_wider.items():
        check(name == "wider_face" or not asked, f"{word} is for benchmark=wider_face; leave it out for {name}")
    fits = config.pictures is None or (config.errors and Path(str(config.pictures)).is_dir())
    check(fits, f"pictures={config.pictures}: give the folder of the event folders, and errors=true")
    words = "bootstrap=0 leaves nothing to say about a difference; with against= give a number above 0"
    check(config.against is None or config.bootstrap, words)
    for key in ("images", "against", "trained_on", "attributes", "errors") if config.split == "test" else ():
        words = f"{key}={config[key]}: split=test packs predictions and scores nothing; leave it out"
        check(not config[key], words)


def _predictions_of(path: Path) -> Path:
    """``path``, or the predictions in it where it is the folder of a whole evaluation, ``out`` of ``evaluate``."""
    inside = path / PREDICTIONS_FOLDER
    return inside if (path / SCORES_FILE).is_file() and inside.is_dir() else path


def _scored(
    benchmark: Benchmark[Any], truth: Any, predictions: Path, strict: bool, listed: Path | None, label: str = ""
) -> tuple[Scores, TrainedOn | None]:
    """Scores, and how many of the images were trained on (None: nothing tells); warnings are printed."""
    scores = benchmark.score(truth, predictions, strict=strict)
    listed, seen = listed or list_beside(predictions), None
    if listed is not None:
        parts, (data, split) = read_training_images(listed)
        seen = trained_on(parts, scores.image_ids, data or scores.benchmark, split)
    for warning in filter(None, [*scores.warnings, seen and seen.warning]):
        print(f"warning: {label}{warning}", file=sys.stderr)
    return scores, seen


def _pack(predictions: Path, names: Path, out: Path | None) -> None:
    """``split=test``: no labels are public, so nothing is scored; the archive for the test server is written."""
    listed = next((path for path in (names, names / TEST_NAMES) if path.is_file()), None)
    if out is None or listed is None:
        raise InputError(f"split=test writes an archive: give out=DIR, and {TEST_NAMES} or its folder as ground_truth=")
    archive = out / "submission.zip"
    packed = write_submission(archive, predictions, [image_id for _, image_id in read_image_list(listed)])
    print(f"written: {archive}, {len(packed.scores):,} boxes of {len(packed.image_ids):,} images")


if __name__ == "__main__":
    run(main)
