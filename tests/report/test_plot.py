"""``python -m fanet_lightning.plot``: figures of scored folders, and what does not belong into one figure."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.report.figures import NOT_COMPARABLE, RocCurve, precision_recall_figure, read_roc_file, roc_figure
from fanet_lightning.report.plot import main, plot_scores
from fanet_lightning.score.curves import THRESHOLDS, Curve
from fanet_lightning.score.results import Samples, Scores, write_scores
from fanet_lightning.score.wider_face.benchmark import write_curves


def a_curve(end: float) -> Curve:
    recall = np.linspace(0, end, 1000)
    return Curve(1 - recall**4 / 2, recall, THRESHOLDS, 0.9 * end, 10)


class SomeScores(Scores):
    def resampled(self, samples: int, seed: int) -> Samples:
        return {}

    def write_curves(self, folder: Path) -> list[Path]:
        return []


def scored(
    folder: Path,
    end: float = 0.9,
    *,
    benchmark: str = "wider_face",
    images: int = 7,
    protocol: str | None = "original",
    rules: dict[str, object] | None = None,
) -> Path:
    """A folder as ``score`` leaves it."""
    settings = ("easy", "medium", "hard") if benchmark == "wider_face" else ("all",)
    curves = {setting: a_curve(end) for setting in settings}

    values = {"ap": {setting: curve.ap for setting, curve in curves.items()}}
    faces = dict.fromkeys(settings, 10)
    scores = SomeScores(
        benchmark=benchmark, title="X", image_ids=[str(i) for i in range(images)], images_of_benchmark=10, faces=faces,
        values=values, rules=rules or {},
    )  # fmt: skip
    write_scores(folder, scores, {}, protocol=protocol, made_by={})
    write_curves(folder / "pr_curves.npz", curves)
    return folder


def scored_fddb(folder: Path) -> Path:
    values = {"discrete": {"max": 0.9}, "continuous": {"max": 0.7}}
    scores = SomeScores(
        benchmark="fddb", title="FDDB", image_ids=["a"], images_of_benchmark=1, faces={"all": 10}, values=values
    )
    write_scores(folder, scores, {}, protocol=None, made_by={})
    (folder / "DiscROC.txt").write_text("0.9 40 0.1\n0.8 10 0.5\n0.5 0 0.9\n")
    (folder / "ContROC.txt").write_text("0.7 40\n0.6 10\n0.4 0\n")
    return folder


def call(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "fanet_lightning.plot", *words], capture_output=True, text=True, timeout=300, check=False
    )


def test_two_runs_with_published_curves(tmp_path: Path) -> None:
    first, second = scored(tmp_path / "one"), scored(tmp_path / "two", 0.8)
    out = tmp_path / "out"
    done = call(f"scores=[{first},{second}]", f"out={out}", "published=[FANet,S3FD]")
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "pr_curves.pdf").read_bytes().startswith(b"%PDF")
    assert (out / "pr_curves.png").read_bytes().startswith(b"\x89PNG")
    # The same again, byte for byte: nothing of the time of day is in it.
    before = (out / "pr_curves.pdf").read_bytes()
    assert call(f"scores=[{first},{second}]", f"out={out}", "published=[FANet,S3FD]").returncode == 0
    assert (out / "pr_curves.pdf").read_bytes() == before


def test_fddb_and_pascal_face(tmp_path: Path) -> None:
    assert main([f"scores={scored_fddb(tmp_path / 'f')}", f"out={tmp_path / 'o'}", "max_false_positives=null"]) == 0
    assert (tmp_path / "o" / "roc.pdf").stat().st_size
    # Detectors have different transforms, and compare all the same.
    runs = [
        scored(tmp_path / name, benchmark="pascal_face", rules={"labels": "corrected", "transform": {"tx": tx}})
        for name, tx in (("a", 0.1), ("b", 0.2))
    ]
    assert main([f"scores=[{runs[0]},{runs[1]}]", f"out={tmp_path / 'p'}", "layout=column"]) == 0
    assert (tmp_path / "p" / "pr_curves.png").stat().st_size


def labels(figure: object) -> list[list[str]]:
    return [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]  # type: ignore[attr-defined]


def test_legends_come_by_descending_ap() -> None:
    runs = {"low": {"hard": a_curve(0.3)}, "high": {"hard": a_curve(0.99)}}
    figure = precision_recall_figure(runs, "T", published=["SFD", "FANet"])
    assert labels(figure) == [["FANet-0.895", "high-0.891", "SFD-0.859", "low-0.270", "38 other published methods"]]
    assert figure.get_suptitle() == "T"
    assert labels(precision_recall_figure(runs)) == [["high-0.891", "low-0.270"]]


def test_a_sample_is_said_not_to_compare() -> None:
    runs = {"a": {"hard": a_curve(0.3)}}
    figure = precision_recall_figure(runs, published=[], sample=True)
    assert NOT_COMPARABLE.format(split="val") in figure.get_supxlabel().replace("\n", " ")
    assert "do not compare" not in precision_recall_figure(runs, published=[]).get_supxlabel()


def test_curves_are_drawn_where_they_are() -> None:
    figure = precision_recall_figure({"a": {"hard": a_curve(0.6)}})
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "a-0.540"]
    np.testing.assert_allclose(line.get_xdata(), a_curve(0.6).recall)
    np.testing.assert_allclose(line.get_ydata(), a_curve(0.6).precision)


def test_rates_in_the_legend_of_a_roc() -> None:
    curve = RocCurve(np.array([0.9, 0.8, 0.5]), np.array([40.0, 10, 0]))
    assert (curve.at(), curve.at(39), curve.at(10), curve.at(9)) == (0.9, 0.8, 0.8, 0.5)
    figure = roc_figure({"a": {"discrete": curve, "continuous": curve}}, max_false_positives=20)
    assert labels(figure) == [["a 0.8000"], ["a 0.8000"]]
    assert figure.axes[0].get_xlim() == (0, 20)
    assert roc_figure({"a": {"discrete": curve}}, max_false_positives=None).axes[0].get_xlim() == (0, 40)
    assert roc_figure({"a": {"discrete": curve}}, scale="log").axes[0].get_xscale() == "symlog"


def test_official_curve_files(shared_data: Path) -> None:
    folder = shared_data / "predictions" / "fddb_mtcnn"
    curve = read_roc_file(folder / "MTCNNDiscROC.txt")
    assert (curve.at(), curve.false_positives[0]) == (0.896345, 249)
    assert read_roc_file(folder / "MTCNNContROC.txt").at(1000) == 0.674485


@pytest.mark.parametrize("text", ["", "0.5 1\n0,5 2\n", "0.5 1\n0.5\n", "0.5\n", "1.5 1\n", "0.5 -1\n", "0.5 nan\n"])
def test_damaged_curve_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "DiscROC.txt").write_text(text)
    with pytest.raises(InputError, match="DiscROC"):
        read_roc_file(tmp_path / "DiscROC.txt")


def test_a_curve_file_by_descending_threshold_is_turned_round(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("0.5 0 0.9\n\n0.8 10 0.5\n")
    assert read_roc_file(tmp_path / "x.txt").false_positives.tolist() == [10, 0]


def test_protocols_and_parents_tell_runs_apart(tmp_path: Path) -> None:
    first = scored(tmp_path / "one" / "evaluation", protocol="original")
    second = scored(tmp_path / "two" / "evaluation", protocol="short640")
    written = plot_scores([first, second], tmp_path / "out")
    assert [path.name for path in written] == ["pr_curves.pdf", "pr_curves.png"]
    with pytest.raises(InputError, match="names two folders; give names="):
        plot_scores([first, first], tmp_path / "out")


def test_the_same_images_in_any_order_compare(tmp_path: Path) -> None:
    folders = []
    for name, ids in (("one", "e/a e/b e/c"), ("turned", "e/c e/a e/b"), ("another", "e/a e/b e/d")):
        folders.append(scored(tmp_path / name, images=3))
        image_ids = np.frombuffer("\n".join(ids.split()).encode(), np.uint8)
        np.savez_compressed(folders[-1] / "per_image.npz", image_ids=image_ids)
    assert main([f"scores=[{folders[0]},{folders[1]}]", f"out={tmp_path / 'out'}"]) == 0
    with pytest.raises(InputError, match="do not compare: as many images, but not the same ones; plot them apart"):
        main([f"scores=[{folders[0]},{folders[2]}]", f"out={tmp_path / 'out'}"])


def test_mistakes(tmp_path: Path) -> None:
    good, other = scored(tmp_path / "good"), scored(tmp_path / "other", images=8)
    pascal = scored(tmp_path / "pascal", benchmark="pascal_face", rules={"labels": "corrected"})
    original = scored(tmp_path / "original", benchmark="pascal_face", rules={"labels": "original"})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scores.json").write_text("{")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "scores.json").write_text(json.dumps({"ap": 1}))
    bare = shutil.copytree(good, tmp_path / "bare")
    (bare / "pr_curves.npz").unlink()
    cases = [
        ([f"scores={tmp_path / 'nowhere'}"], "nowhere/scores.json cannot be read"),
        ([f"scores={tmp_path / 'broken'}"], "broken/scores.json cannot be read"),
        ([f"scores={tmp_path / 'strange'}"], "names no benchmark"),
        ([f"scores={bare}"], "pr_curves.npz cannot be read"),
        (["scores=[]"], "scores= names no folder"),
        ([f"scores=[{good},{other}]"], "do not compare: images 7 and 8; plot them apart"),
        ([f"scores=[{good},{pascal}]"], 'do not compare: benchmark "wider_face" and "pascal_face"'),
        ([f"scores=[{pascal},{original}]"], 'do not compare: labels "corrected" and "original"'),
        ([f"scores=[{good}]", "names=[a,b]"], "for 1 folders"),
        ([f"scores={good}", "published=[FANett]"], "did you mean 'FANet'?"),
        ([f"scores={pascal}", "published=[FANet]"], "published= are curves of WIDER FACE, these are of PASCAL face"),
        ([f"scores={good}", "layout=poster"], "layout=poster is unknown; take page or column"),
        ([f"scores={good}", "layout=[page]"], "layout="),
        ([f"scores={good}", "max_false_positives=true"], "max_false_positives=True"),
        ([f"scores={good}", "scale=square"], "scale=square is unknown"),
        ([f"scores={good}", "max_false_positives=-1"], "max_false_positives=-1 is no number above 0"),
        ([f"scores={good}", f"out={good / 'scores.json' / 'x'}"], "is not a folder; choose another out"),
    ]
    for words, expected in cases:
        with pytest.raises(InputError) as error:
            main([f"out={tmp_path / 'out'}", *words] if not words[-1].startswith("out=") else words)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)


def test_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from fanet_lightning.report.plot import main; main(sys.argv[1:]);"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    words = [f"scores={scored(tmp_path / 'a')}", f"out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
