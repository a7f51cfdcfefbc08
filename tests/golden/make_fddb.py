"""Writes fddb.json: ellipse masks drawn whole by OpenCV, and curves of a small set by the plain oracle.

python tests/golden/make_fddb.py
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.score import fddb_oracle as oracle  # noqa: E402


def masks(rng: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for _ in range(24):
        width, height = (int(side) for side in rng.integers(20, 80, 2))
        ellipse = [*rng.uniform(0, 45, 2), rng.uniform(-3.2, 3.2), rng.uniform(-15, 90), rng.uniform(-15, 90)]
        ellipse = [round(float(value), 3) for value in ellipse]
        mask = oracle.ellipse_mask(ellipse, width, height)
        made.append(
            {
                "ellipse": ellipse,
                "width": width,
                "height": height,
                "area": int(mask.sum()),
                "sha1": hashlib.sha1(mask.tobytes()).hexdigest(),
            }
        )
    return made


def small_set(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Twelve images of 60 × 40 pixels with up to three faces and four rectangles, most of them near a face."""
    images = []
    for number in range(12):
        faces = [
            [*rng.uniform(6, 14, 2), rng.uniform(-1.6, 1.6), rng.uniform(5, 55), rng.uniform(5, 35)]
            for _ in range(rng.integers(1, 4))
        ]
        rows = []
        for _ in range(rng.integers(0, 5)):
            major, minor, _, x, y = faces[rng.integers(len(faces))]
            jitter = rng.normal(0, 2, 4)
            w, h = abs(2 * major + jitter[2]), abs(2 * minor + jitter[3])
            rows.append([x + jitter[0] - w / 2, y + jitter[1] - h / 2, w, h, round(rng.random(), 1)])
        faces, rows = ([[round(float(value), 4) for value in row] for row in part] for part in (faces, rows))
        images.append({"image_id": f"2002/07/{number + 1:02d}/big/img_{number}", "faces": faces, "rows": rows})
    return images


def curve(images: list[dict[str, Any]], width: int, height: int) -> list[oracle.Line]:
    lines = []
    for image in images:
        faces = [oracle.ellipse_mask(row, width, height) for row in image["faces"]]
        rows = [oracle.rectangle_mask(row[:4], width, height) for row in image["rows"]]
        iou = np.array([[oracle.overlap(face, row) for row in rows] for face in faces]).reshape(len(faces), len(rows))
        lines.append([line for line, _ in oracle.match_image(iou, [row[4] for row in image["rows"]])])
    return oracle.merge(lines)


def main() -> None:
    rng = np.random.default_rng(20100909)
    golden: dict[str, Any] = {"masks": masks(rng), "width": 60, "height": 40, "images": small_set(rng)}
    golden["lines"] = curve(golden["images"], 60, 40)
    (HERE / "fddb.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
