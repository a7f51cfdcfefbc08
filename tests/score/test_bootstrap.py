"""Counts per image and the bootstrap over images, against hand-computed cases and slow, obvious versions of both."""

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.score import bootstrap
from fanet_lightning.score.bootstrap import (
    ImageCounts,
    bootstrap_ap,
    bootstrap_difference,
    count_images,
    curve_from_counts,
    read_counts,
    write_counts,
)
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from tests.score import wider_oracle
from tests.score.attribute_oracle import drawn_run
from tests.score.helpers import invalid, refused, rows_of


def counts_of(seed: int, images: int) -> dict[str, ImageCounts]:
    return count_images(*drawn_run(seed, images))


def rebuilt_ap(run: tuple[GroundTruth, Predictions], setting: str, drawn: Sequence[int]) -> float:
    """Slow and obvious: the plain oracle on the rows of the drawn images, laid out as often as drawn.

    The scores keep the normalisation of the whole run: an image without a face that counts, out of all others' way, has
    rows of the least and of the greatest score.
    """
    truth, predictions = run
    ends = [[0.0, 0.0, 9.0, 9.0, score] for score in (predictions.scores.min(), predictions.scores.max())]
    images: list[Any] = [([[0.0, 0.0, 9.0, 9.0]], [False], ends)]
    for i in drawn:
        images.append((truth.boxes_xywh[i].tolist(), truth.counted[setting][i].tolist(), rows_of(predictions, i)))
    return wider_oracle.curve(images)[2] if any(any(counted) for _, counted, _ in images) else math.nan


def drawn_images(images: int, samples: int, seed: int) -> list[list[int]]:
    """The images of each resample, drawn one after the other."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, images, images).tolist() for _ in range(samples)]


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 12), levels=st.sampled_from([1, 5, 1000]))
def test_counts_give_the_curve_of_score_to_the_last_bit(seed: int, images: int, levels: int) -> None:
    run = drawn_run(seed, images, levels=levels)
    counts = count_images(*run)
    curves = score(*run)
    assert list(curves) == list(counts)
    for setting, expected in curves.items():
        for weights in (None, np.ones(images, np.int64), np.ones(images, np.uint8)):
            curve = curve_from_counts(counts[setting], weights)
            for name in ("precision", "recall", "ap", "faces"):
                np.testing.assert_array_equal(getattr(curve, name), getattr(expected, name))


def test_counts_travel_through_their_file(tmp_path: Path) -> None:
    counts = {**counts_of(3, 30), "wide": counts_of(3, 30)["hard"]}
    path = tmp_path / "per_image.npz"
    write_counts(path, counts)
    read = read_counts(path)
    assert list(read) == list(counts)
    for setting, own in counts.items():
        assert read[setting].image_ids == own.image_ids
        for name in ("starts", "bins", "proposals", "hits", "faces"):
            np.testing.assert_array_equal(getattr(read[setting], name), getattr(own, name))
    with np.load(path) as archive:
        whole = dict(archive)

    def saved(**arrays: object) -> bytes:
        content = io.BytesIO()
        np.savez(content, **{name: value for name, value in {**whole, **arrays}.items() if value is not None})
        return content.getvalue()

    for content, expected in (
        (b"event/a 1 2 3\n", ""),
        (path.read_bytes()[:-500], "zip"),
        (saved(version=np.array(9)), "version 9 of the file, this release reads 1"),
        (saved(hits_1=None), "hits_1"),
    ):
        path.write_bytes(content)
        refused(f"per_image.npz cannot be read .*{expected}", read_counts, path)
    refused("No such file", read_counts, tmp_path / "none.npz")


def test_percentiles_by_hand() -> None:
    # 0 … 40 evenly: 2.5 % and 97.5 % of the way are 1 and 39. A NaN is left out.
    interval = bootstrap.interval_of(7.0, np.array([math.nan, *range(40, -1, -1)]))
    assert interval[:3] == pytest.approx((7.0, 1.0, 39.0), abs=1e-12)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), images=st.integers(1, 7), draw=st.integers(0, 99))
def test_every_sample_is_the_ap_of_the_images_laid_out_again(seed: int, images: int, draw: int) -> None:
    run = drawn_run(seed, images)
    for setting, interval in bootstrap_ap(count_images(*run), samples=6, seed=draw).items():
        expected = [rebuilt_ap(run, setting, drawn) for drawn in drawn_images(images, 6, draw)]
        np.testing.assert_allclose(interval.samples, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [1, 2**21])
def test_chunks_and_precision_change_nothing(monkeypatch: pytest.MonkeyPatch, factor: int) -> None:
    """With a factor of 2**21 the counts leave what float32 holds exactly, and with odd numbers rounding would show."""
    counts = {
        setting: ImageCounts(own.image_ids, own.starts, own.bins, own.proposals * factor + 1, own.hits, own.faces)
        for setting, own in counts_of(1, 23).items()
    }
    whole = bootstrap_ap(counts, samples=40, seed=5)
    for setting, interval in whole.items():
        weights = [np.bincount(drawn, minlength=23) for drawn in drawn_images(23, 40, 5)]
        expected = [curve_from_counts(counts[setting], own).ap for own in weights]
        np.testing.assert_allclose(interval.samples, expected, rtol=1e-13, atol=0)
    monkeypatch.setattr(bootstrap, "_SAMPLES_AT_ONCE", 7)
    monkeypatch.setattr(bootstrap, "_IMAGES_AT_ONCE", 5)
    for at_once in (8_000_000, 60, 1):
        monkeypatch.setattr(bootstrap, "_NUMBERS_AT_ONCE", at_once)
        for setting, interval in bootstrap_ap(counts, samples=40, seed=5).items():
            np.testing.assert_array_equal(interval.samples, whole[setting].samples)


def test_a_difference_is_paired() -> None:
    a, b = (count_images(*drawn_run(5, 300, levels=levels)) for levels in (50, 5))
    differences, of_a, of_b = bootstrap_difference(a, b, seed=2), bootstrap_ap(a, seed=2), bootstrap_ap(b, seed=2)
    for setting in ("easy", "hard"):
        paired = of_a[setting].samples - of_b[setting].samples
        np.testing.assert_allclose(differences[setting].samples, paired, rtol=0, atol=1e-15)
        assert differences[setting].value == of_a[setting].value - of_b[setting].value
    # The same images are hard for both, so the paired interval is narrower than that of two independent sets.
    unpaired = of_a["hard"].samples - bootstrap_ap(b, seed=3)["hard"].samples
    width = differences["hard"].high - differences["hard"].low
    assert width < 0.8 * np.subtract(*np.quantile(unpaired, [0.975, 0.025]))
    own = a["hard"]
    for other in (
        {"easy": own},
        {"hard": replace(own, faces=own.faces + 1)},
        {"hard": replace(own, image_ids=own.image_ids[::-1])},
    ):
        invalid("the runs differ", bootstrap_difference, {"hard": own}, other)
