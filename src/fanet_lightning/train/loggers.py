"""Where metrics go: CSV, TensorBoard, Weights & Biases, several at a time; all resume after a run was cut off."""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from fanet_lightning.cli.config import made
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import is_first_process

if TYPE_CHECKING:
    from fanet_lightning.train.wandb_run import WandbRun

KNOWN = ("csv", "tensorboard", "wandb")
WANDB_MODES = ("auto", "online", "offline", "disabled")


@dataclass
class Loggers:
    """Lightning's loggers of a run, and its W&B run where there is one (on the first rank alone)."""

    loggers: list[Logger] = field(default_factory=list)
    wandb_run: "WandbRun | None" = None

    @property
    def wandb_record(self) -> dict[str, Any] | None:
        """What ``run.json`` keeps of the W&B run, so that a later start resumes it."""
        return None if self.wandb_run is None else self.wandb_run.record

    def callbacks(self, options: Mapping[str, Any]) -> list[Callback]:
        """What shows validations to the W&B run."""
        return [] if self.wandb_run is None else [self.wandb_run.validation(options["logger"]["wandb"]["images"])]

    def describe(self, summary: Mapping[str, Any]) -> None:
        """Put facts that no step has (the model's size, final scores) into the W&B run's summary."""
        if self.wandb_run is not None:
            self.wandb_run.describe(summary)

    def finish(self, exit_code: int) -> None:
        """End the W&B run, as failed where ``exit_code`` is not 0; the next run of this process is then a new one."""
        if self.wandb_run is not None:
            run, self.wandb_run = self.wandb_run, None
            run.finish(exit_code)


def check_loggers(options: Mapping[str, Any]) -> None:
    """
    Args:
        options: the ``logger`` group, plain.

    Raises:
        InputError: an unknown logger or W&B mode.
    """
    for name, settings in options.items():
        if name not in KNOWN and not (isinstance(settings, Mapping) and "_target_" in settings):
            raise InputError(f"logger.{name} is unknown; take {', '.join(KNOWN)}, or give logger.{name}._target_=CLASS")
    if options.get("wandb"):
        mode, told = options["wandb"]["mode"], os.environ.get("WANDB_MODE", "online")
        for name, value in (("logger.wandb.mode", mode), *([("WANDB_MODE", told)] if mode == "auto" else [])):
            if value not in WANDB_MODES and not (name == "WANDB_MODE" and value in ("", "run", "dryrun")):
                raise InputError(f"{name}={value} is unknown here; take {', '.join(WANDB_MODES)}")


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
        resumed_step: optimizer steps that a resumed run has behind it; what was logged for later steps is dropped,
            because they are trained again. None: a new run.
        wandb_run: what an earlier start kept (:attr:`Loggers.wandb_record`), so that the same W&B run continues.

    Raises:
        InputError: an unknown logger or W&B mode.
    """
    group = options["logger"] or {}
    check_loggers(group)
    built = Loggers()
    if group.get("csv"):
        built.loggers.append(ResumableCSVLogger(out, resumed_step))
    if group.get("tensorboard"):
        # From 0 on also in a new run: an earlier start may have been killed before its first checkpoint.
        built.loggers.append(
            TensorBoardLogger(
                out, name="tensorboard", version="", default_hp_metric=False, purge_step=resumed_step or 0
            )
        )
    # The other ranks hand on no metrics, so they need no W&B.
    if group.get("wandb") and is_first_process():
        from fanet_lightning.train.wandb_run import start_run

        built.wandb_run = start_run(group["wandb"], options, out, wandb_run)
        if built.wandb_run is not None:
            built.loggers.append(built.wandb_run)
    built.loggers += [made(f"logger.{name}", node) for name, node in group.items() if name not in KNOWN and node]
    return built


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
        columns, rows = _whole_rows(path)
        kept = [row for row in rows if (row.get("step") or "").isdigit() and int(row["step"]) < self._resumed_step]
        _write(path, columns, kept)
        self.metrics_keys = columns

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        # Lightning's own truncates the file first: killed just then, the run would have lost all of it.
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _whole_rows(path)[1])


def _whole_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file without what a kill has cut short: a last line without an end."""
    text = path.read_text(encoding="utf-8", errors="replace")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    rows = [row for row in reader if None not in row and None not in row.values()]
    return list(reader.fieldnames or []), rows


def _write(path: Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
