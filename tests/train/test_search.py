"""``hparams_search=optuna``: one study for several starts and processes, kills, bad inputs."""

import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from fanet_lightning.cli.config import read_words
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import read_record
from fanet_lightning.report.__main__ import write_report
from fanet_lightning.train import __main__ as train
from fanet_lightning.train import search, sweep
from tests.train.helpers import TINY, start

optuna = pytest.importorskip("optuna")
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
SEARCHED = ["optim.lr=interval(1e-4,1e-2)"]
SETTINGS: dict[str, Any] = {"epochs": 2, "seed": 0}


def sweeper(folder: Path, n_trials: int = 2) -> DictConfig:
    return OmegaConf.create({"storage": f"sqlite:///{folder}/study.db", "study_name": "search", "n_trials": n_trials})


def study(folder: Path) -> Any:
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/study.db")


def asked(folder: Path) -> Any:
    trial = study(folder).ask({"optim.lr": optuna.distributions.UniformDistribution(1e-4, 1e-2)})
    search.admit(OmegaConf.create(), trial)
    return trial


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in study(folder).trials]


def test_a_trial_of_a_process_that_is_gone_is_asked_again_and_others_are_left(tmp_path: Path) -> None:
    with search.joined(sweeper(tmp_path), tmp_path, SETTINGS, SEARCHED) as left:
        assert left == 2
        first = asked(tmp_path)
        with search.joined(sweeper(tmp_path), tmp_path, SETTINGS, SEARCHED) as left:
            assert (left, states(tmp_path)) == (2, ["RUNNING"])
            second = asked(tmp_path)
            study(tmp_path).tell(second, 0.5)
    with search.joined(sweeper(tmp_path), tmp_path, SETTINGS, SEARCHED) as left:
        assert (left, states(tmp_path)) == (1, ["FAIL", "COMPLETE", "WAITING"])
        again = asked(tmp_path)
        assert again.params == first.params
        study(tmp_path).tell(again, 0.25)
        with pytest.raises(SystemExit):
            asked(tmp_path)
    with search.joined(sweeper(tmp_path), tmp_path, SETTINGS, SEARCHED) as left:
        assert left == 0
    assert "best of 2 trials: AP 0.500" in search.best(sweeper(tmp_path))


@pytest.mark.parametrize(
    ("settings", "searched", "key"),
    [({"epochs": 3, "seed": 0}, SEARCHED, "epochs=2"), (SETTINGS, ["optim.lr=interval(1e-3,1)"], "another search")],
)
def test_a_study_is_of_one_search(settings: dict[str, Any], searched: list[str], key: str, tmp_path: Path) -> None:
    with search.joined(sweeper(tmp_path), tmp_path, SETTINGS, SEARCHED):
        pass
    with pytest.raises(InputError, match=key), search.joined(sweeper(tmp_path), tmp_path, settings, searched):
        pass
    assert states(tmp_path) == []


@pytest.mark.parametrize("storage", ["sqlite:////nowhere/at/all.db", "nothing://x", "sqlite:///run.json"])
def test_a_storage_that_cannot_be_opened_is_one_line(storage: str) -> None:
    Path("run.json").write_text("no data base" * 100)
    with pytest.raises(InputError, match=r"hydra\.sweeper\.storage"):
        train.main(["-m", "hparams_search=optuna", *TINY, *SEARCHED, f"hydra.sweeper.storage={storage}"])


def test_what_has_no_ap_counts_as_zero() -> None:
    for ap in (None, {"hard": float("nan")}):
        assert sweep.Variant(0, "a", "a", "finished", ap=ap).value == 0.0


def test_a_variant_of_what_makes_a_sweep_is_one_run() -> None:
    for words in (["hparams_search=optuna"], ["experiment=ablation"]):
        assert read_words("train", words, with_hydra=True).is_sweep
        assert not read_words("train", [*words, "hydra.mode=RUN"], with_hydra=True).is_sweep


@pytest.mark.slow
def test_a_killed_search_is_continued_by_two_processes_and_reported(tmp_path: Path) -> None:
    words = ["-m", "hparams_search=optuna", *TINY, "level=1", "optim.lr=interval(1e-4,1e-2)", "optim.name=sgd,adamw"]
    words += ["epochs=12", "validate_every=12"]
    words += ["sweep=grid", "hydra.sweeper.n_trials=2"]
    killed = start("train", *words, cwd=tmp_path)
    for line in killed.stdout:
        if "epoch 2/12" in line:
            killed.send_signal(signal.SIGKILL)
    killed.wait()
    folder = tmp_path / "grid"
    (cut_off,) = (path.parent for path in folder.glob("*/run.json"))
    both = [start("train", *words, cwd=tmp_path) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0 and "Traceback" not in output, output
        assert "best of" in output
    assert sorted(states(folder)).count("COMPLETE") == 2
    record = read_record(cut_off)
    assert record is not None and (record.state, record.train["starts"]) == ("finished", 2)
    assert max(trial.value for trial in study(folder).trials if trial.value is not None) == study(folder).best_value
    assert write_report(folder, bootstrap=0).count("\n| ") == 4  # head, rule and two variants
