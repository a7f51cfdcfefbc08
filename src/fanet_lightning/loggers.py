"""Where metrics go: CSV, TensorBoard, Weights & Biases, several at a time; all go on after a run was cut off."""

import csv
import netrc
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from fanet_lightning.errors import InputError
from fanet_lightning.files import replaced
from fanet_lightning.run_record import is_first_process

if TYPE_CHECKING:
    from wandb import Run

KNOWN = ("csv", "tensorboard", "wandb")
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass
class Loggers:
    """Lightning's loggers of a run, and its W&B run where there is one (on the first rank alone)."""

    loggers: list[Logger] = field(default_factory=list)
    wandb_run: "Run | None" = None

    @property
    def wandb_record(self) -> dict[str, Any] | None:
        """What ``run.json`` keeps of the W&B run, so that a later start goes on with it."""
        run = self.wandb_run
        if run is None:
            return None
        mode = "offline" if run.settings._offline else "online"
        return {
            "id": run.id,
            "project": run.project,
            "mode": mode,
            "folder": str(Path(run.settings.sync_dir).resolve()),
        }

    def describe(self, summary: Mapping[str, Any]) -> None:
        """Put facts about the model into the W&B run's summary."""
        if self.wandb_run is not None:
            self.wandb_run.summary.update(dict(summary))

    def finish(self, exit_code: int) -> None:
        """End the W&B run, as failed where ``exit_code`` is not 0; the next run of this process is then a new one."""
        if self.wandb_run is None:
            return
        record = self.wandb_record
        self.wandb_run.finish(exit_code=exit_code)
        self.wandb_run = None
        if record is not None and record["mode"] == "offline":
            print(f"W&B offline run, to be sent with: wandb sync {record['folder']}", flush=True)


def check_loggers(options: Mapping[str, Any]) -> None:
    """
    Args:
        options: the ``logger`` group, plain.

    Raises:
        InputError: an unknown logger or W&B mode.
    """
    for name in options:
        if name not in KNOWN:
            raise InputError(f"logger.{name} is unknown; take {', '.join(KNOWN)}")
    mode = (options.get("wandb") or {}).get("mode", "auto")
    if mode not in WANDB_MODES:
        raise InputError(f"logger.wandb.mode={mode} is unknown; take {', '.join(WANDB_MODES)}")


def build_loggers(
    options: Mapping[str, Any],
    out: Path,
    *,
    resumed_step: int | None = None,
    wandb_run: Mapping[str, Any] | None = None,
) -> Loggers:
    """The loggers of a composed configuration.

    Args:
        options: the whole configuration, plain; its ``logger`` group says which.
        out: the run's folder.
        resumed_step: optimiser steps that a resumed run has behind it; what was logged for later steps is dropped,
            because they are trained again. None: a new run.
        wandb_run: what an earlier start kept (:attr:`Loggers.wandb_record`), so that the same W&B run goes on.
    """
    group = options["logger"] or {}
    check_loggers(group)
    built = Loggers()
    if group.get("csv"):
        built.loggers.append(ResumableCSVLogger(out, resumed_step))
    if group.get("tensorboard"):
        built.loggers.append(
            TensorBoardLogger(out, name="tensorboard", version="", default_hp_metric=False, purge_step=resumed_step)
        )
    if group.get("wandb") and group["wandb"]["mode"] != "disabled":
        from pytorch_lightning.loggers import WandbLogger

        if is_first_process():
            built.wandb_run = start_wandb(group["wandb"], options, out, wandb_run)
        # On the other ranks a logger without a run: Lightning never asks it for one.
        built.loggers.append(WandbLogger(experiment=built.wandb_run, save_dir=out, project=group["wandb"]["project"]))
    return built


def start_wandb(
    settings: Mapping[str, Any], options: Mapping[str, Any], out: Path, earlier: Mapping[str, Any] | None = None
) -> "Run":
    """A W&B run: sweep = group, cell = name, the whole configuration in its config. Never asks on the terminal.

    Where the server cannot be reached or refuses the key, it says so in one line and goes on offline: a dashboard
    must not end a training.
    """
    import wandb

    mode = resolve_wandb_mode(str(settings["mode"]))
    arguments: dict[str, Any] = {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": options["group"],
        "name": f"{options['name']}_seed{options['seed']}",
        "job_type": "train",
        "tags": list(settings["tags"]),
        "config": dict(options),
        "dir": out,
        "id": earlier["id"] if earlier else None,
        "resume": "allow",
        "settings": wandb.Settings(
            init_timeout=settings["init_timeout"], login_timeout=settings["init_timeout"], quiet=True
        ),
    }
    try:
        run = wandb.init(mode=mode, **arguments)  # type: ignore[arg-type]
    except wandb.Error as error:
        if mode != "online":
            raise
        print(
            f"warning: W&B cannot go online ({_first_line(error)}); this run goes on offline. Check WANDB_API_KEY "
            "and the network, or give logger.wandb.mode=offline",
            file=sys.stderr,
            flush=True,
        )
        run = wandb.init(mode="offline", **arguments)
    # Lightning hands its step over as a metric; without this the panels' x axis would count log calls.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def resolve_wandb_mode(mode: str) -> str:
    """``auto`` → ``WANDB_MODE`` where it is set, else ``online`` where a key is set up, else ``offline``."""
    if mode != "auto":
        return mode
    told = os.environ.get("WANDB_MODE")
    if told:
        return told
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_has_key() else "offline"


def _netrc_has_key() -> bool:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class ResumableCSVLogger(CSVLogger):
    """``out/csv/metrics.csv``. Lightning's own deletes what an earlier start of the run had written.

    Args:
        out: the run's folder.
        resumed_step: rows of earlier steps stay, later ones go; None: a new file.
    """

    def __init__(self, out: Path, resumed_step: int | None = None) -> None:
        super().__init__(out, name="csv", version="")
        self._resumed_step = resumed_step

    @property
    def experiment(self) -> Any:
        if not is_first_process():
            return super().experiment  # Lightning's dummy
        if self._experiment is None:
            self._experiment = _ResumableWriter(self.log_dir, self._resumed_step)
        return self._experiment


class _ResumableWriter(ExperimentWriter):
    def __init__(self, log_dir: str, resumed_step: int | None) -> None:
        self._resumed_step = resumed_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        if self._resumed_step is None:
            path.unlink()
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            # A kill may have cut the last row short.
            rows = [
                row for row in reader if (row.get("step") or "").isdigit() and int(row["step"]) < self._resumed_step
            ]
        with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        self.metrics_keys = columns
