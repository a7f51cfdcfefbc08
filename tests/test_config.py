"""The configuration as a person sees it: overrides in, one clear line out."""

import pytest
from omegaconf import OmegaConf

from fanet_lightning.config import compose_config, run_name
from fanet_lightning.errors import InputError


def composed(*overrides: str) -> dict:
    config = OmegaConf.to_container(compose_config("config", overrides), resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    return config


def test_defaults_are_the_final_model_of_the_paper_on_drawn_faces() -> None:
    config = composed()
    assert (config["level"], config["context"], config["hl"]) == (3, True, True)
    assert config["model"]["name"] == "fanet"
    assert config["model"]["width"] == 0.125
    assert config["data"]["name"] == "synthetic"
    assert config["name"] == "level3_context_hl"


@pytest.mark.parametrize(
    ("word", "value"), [("no", False), ("off", False), ("false", False), ("yes", True), ("1", True)]
)
def test_switches_are_booleans_however_they_are_spelt(word: str, value: bool) -> None:
    assert composed(f"hl={word}")["model"]["hl"] is value


def test_experiment_paper_is_the_recipe_of_section_3_5() -> None:
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


def test_experiment_scratch_needs_no_weights() -> None:
    config = composed("experiment=wider_face_scratch")
    assert config["weights"] is None
    assert config["model"]["batch_norm"] is True
    assert config["ema"] and config["optim"]["schedule"] == "cosine"


def test_the_command_line_wins_over_an_experiment() -> None:
    assert composed("experiment=paper", "batch_size=24", "model.width=0.5")["batch_size"] == 24


@pytest.mark.parametrize(
    ("switches", "name"),
    [
        ((1, False, False), "level1"),
        ((2, False, True), "level2_hl"),
        ((3, True, False), "level3_context"),
        ((3, True, True), "level3_context_hl"),
    ],
)
def test_cells_are_named_without_equals_signs(switches: tuple[int, bool, bool], name: str) -> None:
    assert run_name("fanet", *switches) == name
    assert run_name("s3fd_fpn", *switches) == "s3fd_fpn"
    assert run_name("fanet", *switches, "light") == f"light_{name}"
    assert run_name("fanet", *switches, "hf-hub:timm/net.a1") == f"hf-hub_timm_net.a1_{name}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("levle=3", r"unknown key 'levle': did you mean 'level'\?"),
        ("model.widht=1", r"unknown key 'model\.widht': did you mean 'model\.width'\?"),
        ("hl=maybe", r"hl: Value 'maybe' is not a valid bool"),
        ("level=three", r"level: .*'three'.*[Ii]nt"),
        ("data=wider", r"data=wider: there is no such option; choose one of afw, fddb, .*, wider_face"),
        (
            "experiment=papre",
            r"experiment=papre: .* choose one of ablation, paper, wider_face_light, wider_face_scratch",
        ),
    ],
)
def test_wrong_overrides_give_one_line_that_names_key_and_value(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        compose_config("config", [override])
    assert "\n" not in str(caught.value)
