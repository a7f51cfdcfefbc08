"""``scores.json``, the curves with it, and the tables."""

import json
import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import made_by
from fanet_lightning.score.bootstrap import Interval
from fanet_lightning.score.results import (
    Samples,
    Scores,
    Values,
    comparison,
    intervals_of,
    print_difference,
    print_scores,
    write_scores,
)
from tests.score.helpers import invalid

NOTHING = np.zeros(0)
NO_AP = Interval(math.nan, math.nan, math.nan, NOTHING)


@dataclass(frozen=True, kw_only=True)
class SomeScores(Scores):
    """The resamples of a number v are v, v + 0.1, v + 0.2."""

    files: Sequence[str] = ("curves.txt",)

    def resampled(self, samples: int, seed: int) -> Samples:
        return {m: {s: v + np.arange(samples) / 10 for s, v in own.items()} for m, own in self.values.items()}

    def write_curves(self, folder: Path) -> list[Path]:
        for name in self.files:
            with replaced(folder / name) as path:
                path.write_text(f"{self.values}")
        return [folder / name for name in self.files]


def example(values: Values, faces: dict[str, int], **more: Any) -> SomeScores:
    """Scores of seven images."""
    ids = [f"e/{i}" for i in range(7)]
    return SomeScores(
        benchmark="some_faces", title="Some faces", image_ids=ids, images_of_benchmark=7, faces=faces, values=values,
        **more,
    )  # fmt: skip


AP = example({"ap": {"easy": 0.5, "hard": math.nan}}, {"easy": 1234, "hard": 0}, rules={"labels": "corrected"})
RATES = example({"discrete": {"1000": 0.5, "max": 0.75}, "continuous": {"1000": 0.25, "max": 0.5}}, {"all": 1234})


def test_scores_are_complete_and_valid_json(tmp_path: Path) -> None:
    origin = made_by(["python", "-m", "x"], checkpoint="best.ckpt", packages=("numpy", "no-such-package"))
    out = tmp_path / "new" / "out"
    returned = write_scores(out, AP, {}, protocol="short640", made_by=origin)
    assert sorted(path.name for path in out.iterdir()) == ["curves.txt", "scores.json"]
    scores = json.loads((out / "scores.json").read_text(), parse_constant=pytest.fail)
    assert scores == returned
    assert scores["made_by"].pop("python").startswith("3.")
    commit = scores["made_by"].pop("git_commit")
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
    assert scores == {
        "benchmark": "some_faces",
        "protocol": "short640",
        "rules": {"labels": "corrected"},
        "images": 7,
        "images_of_benchmark": 7,
        "faces": {"easy": 1234, "hard": 0},
        "ap": {"easy": 0.5, "hard": None},
        "intervals": {},
        "intervals_method": None,
        "made_by": {
            "command": ["python", "-m", "x"],
            "packages": {"numpy": np.__version__, "no-such-package": None},
            "checkpoint": "best.ckpt",
        },
        "files": ["curves.txt"],
    }
    assert stat.S_IMODE((out / "scores.json").stat().st_mode) & 0o400


def test_intervals_and_comparison_of_ap_stand_by_setting(tmp_path: Path) -> None:
    samples = AP.resampled(3, 0)
    intervals = intervals_of(AP, samples)
    assert intervals["ap"]["easy"][:3] == pytest.approx((0.5, 0.505, 0.695))
    other = example({"ap": {"easy": 0.25, "hard": math.nan}}, {"easy": 1234, "hard": 0})
    others = {"ap": {"easy": np.array([0.5, 0.5, 0.1]), "hard": np.full(3, np.nan)}}
    differences, said = comparison("other", AP, other, samples, others)
    written = write_scores(tmp_path, AP, intervals, protocol=None, made_by={}, intervals_method="by hand", against=said)
    assert differences["ap"]["easy"].value == 0.25
    assert written["intervals_method"] == "by hand"
    assert written["intervals"] == {"easy": pytest.approx([0.505, 0.695]), "hard": None}
    assert written["against"] == {
        "predictions": "other",
        "ap": {"easy": 0.25, "hard": None},
        "difference": {"easy": 0.25, "hard": None},
        # 0.5 - 0.5, 0.6 - 0.5, 0.7 - 0.1
        "intervals": {"easy": pytest.approx([0.005, 0.575]), "hard": None},
    }
    more = example({"ap": {"easy": 0.5, "hard": 0.1}}, {"easy": 1235, "hard": 0})
    invalid("not about the same images and faces", comparison, "more", AP, more, samples, samples)


def test_several_measures_stand_by_measure_and_setting(tmp_path: Path) -> None:
    written = write_scores(tmp_path, RATES, intervals_of(RATES, RATES.resampled(3, 0)), protocol=None, made_by={})
    assert written["discrete"] == {"1000": 0.5, "max": 0.75}
    assert written["continuous"] == {"1000": 0.25, "max": 0.5}
    assert written["intervals"]["continuous"]["max"] == pytest.approx([0.505, 0.695])


def test_files_of_an_earlier_scoring_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a person's own")
    first = example({"ap": {"all": 0.5}}, {"all": 1}, files=("curves.txt", "per_image.txt"))
    write_scores(tmp_path, first, {}, protocol=None, made_by={})
    write_scores(tmp_path, AP, {}, protocol=None, made_by={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "curves.txt", "scores.json"]
    # Damaged, or with a path in it: nothing is removed on its word.
    for text in ("{", json.dumps({"files": ["../x", "a.txt/.."]})):
        (tmp_path / "scores.json").write_text(text)
        write_scores(tmp_path, AP, {}, protocol=None, made_by={})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "curves.txt", "scores.json"]


def test_a_failed_write_leaves_the_earlier_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scores(tmp_path, AP, {}, protocol=None, made_by={})
    before = (tmp_path / "scores.json").read_bytes()

    def full_disk(self: Scores, folder: Path) -> list[Path]:
        raise OSError(28, "No space left on device")

    failing = example({"ap": {"all": 0.9}}, {"all": 1})
    monkeypatch.setattr(SomeScores, "write_curves", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_scores(tmp_path, failing, {}, protocol=None, made_by={})
    assert (tmp_path / "scores.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.txt", "scores.json"]


def test_plain_tables(capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(AP, {"ap": {"easy": Interval(0.5, 0.4, 0.61, NOTHING), "hard": NO_AP}}, "A title")
    assert capsys.readouterr().out == (
        "A title\n"
        "setting  faces        AP    95 % interval\n"
        "easy     1,234  0.500000  0.4000 … 0.6100\n"
        "hard         0   no face                –\n"
    )
    print_difference("to the other", AP, {"ap": {"easy": Interval(0.25, -0.1, 0.5, NOTHING), "hard": NO_AP}})
    assert capsys.readouterr().out == (
        "to the other\n"
        "setting  other AP  difference      95 % interval\n"
        "easy     0.500000   +0.250000  -0.1000 … +0.5000\n"
        "hard      no face           –                  –\n"
    )
    print_scores(RATES, {})
    assert capsys.readouterr().out == (
        "Some faces, 7 images\n"
        "setting          faces      rate\n"
        "discrete 1000    1,234  0.500000\n"
        "discrete max     1,234  0.750000\n"
        "continuous 1000  1,234  0.250000\n"
        "continuous max   1,234  0.500000\n"
    )
