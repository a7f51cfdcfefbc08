"""``init=``: a run that starts from a trained model, the way to fine-tune one on data of one's own."""

import json
import re
from pathlib import Path

import pytest
import torch

from fanet_lightning.models.fanet import build_network
from fanet_lightning.models.pretrained import load_model, read_checkpoint
from tests.train.helpers import trained

TINY = [
    "data.train_images=4", "data.val_images=2", "epochs=1", "batch_size=2", "input_size=64", "workers=0", "logger=none",
    "evaluate_at_end=false", "optim.warmup_steps=0", "trainer.accelerator=cpu", "ema=null",
]  # fmt: skip


@pytest.mark.slow
def test_every_weight_and_the_list_of_training_images_are_taken_over(tmp_path: Path) -> None:
    """With hardly a learning rate the run ends with the shipped model's weights; only the batch norm's counts move."""
    fixed = ["optim.lr=1e-20", "optim.weight_decay=0"]
    trained("init=fanet_light", "model=fanet_light", *fixed, *TINY, "out=run")
    shipped = load_model("fanet_light")
    saved = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    for name, weight in shipped.network.named_parameters():
        assert torch.allclose(saved["state_dict"][f"network.{name}"], weight, atol=1e-15), name
    assert saved["hyper_parameters"]["network"]["normaliser"] == "imagenet"
    lists = {part["data"]: len(part["ids"]) for part in saved["training_images"]}
    assert shipped.training_images is not None
    assert lists == {"wider_face": len(shipped.training_images[0].image_ids), "synthetic": 4}
    # A run that was fine-tuned is itself something to start from, and a resumed one keeps the list.
    words = ["init=run", "model=fanet_light", *TINY, "data.seed=1", "data.root=other"]
    trained(*words, "out=again")
    again = read_checkpoint(tmp_path / "again/checkpoints/last.ckpt")
    assert {part["data"] for part in again["training_images"]} == {"wider_face", "synthetic"}


def test_a_frozen_trunk_alone_for_a_network_of_another_level() -> None:
    """Weights and running statistics of its trained layers stay for the epoch of freeze_epochs; the rest is new."""
    words = ["init=fanet_light", "init_part=trunk", "model=fanet_light", "level=2", "context=false", "hl=false"]
    trained(*words, *TINY, "freeze_epochs=1", "optim.backbone_factor=0.1", "out=run")
    saved = read_checkpoint(Path("run/checkpoints/last.ckpt"))
    for name, value in load_model("fanet_light").network.state_dict().items():
        if name.startswith(("trunk.stem.", "trunk.stages.")):
            assert torch.equal(saved["state_dict"][f"network.{name}"], value), name
        elif name.startswith(("levels.2.", "trunk.extra.")) and name.endswith("0.weight"):
            assert not torch.equal(saved["state_dict"][f"network.{name}"], value), name
    assert {part["data"] for part in saved["training_images"]} == {"wider_face", "synthetic"}


def test_fine_tuning_that_ruins_the_model_says_so_and_keeps_what_it_started_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["experiment=finetune", "data=synthetic", *TINY, "logger=csv"]
    trained(*words, "optim.lr=1", "out=run")
    shown = capsys.readouterr().out
    started = re.search(r"^starting model  AP easy \S+ medium \S+ hard (\S+)$", shown, re.MULTILINE)
    assert started is not None and float(started[1]) > 0.5
    below = re.findall(r"^warning: .* AP hard (\S+), below the (\S+) of .*best.ckpt is the better one", shown, re.M)
    assert [(float(end) < 0.1, start) for end, start in below] == [(True, started[1])]
    best = read_checkpoint(tmp_path / "run/checkpoints/best.ckpt")
    for name, weight in load_model("fanet_light").network.named_parameters():
        assert torch.equal(best["state_dict"][f"network.{name}"], weight), name
    assert [part["data"] for part in best["training_images"]] == ["wider_face"]
    assert [path.name for path in (tmp_path / "run").glob("*.log")] == ["train.log"]


def test_a_run_whose_normaliser_came_with_its_weights_resumes_by_its_own_command(tmp_path: Path) -> None:
    network = {"level": 1, "context": False, "hl": False, "width": 0.0625, "batch_norm": True}
    network |= {"agglomerate_from": "conv_fc7", "normaliser": "caffe"}
    weights = {f"network.{name}": x for name, x in build_network(**network).state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": {"network": network}}, "start.ckpt")
    words = ["init=start.ckpt", "level=1", "model.width=0.0625", *TINY, "epochs=3", "validate_every=3", "out=run"]
    trained(*words, "stop_after=1")
    settings = json.loads(Path("run/run.json").read_text())["settings"]
    assert settings["model"]["normaliser"] == "imagenet"  # as it was configured
    Path("start.ckpt").unlink()  # not needed any more
    trained(*words, "resume=auto", "stop_after=2")
    trained(*words[:-1], "resume=run/checkpoints/last.ckpt", "out=other")
    for path in ("run", "other"):
        saved = read_checkpoint(tmp_path / path / "checkpoints/last.ckpt")
        assert saved["hyper_parameters"]["network"]["normaliser"] == "caffe"
        assert saved["state_dict"]["network.normaliser.order"].tolist() == [2, 1, 0]
