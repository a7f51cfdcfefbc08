"""What a model was trained on: the list itself, its way through checkpoints, and what `score` and `evaluate` say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fanet_lightning.cli.provenance import (
    TrainedOn,
    TrainingImages,
    list_beside,
    read_training_images,
    trained_on,
    write_training_images,
)
from fanet_lightning.evaluate import __main__ as evaluate_verb_main
from fanet_lightning.score import __main__ as score_verb
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, write_ground_truth
from fanet_lightning.score.wider_face.predictions import write_predictions
from tests.evaluate.helpers import write_checkpoint
from tests.score.helpers import refused
from tests.train.helpers import TINY, trained

NAMES = st.none() | st.text(min_size=1, max_size=6)
LINE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=8)
IDS = st.lists(LINE, min_size=1, max_size=6, unique=True)
FEW = st.sampled_from(["e/a", "e/b", "e/c", "e/d.jpg", "e/d", "f/a"])
PART = st.builds(
    TrainingImages, st.sampled_from([None, "wider_face", "folder"]), st.sampled_from([None, "train", "val"]),
    st.lists(FEW, max_size=4).map(tuple),
)  # fmt: skip


@settings(max_examples=300)
@given(parts=st.lists(st.builds(TrainingImages, NAMES, NAMES, IDS.map(tuple)), min_size=1, max_size=3),
       scored=st.none() | st.tuples(NAMES, NAMES))  # fmt: skip
def test_any_names_come_back_from_a_file(
    parts: list[TrainingImages], scored: tuple[str | None, str | None] | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "list.txt"
    write_training_images(path, parts, scored)
    assert read_training_images(path) == (parts, scored or (None, None))


@settings(max_examples=500)
@given(
    parts=st.lists(PART, max_size=4), scored=st.lists(FEW, max_size=6, unique=True),
    data=st.sampled_from([None, "wider_face", "folder"]), split=st.sampled_from([None, "train", "val"]),
)  # fmt: skip
def test_counted_one_by_one(
    parts: list[TrainingImages], scored: list[str], data: str | None, split: str | None
) -> None:
    """The rule in words: same name, unless both are known to be other splits of one data set."""

    def bare(name: str) -> str:
        return name[:-4] if name.endswith(".jpg") else name

    among = []
    for name in scored:
        seen = False
        for part in parts:
            for other in part.image_ids:
                same_name = bare(other) == bare(name)
                other_split = part.data == data and data and part.split and split and part.split != split
                seen = seen or bool(same_name and not other_split)
        among += [bare(name)] if seen else []
    assert trained_on(parts, scored, data, split) == TrainedOn(len(among), len(scored), among[0] if among else None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# trained on: data=a split=b images=2\ne/a\n", "images=2' says; the list is damaged"),
        (b"# nothing\n", "names no image; write one image a line"),
        (b"\xff\xfe\x00", "not a text file; give a text file with one image a line"),
        (None, "No such file or directory"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    refused(message, read_training_images, tmp_path / "a.txt")


def test_where_score_looks(tmp_path: Path) -> None:
    expected = tmp_path / "training_images.txt"
    assert list_beside(tmp_path / "predictions") is None
    expected.write_text("a")
    assert list_beside(tmp_path / "predictions") == list_beside(tmp_path / "predictions/detections.json") == expected
    # A folder of foreign predictions that happens to be next to a model's list.
    assert list_beside(tmp_path / "retinaface") is None


# score


@pytest.fixture
def scored(tmp_path: Path) -> list[str]:
    """Words for `score`: four images with a face each, found."""
    ids = [f"0--Parade/0_Parade_{i}" for i in range(4)]
    faces = [np.array([[10.0, 10.0, 20.0, 20.0]]) for _ in ids]
    counted = {setting: [np.array([True]) for _ in ids] for setting in ("easy", "medium", "hard")}
    write_ground_truth(tmp_path / "truth", GroundTruth(tuple(ids), faces, counted))
    found = {image_id: (np.array([[10.0, 10, 30, 30]]), np.array([0.5 + i / 10])) for i, image_id in enumerate(ids)}
    for run in ("run", "other"):
        write_predictions(tmp_path / run / "predictions", found)
    return [f"predictions={tmp_path / 'run/predictions'}", f"ground_truth={tmp_path / 'truth'}",
            f"out={tmp_path / 'out'}", "bootstrap=0"]  # fmt: skip


def stated(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out/scores.json").read_text())["trained_on_images"]


def test_score_says_what_the_list_next_to_the_predictions_says(
    scored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score_verb.main(scored) == 0
    assert (stated(tmp_path), capsys.readouterr().err) == (None, "")
    parts = [TrainingImages("wider_face", "val", ("0--Parade/0_Parade_1", "0--Parade/0_Parade_3", "1--x/other"))]
    write_training_images(tmp_path / "run/training_images.txt", parts, ("wider_face", "val"))
    assert score_verb.main(scored) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: 2 of 4 scored images were trained on; ") and "0--Parade/0_Parade_1" in warning
    assert stated(tmp_path) == {"count": 2, "share": 0.5}
    # Restricted to an image that was not trained on.
    (tmp_path / "one.txt").write_text("0--Parade/0_Parade_0.jpg\n")
    assert score_verb.main([*scored, f"images={tmp_path / 'one.txt'}"]) == 0
    assert (stated(tmp_path), capsys.readouterr().err) == ({"count": 0, "share": 0.0}, "")
    # The list says that these are of another split of the same data set.
    write_training_images(tmp_path / "run/training_images.txt", parts, ("wider_face", "train"))
    assert score_verb.main(scored) == 0
    assert (stated(tmp_path), capsys.readouterr().err) == ({"count": 0, "share": 0.0}, "")


def test_a_list_by_name_and_the_list_of_the_other_predictions(
    scored: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("0--Parade/0_Parade_2.jpg\n")
    ids = tuple(f"0--Parade/0_Parade_{i}" for i in (0, 1, 2))
    write_training_images(tmp_path / "other/training_images.txt", [TrainingImages(None, None, ids)])
    words = [*scored[:-1], "bootstrap=10", f"trained_on={tmp_path / 'mine.txt'}"]
    words.append(f"against={tmp_path / 'other/predictions'}")
    assert score_verb.main(words) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: 1 of 4 scored images was trained on;")
    assert second.startswith(f"warning: {tmp_path / 'other/predictions'}: 3 of 4 scored images were trained on;")
    assert stated(tmp_path) == {"count": 1, "share": 0.25}
    # Paths as `find` writes them; a name alone at their end is no image's.
    paths = ("./WIDER_val/images/0--Parade/0_Parade_2.jpg", ".\\images\\0--Parade\\0_Parade_0.jpg", "/x/0_Parade_1.jpg")
    (tmp_path / "mine.txt").write_text("\n".join(paths))
    assert score_verb.main(words) == 0
    assert stated(tmp_path) == {"count": 2, "share": 0.5}


# Checkpoints


def test_training_names_its_images_and_resumes_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is in every checkpoint; one without it (of before) resumes."""
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "level=1", "out=run", "data.train_images=4", "data.root=synthetic", "evaluate_at_end=false"]
    trained(*words, "epochs=2", "stop_after=1")
    names = sorted(path.stem for path in tmp_path.glob("synthetic/*/WIDER_train/images/*/*.jpg"))
    checkpoints = tmp_path / "run/checkpoints"
    for path in checkpoints.glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        (part,) = content["training_images"]
        assert part["data"] == "synthetic" and sorted(name.split("/")[1] for name in part["ids"]) == names
        assert len(part["ids"]) == 4
        del content["training_images"]
        torch.save(content, path)
    trained(*words, "epochs=2", "resume=auto")
    content = torch.load(checkpoints / "last.ckpt", weights_only=True)
    assert content["epoch"] == 1 and len(content["training_images"][0]["ids"]) == 4


def test_evaluate_says_it_and_score_repeats_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [f"data.root={tmp_path / 'synthetic'}", "data.train_images=1", "data.val_images=3", "device=cpu"]
    data += ["data.image_width=[96,128]", "data.image_height=[96,112]", f"out={tmp_path / 'out'}"]
    old = write_checkpoint(tmp_path / "old.ckpt", 1, {"keep": 20})
    assert evaluate_verb_main.main([f"checkpoint={old}", *data]) == 0
    assert "the checkpoint does not name its training images" in capsys.readouterr().err
    assert stated(tmp_path) is None and not (tmp_path / "out/training_images.txt").exists()
    ids = list(json.loads((tmp_path / "out/scales.json").read_text()))
    part = {"data": "synthetic", "split": None, "ids": [ids[1], "0--Elsewhere/a"]}
    torch.save(torch.load(old) | {"training_images": [part]}, tmp_path / "new.ckpt")
    assert evaluate_verb_main.main([f"checkpoint={tmp_path / 'new.ckpt'}", *data]) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 1 of 3 scored images was trained on; ") and ids[1] in warning
    expected = {"count": 1, "share": pytest.approx(1 / 3)}
    assert stated(tmp_path) == expected
    truth = next((tmp_path / "synthetic").glob("*/eval_gt"))
    words = [f"predictions={tmp_path / 'out/predictions'}", f"ground_truth={truth}", f"out={tmp_path / 'scored'}"]
    assert score_verb.main([*words, "bootstrap=0"]) == 0
    assert capsys.readouterr().err == warning
    assert json.loads((tmp_path / "scored/scores.json").read_text())["trained_on_images"] == expected
    # A model that says nothing does not inherit the list of the one before.
    assert evaluate_verb_main.main([f"checkpoint={old}", *data]) == 0
    assert stated(tmp_path) is None and not (tmp_path / "out/training_images.txt").exists()
