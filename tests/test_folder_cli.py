"""Data of one's own from the command line: trained on, scored, examined."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from folder_files import HEIGHT, WIDTH, Face, write_picture, write_voc, write_yolo

TINY = [
    "level=1", "model.width=0.0625", "input_size=64", "batch_size=2", "epochs=1", "workers=0", "logger=none",
    "trainer.accelerator=cpu", "optim.warmup_steps=2", "ema=null",
]  # fmt: skip


def command(verb: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"fanet_lightning.{verb}", *words], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def faces(names: list[str]) -> dict[str, list[Face]]:
    """Every third image has none."""
    own: list[Face] = [(20, 10, 40, 50, False, "face"), (100, 30, 16, 20, False, "face")]
    return {name: own[: number % 3] for number, name in enumerate(names)}


@pytest.mark.parametrize("place", ["", pytest.param("two/deep/", marks=pytest.mark.slow)])
def test_train_and_evaluate(place: str, tmp_path: Path) -> None:
    """Images may lie in the folder itself or in folders of folders; the latter are evaluated anew as well."""
    write_yolo(tmp_path / "mine", {"train": faces([f"{place}{number}" for number in range(8)])})
    # A photo as telephones take it, and one that is no JPEG.
    images = tmp_path / "mine" / "images" / "train" / place
    (images / "1.jpg").rename(images / "1.JPG")
    (images / "2.jpg").unlink()
    write_picture(images / "2.png", (WIDTH, HEIGHT))
    words = ["data=folder", "data.root=mine", "data.format=yolo", "data.val.share=0.4"]
    trained = command("train", *TINY, *words, "out=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.count("mine has no validation part") == 1
    scores = json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())
    assert scores["benchmark"] == "folder"
    assert list(scores["ap"]) == ["all"] and 0 <= scores["ap"]["all"] <= 1
    if not place:
        return
    checkpoint = "checkpoint=run/checkpoints/last.ckpt"
    again = command("evaluate", checkpoint, *words, "device=cpu", "out=again", "errors=true", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    second = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert second["images"] == scores["images"] and second["faces"] == scores["faces"]
    names = sorted(
        path.relative_to(tmp_path / "again" / "predictions")
        for path in (tmp_path / "again" / "predictions").rglob("*.txt")
    )
    assert names and all(str(name).startswith(place) for name in names)


@pytest.mark.slow
def test_mistakes_are_one_line(tmp_path: Path) -> None:
    write_voc(tmp_path / "mine", {"train": faces(["a", "b"]), "val": faces(["c", "d"])})
    words = ["data=folder", "data.root=mine"]
    for more, expected in (
        ([], "data.format is not given: take data.format=coco|yolo|voc|wider; mine looks like voc"),
        (["data.format=coco"], "mine holds no labels in the layout of COCO"),
        (["data.format=voc", "data.classes=[head]"], "no face in the 2 images of the train part"),
        (["data.format=voc", "data.share=1"], "data.share"),
    ):
        refused = command("train", *TINY, *words, *more, "out=run", cwd=tmp_path)
        assert refused.returncode == 2 and expected in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
