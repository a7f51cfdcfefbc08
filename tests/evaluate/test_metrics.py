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
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from fanet_lightning.evaluate.metrics import CocoAP, FddbRoc, PascalFaceAP, WiderFaceAP
from fanet_lightning.ops.structures import EvalBatch
from fanet_lightning.score.coco import CocoBenchmark, CocoDetections, CocoGroundTruth
from fanet_lightning.score.fddb.benchmark import FddbBenchmark, FddbPredictions
from fanet_lightning.score.pascal_face.benchmark import PascalFaceBenchmark
from fanet_lightning.score.results import Scores
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from fanet_lightning.train.module import FaceDetectionModule
from tests.evaluate.metric_cases import SCENARIOS, Shown, arguments, as_numbers, metrics, shown
from tests.score.helpers import invalid

NAMES = ["wider", "wider_shown", "coco", "coco_shown", "pascal", "pascal_shown", "fddb"]


@pytest.fixture(scope="module")
def images() -> list[Shown]:
    return shown()


@pytest.fixture(scope="module")
def expected(images: list[Shown]) -> dict[str, dict[str, float]]:
    """What the scorers say, called as a person would."""
    found = {image.image_id: (image.boxes_xyxy.double().numpy(), image.scores.double().numpy()) for image in images}
    truths = {name: metric.ground_truth for name, metric in metrics(images).items()}
    ids = truths["wider"].image_ids
    curves = score(truths["wider"], Predictions.from_detections(found, ids))
    coco: Scores = CocoBenchmark().score_detections(
        truths["coco"], CocoDetections.from_detections(found, truths["coco"])
    )
    pascal = PascalFaceBenchmark().score_detections(truths["pascal"], found).values["ap"]
    fddb = FddbBenchmark().score_predictions(truths["fddb"], FddbPredictions.from_detections(found, ids)).values
    return {
        "wider": {setting: curve.ap for setting, curve in curves.items()},
        "wider_shown": {"all": curves["easy"].ap},
        "coco": dict(coco.values["ap"]),
        "coco_shown": dict(coco.values["ap"]),
        "pascal": dict(pascal),
        "pascal_shown": dict(pascal),
        "fddb": {f"{kind}_{at}": value for kind, own in fddb.items() for at, value in own.items()},
    }


def same(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
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
    script = Path(__file__).with_name("metric_cases.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
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


class Watched(FaceDetectionModule):
    """Shows its detections to the metric as well."""

    def __init__(self, metric: WiderFaceAP) -> None:
        super().__init__({"level": 1, "context": False, "hl": False, "width": 0.0625}, detection={"keep": 40})
        self.metric = metric

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        own = [self.detections[image_id] for image_id in batch.image_ids]
        self.metric.update(batch.image_ids, [item.boxes_xyxy for item in own], [item.scores for item in own])


class Drawn(LightningDataModule):
    def __init__(self, ground_truth: GroundTruth) -> None:
        super().__init__()
        self.ground_truth = ground_truth

    def val_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        batches = [
            EvalBatch(
                torch.randint(0, 256, (1, 3, 96, 128), generator=generator, dtype=torch.uint8),
                torch.tensor([[0.5, 0.75]]), [f"event/{i}"],
            )
            for i in range(4)
        ]  # fmt: skip
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Attribute 'metric' is an instance")
def test_the_training_loop_logs_the_same_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = tuple(f"event/{i}" for i in range(5))  # one that is not shown: an image without a detection
    nothing = GroundTruth(ids, [np.empty((0, 4))] * 5, {"all": [np.zeros(0, np.bool_)] * 5})
    module = Watched(WiderFaceAP(nothing))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.validate(module, Drawn(nothing), verbose=False)
    # Faces where the untrained network happens to look, so that there is something to find.
    boxes = [module.detections[image_id].boxes_xyxy.double().numpy()[::7] for image_id in ids[:4]]
    boxes = [np.column_stack([own[:, :2], own[:, 2:] - own[:, :2]]) for own in [*boxes, np.array([[0.0, 0, 9, 9]])]]
    counted = [np.arange(len(own)) % 3 > 0 for own in boxes]
    truth = GroundTruth(ids, boxes, {"easy": counted, "hard": [np.ones(len(own), np.bool_) for own in boxes]})
    module.metric = WiderFaceAP(truth)
    (logged,) = trainer.validate(module, Drawn(truth), verbose=False)
    found = as_numbers(module.metric.compute())
    assert found == {setting: curve.ap for setting, curve in module.curves.items()}
    assert 0.02 < found["easy"] < found["hard"] < 1
    assert logged["val/ap_easy"] == pytest.approx(found["easy"], abs=1e-6)


def test_images_that_were_not_shown_count_as_empty_with_ground_truth_and_not_at_all_without(
    images: list[Shown],
) -> None:
    found = {image.image_id: (image.boxes_xyxy.double().numpy(), image.scores.double().numpy()) for image in images[:6]}
    metric = metrics(images)["wider"]
    metric.update(*arguments("wider", images[:6]))
    truth: GroundTruth = metric.ground_truth
    whole = score(truth, Predictions.from_detections(found, truth.image_ids))
    same(as_numbers(metric.compute()), {setting: curve.ap for setting, curve in whole.items()})
    part = score(truth.select(list(found)), Predictions.from_detections(found, found))
    metric = WiderFaceAP()
    metric.update(*arguments("wider_shown", images[:6]))
    assert metric.compute()["all"].item() == part["easy"].ap != pytest.approx(whole["easy"].ap)


def test_the_first_showing_of_an_image_stays(images: list[Shown], expected: dict[str, dict[str, float]]) -> None:
    metric = metrics(images)["wider_shown"]
    metric.update(*arguments("wider_shown", images))
    other = [image._replace(scores=image.scores.flip(0), faces_xyxy=image.faces_xyxy + 9) for image in images]
    metric.update(*arguments("wider_shown", other))
    same(as_numbers(metric.compute()), expected["wider_shown"])
    metric.reset()
    metric.update(*arguments("wider_shown", other))
    assert as_numbers(metric.compute()) != expected["wider_shown"]


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
    copies = [copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metrics(images)[name], metrics(images)[name]]
    metric.persistent(True)
    copies[2].load_state_dict(metric.state_dict())
    copies[2]._update_count = 1
    copies[3].merge_state(metric)
    copies[3]._update_count = 1
    metric.update(*arguments(name, images[7:]))
    same(as_numbers(metric.compute()), expected[name])
    for other in copies:
        other.update(*arguments(name, images[7:]))
        same(as_numbers(other.compute()), expected[name])
    collection = MetricCollection({name: metrics(images)[name]})
    collection.update(*arguments(name, images))
    same(as_numbers(collection.compute()), expected[name])
    metric.reset()
    assert metric.shown == [] and metric.update_count == 0
    for image in images:
        metric.update(*arguments(name, [image]))
    same(as_numbers(metric.compute()), expected[name])


def test_values_live_where_the_metric_does_and_inputs_anywhere(images: list[Shown]) -> None:
    metric = WiderFaceAP().to("meta")  # a device that holds no numbers: the detections must not go there
    metric.update(*arguments("wider_shown", images))
    assert {part.device.type for part in metric.shown} == {"cpu"}
    assert metric.compute()["all"].device.type == "meta"
    half = WiderFaceAP()
    boxes, scores = torch.tensor([[0, 0, 8, 8]]), torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)
    half.update(["a"], [boxes], [scores], [boxes.float()])
    assert half.compute()["all"].item() == 1.0


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
    ("given", "message"),
    [
        ((["a"], [ONE, ONE], [SCORE]), r"\[2, 1, 1\]"),
        (("a", [ONE], [SCORE]), "1 image ids"),
        ((["a"], [ONE[0]], [SCORE]), r"a: .*\(4,\).*\(1,\)"),
        ((["a"], [ONE], [SCORE[:0]]), r"a: .*\(1, 4\).*\(0,\)"),
        ((["a"], [ONE * float("nan")], [SCORE]), "a: .*finite"),
        ((["a"], [ONE], [SCORE / 0]), "a: .*finite"),
        ((["a"], [-ONE], [SCORE]), "a: .*finite"),
    ],
)
def test_mistakes_are_named_and_leave_nothing_behind(given: Any, message: str) -> None:
    metric = WiderFaceAP()
    invalid(message, metric.update, *given, [ONE])
    assert metric.shown == []


def test_more_mistakes(images: list[Shown]) -> None:
    metric = metrics(images)["wider"]
    invalid("'x'", metric.update, [images[0].image_id, "x"], [ONE, ONE], [SCORE, SCORE])
    assert metric.shown == []
    invalid("faces_xyxy", metric.update, [images[0].image_id], [ONE], [SCORE], [ONE])
    invalid("faces_xyxy", WiderFaceAP().update, ["a"], [ONE], [SCORE])
    invalid("ignored", metric.update, [images[0].image_id], [ONE], [SCORE], None, [torch.tensor([True])])
    invalid(r"a: .*\(1, 4\).*\(2,\)", WiderFaceAP().update, ["a"], [ONE], [SCORE], [ONE], [torch.tensor([True, False])])
    truth = CocoGroundTruth.from_faces({"a": ([], [])})
    two = replace(truth, categories=("x", "y"))
    invalid("2 categories", CocoAP, two)
    assert FddbRoc(metrics(images)["fddb"].ground_truth, ellipses="inscribed").benchmark.ellipses == "inscribed"
