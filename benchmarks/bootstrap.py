"""The bootstrap over images: ours against resampling with a loop, in one process.

    python benchmarks/bootstrap.py [--predictions DIR_OR_ZIP --ground-truth DIR] [--samples 1000] [--loop-samples N]

Without files it makes its own run of 3,226 images with about 650,000 rows (seeded). The loop is what one writes first:
judge the rows once, then per resample gather the rows of the drawn images and build the curves from them. It runs
--loop-samples resamples and its time is scaled up, which the output says. Both sides give the same APs.
"""

import argparse
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from fanet_lightning.score.bootstrap import bootstrap_ap, bootstrap_difference, count_images, read_counts, write_counts
from fanet_lightning.score.curves import POINTS, curve_from_histograms
from fanet_lightning.score.wider_face.average_precision import judge_settings, score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, read_ground_truth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions
from wider_scoring import add_source, source_of, timed


def loop(ground_truth: GroundTruth, predictions: Predictions, samples: int, seed: int = 0) -> dict[str, list[float]]:
    """Setting → AP of each resample."""
    bins, settings = judge_settings(ground_truth, predictions)
    faces = {setting: [int(mask.sum()) for mask in masks] for setting, masks in ground_truth.counted.items()}
    rng = np.random.default_rng(seed)
    images = len(ground_truth.image_ids)
    result: dict[str, list[float]] = {setting: [] for setting in settings}
    for _ in range(samples):
        drawn = rng.integers(0, images, images).tolist()
        rows = np.concatenate([np.arange(predictions.starts[i], predictions.starts[i + 1]) for i in drawn])
        for setting, own in settings.items():
            proposals = np.bincount(bins[rows[own.proposals[rows]]], minlength=POINTS)
            hits = np.bincount(bins[rows[own.hits[rows]]], minlength=POINTS)
            result[setting].append(curve_from_histograms(proposals, hits, sum(faces[setting][i] for i in drawn)).ap)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--loop-samples", type=int, default=50, help="0: all")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source = source_of(parser, options, Path(temporary))
        ground_truth = read_ground_truth(source[1])
        predictions = read_predictions(source[0], ground_truth.image_ids)
        measure(ground_truth, predictions, Path(temporary) / "per_image.npz", options)


def measure(ground_truth: GroundTruth, predictions: Predictions, path: Path, options: argparse.Namespace) -> None:
    images, rows = len(ground_truth.image_ids), len(predictions.scores)
    samples, repeats = options.samples, options.repeats
    counts = count_images(ground_truth, predictions)
    print(f"{images:,} images, {rows:,} rows, {len(counts)} settings, {samples:,} samples")
    print(f"score                  {timed(lambda: score(ground_truth, predictions), repeats):8.2f} s")
    print(f"count_images           {timed(lambda: count_images(ground_truth, predictions), repeats):8.2f} s")
    writing = timed(lambda: write_counts(path, counts), repeats)
    reading = timed(lambda: read_counts(path), repeats)
    size = path.stat().st_size / 1e6
    print(f"per_image.npz          {size:8.2f} MB  (written in {writing:.2f} s, read in {reading:.2f} s)")
    seconds = timed(lambda: bootstrap_ap(counts, samples), repeats)
    print(f"bootstrap_ap           {seconds:8.2f} s")
    paired = timed(lambda: bootstrap_difference(counts, counts, samples), 1)
    print(f"bootstrap_difference   {paired:8.2f} s")
    tracemalloc.start()
    intervals = bootstrap_ap(counts, samples)
    print(f"peak memory next to the counts {tracemalloc.get_traced_memory()[1] / 1e6:.0f} MB")
    tracemalloc.stop()

    looped = samples if options.loop_samples <= 0 else min(options.loop_samples, samples)
    start = time.perf_counter()
    expected = loop(ground_truth, predictions, looped)
    loop_seconds = time.perf_counter() - start
    difference = max(np.abs(intervals[setting].samples[:looped] - aps).max() for setting, aps in expected.items())
    if not difference < 1e-12:
        sys.exit(f"the two sides disagree by {difference}")
    scaled = loop_seconds * samples / looped
    how = "measured" if looped == samples else f"{loop_seconds:.2f} s for {looped} samples, judging included, scaled"
    print(f"loop over resamples    {scaled:8.2f} s  ({how})")
    print(f"ratio: {scaled / seconds:.0f} x; every AP equal to {difference:.0e}")


if __name__ == "__main__":
    main()
