"""The statistics of a report: estimates with their intervals, verdicts, the steps of the paper's ablation.

Two kinds of uncertainty, kept apart: other images of the same kind, and the same model trained with another seed.

Over images: paired bootstrap of the trained networks as they are (:mod:`fanet_lightning.score.bootstrap`). Over
seeds: the standard deviation between runs, and for a difference the t interval of its mean over the seeds that both
sides have. Neither is ever added to the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from fanet_lightning.report.runs import STEPS, Evaluation, Step
from fanet_lightning.score.bootstrap import CONFIDENCE, bootstrap_ap, interval_of
from fanet_lightning.score.wider_face.ground_truth import SETTINGS

Evaluations = Mapping[int, Evaluation]  # seed → how its run did
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """AP, or a difference of two, in [-1, 1]: ``value`` is the mean over seeds, on the images as they are.

    ``over_images`` 95 % bootstrap interval of the mean, the networks held fixed; None, and why it is ``missing``.
    ``seed_sd``     standard deviation between seeds (n - 1); None with one seed.
    ``over_seeds``  95 % t interval of the mean over seeds; None with one seed.
    """

    value: float
    per_seed: dict[int, float]
    over_images: Bounds | None
    seed_sd: float | None
    over_seeds: Bounds | None
    missing: str | None = None


class Resampler:
    """Bootstrap over images, each evaluation resampled once, the same images for all; ``samples`` 0: no interval."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._resampled = cache(lambda evaluation: bootstrap_ap(evaluation.counts, samples))

    def estimate(self, setting: str, after: Evaluations, before: Evaluations | None = None) -> Estimate | None:
        """AP(after), less AP(before) where that is given, over the seeds that have both; None where none has."""
        sides = [(1.0, after), *([] if before is None else [(-1.0, before)])]
        seeds = sorted(set.intersection(*({seed for seed in own if setting in own[seed].ap} for _, own in sides)))
        if not seeds:
            return None
        values = np.array([sum(sign * own[seed].ap[setting] for sign, own in sides) for seed in seeds])
        terms = [(sign, own[seed]) for sign, own in sides for seed in seeds]
        over_images, over_seeds, sd = None, None, None
        missing = self._why_not([own for _, own in terms], setting)
        if missing is None:
            own_samples = [sign * self._resampled(own)[setting].samples for sign, own in terms]
            samples = np.sum(own_samples, axis=0) / len(seeds)
            over_images = interval_of(float(values.mean()), samples)[1:3]
        if len(seeds) > 1:
            sd = float(values.std(ddof=1))
            half = float(stdtrit(len(seeds) - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(len(seeds))
            over_seeds = (float(values.mean()) - half, float(values.mean()) + half)
        per_seed = dict(zip(seeds, values.tolist(), strict=True))
        return Estimate(float(values.mean()), per_seed, over_images, sd, over_seeds, missing)

    def _why_not(self, evaluations: Sequence[Evaluation], setting: str) -> str | None:
        if self.samples == 0:
            return "switched off"
        counts = [own.counts[setting] for own in evaluations if setting in own.counts]
        if len(counts) < len(evaluations):
            return "no counts per image"
        first = counts[0]
        if any(own.image_ids != first.image_ids or not np.array_equal(own.faces, first.faces) for own in counts[1:]):
            return "scored on different images"
        return None


class Verdict(NamedTuple):
    """``word`` for the reader, ``kind``: ``shows``, ``reversed``, ``unclear`` or ``none`` (nothing to judge)."""

    word: str
    kind: str


def verdict(difference: Estimate, paper_points: float | None = None) -> Verdict:
    """Whether a difference is there, and has the sign of the paper's; 0: the paper sees none; None: nothing of it.

    It counts as seen when the interval over images excludes 0, and with several seeds the interval over seeds, too;
    each is asked by itself.
    """
    if difference.over_images is None:
        return Verdict(f"no interval: {difference.missing}", "none")
    for bounds, word in ((difference.over_images, ""), (difference.over_seeds, ": seeds differ")):
        if bounds is not None and bounds[0] <= 0 <= bounds[1]:
            return Verdict(f"not distinguishable{word}", "unclear")
    rises = difference.over_images[0] > 0
    suffix = "" if difference.over_seeds else " (one seed)"
    if paper_points == 0:
        return Verdict(f"{'gain' if rises else 'loss'}, paper none{suffix}", "unclear")
    if paper_points is None:
        return Verdict(f"{'higher' if rises else 'lower'}{suffix}", "shows" if rises else "reversed")
    kind = "shows" if rises == (paper_points > 0) else "reversed"
    return Verdict(f"{kind}{suffix}", kind)


class StepResult(NamedTuple):
    """A step of the paper in one setting."""

    step: Step
    setting: str
    ours: Estimate
    paper_points: float
    verdict: Verdict


def steps(by_cell: Mapping[str, Evaluations], resampler: Resampler) -> list[StepResult]:
    """The paper's steps in every setting, of those with both sides, and a seed in common, among the runs.

    ``by_cell``: the paper's name of a network (``level2_hl``) → seed → how it did.
    """
    results = []
    for step in STEPS:
        for setting in SETTINGS if step.after in by_cell and step.before in by_cell else ():
            ours = resampler.estimate(setting, by_cell[step.after], by_cell[step.before])
            if ours is not None:
                paper = step.difference_percent(setting)
                results.append(StepResult(step, setting, ours, paper, verdict(ours, paper)))
    return results
