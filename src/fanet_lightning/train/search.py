"""Searches by Optuna: one study for all starts and processes; what a kill cut off is trained to its end."""

import contextlib
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.provenance import InUse, locked, refuse_other_settings
from fanet_lightning.train.sweep import LOCKS_FOLDER, clear_jobs

# The number of this process among those of the search, which holds the lock of that number for as long as it lives.
SEARCH_PROCESS = "FANET_SEARCH_PROCESS"
# Another process may be making the study's tables.
STUDY_PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def joined(sweeper: DictConfig, folder: Path, settings: Mapping[str, Any], searched: Sequence[str]) -> Iterator[int]:
    """Take part in the study of a search, and hold a place among its processes; yields the trials that are missing.

    Trials of processes that are gone are asked again: their folders are resumed. InputError: the storage cannot be
    opened, or has a study of other ``settings`` (what the trials have in common) or ``searched`` words.
    """
    import optuna

    logging.getLogger("optuna").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # what enqueues, in Optuna 2
    with contextlib.ExitStack() as held:
        for number in itertools.count():
            with contextlib.suppress(InUse):
                held.enter_context(locked(_place(folder, number), "search"))
                break
        os.environ[SEARCH_PROCESS] = str(number)
        with locked(folder / LOCKS_FOLDER / "study", "search", STUDY_PATIENCE_SECONDS):
            if number == 0:
                clear_jobs(folder)
            study, remedy, words = _study(sweeper), "give another folder, sweep=DIR", sorted(searched)
            before = study.user_attrs
            if before.get("searched", words) != words:
                raise InputError(f"{folder} has a study of another search, {before['searched']}; {remedy}")
            refuse_other_settings(f"{folder} has a study", before.get("settings", settings), settings, remedy)
            ours = {"searched": words, "settings": dict(settings), "n_trials": sweeper.n_trials}
            for name, value in ours.items():
                study.set_user_attr(name, value)
            for trial in study.trials:
                if trial.state.name == "RUNNING" and _is_gone(trial.user_attrs.get("process"), folder, number):
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                    study.enqueue_trial(trial.params)
        yield max(0, sweeper.n_trials - sum(trial.state.name == "COMPLETE" for trial in study.trials))


def admit(config: DictConfig, trial: Any) -> None:
    """The plug-in's ``custom_search_space``, called with each trial before its training; leaves if there are enough."""
    import optuna

    process, study = os.environ[SEARCH_PROCESS], trial.study
    others = [t for t in study.trials if t.number != trial.number]
    together = any(t.state.name == "RUNNING" and t.user_attrs.get("process") == process for t in others)
    before = sum(t.state.name in ("COMPLETE", "RUNNING") and t.number < trial.number for t in others)
    if before >= study.user_attrs["n_trials"] and not together:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        sys.exit(0)  # other processes have trained the rest
    trial.set_user_attr("process", process)


def best(sweeper: DictConfig) -> str:
    """One line: the study's best trial so far."""
    study = _study(sweeper)
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not done:
        return f"study {sweeper.storage}: no trial yet"
    words = " ".join(f"{key}={value}" for key, value in study.best_trial.params.items())
    return f"study {sweeper.storage}: best of {len(done)} trials: AP {study.best_value:.3f} with {words}"


def _place(folder: Path, number: int | str) -> Path:
    return folder / LOCKS_FOLDER / f"process{number}"


def _is_gone(process: str | None, folder: Path, number: int) -> bool:
    """Whether the process of a trial that says it is running has ended; its place may be this process's now."""
    if process is None:  # another process has asked for it just now
        return False
    try:
        with contextlib.nullcontext() if process == str(number) else locked(_place(folder, process), "search"):
            return True
    except InUse:
        return False


def _study(sweeper: DictConfig) -> Any:
    import optuna
    import sqlalchemy

    try:
        return optuna.create_study(
            storage=sweeper.storage, study_name=sweeper.study_name, direction="maximize", load_if_exists=True
        )
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        raise InputError(f"hydra.sweeper.storage={sweeper.storage}: {first_line(error)}") from error
