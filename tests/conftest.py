"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Reference data that is not part of the project (``FANET_SHARED``, else ``../shared``); skips without it."""
    shared = Path(os.environ.get("FANET_SHARED") or PROJECT_ROOT.parent / "shared")
    data = shared / "data"
    if not (data / "wider_face").is_dir():
        pytest.skip(f"reference data is not at hand: {data} (set FANET_SHARED)")
    return data
