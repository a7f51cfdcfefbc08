"""``fanet show``: grids of augmented and synthetic images."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.show import COLORS, GAP, GRIDS, LINE, main
from tests.data.wider_files import numbered, write_wider


def test_augmentations(tmp_path: Path) -> None:
    write_wider(tmp_path, "train", numbered(9))
    out = tmp_path / "grids"
    words = ["--root", str(tmp_path), "--count", "2", "--draws", "3", "--size", "40", "--out", str(out)]
    assert main(["augmentations", *words]) == 0
    assert {path.stem for path in out.iterdir()} == {*GRIDS, "recipe"}
    for path in out.iterdir():
        assert cv2.imread(str(path)).shape == (2 * (LINE + 40 + GAP), 4 * (40 + GAP), 3)  # type: ignore[union-attr]


def test_synthetic(tmp_path: Path) -> None:
    words = ["--images", "3", "--columns", "2"]
    assert main(["synthetic", str(tmp_path / "grid.png"), *words]) == 0
    grid = cv2.imread(str(tmp_path / "grid.png"))
    assert grid is not None and grid.shape == (800, 960, 3)
    assert any((grid == np.array(color[::-1])).all(axis=2).any() for color in COLORS.values())
    for name, more, message in (("txt", [], r"grid\.txt"), ("png", ["--images", "0"], "--images=0: give")):
        with pytest.raises(InputError, match=message):
            main(["synthetic", str(tmp_path / f"grid.{name}"), *words, *more])
