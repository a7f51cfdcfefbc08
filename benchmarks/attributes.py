"""AP and recall by attribute: ours against scoring every group on its own, in one process.

    python benchmarks/attributes.py [--predictions DIR_OR_ZIP --ground-truth DIR] [--samples 1000] [--loop-groups N]

Without files it makes its own run of 3,226 images with about 650,000 rows and random labels (seeded). The loop is what
one writes first: per group a ground truth whose other faces are not counted, scored and resampled on its own. Groups by
label only, which need no more than that; it takes --loop-groups of them, and its time is scaled up, which the output
says. Both sides give the same APs and resamples.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from fanet_lightning.score.analysis.attributes import (
    ATTRIBUTES,
    LABELS,
    AttributeScores,
    Group,
    attribute_groups,
    score_attributes,
)
from fanet_lightning.score.bootstrap import Interval, bootstrap_ap, count_images
from fanet_lightning.score.wider_face.ground_truth import ATTRIBUTE_VALUES, GroundTruth, read_ground_truth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions
from wider_scoring import add_source, source_of, timed


def loop(ground_truth: GroundTruth, predictions: Predictions, groups: list[Group], samples: int) -> list[Interval]:
    """AP of each group and its interval, one group after the other."""
    ends = np.cumsum([len(boxes) for boxes in ground_truth.boxes_xywh])[:-1]
    intervals = []
    for group in groups:
        masked = replace(ground_truth, counted={"group": np.split(group.faces, ends)})
        intervals.append(bootstrap_ap(count_images(masked, predictions), samples)["group"])
    return intervals


def labelled(ground_truth: GroundTruth, seed: int = 0) -> GroundTruth:
    """The same faces with random labels, the first value the most frequent."""
    rng = np.random.default_rng(seed)
    labels = {
        name: [rng.binomial(len(values) - 1, 0.2, len(boxes)).astype(np.int8) for boxes in ground_truth.boxes_xywh]
        for name, values in ATTRIBUTE_VALUES.items()
    }
    return replace(ground_truth, attributes=labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_source(parser)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--loop-groups", type=int, default=3, help="0: all by label")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        source = source_of(parser, options, Path(temporary))
        ground_truth = read_ground_truth(source[1])
        predictions = read_predictions(source[0], ground_truth.image_ids)
    measure(ground_truth if ground_truth.attributes else labelled(ground_truth), predictions, options)


def measure(ground_truth: GroundTruth, predictions: Predictions, options: argparse.Namespace) -> None:
    samples = options.samples
    groups = attribute_groups(ground_truth)
    print(f"{len(ground_truth.image_ids):,} images, {len(predictions.scores):,} rows, {len(groups)} groups")
    without = timed(lambda: score_attributes(ground_truth, predictions, 0), options.repeats)
    print(f"every group, no interval         {without:8.2f} s")
    kept: list[AttributeScores] = []
    ours = timed(lambda: kept.append(score_attributes(ground_truth, predictions, samples)), options.repeats)
    print(f"every group, {samples:,} resamples    {ours:8.2f} s")
    scores = {(own.attribute, own.value): own for own in kept[-1].groups}
    for attribute in ATTRIBUTES:
        own = [f"{s.value} {s.ap.value:.4f}" for s in kept[-1].groups if s.attribute == attribute]
        print(f"  AP by {attribute}: " + ", ".join(own[:7]) + (", …" if len(own) > 7 else ""))

    by_label = [group for group in groups if group.attribute in LABELS]
    some = by_label if options.loop_groups <= 0 else by_label[: options.loop_groups]
    start = time.perf_counter()
    expected = loop(ground_truth, predictions, some, samples)
    seconds = time.perf_counter() - start
    for group, interval in zip(some, expected, strict=True):
        found = scores[group.attribute, group.value].ap
        if found.value != interval.value or not np.array_equal(found.samples, interval.samples, equal_nan=True):
            sys.exit(f"the two sides disagree on {group.attribute} {group.value}: {found.value} and {interval.value}")
    scaled = seconds * len(groups) / len(some)
    print(f"loop, group after group          {scaled:8.2f} s  ({seconds:.2f} s for {len(some)} groups, scaled)")
    print(f"ratio: {scaled / ours:.0f} x; every AP and resample of the {len(some)} groups equal to the last bit")


if __name__ == "__main__":
    main()
