"""The configuration as a person sees it: overrides in, one clear line out."""

import re

import pytest
from omegaconf import OmegaConf

from fanet_lightning.cli.config import compose_config, config_dir, keys_text, run_name
from fanet_lightning.train import __main__ as train


def composed(*overrides: str) -> dict:
    config = OmegaConf.to_container(compose_config("train", overrides), resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return config


def test_switches_are_booleans_however_they_are_spelt() -> None:
    words = {"no": False, "off": False, "false": False, "yes": True, "1": True}
    assert {word: composed(f"hl={word}")["model"]["hl"] for word in words} == words


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


def test_variants_are_named_without_equals_signs() -> None:
    names = [run_name("fanet", *switches) for switches in ((1, True, True), (2, False, True), (3, True, False))]
    assert names == ["level1", "level2_hl", "level3_context"]
    assert run_name("s3fd_fpn", 3, True, True) == "s3fd_fpn"
    assert run_name("fanet", 2, False, False, "hf-hub:timm/net.a1") == "hf-hub_timm_net.a1_level2"


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


@pytest.mark.parametrize("verb", sorted(path.stem for path in config_dir().glob("*.yaml")))
def test_every_comment_of_a_key_is_in_the_help(verb: str) -> None:
    text = (config_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
    shown = keys_text(verb, OmegaConf.to_yaml(OmegaConf.create(text)))
    for comment in re.findall(r"^\w+:.*?\s# +(.+)", text, re.MULTILINE):
        assert " ".join(comment.split()) in " ".join(shown.split())
