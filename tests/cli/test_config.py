"""The configuration as a person sees it: overrides in, one clear line out."""

import re

import pytest
from omegaconf import OmegaConf

from fanet_lightning.cli import config as help_text
from fanet_lightning.cli.config import compose_config, config_dir, run_name
from fanet_lightning.evaluate import __main__ as evaluate_main
from fanet_lightning.train import __main__ as train


def composed(*overrides: str) -> dict:
    config = OmegaConf.to_container(compose_config("train", overrides), resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize(
    ("word", "value"), [("no", False), ("off", False), ("false", False), ("yes", True), ("1", True)]
)
def test_switches_are_booleans_however_they_are_spelt(word: str, value: bool) -> None:
    assert composed(f"hl={word}")["model"]["hl"] is value


def test_experiment_paper_is_the_recipe_of_section_3_5() -> None:
    assert composed("experiment=paper", "batch_size=24", "model.width=0.5")["batch_size"] == 24
    config = composed("experiment=paper", "level=3", "hl=true", "context=true")
    assert config["data"]["name"] == "wider_face"
    assert (config["batch_size"], config["epochs"], config["input_size"]) == (12, 120, 640)
    assert (config["trainer"]["devices"], config["trainer"]["strategy"]) == (2, "ddp")
    assert config["optim"]["lr"] == 4e-3
    assert (config["optim"]["momentum"], config["optim"]["weight_decay"]) == (0.9, 5e-4)
    assert config["optim"]["milestones"] == pytest.approx([80 / 120, 100 / 120], abs=1e-4)
    assert config["loss"]["lambda_cls"] == 3
    assert (config["model"]["width"], config["model"]["batch_norm"], config["weights"]) == (1.0, False, "imagenet")
    assert config["protocol"]["name"] == "short640"


@pytest.mark.parametrize(
    ("switches", "name"),
    [
        ((1, False, False), "level1"),
        ((2, False, True), "level2_hl"),
        ((3, True, False), "level3_context"),
        ((3, True, True), "level3_context_hl"),
    ],
)
def test_variants_are_named_without_equals_signs(switches: tuple[int, bool, bool], name: str) -> None:
    assert run_name("fanet", *switches) == name
    assert run_name("s3fd_fpn", *switches) == "s3fd_fpn"
    assert run_name("fanet", *switches, "light") == f"light_{name}"
    assert run_name("fanet", *switches, "hf-hub:timm/net.a1") == f"hf-hub_timm_net.a1_{name}"


def test_help_of_train_lists_what_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--help", "batch_size=5"]) == 0
    printed = capsys.readouterr().out
    text = printed.partition("Choices:")[2].partition("Keys and their defaults:")[0]
    for group in ("experiment", "model", "data", "augment", "loss", "protocol", "optim", "trainer", "logger", "cell"):
        section = text.partition(f"\n{group}=…")[2].partition("=…")[0]
        options = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        assert options and sorted(re.findall(r"^  (\w+)", section, re.MULTILINE)) == options, group
    assert "\nmodel=…  (default: fanet)\n  fanet        FANet (paper §3)." in text
    assert re.search(r"\n  paper +The paper's recipe on WIDER FACE, complete \(§3.5\)", text)
    assert re.search(r"^batch_size: 5 +# total over all devices$", printed, re.MULTILINE) and "\n  lr: " in printed


def test_help_of_the_other_verbs_lists_their_own_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_main.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "\nprotocol=…  (default: original)\n" in text and "\nmodel=…" not in text


@pytest.mark.parametrize("verb", sorted(path.stem for path in config_dir().glob("*.yaml")))
def test_every_comment_of_a_key_is_in_the_help(verb: str) -> None:
    keys = OmegaConf.to_yaml(OmegaConf.load(config_dir() / f"{verb}.yaml"))
    shown = help_text.keys_text(verb, keys)
    words = " ".join(shown.split())
    for line in (config_dir() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines():
        if comment := re.match(r"\w+:.*?\s# +(.+)", line):
            assert " ".join(comment[1].split()) in words, line
