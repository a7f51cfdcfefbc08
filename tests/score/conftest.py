"""The reference run of WIDER FACE."""

from pathlib import Path

import pytest

from fanet_lightning.score.wider_face.ground_truth import GroundTruth, read_ground_truth
from fanet_lightning.score.wider_face.predictions import Predictions, read_predictions


@pytest.fixture(scope="session")
def official_run(shared_data: Path) -> tuple[GroundTruth, Predictions]:
    """Val, and a RetinaFace's predictions of it."""
    truth = read_ground_truth(shared_data / "wider_face" / "eval_gt")
    predictions = shared_data / "predictions" / "retinaface_mnet025_wider_val.zip"
    return truth, read_predictions(predictions, truth.image_ids)
