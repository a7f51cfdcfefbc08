"""Run folders as training leaves them, without training: made-up detectors, but real scoring, records and settings."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fanet_lightning.cli.config import canonical, compose_config, plain
from fanet_lightning.cli.provenance import RunRecord
from fanet_lightning.score.bootstrap import count_images, method
from fanet_lightning.score.results import intervals_of, write_scores
from fanet_lightning.score.wider_face.benchmark import scores_from_counts
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

# How likely each cell finds a hard face; the paper's order.
QUALITY = {
    "level1": 0.70, "s3fd_fpn": 0.73, "level2": 0.75, "level2_hl": 0.79, "level3": 0.77, "level3_hl": 0.81,
    "level3_context_hl": 0.85,
}  # fmt: skip
COMMAND = ["/somewhere/fanet_lightning/train.py", "experiment=ablation"]


@cache
def settings_of(cell: str, *words: str) -> Mapping[str, Any]:
    config = compose_config("train", [f"cell={cell}", *words])
    canonical(config)
    return plain(config)


@cache
def synthetic_ground_truth(images: int) -> GroundTruth:
    """Up to eight faces per image, far apart; the first of four is easy, two are medium, all are hard."""
    rng = np.random.default_rng(0)
    boxes, counted = [], {"easy": [], "medium": [], "hard": []}
    for _ in range(images):
        faces = int(rng.integers(0, 9))
        boxes.append(np.array([[100.0 * j, 0, 40, 40] for j in range(faces)]).reshape(-1, 4))
        kind = np.arange(faces) % 4
        for setting, below in (("easy", 1), ("medium", 2), ("hard", 4)):
            counted[setting].append(kind < below)
    return GroundTruth(tuple(f"event/{i}" for i in range(images)), boxes, counted)


def synthetic_predictions(truth: GroundTruth, quality: float, seed: int) -> Predictions:
    """Finds a face when the draw of the face, mostly the same for all detectors, is below its quality."""
    shared, own = np.random.default_rng(1), np.random.default_rng([2, seed, round(quality * 1000)])
    found = {}
    for image_id, xywh in zip(truth.image_ids, truth.boxes_xywh, strict=True):
        faces = len(xywh)
        draw = 0.85 * shared.random(faces) + 0.15 * own.random(faces)
        chance = np.where(np.arange(faces) % 4 < 2, quality + 0.12, quality)
        hits, wrong = xywh[draw < chance], int(own.integers(0, 4))
        rows = np.concatenate([hits, np.array([[100.0 * j, 500, 40, 40] for j in range(wrong)]).reshape(-1, 4)])
        scores = np.concatenate([own.beta(4, 2, len(hits)), own.beta(2, 5, wrong)])
        found[image_id] = (np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1), scores)
    return Predictions.from_detections(found, truth.image_ids)


def evaluated(folder: Path, protocol: str, truth: GroundTruth, predictions: Predictions) -> dict[str, Any]:
    """What ``evaluate`` leaves in ``folder``; returns the entry of ``run.json``."""
    counts = count_images(truth, predictions)
    found = scores_from_counts("synthetic", "synthetic faces", counts, len(truth.image_ids))
    intervals = intervals_of(found, found.resampled(20, 0))
    scores = write_scores(folder, found, intervals, protocol=protocol, made_by={}, intervals_method=method(20))
    return {"folder": folder.name, "ap": scores["ap"], "images": scores["images"], "images_per_second": 5.5}


def make_run(
    sweep: Path,
    cell: str,
    seed: int = 0,
    *,
    words: Sequence[str] = (),
    state: str = "finished",
    error: str | None = None,
    epoch: int | None = None,
    quality: float | None = None,
    images: int = 60,
    protocols: Sequence[str] = (),
    folder: str | None = None,
    truth: GroundTruth | None = None,
    predictions: Predictions | None = None,
) -> Path:
    """A run folder ``<cell>_seed<seed>``; one that is not finished has no scores."""
    out = sweep / (folder or f"{cell}_seed{seed}")
    out.mkdir(parents=True)
    settings = json.loads(json.dumps(settings_of(cell, "trainer.accelerator=cpu", *words)))
    settings |= {"seed": seed, "name": cell, "out": str(out)}
    epochs = settings["epochs"]
    done = epochs if epoch is None else epoch
    record = RunRecord(
        name=cell, seed=seed, settings=settings, state=state, error=error,  # type: ignore[arg-type]
        model={"parameters": 1000, "flops_640x480": 2000},
        train={"starts": 1, "epochs": epochs, "epoch": done, "steps": 50 * done, "seconds": 61.4 * done,
               "images_per_second": 9.25, "skipped_steps": 0, "device": "cpu, 1 threads, x86_64"},
        started="2026-01-02T03:04:05+00:00",
        made_by={"command": [*COMMAND, f"cell={cell}"], "packages": {"torch": "2.14.1"}, "python": "3.11.7",
                 "git_commit": "0123abc"},
    )  # fmt: skip
    if quality is None:
        quality = QUALITY.get(cell, 0.8) + 0.01 * np.random.default_rng([seed, len(cell)]).normal()
    if state == "finished":
        truth = truth or synthetic_ground_truth(images)
        own = predictions or synthetic_predictions(truth, quality, seed)
        name = settings["protocol"]["name"]
        record.scores[name] = evaluated(out / "evaluation", name, truth, own)
        for number, protocol in enumerate(protocols):
            better = synthetic_predictions(truth, quality + 0.02 * (number + 1), seed)
            record.scores[protocol] = evaluated(out / f"evaluation_{protocol}", protocol, truth, better)
    (out / "csv").mkdir()
    lines = ["epoch,step,train/loss,val/ap,val/ap_easy,val/ap_hard,val/ap_medium"]
    for number in range(done):
        ap = quality * (1 - 0.7 ** (number + 1))
        lines.append(f"{number},{50 * number + 49},{5 / (number + 1):.4f},,,,")
        lines.append(f"{number},{50 * number + 49},,{ap},{ap + 0.1},{ap},{ap + 0.05}")
    (out / "csv" / "metrics.csv").write_text("\n".join(lines) + "\n")
    (out / "train.log").write_text("its terminal output\n")
    record.write(out)
    return out


def make_sweep(sweep: Path, **options: Any) -> None:
    """The paper's seven trainings."""
    for cell in QUALITY:
        make_run(sweep, cell, **options)
