"""What the tests of scoring share: refusals, the command, WIDER FACE's files and runs."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

IDS = ("0--Parade/0_Parade_a_1", "0--Parade/0_Parade_b_2", "1--Handshaking/1_Handshaking_c_3")


def refused(message: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The one line of an ``InputError``, which matches ``message``."""
    with pytest.raises(InputError, match=message) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def invalid(message: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)


def call(*words: str) -> "subprocess.CompletedProcess[str]":
    """``python -m fanet_lightning.score`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fanet_lightning.score", *words],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


# WIDER FACE

Box = tuple[float, ...]
# Faces xywh, setting → which count, rows x y w h score in file order.
Image = tuple[list[Box], dict[str, list[bool]], list[Box]]

FACE = (0, 0, 9, 9)  # 10 x 10 pixels with the last one counted


def put(root: Path, image_id: str, content: str | bytes, suffix: str = ".txt") -> Path:
    path = root / f"{image_id}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(predictions: Predictions, image: int) -> list[list[float]]:
    """``x y w h score`` of an image."""
    rows = slice(*predictions.starts[image : image + 2].tolist())
    return np.column_stack([predictions.boxes_xywh[rows], predictions.scores[rows]]).tolist()


def pack(images: list[Image]) -> tuple[GroundTruth, Predictions]:
    ids = tuple(f"0--Parade/image_{i}" for i in range(len(images)))
    ground_truth = GroundTruth(
        ids,
        [np.array(faces, np.float64).reshape(-1, 4) for faces, _, _ in images],
        {name: [np.array(counted[name], np.bool_) for _, counted, _ in images] for name in images[0][1]},
    )
    rows = np.array([row for _, _, rows in images for row in rows], np.float64).reshape(-1, 5)
    starts = np.cumsum([0, *(len(rows) for _, _, rows in images)], dtype=np.int64)
    return ground_truth, Predictions(ids, starts, rows[:, :4], rows[:, 4])


def random_run(rng: random.Random) -> list[Image]:
    """Few distinct corners, sizes and scores, so that faces coincide, overlaps tie and scores repeat."""

    def box() -> Box:
        fraction = rng.choice([0.0, 0.0, 0.5])
        width, height = rng.choice([0, 3, 4, 9, 9]), rng.choice([3, 4, 9, 9, -2]) + fraction
        return (rng.randrange(10) + fraction, rng.randrange(10), width, height)

    levels = rng.choice([[0.0, 0.5, 1.0], [i / 20 for i in range(21)], [2.0, 2.5, 7.0], [0.3], [-3.0, -1.0], [0.0]])
    images: list[Image] = []
    for _ in range(rng.randint(1, 4)):
        faces = [box() for _ in range(rng.choice([0, 1, 2, 5]))]
        shares = {"few": 0.3, "most": 0.8, "none": 0}
        counted = {name: [rng.random() < share for _ in faces] for name, share in shares.items()}
        rows: list[Box] = []
        for _ in range(rng.choice([0, 1, 4, 9])):
            near = rng.choice(faces) if faces and rng.random() < 0.7 else (rng.randrange(40), rng.randrange(40), 4, 4)
            x, y = near[0] + rng.choice([0, 0, 1, 4]), near[1] + rng.choice([0, 0, 3])
            rows.append((x, y, abs(near[2]), abs(near[3]) + rng.choice([0, 0, 1, 5]), rng.choice(levels)))
        images.append((faces, counted, rows))
    return images
