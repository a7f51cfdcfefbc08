"""WIDER FACE scoring: against a slow oracle and the numbers of the official tool; the published curves."""

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.score.curves import average_precision
from fanet_lightning.score.inputs import read_selection
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import SETTINGS, read_ground_truth
from fanet_lightning.score.wider_face.predictions import read_predictions
from fanet_lightning.score.wider_face.published import FILE, method_name, published_curve, published_methods
from tests.score import wider_oracle
from tests.score.helpers import FACE, invalid, pack, random_run, refused


def test_face_of_negative_width_is_missed_and_takes_no_row() -> None:
    # The official files have one. Its area of -24 and the first row's 24 would give 0 / 0.
    faces, rows = [(1026, 474, -2, 23), FACE], [(0, 0, 0, 23, 0.9), (*FACE, 1.0), (500, 500, 9, 9, 0.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves = score(*pack([(faces, {"hard": [True, True]}, rows)]))
    assert curves["hard"].ap == pytest.approx(0.5)


def test_different_images_are_refused() -> None:
    ground_truth, predictions = pack([([FACE], {"hard": [True]}, [])] * 2)
    invalid("1 images and predictions of 2", score, ground_truth.select(ground_truth.image_ids[:1]), predictions)


@pytest.mark.parametrize("block", range(4))
def test_equals_the_oracle(block: int) -> None:
    hits = 0
    for case in range(100):
        images = random_run(random.Random(1000 * block + case))
        curves = score(*pack(images))
        for setting, curve in curves.items():
            one = [(faces, counted[setting], rows) for faces, counted, rows in images]
            precision, recall, ap = wider_oracle.curve(one)
            assert curve.precision.tolist() == precision, (block, case, setting)
            assert curve.recall.tolist() == recall, (block, case, setting)
            assert curve.ap == pytest.approx(ap if curve.faces else math.nan, abs=1e-12, nan_ok=True)
            hits += recall[-1] > 0
    assert hits > 25  # the cases are not all trivial


def test_numbers_of_the_official_tool(shared_data: Path) -> None:
    whole = read_ground_truth(shared_data / "wider_face" / "eval_gt")
    assert whole.faces_per_setting == {"easy": 7211, "medium": 13319, "hard": 31958}
    archive = shared_data / "predictions" / "retinaface_mnet025_wider_val.zip"
    listed = tuple(read_selection(shared_data / "wider_face" / "test.txt", whole.image_ids))
    for ids, images, expected in (
        (whole.image_ids, 3226, {"easy": 0.907076, "medium": 0.881650, "hard": 0.738273}),
        (listed, 320, {"easy": 0.887357, "medium": 0.869241, "hard": 0.754050}),
    ):
        assert len(ids) == images
        curves = score(whole.select(ids), read_predictions(archive, ids, known_ids=whole.image_ids))
        assert {setting: round(curve.ap, 6) for setting, curve in curves.items()} == expected


def test_every_curve_gives_its_published_ap() -> None:
    assert FILE.stat().st_size < 400_000
    assert (len(published_methods("val")), len(published_methods("test"))) == (40, 41)
    assert list(published_methods()["FANet"].values()) == [0.9562, 0.9475, 0.8954]
    for split in ("val", "test"):
        for method, settings in published_methods(split).items():
            assert list(settings) == list(SETTINGS)
            for setting, ap in settings.items():
                precision, recall = published_curve(method, split, setting)
                assert not precision.flags.writeable
                assert round(average_precision(precision, recall), 4) == ap, (split, method, setting)
                assert (np.diff(recall) >= 0).all() and precision.min() >= 0 and precision.max() <= 1


def test_names_people_use() -> None:
    assert method_name("s3fd") == "SFD"
    assert method_name("fanet") == "FANet"
    assert method_name("FAN") == "FAN"  # Face Attention Network, another paper
    refused(r"'FANnet'.*FANet", method_name, "FANnet")
    refused("split=train", published_methods, "train")
