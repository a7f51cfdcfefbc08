"""``init=``: a run that starts from a trained model, the way to fine-tune one on data of one's own."""

import sys
from pathlib import Path

import pytest
import torch

from fanet_lightning import train
from fanet_lightning.detector import load_model, read_checkpoint
from fanet_lightning.errors import InputError

TINY = [
    "data.train_images=4", "data.val_images=2", "epochs=1", "batch_size=2", "input_size=64", "workers=0", "logger=none",
    "evaluate_at_end=false", "optim.warmup_steps=0", "trainer.accelerator=cpu", "ema=null",
]  # fmt: skip


def trained(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *words])  # Hydra reads them there
    train.main(list(words))


def test_every_weight_and_the_list_of_training_images_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate of 0 the run ends with the shipped model's weights; only the batch norm's counts move."""
    monkeypatch.chdir(tmp_path)
    fixed = ["optim.lr=0", "optim.weight_decay=0"]
    trained(monkeypatch, "init=fanet_light", "model=fanet_light", *fixed, *TINY, "out=run")
    shipped = load_model("fanet_light")
    saved = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    for name, weight in shipped.network.named_parameters():
        assert torch.equal(saved["state_dict"][f"network.{name}"], weight), name
    assert saved["hyper_parameters"]["network"]["normaliser"] == "imagenet"
    lists = {part["data"]: len(part["ids"]) for part in saved["training_images"]}
    assert shipped.training_images is not None
    assert lists == {"wider_face": len(shipped.training_images[0].image_ids), "synthetic": 4}
    # A run that was fine-tuned is itself something to start from, and a resumed one keeps the list.
    words = ["init=run", "model=fanet_light", *TINY, "data.seed=1", "data.root=other"]
    trained(monkeypatch, *words, "out=again")
    again = read_checkpoint(tmp_path / "again/checkpoints/last.ckpt")
    assert {part["data"] for part in again["training_images"]} == {"wider_face", "synthetic"}


def test_the_trunk_alone_for_a_network_of_another_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["init=fanet_light", "init_part=trunk", "model=fanet_light", "level=2", "context=false", "hl=false"]
    trained(monkeypatch, *words, "optim.lr=0", "optim.weight_decay=0", *TINY, "out=run")
    shipped = load_model("fanet_light")
    saved = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    weights = dict(shipped.network.named_parameters())
    trunk = [name for name in weights if name.startswith("trunk.")]
    assert len(trunk) > 20
    for name in trunk:
        assert torch.equal(saved["state_dict"][f"network.{name}"], weights[name]), name
    other = saved["state_dict"]["network.levels.2.stride4.shallow.weight"]
    assert not torch.equal(other, weights["levels.2.stride4.shallow.weight"])  # drawn anew
    assert {part["data"] for part in saved["training_images"]} == {"wider_face", "synthetic"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init=nowhere.ckpt"], "nowhere.ckpt"),
        (["init=fanet_light"], r"init=fanet_light.* model.\w+="),
        (["init=fanet_light", "model=fanet_light", "level=2"], "model.level=3.* 2"),
        (["init=fanet_light", "model=fanet_light", "level=2"], "init_part=trunk"),
        (["init=fanet_light", "init_part=trunk"], "model.backbone=light.* vgg"),
        (["init=fanet_light", "init_part=trnk", "model=fanet_light"], "init_part=trnk.*trunk"),
        (["init_part=trunk"], "init_part=trunk.*init=MODEL"),
        (["init=fanet_light", "model=fanet_light", "weights=imagenet"], "weights.*init"),
    ],
)
def test_what_cannot_be_started_from_is_refused_before_anything_is_made(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        train.main(words)
    assert list(tmp_path.iterdir()) == []
