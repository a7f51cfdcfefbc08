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
@pytest.mark.parametrize(
    ("name", "faces", "measures"),
    [("fddb", 3, ("discrete", "continuous")), ("pascal_face", 2, ("ap",)), ("afw", 2, ("ap",))],
)
def test_the_test_sets(name: str, faces: int, measures: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    if name == "fddb":
        write_fddb(root, FDDB_FACES, (120, 100))
    else:
        write_images(root / "images", list(PASCAL_FACES), (100, 120))
        write_annotations(root / (CORRECTED if name == "pascal_face" else AFW_CORRECTED), PASCAL_FACES)
    words = [f"checkpoint={checkpoint}", f"data={name}", f"data.root={root}", f"out={out}"]
    refused(f"need WIDER FACE's labels, not data={name}", verb_main.main, [*words, "attributes=true"])
    assert not (out / "predictions").exists()
    evaluate(*words, "protocol=short640", "lower_top=0.2")
    scores = json.loads((out / "scores.json").read_text())
    assert (scores["benchmark"], scores["protocol"], scores["faces"]) == (name, "short640", {"all": faces})
    assert scores["made_by"]["lower_top"] == 0.2 and (out / "detections.png").stat().st_size
    # The same files, scored by themselves, give the same numbers.
    words = [f"benchmark={name}", f"predictions={out}", f"ground_truth={root}", f"out={tmp_path / 'again'}"]
    assert score(words) == 0
    again = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert all(scores[key] == again[key] for key in (*measures, "intervals"))


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
