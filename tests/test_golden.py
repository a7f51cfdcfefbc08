"""What the package says today: losses, keys of weights and of the command line, scores, a checkpoint, public names.

``python tests/golden/make.py`` writes the files that these tests compare with; ``git diff`` then shows what changed.
"""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.golden import make
from tests.golden.names import METHODS, PUBLIC, named


def assert_golden(found: Any, golden: Any, rel: float = 1e-9, abs_: float = 0.0) -> None:
    lines = list(make.differences(found, golden, rel, abs_))
    assert not lines, "\n".join(["`python tests/golden/make.py` if this is meant:", *lines[:40]])


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there(name: str) -> None:
    found = named(name)
    assert callable(found)
    for method in METHODS.get(name, ()):
        assert callable(inspect.getattr_static(found, method)) or callable(getattr(found, method))


def test_keys_and_defaults_of_every_verb() -> None:
    assert_golden(make.keys(), make.load("verb_keys"))


def test_names_and_shapes_of_weights() -> None:
    golden = make.load("state_dict_keys")
    if importlib.util.find_spec("timm") is None:
        golden.pop("fanet_timm")
    assert_golden(make.network_keys(), golden)


def test_losses_and_matches() -> None:
    assert_golden(make.losses(), make.load("losses"), rel=2e-6)


def test_scores_of_every_benchmark(tmp_path: Path) -> None:
    assert_golden(make.small_scores(tmp_path), make.load("scores"), abs_=1e-12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it was left, and its synthetic images once they are drawn."""
    folder = tmp_path_factory.mktemp("run")
    make.unpacked(folder)
    (folder / "data").mkdir()
    return folder


@pytest.mark.slow
def test_a_checkpoint_of_before_gives_the_same_boxes_and_ap(folder: Path) -> None:
    checkpoint, golden = folder / make.CHECKPOINT, make.load("run")
    assert_golden(make.boxes(checkpoint), golden["boxes"], abs_=1e-4)
    assert_golden(make.aps(folder, checkpoint), golden["ap"], abs_=5e-7)


@pytest.mark.parametrize("resume", ["auto", make.CHECKPOINT])
def test_a_run_of_before_resumes_with_the_same_samples_in_the_same_order(
    resume: str, folder: Path, tmp_path: Path
) -> None:
    make.unpacked(tmp_path)
    (tmp_path / "data").symlink_to(folder / "data")
    assert_golden(make.resumed(tmp_path, f"resume={resume}"), make.load("run")["last_epoch"], rel=1e-4, abs_=1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "coco" else ()) for name in make.SHARED_SCORES]
)
def test_scores_of_published_detections(name: str, shared_data: Path, tmp_path: Path) -> None:
    assert_golden(make.shared_scores(tmp_path, shared_data, name), make.load("shared_scores")[name], abs_=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", make.SHIPPED)
def test_ap_of_the_shipped_models(name: str, shared_data: Path, tmp_path: Path) -> None:
    assert_golden(make.shipped(tmp_path, shared_data, name), make.load("shared_scores")[name], abs_=5e-7)
