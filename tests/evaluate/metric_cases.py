"""Images with faces and detections of every benchmark, and what one rank of several shows to the metrics.

    python tests/evaluate/metric_cases.py RANK RANKS FOLDER

runs one gloo rank on the CPU and leaves its values as JSON in FOLDER.
"""

import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from fanet_lightning.evaluate.metrics import CocoAP, FddbRoc, PascalFaceAP, WiderFaceAP
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.coco import CocoGroundTruth
from fanet_lightning.score.fddb.ground_truth import FddbGroundTruth
from fanet_lightning.score.pascal_face.ground_truth import PascalFaceGroundTruth
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.train.module import FaceDetectionModule

IMAGES = 12
SCENARIOS = ("padded", "one_has_none")


class Shown(NamedTuple):
    image_id: str
    boxes_xyxy: torch.Tensor
    scores: torch.Tensor
    faces_xyxy: torch.Tensor
    ignored: torch.Tensor


def shown(seed: int = 0) -> list[Shown]:
    """Faces of 30 to 100 pixels, some found with an error, some not, and false positives; names beyond ASCII."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(IMAGES):
        low = rng.uniform(0, 300, (rng.integers(0, 5), 2))
        faces = np.concatenate([low, low + rng.uniform(30, 100, low.shape)], axis=1)
        found = faces[rng.random(len(faces)) < 0.8]
        found = found + rng.normal(0, 6, found.shape)
        other = rng.uniform(0, 300, (rng.integers(0, 4), 2))
        rows = np.concatenate([found, np.concatenate([other, other + rng.uniform(20, 90, other.shape)], axis=1)])
        scores, ignored = torch.from_numpy(rng.random(len(rows))), torch.from_numpy(rng.random(len(faces)) < 0.2)
        boxes, annotated = torch.from_numpy(rows).float(), torch.from_numpy(faces).float()
        images.append(Shown(f"9--Fête/{i:02d}", boxes, scores.float(), annotated, ignored))
    return images


def metrics(images: list[Shown]) -> dict[str, Any]:
    """Each metric with ground truth, and where it can without."""
    ids = tuple(image.image_id for image in images)
    faces = [image.faces_xyxy.double().numpy() for image in images]
    ignored = [image.ignored.numpy() for image in images]
    boxes_xywh = [np.column_stack([own[:, :2], own[:, 2:] - own[:, :2]]) for own in faces]
    halves, centres = [(own[:, 2:] - own[:, :2]) / 2 for own in faces], [(own[:, :2] + own[:, 2:]) / 2 for own in faces]
    upright = (np.full(len(own), np.pi / 2) for own in faces)
    ellipses = [np.column_stack([half[:, ::-1], *own]) for half, *own in zip(halves, upright, centres, strict=True)]
    every = [np.ones(len(own), np.bool_) for own in faces]
    return {
        "wider": WiderFaceAP(GroundTruth(ids, boxes_xywh, {"easy": [~own for own in ignored], "hard": every})),
        "wider_shown": WiderFaceAP(),
        "coco": CocoAP(CocoGroundTruth.from_faces(dict(zip(ids, zip(faces, ignored, strict=True), strict=True)))),
        "coco_shown": CocoAP(),
        "pascal": PascalFaceAP(PascalFaceGroundTruth(ids, faces, ignored, ids)),
        "pascal_shown": PascalFaceAP(),
        "fddb": FddbRoc(
            FddbGroundTruth(ids, np.ones(len(ids), np.int64), ellipses, np.full((len(ids), 2), 400, np.int64))
        ),
    }


def arguments(name: str, images: Iterable[Shown]) -> list[list[Any]]:
    columns = [list(column) for column in zip(*images, strict=True)] or [[] for _ in range(5)]
    return columns if name.endswith("_shown") else columns[:3]


def share(scenario: str, rank: int, images: list[Shown]) -> list[list[Shown]]:
    """The batches of a rank."""
    if scenario == "one_has_none":
        return [images[:5], images[5:]] if rank == 0 else []
    # As a sampler does, and then more: every second image, filled up with images that are the other's.
    own = images[rank::2] + ([images[0], images[2]] if rank == 1 else [])
    return [own[first : first + 3] for first in range(0, len(own), 3)]


def as_numbers(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=ranks
    )
    images = shown()
    for scenario in SCENARIOS:
        batches = share(scenario, rank, images)
        result: dict[str, Any] = {}
        for name, metric in metrics(images).items():
            for batch in batches:
                metric.update(*arguments(name, batch))
            local = [part.tolist() for part in metric.shown]
            result[name] = as_numbers(metric.compute())
            # What was gathered is given back, so that a second gathering gathers the same.
            assert [part.tolist() for part in metric.shown] == local
            metric._computed = None
            assert repr(as_numbers(metric.compute())) == repr(result[name])
        result["module"] = module_values(images, batches)
        (folder / f"{scenario}_{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


def module_values(images: list[Shown], batches: list[list[Shown]]) -> dict[str, float]:
    """What the training loop makes of the same detections."""
    module = FaceDetectionModule({"level": 1, "context": False, "hl": False, "width": 0.0625})
    module.detections = {
        image.image_id: Detections(image.boxes_xyxy, image.scores) for batch in batches for image in batch
    }
    # A trainer that validates the model that a run starts from: nothing is logged.
    profiler = SimpleNamespace(profile=lambda part: nullcontext())
    datamodule = SimpleNamespace(ground_truth=metrics(images)["wider"].ground_truth)
    module._trainer = SimpleNamespace(datamodule=datamodule, sanity_checking=True, profiler=profiler)  # type: ignore[assignment]
    module.on_validation_epoch_end()
    return {setting: curve.ap for setting, curve in module.curves.items()}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
