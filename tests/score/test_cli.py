"""``fanet score``: the golden run through files, mistakes as one line, ``scores.json`` and the tables."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.score.__main__ import main
from fanet_lightning.score.bootstrap import Interval, bootstrap_difference, count_images, curve_from_counts, read_counts
from fanet_lightning.score.results import Samples, Scores, comparison, print_difference, print_scores, write_scores
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, write_ground_truth
from fanet_lightning.score.wider_face.predictions import read_predictions, write_predictions
from tests.score import wider_oracle
from tests.score.helpers import call, invalid, refused

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "wider_scoring.json").read_text())


def golden_detections(first: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Boxes and scores per image, from the row ``first`` on."""
    detections = {}
    for image_id, image in GOLDEN["images"].items():
        rows = np.array(image["rows"][first:], np.float64).reshape(-1, 5)
        detections[image_id] = (np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:4]]), rows[:, 4])
    return detections


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of predictions and ground truth of the golden run."""
    images = GOLDEN["images"]
    boxes = [np.array(image["faces"], np.float64).reshape(-1, 4) for image in images.values()]
    counted = {s: [np.array(i["counted"][s], np.bool_) for i in images.values()] for s in ("easy", "medium", "hard")}
    write_ground_truth(tmp_path / "ground truth", GroundTruth(tuple(images), boxes, counted))
    write_predictions(tmp_path / "predictions", golden_detections())
    return tmp_path / "predictions", tmp_path / "ground truth"


@pytest.fixture
def words(run: tuple[Path, Path]) -> list[str]:
    return [f"predictions={run[0]}", f"ground_truth={run[1]}", "bootstrap=0"]


def scores_in(folder: Path) -> Any:
    return json.loads((folder / "scores.json").read_text())


def test_golden_run_as_a_command(run: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = call("benchmark=wider_face", f"predictions={run[0]}", f"ground_truth={run[1]}", f"out={out}", "strict=true")
    assert (done.returncode, done.stderr) == (0, "")
    scores, lines = scores_in(out), done.stdout.splitlines()
    assert scores["ap"] == pytest.approx(GOLDEN["ap"], abs=1e-12)
    assert scores["made_by"]["command"][:3] == ["python", "-m", "fanet_lightning.score"]
    assert lines[0] == "WIDER FACE, 12 images" and (out / "pr_curves.npz").is_file()
    counts = read_counts(out / "per_image.npz")
    assert list(counts) == list(GOLDEN["ap"])
    for setting, own in counts.items():
        assert own.image_ids == tuple(sorted(GOLDEN["images"]))  # as evaluate has them: resamples are drawn by place
        assert curve_from_counts(own).ap == scores["ap"][setting]
        low, high = scores["intervals"][setting]
        assert low < GOLDEN["ap"][setting] < high
        (line,) = [line for line in lines if line.startswith(setting) and "faces" not in line]
        assert f"{GOLDEN['ap'][setting]:.6f}" in line and f"{low:.4f} … {high:.4f}" in line


def test_against_other_predictions(
    run: tuple[Path, Path], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = tmp_path / "worse"
    write_predictions(worse, golden_detections(first=1))
    (worse / f"{next(iter(GOLDEN['images']))}.txt").unlink()
    assert main([*words, f"against={worse}", f"out={tmp_path / 'out'}", "bootstrap=200"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(f"warning: {worse}: 1 of 12 images have no predictions")
    against, truth = scores_in(tmp_path / "out")["against"], WiderFaceBenchmark().read_ground_truth(run[1])
    counts, worse_counts = (count_images(truth, read_predictions(path, truth.image_ids)) for path in (run[0], worse))
    table = printed.out.partition("difference to")[2]
    for setting, difference in bootstrap_difference(counts, worse_counts, 200).items():
        assert difference.value == pytest.approx(GOLDEN["ap"][setting] - against["ap"][setting], abs=1e-12)
        assert against["difference"][setting] == difference.value
        assert against["intervals"][setting] == [difference.low, difference.high]
        assert f"{difference.value:+.6f}" in table


def test_the_folder_of_a_whole_evaluation_stands_for_the_predictions_in_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate … out=DIR` puts them into DIR/predictions; people give DIR."""
    assert main([*words, f"out={tmp_path}"]) == 0
    direct = capsys.readouterr().out
    assert main([*words, f"predictions={tmp_path}"]) == 0
    assert capsys.readouterr().out in direct
    (tmp_path / "scores.json").unlink()
    refused(f"^{tmp_path}: ", main, [*words, f"predictions={tmp_path}"])


def test_the_folder_of_the_data_set_stands_for_its_ground_truth(
    run: tuple[Path, Path], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wider" / "eval_tools").mkdir(parents=True)
    run[1].rename(tmp_path / "wider" / "eval_tools" / "ground_truth")
    assert main([*words, f"ground_truth={tmp_path / 'wider'}"]) == 0
    assert f"{GOLDEN['ap']['hard']:.6f}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["scores.json", "errors"])
def test_files_of_others_are_not_written_over(words: list[str], tmp_path: Path, name: str) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("[1, 2]")
    words = [*words, f"out={out}"]
    refused(f"out=.*mine: {name} is there", main, words)
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "[1, 2]"
    (out / name).rename(out / "notes.txt")
    assert main(words) == 0 == main(words)  # next to other files, and over scores of its own
    assert (out / "notes.txt").read_text() == "[1, 2]"


def test_missing_images_are_a_warning_and_with_strict_an_error(
    run: tuple[Path, Path], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    gone = next(iter(GOLDEN["images"]))
    (run[0] / f"{gone}.txt").unlink()
    assert main(words) == 0
    assert capsys.readouterr().err == f"warning: 1 of 12 images have no predictions and count as empty: {gone}\n"
    done = call(*words, "strict=true")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ") and f"1 of 12 images have no predictions: {gone}" in done.stderr


# Paths as `find` writes them, wherever it was run, and names with the slashes of Windows.
@pytest.mark.parametrize("form", ["{}.jpg", "/data/WIDER_val/images/{}.jpg", ".\\images\\{}.jpg"])
def test_a_list_restricts_everything(
    words: list[str], tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = list(GOLDEN["images"])[2:9]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{form.format(image_id)}\n" for image_id in chosen))
    assert main([*words, f"images={listed}", f"out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "WIDER FACE sample, 7 of 12 images"
    images = [GOLDEN["images"][image_id] for image_id in chosen]
    for setting, found in scores_in(tmp_path / "out")["ap"].items():
        _, _, ap = wider_oracle.curve([(image["faces"], image["counted"][setting], image["rows"]) for image in images])
        assert found == pytest.approx(ap, abs=1e-12) and abs(found - GOLDEN["ap"][setting]) > 1e-3


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("predictions=", "predictions=… must be given"),
        ("predictions=nowhere", "nowhere cannot be read"),
        ("ground_truth=nowhere", "wider_face_val.mat cannot be read"),
        ("benchmark=faces", "benchmark=faces"),
        ("benchmark=pascal_face benchmark.labels=[new]", "benchmark.labels="),
        ("benchmark=coco benchmark.max_detections=0", "benchmark.max_detections=0"),
        ("benchmark=pascal_face attributes=true", "attributes is for benchmark=wider_face"),
        ("errors=true worst=0", "worst=0"),
        ("split=train", "split=train"),
        ("split=test out=", "give out=DIR"),
        ("split=test attributes=true", "attributes=True"),
        ("errors=true pictures=nowhere", "pictures=nowhere"),
        ("bootstrap=0 against=PREDICTIONS", "bootstrap=0"),
        ("images=LIST", ":1: 'x/y' is not in the ground truth"),
        ("out=LIST/below", "choose another out"),
    ],
)
def test_mistakes(run: tuple[Path, Path], tmp_path: Path, changed: str, expected: str) -> None:
    (tmp_path / "list.txt").write_text("x/y\n")
    given = {"predictions": str(run[0]), "ground_truth": str(run[1]), "out": str(tmp_path / "made")}
    for name, place in (("LIST", tmp_path / "list.txt"), ("PREDICTIONS", run[0])):
        changed = changed.replace(name, str(place))
    given |= dict(word.split("=", 1) for word in changed.split())
    assert expected in refused(".", main, [f"{key}={value}" for key, value in given.items() if value])
    assert not (tmp_path / "made").exists()


def test_no_torch_and_no_lightning(words: list[str]) -> None:
    program = (
        "import sys; from fanet_lightning.score.__main__ import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'pytorch_lightning', 'cv2', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# scores.json and the tables

NOTHING = np.zeros(0)
NO_AP = Interval(math.nan, math.nan, math.nan, NOTHING)


@dataclass(frozen=True, kw_only=True)
class SomeScores(Scores):
    """Of seven images."""

    benchmark: str = "some_faces"
    title: str = "Some faces"
    image_ids: Sequence[str] = ("e/a",) * 7
    images_of_benchmark: int = 7
    files: Sequence[str] = ("curves.txt",)

    def resampled(self, samples: int, seed: int) -> Samples:
        raise NotImplementedError

    def write_curves(self, folder: Path) -> list[Path]:
        for name in self.files:
            (folder / name).touch()
        return [folder / name for name in self.files]


AP = SomeScores(values={"ap": {"easy": 0.5, "hard": math.nan}}, faces={"easy": 1234, "hard": 0})


def test_what_is_not_defined_is_null_and_files_of_an_earlier_scoring_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a person's own")
    first = replace(AP, files=("curves.txt", "per_image.txt"))
    write_scores(tmp_path, first, {}, protocol=None, made_by={})
    (tmp_path / "errors").mkdir()
    for name in ("attributes.md", "errors.json", "errors/data.js"):
        (tmp_path / name).write_text("of the first")
    # Then one of ours, a damaged one, and one with a path in it: nothing is removed on its word.
    for text in (None, "{", json.dumps({"files": ["../x", "a.txt/.."]})):
        if text is not None:
            (tmp_path / "scores.json").write_text(text)
        written = write_scores(tmp_path, AP, {"ap": {"hard": NO_AP}}, protocol="short640", made_by={})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "curves.txt", "scores.json"]
        assert json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail) == written
    assert (written["ap"], written["intervals"]) == ({"easy": 0.5, "hard": None}, {"hard": None})
    more = replace(AP, faces={"easy": 1235, "hard": 0})
    invalid("not about the same images and faces", comparison, "more", AP, more, {}, {})


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
    rates = {"discrete": {"1000": 0.5, "max": 0.75}, "continuous": {"max": 0.5}}
    print_scores(replace(AP, values=rates, faces={"all": 1234}), {})
    assert capsys.readouterr().out == (
        "Some faces, 7 images\n"
        "setting         faces      rate\n"
        "discrete 1000   1,234  0.500000\n"
        "discrete max    1,234  0.750000\n"
        "continuous max  1,234  0.500000\n"
    )
