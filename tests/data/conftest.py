"""Fixtures of the tests of data."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fanet_lightning.cli.main import run
from tests.data.folder_files import Tell, Told


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
