"""``python -m fanet_lightning.score``: predictions and ground truth → average precision."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable
from fanet_lightning.scoring.curves import Curve

if TYPE_CHECKING:
    from fanet_lightning.scoring.bootstrap import Interval
    from fanet_lightning.scoring.per_image import ImageCounts

BENCHMARKS = ("wider_face",)
USAGE = (
    "python -m fanet_lightning.score predictions=DIR ground_truth=DIR "
    "[against=DIR] [benchmark=wider_face] [images=LIST] [out=DIR] [bootstrap=1000] [strict=true]"
)


@dataclass(frozen=True, eq=False)
class Scored:
    """Curves per setting, over ``images`` of the ``images_of_benchmark`` that the ground truth has.

    ``counts``      per setting, what each image adds.
    ``intervals``   of AP per setting, over images; empty where none were asked for.
    ``warnings``    one line each for the person at the command line.
    ``other``       curves of the predictions that these are compared with; empty without such.
    ``differences`` paired AP - AP(other) per setting.
    """

    curves: dict[str, Curve]
    counts: "dict[str, ImageCounts]"
    intervals: "dict[str, Interval]"
    images: int
    images_of_benchmark: int
    warnings: tuple[str, ...]
    other: dict[str, Curve]
    differences: "dict[str, Interval]"

    @property
    def title(self) -> str:
        """Names the part where it is not the whole: such a number does not compare with published ones."""
        if self.images == self.images_of_benchmark:
            return f"WIDER FACE, {self.images:,} images"
        return f"WIDER FACE sample, {self.images:,} of {self.images_of_benchmark:,} images"


def score_predictions(
    predictions: Path,
    ground_truth: Path,
    *,
    benchmark: str = "wider_face",
    images: Path | None = None,
    strict: bool = False,
    bootstrap: int = 1000,
    against: Path | None = None,
) -> Scored:
    """Score a folder or ``.zip`` of prediction files against a folder of ground truth.

    Args:
        predictions: what is scored.
        ground_truth: folder of the official ``.mat`` files.
        benchmark: by name.
        images: a list that restricts everything, the normalisation of the scores too, to its images.
        strict: an image without a prediction file is an error.
        bootstrap: resamples behind the intervals; 0: no intervals.
        against: other predictions for the same images; adds the paired differences to them.

    Raises:
        InputError: an unknown benchmark, files that are missing or do not hold what they should, a negative
            ``bootstrap``, or none of it with ``against``.
    """
    if benchmark not in BENCHMARKS:
        raise InputError(f"benchmark={benchmark} is not known; choose one of {', '.join(BENCHMARKS)}")
    if bootstrap < 0:
        raise InputError(f"bootstrap={bootstrap} is no number of resamples; give one above 0, or 0 for no intervals")
    if against is not None and bootstrap == 0:
        raise InputError("bootstrap=0 leaves nothing to say about a difference; with against= give a number above 0")
    # scipy takes a quarter of a second; --help and a mistaken key must not wait for it.
    from fanet_lightning.scoring.bootstrap import bootstrap_ap, bootstrap_difference
    from fanet_lightning.scoring.ground_truth import read_ground_truth, read_selection
    from fanet_lightning.scoring.per_image import count_images, curve_from_counts
    from fanet_lightning.scoring.predictions import read_predictions

    whole = read_ground_truth(ground_truth)
    part = whole if images is None else whole.select(read_selection(images, whole.image_ids))
    found, warnings = [], []
    for source in [predictions] if against is None else [predictions, against]:
        read = read_predictions(source, part.image_ids, known_ids=whole.image_ids, strict=strict)
        missing = read.missing_line()
        if missing:
            warnings.append(missing if source == predictions else f"{source}: {missing}")
        found.append(count_images(part, read))
    curves = [{setting: curve_from_counts(own) for setting, own in counts.items()} for counts in found]
    return Scored(
        curves=curves[0],
        counts=found[0],
        intervals=bootstrap_ap(found[0], bootstrap) if bootstrap else {},
        images=len(part.image_ids),
        images_of_benchmark=len(whole.image_ids),
        warnings=tuple(warnings),
        other=curves[1] if against is not None else {},
        differences=bootstrap_difference(found[0], found[1], bootstrap) if against is not None else {},
    )


def main(argv: list[str]) -> int:
    """Print the table, write ``out`` where it is given; 0 when all went well."""
    from fanet_lightning.cli import verb_config

    config = verb_config("score", argv, USAGE, ("predictions", "ground_truth"))
    if config is None:
        return 0
    if not isinstance(config.strict, bool):
        raise InputError(f"strict={config.strict} is neither true nor false")
    if not isinstance(config.bootstrap, int) or isinstance(config.bootstrap, bool):
        raise InputError(
            f"bootstrap={config.bootstrap} is not a whole number; it counts the resamples, 0: no intervals"
        )
    from fanet_lightning.scoring.bootstrap import method
    from fanet_lightning.scoring.results import (
        SCORES_FILE,
        comparison,
        made_by,
        print_difference,
        print_table,
        write_results,
    )

    out, images, against = (
        None if config[key] is None else Path(str(config[key])) for key in ("out", "images", "against")
    )
    if out is not None:
        check_writable(out)
    scored = score_predictions(
        Path(str(config.predictions)),
        Path(str(config.ground_truth)),
        benchmark=str(config.benchmark),
        images=images,
        strict=config.strict,
        bootstrap=config.bootstrap,
        against=against,
    )
    for warning in scored.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print_table(scored.title, scored.curves, scored.intervals)
    if against is not None:
        print_difference(f"difference to {against}, paired over images", scored.other, scored.differences)
    if out is not None:
        command = ["python", "-m", "fanet_lightning.score", *argv]
        write_results(
            out,
            benchmark=str(config.benchmark),
            protocol=None,
            curves=scored.curves,
            images=scored.images,
            made_by=made_by(command),
            per_image=scored.counts,
            intervals=scored.intervals,
            intervals_method=method(config.bootstrap),
            against=None if against is None else comparison(str(against), scored.other, scored.differences),
        )
        print(f"written: {out / SCORES_FILE}, the curves and the counts per image beside it")
    return 0


if __name__ == "__main__":
    from fanet_lightning.cli import run

    run(main)
