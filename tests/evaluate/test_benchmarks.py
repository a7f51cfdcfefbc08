"""``evaluate`` on the test sets of the paper, through the command line and their official layouts."""

import json
from pathlib import Path

import numpy as np
import pytest

from fanet_lightning.evaluate import __main__ as verb_main
from fanet_lightning.score.__main__ import main as score
from tests.data.wider_files import numbered, write_wider
from tests.score.fddb_files import write_fddb
from tests.score.helpers import refused
from tests.score.pascal_face_files import AFW_CORRECTED, CORRECTED, write_annotations, write_images

FDDB_FACES = {
    1: {"2002/08/11/big/img_591": [(40, 25, np.pi / 2, 60, 60)]},
    2: {"2002/08/26/big/img_265": [(20, 15, 0, 30, 40), (30, 30, 0, 80, 60)]},
}
PASCAL_FACES = {"one.jpg": [(10, 10, 80, 80), (60, 10, 100, 50, 1)], "two.jpg": [(5, 5, 65, 65)]}


def evaluate(*words: str) -> None:
    assert verb_main.main(["device=cpu", "workers=0", *words]) == 0


@pytest.mark.slow
def test_fddb(checkpoint: Path, tmp_path: Path) -> None:
    write_fddb(tmp_path / "fddb", FDDB_FACES, (120, 100))
    out = tmp_path / "out"
    evaluate(f"checkpoint={checkpoint}", "data=fddb", f"data.root={tmp_path / 'fddb'}", f"out={out}")
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["benchmark"], scores["protocol"], scores["faces"]) == ("fddb", "original", {"all": 3})
    assert scores["rules"]["detections"] == "rectangles"
    assert sorted(path.name for path in (out / "predictions").iterdir()) == ["fold-01-out.txt", "fold-02-out.txt"]
    # The same files, scored by themselves, give the same numbers.
    words = ["benchmark=fddb", f"predictions={out}", f"ground_truth={tmp_path / 'fddb'}", f"out={tmp_path / 'again'}"]
    assert score([*words, "strict=true"]) == 0
    again = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert all(scores[key] == again[key] for key in ("discrete", "continuous", "intervals"))
    assert (out / "DiscROC.txt").read_text().count("\n") > 1
    assert (out / "detections.png").stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize(("name", "labels"), [("pascal_face", CORRECTED), ("afw", AFW_CORRECTED)])
def test_pascal_face_and_afw(name: str, labels: str, checkpoint: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "images", list(PASCAL_FACES), (100, 120))
    write_annotations(tmp_path / "set" / labels, PASCAL_FACES)
    out = tmp_path / "out"
    words = [f"checkpoint={checkpoint}", f"data={name}", f"data.root={tmp_path / 'set'}", f"out={out}"]
    evaluate(*words, "protocol=short640", "lower_top=0.2")
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["benchmark"], scores["protocol"], scores["faces"]) == (name, "short640", {"all": 2})
    assert scores["made_by"]["lower_top"] == 0.2
    if name == "pascal_face":
        words = [f"benchmark={name}", f"predictions={out}", f"ground_truth={tmp_path / 'set'}"]
        assert score([*words, f"out={tmp_path / 'again'}"]) == 0
        assert scores["ap"] == json.loads((tmp_path / "again" / "scores.json").read_text())["ap"]


def test_attributes_are_refused_where_there_are_none(checkpoint: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "images", list(PASCAL_FACES), (100, 120))
    write_annotations(tmp_path / "set" / CORRECTED, PASCAL_FACES)
    words = [f"checkpoint={checkpoint}", "data=pascal_face", f"data.root={tmp_path / 'set'}"]
    words += [f"out={tmp_path / 'out'}", "attributes=true"]
    refused("need WIDER FACE's labels, not data=pascal_face", verb_main.main, words)
    assert not (tmp_path / "out" / "predictions").exists()


def test_attributes_and_errors_of_synthetic_faces(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    sizes = ["data.train_images=1", "data.val_images=4", "data.image_width=[96,128]", "data.image_height=[96,128]"]
    evaluate(
        f"checkpoint={checkpoint}", "data=synthetic", f"data.root={tmp_path / 'drawn'}", *sizes, f"out={out}",
        "attributes=true", "errors=true", "worst=2",
    )  # fmt: skip
    assert "blur" in json.loads((out / "attributes.json").read_text())["groups"]
    assert len(list((out / "errors" / "pictures").iterdir())) == 2
    assert "2 worst of 4 images" in capsys.readouterr().out


def test_wider_without_the_official_ground_truth_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "wider"
    write_wider(root, "val", numbered(3))
    words = [f"checkpoint={checkpoint}", "data=wider_face", f"data.root={root}"]
    evaluate(*words, f"out={tmp_path / 'out'}")
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "easy, medium and hard could not be computed" in note and str(root / "eval_gt") in note
    assert f"fanet download wider_face --root {root} --parts ground_truth" in note and "data.ground_truth=DIR" in note
    assert list(json.loads((tmp_path / "out" / "scores.json").read_text())["ap"]) == ["all"]
    # The official files are about val alone.
    write_wider(root, "train", numbered(3))
    evaluate(*words, "split=train", f"out={tmp_path / 'train'}")
    assert "easy, medium and hard" not in capsys.readouterr().err
