"""A set with every fault, and what the doctor says of it, made once."""

from pathlib import Path

import pytest

from tests.doctor.doctor_files import plant, run


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in WIDER FACE's layout with every fault that the doctor looks for; not to be written to."""
    root = tmp_path_factory.mktemp("planted") / "wider"
    plant(root)
    return root


@pytest.fixture(scope="session")
def examined(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the doctor has written of it, page and fixed copy too; not to be written to."""
    out = tmp_path_factory.mktemp("examined") / "out"
    assert run(planted, out, "fix=true", "page=true", "coverage=false") == 1
    return out
