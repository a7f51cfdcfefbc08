"""Models that are given away: from a checkpoint to a folder, back to the same faces, and what may be wrong with it."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from fanet_lightning import FaceDetector
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import file_sha256
from fanet_lightning.cli.provenance import RunRecord
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.detect import __main__ as detect
from fanet_lightning.evaluate import __main__ as evaluate_verb_main
from fanet_lightning.models import packaging, pretrained
from fanet_lightning.models.fanet import build_network
from fanet_lightning.models.pretrained import load_model, locate
from tests.data.wider_files import write_text, write_wider
from tests.models.helpers import disturb

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {"name": "fanet", "level": 2, "width": 0.0625, "batch_norm": True, "normaliser": "caffe"}
IMAGES = [{"data": "wider_face", "split": "val", "ids": ["0--Parade/a", "0--Parade/b"]}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose batch normalization has seen something, so that folding it is no identity."""
    path = tmp_path_factory.mktemp("runs") / "my run/checkpoints/best.ckpt"
    path.parent.mkdir(parents=True)
    torch.manual_seed(1)
    network = build_network(**NETWORK)
    disturb(network)
    # The file must say which normaliser it is: the stored options are of before the weights were loaded.
    options = {**NETWORK, "normaliser": "imagenet"}
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"hyper_parameters": {"network": options, "detection": {"keep": 40}}, "state_dict": state,
                "training_images": IMAGES, "epoch": 4, "global_step": 50}, path)  # fmt: skip
    command = ["/home/somebody/train.py", "level=2", "data.root=/home/somebody/wider_face", "out=/home/somebody/run"]
    RunRecord(name="a", seed=7, settings={"batch_size": 12, "input_size": 320, "init": "fanet_light"}, state="finished",
              train={"epoch": 9, "epochs": 9, "devices": 1, "device": "cpu, 2 threads", "seconds": 7200},
              made_by={"command": command, "git_commit": "0123abcd", "packages": {"torch": "2.14.1"}},
              ).write(path.parent.parent)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("models") / "tiny"
    assert packaging.main([f"checkpoint={checkpoint}", f"out={out}", "name=tiny"]) == 0
    return out


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def image(seed: int = 0, height: int = 150, width: int = 203) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_folder_finds_what_the_checkpoint_finds(model: Path, checkpoint: Path) -> None:
    state = torch.get_rng_state()
    first, second = FaceDetector.from_checkpoint(checkpoint), FaceDetector.from_pretrained(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in second.backend.network.modules())
    for seed in range(3):
        a, b = first.detect(image(seed), threshold=0.0), second.detect(image(seed), threshold=0.0)
        assert len(a.scores) == 40 and torch.equal(a.scores, b.scores) and torch.equal(a.boxes_xyxy, b.boxes_xyxy)
    assert second.network_options == NETWORK  # the normaliser of the weights
    assert second.training_images == load_model(checkpoint).training_images
    assert second.training_images is not None and second.training_images[0].image_ids == ("0--Parade/a", "0--Parade/b")
    assert second.source == model and second.detection["keep"] == 40 and second.detection["top_k"] == 5000


def test_half_rounds_convolutions_alone(model: Path, checkpoint: Path, tmp_path: Path) -> None:
    difference = packaging.package(checkpoint, tmp_path / "half", "tiny", half=True)
    assert 0 < difference < 0.02
    whole, half = (load_file(path / "model.safetensors") for path in (model, tmp_path / "half"))
    for name, x in half.items():
        if x.dtype == torch.float16:
            assert name.endswith("weight") and x.ndim == 4
            torch.testing.assert_close(x.float(), whole[name], rtol=2**-11, atol=2**-25)
        else:
            assert torch.equal(x, whole[name])
    assert json.loads((tmp_path / "half/config.json").read_text())["weights"] == "float16"
    assert all(p.dtype == torch.float32 for p in load_model(tmp_path / "half").network.parameters())


def test_files_of_a_package(model: Path, checkpoint: Path) -> None:
    assert sorted(path.name for path in model.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "training_images.txt",
    ]  # fmt: skip
    config = json.loads((model / "config.json").read_text())
    assert (config["format"], config["format_version"], config["name"]) == ("fanet_lightning", 1, "tiny")
    assert config["network"] == NETWORK and config["class_names"] == ["face"]
    assert config["checkpoint_sha256"] == file_sha256(checkpoint)
    assert config["detection"] == {"score_floor": 0.01, "top_k": 5000, "nms_iou": 0.3, "keep": 40}
    modes = {path.stat().st_mode & 0o777 for path in model.iterdir()}
    assert len(modes) == 1 and modes.pop() & 0o400


def test_a_folder_of_something_else_is_not_replaced(model: Path, checkpoint: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine/notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"mine holds something else than a model \(notes\.txt\)"):
        packaging.package(checkpoint, mine.parent, "tiny")
    assert mine.read_text() == "mine" and [path.name for path in tmp_path.iterdir()] == ["mine"]
    packaging.package(checkpoint, Path(shutil.copytree(model, tmp_path / "old")), "new")
    assert json.loads((tmp_path / "old/config.json").read_text())["name"] == "new"


def test_the_card(model: Path) -> None:
    text = (model / "README.md").read_text()
    _, heading, body = text.split("---\n", 2)
    fields = yaml.safe_load(heading)
    assert fields["license"] == "other" and fields["library_name"] == "fanet_lightning"
    assert fields["datasets"] == ["wider_face"] and "model-index" not in fields
    for expected in (
        "* WIDER FACE: 2 images of its val split", "after 50 steps of batch 12 at 320×320 pixels (epoch 5 of 9)",
        "commit: 0123abcd", "fanet train level=2 data.root=wider_face out=run", "2.0 hours",
        "for research alone", "trained on images of WIDER FACE's *val* split", "seed: 7",
        "* started from: `fanet_light`, SHA-256 ", "crops were 320 pixels wide",
    ):  # fmt: skip
        assert expected in body, expected
    assert "somebody" not in text


def test_the_card_says_how_weights_were_averaged(checkpoint: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(checkpoint.parents[1], tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    for callbacks, expected in (
        ({}, "decay 0.9"),
        ({"callbacks": {"ema": None, "swa": {"_target_": "a.c", "start": 0.75}}}, "the mean from 0.75 of the steps on"),
        ({"callbacks": {"progress": {"_target_": "a.d"}}}, "no"),
    ):
        settings = {**record["settings"], "ema": 0.9, **callbacks}
        (run / "run.json").write_text(json.dumps({**record, "settings": settings}))
        packaging.package(run, tmp_path / "out", "tiny")
        assert f"* averaged weights: {expected}\n" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/home/x/best.ckpt", "best.ckpt"), ("out=/tmp/a b/run", "out=run"), ("images=~/l/a.txt", "images=a.txt"),
        ("[/a/b.txt,/c/d.txt]", "[b.txt,d.txt]"), (r"out=C:\Users\x\run", "out=run"), ("runs/a.ckpt", "runs/a.ckpt"),
        ("http://a.org/b/c", "http://a.org/b/c"), ("AP / recall / rate", "AP / recall / rate"),
        (["/a/b", {"c": "/d/e", "n": 3}], ["b", {"c": "e", "n": 3}]),
    ],
)  # fmt: skip
def test_folders_of_a_machine_are_left_out(given: Any, expected: Any) -> None:
    assert packaging.portable(given) == expected


def make_val(root: Path, checkpoint: Path) -> list[str]:
    """Four images of WIDER FACE's val split, one of them trained on. Faces are what the network takes for some."""
    ids = [f"0--Parade/{name}" for name in "acde"]
    write_wider(root, "val", dict.fromkeys(ids, ()), (64, 96))
    detector, faces = FaceDetector.from_checkpoint(checkpoint), {}
    for image_id in ids:
        image = read_image_rgb(root / "WIDER_val/images" / f"{image_id}.jpg")
        x1, y1, x2, y2 = detector.detect(image, "original", 0.0).boxes_xyxy[[0, 3, 7]].round().int().T
        faces[image_id] = [(*row, 0, 0, 0, 0, 0, 0) for row in torch.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist()]
    write_text(root / "wider_face_split/wider_face_val_bbx_gt.txt", faces)
    return ids


def test_scores_travel_and_are_computed_again_by_the_cards_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a person does it: evaluate, package with the scores, then the line that the card gives."""
    make_val(tmp_path / "wider", checkpoint)
    (tmp_path / "part.txt").write_text("0--Parade/a.jpg\n0--Parade/d.jpg\n")
    monkeypatch.chdir(tmp_path)
    words = [f"checkpoint={checkpoint}", "data=wider_face", f"data.root={tmp_path / 'wider'}", "protocol=original",
             f"data.val.images={tmp_path / 'part.txt'}", "workers=0", "device=cpu", "detection.keep=33"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["/somewhere/fanet_lightning/evaluate.py", *words, "out=scored"])
    assert evaluate_verb_main.main([*words, "out=scored"]) == 0
    # A part of the benchmark, as the official ground truth would say.
    scores = json.loads((tmp_path / "scored/scores.json").read_text())
    scores["images_of_benchmark"] = 3226
    assert 0 < scores["ap"]["all"] < 1
    (tmp_path / "scored/scores.json").write_text(json.dumps(scores))
    assert packaging.main([f"checkpoint={checkpoint}", "out=mine", "name=mine", "scores=[scored]"]) == 0
    stem = "mine/scores/wider_face_original_2"
    assert (tmp_path / f"{stem}_images.txt").read_text() == "0--Parade/a\n0--Parade/d\n"
    kept = json.loads((tmp_path / f"{stem}.json").read_text())
    assert kept["ap"] == scores["ap"] and kept["made_by"]["checkpoint"] == "best.ckpt"
    assert str(tmp_path) not in (tmp_path / f"{stem}.json").read_text()
    card = (tmp_path / "mine/README.md").read_text()
    assert "**1 of these images were trained on" in card and f"| {scores['ap']['all']:.4f} |" in card
    results = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert results[0]["metrics"] == [{"type": "ap", "name": "AP all", "value": scores["ap"]["all"]}]
    (line,) = [line for line in card.splitlines() if line.startswith("fanet evaluate ")]
    assert "detection.keep=33" in line and "protocol=original" in line and "workers" not in line
    assert line.endswith(" out=wider_face_original_2_again")
    again = line.replace("data.root=DATA", f"data.root={tmp_path / 'wider'}").split()[2:]
    assert evaluate_verb_main.main([*again, "out=again", "device=cpu", "workers=0"]) == 0
    found = json.loads((tmp_path / "again/scores.json").read_text())
    assert found["ap"] == scores["ap"] and found["trained_on_images"] == {"count": 1, "share": 0.5}
    assert found["made_by"]["network"] == NETWORK
    assert found["made_by"]["checkpoint_sha256"] == file_sha256(tmp_path / "mine/model.safetensors")
    for file in sorted((tmp_path / "again/predictions").rglob("*.txt")):
        assert file.read_bytes() == (tmp_path / "scored" / file.relative_to(tmp_path / "again")).read_bytes()
    scores["made_by"]["checkpoint_sha256"] = "f" * 64
    (tmp_path / "scored/scores.json").write_text(json.dumps(scores))
    before = (tmp_path / "mine/README.md").read_bytes()
    with pytest.raises(InputError, match=r"scored.*ffffffffffff"):
        packaging.main([f"checkpoint={checkpoint}", "out=mine", "name=mine", "scores=[scored]"])
    assert (tmp_path / "mine/README.md").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "images", "message"),
    [
        ([], None, "out=… must be given"),
        (["out=c"], None, "old.ckpt does not name its training images"),
        *((["out=c"], junk, "old.ckpt is a checkpoint, but") for junk in ("junk", 7, [{"data": "a"}], torch.ones(3))),
    ],
)
def test_mistaken_words_and_junk_for_training_images(
    words: list[str], images: Any, message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**torch.load(checkpoint, weights_only=True), "training_images": images}, "old.ckpt")
    with pytest.raises(InputError, match=message):
        packaging.main(["checkpoint=old.ckpt", "name=b", *words])
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]


def config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    content = load_file(folder / "model.safetensors")
    change(content)
    save_file(content, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: config(folder, format_version=2, package_version="9.1"), r"config.json.*format 2.*9.1"),
        (lambda folder: config(folder, format="other"), "config.json"),
        (lambda folder: config(folder, network={**NETWORK, "novelty": 1}), "novelty"),
        (lambda folder: config(folder, network={**NETWORK, "level": 9}), "level=9"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: weights(folder, lambda w: w.pop("trunk.conv3_3.weight")), "Missing key.*trunk.conv3_3.weight"),
        (lambda folder: weights(folder, lambda w: w["trunk.conv3_3.weight"].fill_(torch.nan)), "conv3_3.weight"),
        (lambda folder: (folder / "training_images.txt").write_text("# none\n"), "names no image"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_line(copy: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(copy)
    with pytest.raises(InputError, match=message) as error:
        FaceDetector.from_pretrained(copy)
    assert "\n" not in str(error.value)


def test_the_card_counts_the_parameters_of_the_loaded_network() -> None:
    count = sum(parameter.numel() for parameter in FaceDetector.from_pretrained().backend.network.parameters())
    for path in (pretrained.SHIPPED / pretrained.DEFAULT_MODEL / "README.md", ROOT / "README.md"):
        stated = re.findall(r"([\d.]+) M parameters", path.read_text(encoding="utf-8"))
        assert stated == [f"{count / 1e6:.2f}"], path


def test_the_folder_of_a_run_stands_for_its_best_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """best.ckpt, else last.ckpt; the run's folder or its checkpoints."""
    run = tmp_path / "runs/mine"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("last.ckpt", "best.ckpt"):
        shutil.copy(checkpoint, run / "checkpoints" / name)
        assert locate(run) == locate(run / "checkpoints") == run / "checkpoints" / name
    Image.fromarray(image()).save(tmp_path / "a.png")
    words = [f"source={tmp_path / 'a.png'}", "save=json", f"out={tmp_path / 'faces'}"]
    assert detect.main([f"checkpoint={run}", *words]) == 0
    assert json.loads((tmp_path / "faces/detections.json").read_text())["made_by"]["checkpoint"] == str(run)


def test_what_a_name_stands_for(model: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "SHIPPED", model.parent)
    assert pretrained.shipped_models() == ["tiny"]
    assert locate("tiny") == locate(Path("tiny")) == model
    shutil.copytree(model, tmp_path / "tiny")
    assert locate("tiny") == model and locate("./tiny").resolve() == tmp_path / "tiny"
    assert locate(str(model / "model.safetensors")) == model and locate(checkpoint) == checkpoint
    assert len(FaceDetector.from_pretrained("tiny").detect(image(), threshold=0.0).scores) == 40
    assert pretrained.name_of(model) == "tiny" and pretrained.name_of(checkpoint) == "my run"
    for name in ("", "checkpoints"):
        (tmp_path / "empty" / name).mkdir(parents=True)
        with pytest.raises(InputError, match=r"empty.*best.ckpt or last.ckpt.*config.json"):
            locate(tmp_path / "empty" / name)
    # No name on the hub: a mistaken path.
    for name in ("tinny", "runs/last.ckpt", "a/b/c", "./a/b", "tiny/a"):
        with pytest.raises(InputError, match="no checkpoint at "):
            locate(name)


def test_a_model_comes_from_the_hub_without_anything_that_could_run(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, calls = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed"), []

    def download(repository: str, **options: Any) -> str:
        calls.append((repository, options["revision"], set(options["allow_patterns"])))
        if repository != "someone/faces":
            raise hub.errors.LocalEntryNotFoundError("The first line.\nThe second line.")
        return str(model)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert locate("someone/faces@v1.2") == model and locate("someone/faces") == model
    files = {"config.json", "model.safetensors", "README.md", "training_images.txt", "scores/*"}
    assert calls == [("someone/faces", "v1.2", files), ("someone/faces", None, files)]
    with pytest.raises(InputError, match=r"a/b@c.*The first line. The second line") as raised:
        locate("a/b@c")
    assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"a/b.*install"):
        locate("a/b")
