"""``scores.json``, the curves beside it, and the table."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.errors import InputError
from fanet_lightning.scoring.curves import THRESHOLDS, Curve
from fanet_lightning.scoring.results import made_by, print_table, write_results


def example_curve(ap: float, faces: int) -> Curve:
    return Curve(np.full(1000, 0.5), np.linspace(0, 1, 1000), THRESHOLDS, ap, faces)


def test_results_are_complete_and_valid_json(tmp_path: Path) -> None:
    curves = {"easy": example_curve(0.5, 1234), "hard": example_curve(float("nan"), 0)}
    origin = made_by(["python", "-m", "x"], checkpoint="best.ckpt", packages=("numpy", "no-such-package"))
    returned = write_results(
        tmp_path / "new" / "out", benchmark="wider_face", protocol="short640", curves=curves, images=7, made_by=origin
    )
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["pr_curves.npz", "scores.json"]
    scores = json.loads((out / "scores.json").read_text(), parse_constant=pytest.fail)
    assert scores == returned
    assert scores["made_by"].pop("python").startswith("3.")
    commit = scores["made_by"].pop("git_commit")
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
    assert scores == {
        "benchmark": "wider_face",
        "protocol": "short640",
        "images": 7,
        "faces": {"easy": 1234, "hard": 0},
        "ap": {"easy": 0.5, "hard": None},
        "intervals": {},
        "intervals_method": None,
        "made_by": {
            "command": ["python", "-m", "x"],
            "packages": {"numpy": np.__version__, "no-such-package": None},
            "checkpoint": "best.ckpt",
        },
    }
    with np.load(out / "pr_curves.npz") as archive:
        assert len(archive.files) == 6
        np.testing.assert_array_equal(archive["easy_recall"], curves["easy"].recall)
        np.testing.assert_array_equal(archive["hard_precision"], curves["hard"].precision)
        np.testing.assert_array_equal(archive["easy_thresholds"], THRESHOLDS)
    assert stat.S_IMODE((out / "scores.json").stat().st_mode) & 0o400


def test_a_failed_write_leaves_the_earlier_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"benchmark": "wider_face", "protocol": None, "images": 7, "made_by": {}}
    write_results(tmp_path, curves={"easy": example_curve(0.5, 1)}, **arguments)
    before = (tmp_path / "scores.json").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        write_results(tmp_path, curves={"easy": example_curve(0.9, 1)}, **arguments)
    assert (tmp_path / "scores.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pr_curves.npz", "scores.json"]


def test_plain_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("A title", {"easy": example_curve(0.5, 1234), "hard": example_curve(float("nan"), 0)})
    assert capsys.readouterr().out == (
        "A title\nsetting  faces        AP\neasy     1,234  0.500000\nhard         0   no face\n"
    )


def test_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_table("A title", {"easy": example_curve(0.5, 1234)})
    out = capsys.readouterr().out
    assert "A title" in out
    assert "0.500000" in out
    assert "┃" in out or "|" in out
