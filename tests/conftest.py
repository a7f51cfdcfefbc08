"""Fixtures that several test files share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported, and for whatever the tests start: several processes with a thread per core hold each other
# up, and the number of threads decides the last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A suite that gates changes must say the same of the same code. HYPOTHESIS_PROFILE=explore looks for new cases.
settings.register_profile("same_cases", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "same_cases")

PROJECT_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_console_handler_is_left() -> Iterator[None]:
    """Hydra gives the root logger a handler of the terminal; a later test's would be another one."""
    yield
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Reference data that is not part of the project (``FANET_SHARED``, else ``../shared``); skips without it."""
    shared = Path(os.environ.get("FANET_SHARED") or PROJECT_ROOT.parent / "shared")
    data = shared / "data"
    if not (data / "wider_face").is_dir():
        pytest.skip(f"reference data is not at hand: {data} (set FANET_SHARED)")
    return data
