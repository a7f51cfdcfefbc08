"""``python -m fanet_lightning.score``: predictions and ground truth → average precision."""

import sys
from dataclasses import dataclass
from pathlib import Path

from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable
from fanet_lightning.scoring.curves import Curve

BENCHMARKS = ("wider_face",)
USAGE = (
    "python -m fanet_lightning.score predictions=DIR ground_truth=DIR "
    "[benchmark=wider_face] [images=LIST] [out=DIR] [strict=true]"
)


@dataclass(frozen=True, eq=False)
class Scored:
    """``curves`` per setting, over ``images`` of the ``images_of_benchmark`` that the ground truth has.

    ``warning`` is one line for the person at the command line, or None.
    """

    curves: dict[str, Curve]
    images: int
    images_of_benchmark: int
    warning: str | None

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
) -> Scored:
    """Score a folder or ``.zip`` of prediction files against a folder of ground truth.

    ``images`` is a list that restricts everything, the normalisation of the scores too, to its images.

    Raises:
        InputError: an unknown benchmark, or files that are missing or do not hold what they should.
    """
    if benchmark not in BENCHMARKS:
        raise InputError(f"benchmark={benchmark} is not known; choose one of {', '.join(BENCHMARKS)}")
    # scipy takes a quarter of a second; --help and a mistaken key must not wait for it.
    from fanet_lightning.scoring.ground_truth import read_ground_truth, read_selection
    from fanet_lightning.scoring.predictions import read_predictions
    from fanet_lightning.scoring.wider_face import score

    whole = read_ground_truth(ground_truth)
    part = whole if images is None else whole.select(read_selection(images, whole.image_ids))
    read = read_predictions(predictions, part.image_ids, known_ids=whole.image_ids, strict=strict)
    return Scored(score(part, read), len(part.image_ids), len(whole.image_ids), read.missing_line())


def main(argv: list[str]) -> int:
    """Print the table, write ``out`` where it is given; 0 when all went well."""
    from fanet_lightning.cli import verb_config
    from fanet_lightning.scoring.results import CURVES_FILE, SCORES_FILE, made_by, print_table, write_results

    config = verb_config("score", argv, USAGE, ("predictions", "ground_truth"))
    if config is None:
        return 0
    if not isinstance(config.strict, bool):
        raise InputError(f"strict={config.strict} is neither true nor false")
    out = None if config.out is None else Path(str(config.out))
    if out is not None:
        check_writable(out)
    scored = score_predictions(
        Path(str(config.predictions)),
        Path(str(config.ground_truth)),
        benchmark=str(config.benchmark),
        images=None if config.images is None else Path(str(config.images)),
        strict=config.strict,
    )
    if scored.warning:
        print(f"warning: {scored.warning}", file=sys.stderr)
    print_table(scored.title, scored.curves)
    if out is not None:
        command = ["python", "-m", "fanet_lightning.score", *argv]
        write_results(
            out,
            benchmark=str(config.benchmark),
            protocol=None,
            curves=scored.curves,
            images=scored.images,
            made_by=made_by(command),
        )
        print(f"written: {out / SCORES_FILE} and {out / CURVES_FILE}")
    return 0


if __name__ == "__main__":
    from fanet_lightning.cli import run

    run(main)
