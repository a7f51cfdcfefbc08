"""Parts by ``_target_``: optimizer, scheduler, callbacks, logger, loss and network of somebody's own."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fanet_lightning.cli.config import read_words
from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.convert import main as convert
from fanet_lightning.detect.protocols import build_protocol, full_settings, protocol_names, protocol_settings
from fanet_lightning.models.fanet import build_network
from fanet_lightning.models.pretrained import load_model
from fanet_lightning.ops.structures import NetworkOutput
from fanet_lightning.train import __main__ as train
from tests.train.helpers import TINY, trained

EXAMPLES = Path(__file__).parents[2] / "examples/own_parts"


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder from which the examples can be imported, and what is in there with ``own_`` in front."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return tmp_path


def example(name: str) -> Any:
    return importlib.import_module(name)


def test_every_example_in_one_run(
    examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, cut off, resumed, scored, converted and opened again."""
    words = [
        *(word for word in TINY if not word.startswith(("model.", "data."))),
        "model._target_=own_network.ResNetFpn", "model.channels=2", "model.name=resnet_fpn",
        "loss._target_=own_loss.ConfidencePenalty", "loss.beta=0.2", "loss.box=giou",
        "loss.assignment._target_=own_assigner.Nearest", "loss.assignment.count=3",
        "augment.extra=[{_target_: own_augment.Dusk, p: 0.5}]", "callbacks.hardest._target_=own_callback.Hardest",
        "data._target_=own_source.CsvFaces", "data.root=faces", "data.drawn=[4,2]",
        "protocol._target_=own_protocol.SamePixels", "protocol.pixels=20000", "logger=csv", "out=run",
        "optim.optimizer._target_=torch.optim.NAdam", "+optim.optimizer.betas=[0.8,0.9]",
        "optim.scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "optim.scheduler.max_lr=0.001",
        "+logger.more._target_=pytorch_lightning.loggers.CSVLogger", "logger.more.save_dir=more",
    ]  # fmt: skip
    trained(*words, "stop_after=1")
    trained(*words, "resume=auto")
    assert list((examples / "more").rglob("metrics.csv"))
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["betas"][1] == 0.9
    assert checkpoint["lr_schedulers"][0]["total_steps"] == checkpoint["global_step"] == 2
    shown = capsys.readouterr().out
    assert shown.startswith("resnet_fpn: ") and "hardest: images/" in shown
    metrics = (examples / "run/csv/metrics.csv").read_text().splitlines()[0]
    assert "train/entropy" in metrics
    written = json.loads((examples / "run/evaluation/scores.json").read_text())
    assert (written["benchmark"], written["protocol"], written["images"]) == ("csv_faces", "own_protocol.SamePixels", 2)
    settings = written["made_by"]["protocol_settings"]
    assert (settings["_target_"], settings["pixels"]) == ("own_protocol.SamePixels", 20000)
    (passes, *_) = json.loads((examples / "run/evaluation/scales.json").read_text()).values()
    assert passes[0]["height"] * passes[0]["width"] == pytest.approx(20000, rel=0.01)

    assert convert(["data._target_=own_source.CsvFaces", "data.root=faces", "to=coco", "out=coco"]) == 0
    parts = json.loads((examples / "coco/converted.json").read_text())["parts"]
    assert {part: own["images"] for part, own in parts.items()} == {"train": 4, "val": 2}

    model = load_model("run")
    assert type(model.network) is example("own_network").ResNetFpn
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(EXAMPLES)])
    monkeypatch.delitem(sys.modules, "own_network")
    with pytest.raises(InputError, match=r"best\.ckpt: model\._target_=own_network\.ResNetFpn .*PYTHONPATH"):
        load_model("run")


def test_protocol_of_ones_own(examples: Path) -> None:
    own = {"_target_": "own_protocol.SamePixels", "pixels": 10000}
    for name in protocol_names():  # whatever the group was before
        stored = full_settings({**protocol_settings(name), **own})
        assert stored.items() >= own.items()
        protocol: Any = build_protocol(stored)
        assert protocol.target_size(100, 400) == (50, 200)
    several = "fanet_lightning.detect.protocols.MultiScale"
    assert build_protocol({"_target_": several, "kind": "original", "keep": 3}).keep == 3  # type: ignore[union-attr]


def test_names_become_those_of_the_classes_unless_they_are_given(examples: Path) -> None:
    words = ["data._target_=own_source.CsvFaces", "data.root=faces", "protocol._target_=own_protocol.SamePixels"]
    for verb in ("train", "evaluate"):
        config = read_words(verb, words).config()
        assert (config.data.name, config.protocol.name) == ("own_source.CsvFaces", "own_protocol.SamePixels")
    assert read_words("detect", [*words[2:], "protocol.name=mine"]).config().protocol.name == "mine"
    with pytest.raises(InputError, match=r"data\.train_images"):
        read_words("train", [*words, "data.train_images=3"])


class Shallow(torch.nn.Module):
    """A network whose maps are of other strides."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_network(width=0.01)
        self.normaliser, self.training_only = self.inner.normaliser, self.inner.training_only

    def forward(self, images: torch.Tensor, all_hierarchies: bool | None = None) -> NetworkOutput:
        output: NetworkOutput = self.inner(images[..., ::2, ::2], all_hierarchies)
        return output


class AsksForValues(Shallow):
    """A network of the right strides whose forward looks at the pixels."""

    def forward(self, images: torch.Tensor, all_hierarchies: bool | None = None) -> NetworkOutput:
        output: NetworkOutput = self.inner(images + int(images.max() > 255), all_hierarchies)
        return output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model._target_=nowhere.Net"], r"model\._target_=nowhere\.Net .*nowhere"),
        (["model._target_=own_network.Missing"], r"model\._target_=own_network\.Missing .*Missing"),
        (["model._target_=own_callback.Hardest"], r"model\._target_=own_callback\.Hardest .*Module"),
        (["model._target_=torch.nn.Conv2d"], "model: .*in_channels"),
        (["model._target_=torch.nn.Identity"], "torch.nn.Identity .*normaliser"),
        ([f"model._target_={__name__}.Shallow"], "Shallow .*strides"),
        ([f"model._target_={__name__}.AsksForValues"], "AsksForValues.* counted .*value"),
        (["init=fanet_light", "init_part=trunk", "model._target_=own_network.ResNetFpn"], "ResNetFpn .*trunk"),
        (["loss._target_=own_callback.Hardest"], r"loss\._target_=.* Module"),
        (
            ["callbacks.mine._target_=own_source.CsvFaces", "callbacks.mine.root=x"],
            "callbacks.mine.*no Lightning callback",
        ),
        (["callbacks.mine._target_=nowhere.Nothing", "callbacks.mine.times=1"], "callbacks.mine.*nowhere"),
        (["callbacks.mine._target_=nowhere.Nothing"], r"callbacks\.mine\._target_=nowhere\.Nothing .*PYTHONPATH"),
        (["callbacks.mine.times=1"], r"callbacks\.mine\.times"),
        (["optim.optimizer._target_=torch.optim.NAdam", "optim.optimizer.banana=1"], r"optim\.optimizer\.banana"),
        (["optim.optimizer=adam"], r"optim\.optimizer=adam"),
        (["callbacks.mine._target_=own_callback.Hardest", "callbacks.mine.banana=1"], "callbacks.mine.banana"),
        (["loss._target_=own_loss.ConfidencePenalty", "+loss.banana=1"], "loss: .*banana"),
        (["loss.assignment._target_=nowhere.Nearest"], r"loss\.assignment.*nowhere"),
        (["loss.assignment._target_=own_assigner.Nearest", "loss.assignment.banana=1"], r"loss\.assignment\.banana"),
        (["loss.assignment._target_=own_callback.Hardest"], r"loss\.assignment="),
        (["loss.assignment.count=3"], r"loss\.assignment\.count"),
        (["data._target_=own_callback.Hardest"], r"data\._target_=own_callback\.Hardest .*ground_truth"),
        (["data._target_=nowhere.Faces"], r"data\._target_=nowhere"),
        (["protocol._target_=own_callback.Hardest"], r"protocol\._target_=.*TestScale"),
        (["protocol._target_=fanet_lightning.detect.protocols.MultiScale"], "protocol=.*one scale"),
    ],
)
def test_a_part_that_is_none_is_one_line_before_anything_is_made(
    words: list[str], message: str, examples: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train.main(words)
    assert "\n" not in str(caught.value)
    assert list(examples.iterdir()) == []
