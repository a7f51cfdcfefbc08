"""Two kinds of uncertainty, kept apart: other images of the same kind, and the same model trained with another seed.

Over images: paired bootstrap of the trained networks as they are (:mod:`fanet_lightning.scoring.bootstrap`). Over
seeds: the standard deviation between runs, and for a difference the t interval of its mean over the seeds that both
sides have. Neither is ever added to the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fanet_lightning.reporting.gather import Evaluation, Run
from fanet_lightning.scoring.bootstrap import CONFIDENCE, Interval, bootstrap_ap

if TYPE_CHECKING:
    from fanet_lightning.scoring.per_image import ImageCounts

Evaluations = Mapping[int, Evaluation]  # seed → how its run did


class Bounds(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Estimate:
    """AP, or a difference of two, in [-1, 1].

    ``value``       mean over seeds, on the images as they are.
    ``per_seed``    seed → value.
    ``over_images`` bootstrap interval of the mean, the networks held fixed; None without counts per image.
    ``seed_sd``     standard deviation between seeds (n - 1); None with one seed.
    ``over_seeds``  t interval of the mean over seeds; None with one seed.
    ``missing``     why there is no interval over images.
    """

    value: float
    per_seed: dict[int, float]
    over_images: Bounds | None
    seed_sd: float | None
    over_seeds: Bounds | None
    missing: str | None = None

    @property
    def seeds(self) -> int:
        return len(self.per_seed)


class Resampler:
    """Bootstrap over images, each evaluation resampled once, the same images for all.

    Args:
        samples: resamples; 0: no interval.
        seed: of the draw.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        self.samples, self._seed = samples, seed
        self._known: dict[int, dict[str, Interval]] = {}
        self._alive: list[Evaluation] = []  # an id stays taken as long as its object lives

    def ap(self, evaluations: Evaluations, setting: str) -> Estimate | None:
        """AP over the seeds of one cell; None where no seed has that setting."""
        per_seed = {seed: own.ap[setting] for seed, own in sorted(evaluations.items()) if setting in own.ap}
        if not per_seed:
            return None
        return self._estimate(per_seed, [(1.0, evaluations[seed]) for seed in per_seed], setting)

    def difference(self, after: Evaluations, before: Evaluations, setting: str) -> Estimate | None:
        """AP(after) - AP(before) over the seeds that both sides have; None where they share none."""
        shared = [
            seed
            for seed in sorted(set(after) & set(before))
            if setting in after[seed].ap and setting in before[seed].ap
        ]
        if not shared:
            return None
        per_seed = {seed: after[seed].ap[setting] - before[seed].ap[setting] for seed in shared}
        sides = [(1.0, after[seed]) for seed in shared] + [(-1.0, before[seed]) for seed in shared]
        return self._estimate(per_seed, sides, setting)

    def _estimate(
        self, per_seed: dict[int, float], sides: Sequence[tuple[float, Evaluation]], setting: str
    ) -> Estimate:
        values = np.array(list(per_seed.values()))
        over_images, missing = None, self._why_not([own for _, own in sides], setting)
        if missing is None:
            drawn = [sign * self._samples(own, setting) for sign, own in sides]
            over_images = _percentiles(np.sum(drawn, axis=0) / len(per_seed))
            missing = None if over_images else "no face counts"
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return Estimate(float(values.mean()), per_seed, over_images, sd, _t_interval(values), missing)

    def _samples(self, evaluation: Evaluation, setting: str) -> npt.NDArray[np.float64]:
        if id(evaluation) not in self._known:
            self._known[id(evaluation)] = bootstrap_ap(evaluation.counts, self.samples, self._seed)
            self._alive.append(evaluation)
        return self._known[id(evaluation)][setting].samples

    def _why_not(self, evaluations: Sequence[Evaluation], setting: str) -> str | None:
        if self.samples == 0:
            return "switched off"
        counts = [own.counts.get(setting) for own in evaluations]
        present = [own for own in counts if own is not None]
        if len(present) < len(counts):
            return "no counts per image"
        if not all(_same_images(present[0], own) for own in present[1:]):
            return "scored on different images"
        return None if present[0].image_ids else "no image"


def _same_images(a: "ImageCounts", b: "ImageCounts") -> bool:
    return a.image_ids == b.image_ids and np.array_equal(a.faces, b.faces)


def _percentiles(samples: npt.NDArray[np.float64]) -> Bounds | None:
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return None
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [outside, 1 - outside])
    return Bounds(float(low), float(high))


def _t_interval(values: npt.NDArray[np.float64]) -> Bounds | None:
    """Student's interval of the mean of (n,) values, n ≥ 2."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Bounds(float(values.mean()) - half, float(values.mean()) + half)


class Verdict(NamedTuple):
    """``word`` for the reader, ``kind``: ``shows``, ``reversed``, ``unclear`` or ``none`` (nothing to judge)."""

    word: str
    kind: str


def verdict(difference: Estimate | None, paper_points: float) -> Verdict:
    """Whether a difference has the sign of the paper's.

    It counts as seen when the interval over images excludes 0, and with several seeds the interval over seeds, too;
    each is asked by itself.

    Args:
        difference: ours; None where runs are missing.
        paper_points: the paper's; 0 means that the paper sees none.
    """
    if difference is None:
        return Verdict("", "none")
    if difference.over_images is None:
        return Verdict(f"no interval: {difference.missing}", "none")
    if difference.over_images.holds_zero:
        return Verdict("not distinguishable", "unclear")
    if difference.over_seeds is not None and difference.over_seeds.holds_zero:
        return Verdict("not distinguishable: seeds differ", "unclear")
    rises = difference.over_images.low > 0
    suffix = " (one seed)" if difference.seeds == 1 else ""
    if paper_points == 0:
        return Verdict(f"{'gain' if rises else 'loss'}, paper none{suffix}", "unclear")
    return (
        Verdict(f"shows{suffix}", "shows") if rises == (paper_points > 0) else Verdict(f"reversed{suffix}", "reversed")
    )


def by_seed(runs: Sequence[Run], protocol: str) -> dict[int, Evaluation]:
    """Seed → evaluation under a protocol, of those runs that have one."""
    return {run.record.seed: run.evaluations[protocol] for run in runs if protocol in run.evaluations}
