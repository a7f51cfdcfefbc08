"""Small data sets in FDDB's official layout, for tests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.data.wider_files import write_image

# major minor angle cx cy.
Ellipse = Sequence[float]
# fold → image id → its ellipses.
Faces = Mapping[int, Mapping[str, Sequence[Ellipse]]]


def block(image_id: str, rows: Sequence[Sequence[float]]) -> str:
    return "\n".join([image_id, str(len(rows)), *(" ".join(map(repr, row)) for row in rows)]) + "\n"


def write_folds(folder: Path, faces: Faces) -> None:
    """The official ellipse lists, with the two blanks and the 1 at the end of a row."""
    folder.mkdir(parents=True, exist_ok=True)
    for fold, images in faces.items():
        blocks = [
            "\n".join([image_id, str(len(rows)), *(" ".join(f"{value:.6f}" for value in row) + "  1" for row in rows)])
            for image_id, rows in images.items()
        ]
        (folder / f"FDDB-fold-{fold:02d}-ellipseList.txt").write_text("\n".join([*blocks, ""]))


def write_sizes(path: Path, faces: Faces, size_wh: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({image_id: list(size_wh) for images in faces.values() for image_id in images}))


def write_fddb(root: Path, faces: Faces, size_wh: tuple[int, int] = (60, 40)) -> None:
    """Images and folds."""
    write_folds(root / "FDDB-folds", faces)
    for images in faces.values():
        for image_id in images:
            write_image(root / "originalPics" / f"{image_id}.jpg", 1, size_wh[::-1])


def write_detections(
    folder: Path, rows: Mapping[int, Mapping[str, Sequence[Sequence[float]]]], name: str = "fold-{:02d}-out.txt"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for fold, images in rows.items():
        (folder / name.format(fold)).write_text("".join(block(image_id, own) for image_id, own in images.items()))
