"""Fixtures of the tests of data."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fanet_lightning.cli.main import run
from tests.data.folder_files import Tell, Told
from tests.data.wider_files import numbered, write_wider


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Run a verb on a folder as its command line does."""

    def of(verb: Callable[[list[str]], int], root: Path, *words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["fanet_lightning", "data=folder", f"data.root={root}", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run(verb)
        return Told(int(left.value.code or 0), *capsys.readouterr())

    return of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 training and 5 validation images."""
    root = tmp_path_factory.mktemp("wider")
    write_wider(root, "train", numbered(13))
    # Not in alphabetical order.
    write_wider(root, "val", {**numbered(2, "9--Press_Conference"), **numbered(3, "10--People_Marching")})
    return root


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """8 training images, of which 2, 3 and 7 are broken, and a broken validation image."""
    write_wider(tmp_path, "train", numbered(8))
    write_wider(tmp_path, "val", numbered(3))
    for index in (2, 3, 7):
        path = tmp_path / "WIDER_train" / "images" / "0--Parade" / f"0_Parade_{index:03d}.jpg"
        path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "WIDER_val" / "images" / "0--Parade" / "0_Parade_001.jpg").write_bytes(b"")
    return tmp_path
