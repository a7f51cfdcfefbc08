"""The benchmarks as torchmetrics classes: the numbers of the scorers, over any batches and any ranks."""

import copy
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from fanet_lightning.evaluate.metrics import CocoAP, PascalFaceAP, WiderFaceAP
from fanet_lightning.score.coco import CocoBenchmark, CocoDetections, CocoGroundTruth
from fanet_lightning.score.fddb.benchmark import FddbBenchmark, FddbPredictions
from fanet_lightning.score.pascal_face.benchmark import PascalFaceBenchmark
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from tests.evaluate.metric_cases import SCENARIOS, Shown, arguments, as_numbers, metrics, shown
from tests.score.helpers import invalid

NAMES = ["wider", "wider_shown", "coco", "coco_shown", "pascal", "pascal_shown", "fddb"]


@pytest.fixture(scope="module")
def images() -> list[Shown]:
    return shown()


@pytest.fixture(scope="module")
def expected(images: list[Shown]) -> dict[str, dict[str, float]]:
    """What the scorers say, called as a person would."""
    found = found_in(images)
    truths = {name: metric.ground_truth for name, metric in metrics(images).items()}
    ids = truths["wider"].image_ids
    curves = score(truths["wider"], Predictions.from_detections(found, ids))
    detections = CocoDetections.from_detections(found, truths["coco"])
    coco = dict(CocoBenchmark().score_detections(truths["coco"], detections).values["ap"])
    pascal = dict(PascalFaceBenchmark().score_detections(truths["pascal"], found).values["ap"])
    fddb = FddbBenchmark().score_predictions(truths["fddb"], FddbPredictions.from_detections(found, ids)).values
    return {
        "wider": {setting: curve.ap for setting, curve in curves.items()},
        "wider_shown": {"all": curves["easy"].ap},
        "coco": coco, "coco_shown": coco, "pascal": pascal, "pascal_shown": pascal,
        "fddb": {f"{kind}_{at}": value for kind, own in fddb.items() for at, value in own.items()},
    }  # fmt: skip


def found_in(images: list[Shown]) -> dict[str, Any]:
    return {image.image_id: (image.boxes_xyxy.double().numpy(), image.scores.double().numpy()) for image in images}


def same(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 12))
def test_any_batches_in_any_order_with_any_repeats_give_the_scorers_numbers(
    images: list[Shown], expected: dict[str, dict[str, float]], name: str, seed: int, size: int
) -> None:
    rng = np.random.default_rng(seed)
    order = [*rng.permutation(len(images)).tolist(), *rng.integers(0, len(images), 3).tolist()]
    metric = metrics(images)[name]
    for first in range(0, len(order), size):
        metric.update(*arguments(name, [images[i] for i in order[first : first + size]]))
    same(as_numbers(metric.compute()), expected[name])


@pytest.mark.slow
def test_two_ranks_see_the_numbers_of_one_and_of_the_training_loop(
    tmp_path: Path, expected: dict[str, dict[str, float]]
) -> None:
    command = [sys.executable, str(Path(__file__).with_name("metric_cases.py"))]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    ranks = [subprocess.Popen([*command, str(rank), "2", str(tmp_path)], **streams) for rank in range(2)]
    try:
        for process in ranks:
            output = process.communicate(timeout=300)[0]
            assert process.returncode == 0, output
    finally:
        for process in ranks:
            process.kill()
    for scenario in SCENARIOS:
        for rank in range(2):
            values = json.loads((tmp_path / f"{scenario}_{rank}.json").read_text())
            for name in NAMES:
                same(values[name], expected[name])
            same(values["module"], expected["wider"])


def test_images_that_were_not_shown_count_as_empty_with_ground_truth_and_not_at_all_without(
    images: list[Shown],
) -> None:
    found = found_in(images[:6])
    metric = metrics(images)["wider"]
    metric.update(*arguments("wider", images[:6]))
    truth: GroundTruth = metric.ground_truth
    whole = score(truth, Predictions.from_detections(found, truth.image_ids))
    same(as_numbers(metric.compute()), {setting: curve.ap for setting, curve in whole.items()})
    part = score(truth.select(list(found)), Predictions.from_detections(found, found))
    metric = WiderFaceAP()
    metric.update(*arguments("wider_shown", images[:6]))
    assert metric.compute()["all"].item() == part["easy"].ap != pytest.approx(whole["easy"].ap)


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_about_its_batch_and_compute_about_all(
    images: list[Shown], expected: dict[str, dict[str, float]], name: str
) -> None:
    metric = metrics(images)[name]
    first = as_numbers(metric(*arguments(name, images[:7])))
    second = as_numbers(metric(*arguments(name, images[7:])))
    assert metric.update_count == 2
    same(as_numbers(metric.compute()), expected[name])
    alone = metrics(images[7:])[name]
    alone.update(*arguments(name, images[7:]))
    same(second, as_numbers(alone.compute()))
    assert first != second


@pytest.mark.parametrize("name", NAMES)
def test_copies_pickles_states_resets(images: list[Shown], expected: dict[str, dict[str, float]], name: str) -> None:
    metric = metrics(images)[name]
    metric.update(*arguments(name, images[:7]))
    assert not metric.state_dict()
    loaded, merged = metrics(images)[name], metrics(images)[name]
    metric.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    merged.merge_state(metric)
    loaded._update_count = merged._update_count = 1
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), loaded, merged):
        other.update(*arguments(name, images[7:]))
        same(as_numbers(other.compute()), expected[name])
    metric.reset()
    assert metric.shown == [] and metric.update_count == 0
    collection = MetricCollection({name: metric})
    collection.update(*arguments(name, images))
    same(as_numbers(collection.compute()), expected[name])


@pytest.mark.parametrize("kind", [WiderFaceAP, CocoAP, PascalFaceAP])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_any_image_or_face_there_is_no_value(kind: Any) -> None:
    metric = kind()
    assert all(torch.isnan(value) for value in metric.compute().values())
    metric.update(["a"], [torch.empty(0, 4)], [torch.empty(0)], [torch.empty(0, 4)])
    assert all(torch.isnan(value) for value in metric.compute().values())
    metric.update(["b"], [torch.tensor([])], [torch.tensor([])], [torch.tensor([[0.0, 0, 50, 50]])])
    assert metric.compute()["all"] == 0


ONE = torch.tensor([[0.0, 0, 5, 5]])
SCORE = torch.tensor([0.5])


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("wider_shown", (["a"], [ONE, ONE], [SCORE], [ONE]), r"\[2, 1, 1\]"),
        ("wider_shown", ("a", [ONE], [SCORE], [ONE]), "1 image ids"),
        ("wider_shown", (["a"], [ONE[0]], [SCORE], [ONE]), r"a: .*\(4,\).*\(1,\)"),
        ("wider_shown", (["a"], [ONE], [SCORE[:0]], [ONE]), r"a: .*\(1, 4\).*\(0,\)"),
        ("wider_shown", (["a"], [ONE * float("nan")], [SCORE], [ONE]), "a: .*finite"),
        ("wider_shown", (["a"], [ONE], [SCORE / 0], [ONE]), "a: .*finite"),
        ("wider_shown", (["a"], [-ONE], [SCORE], [ONE]), "a: .*finite"),
        ("wider_shown", (["a"], [ONE], [SCORE]), "faces_xyxy"),
        ("wider", (["9--Fête/00", "x"], [ONE, ONE], [SCORE, SCORE]), "'x'"),
        ("wider", (["9--Fête/00"], [ONE], [SCORE], [ONE]), "faces_xyxy"),
        ("wider", (["9--Fête/00"], [ONE], [SCORE], None, [SCORE > 0]), "ignored"),
    ],
)
def test_mistakes_are_named_and_leave_nothing_behind(images: list[Shown], name: str, given: Any, message: str) -> None:
    metric = metrics(images)[name]
    invalid(message, metric.update, *given)
    assert metric.shown == []


def test_coco_is_of_one_category() -> None:
    truth = CocoGroundTruth.from_faces({"a": ([], [])})
    invalid("2 categories", CocoAP, replace(truth, categories=("x", "y")))
