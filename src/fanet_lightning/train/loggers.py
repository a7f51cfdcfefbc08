"""Where metrics go: CSV, TensorBoard, Weights & Biases, several at a time; all resume after a run was cut off."""

import contextlib
import csv
import io
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from requests.utils import get_netrc_auth

from fanet_lightning.cli.config import made
from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import is_first_process
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.curves import Curve

KNOWN = ("csv", "tensorboard", "wandb")
# Lightning's loggers that come with an extra of their name, and the module that they need.
EXTRAS = {"mlflow": "mlflow", "comet": "comet_ml"}


def check_loggers(options: Mapping[str, Any]) -> None:
    """InputError where the ``logger`` group has an unknown logger, or one whose package is not installed."""
    for name, settings in options.items():
        if settings and name in EXTRAS and find_spec(EXTRAS[name]) is None:
            raise InputError(f"logger={name} needs {EXTRAS[name]}: pip install 'fanet-lightning[{name}]'")
        if name not in KNOWN and not (isinstance(settings, Mapping) and "_target_" in settings):
            raise InputError(f"logger.{name} is unknown; take {', '.join(KNOWN)}, or give logger.{name}._target_=CLASS")


def build_loggers(
    options: Mapping[str, Any], out: Path, *, resumed_step: int | None = None, wandb_run: Any = None
) -> "tuple[list[Logger], WandbRun | None]":
    """The loggers of a composed configuration, and the W&B run among them (on the first rank alone).

    ``resumed_step``: optimizer steps that a resumed run has behind it; what was logged for later steps is dropped.
    ``wandb_run``: what an earlier start kept (:attr:`WandbRun.record`), so that the same W&B run continues.
    """
    group, built, wandb = options["logger"] or {}, list[Logger](), None
    if group.get("csv"):
        built.append(ResumableCSVLogger(out, resumed_step))
    if group.get("tensorboard"):
        # From 0 on also in a new run: an earlier start may have been killed before its first checkpoint.
        step = resumed_step or 0
        built.append(TensorBoardLogger(out, name="tensorboard", version="", default_hp_metric=False, purge_step=step))
    # The other ranks hand on no metrics, so they need no W&B.
    if group.get("wandb") and is_first_process():
        wandb = start_wandb(group["wandb"], options, out, wandb_run)
        built += [] if wandb is None else [wandb]
    built += [made(f"logger.{name}", node) for name, node in group.items() if name not in KNOWN and node]
    return built, wandb


class ResumableCSVLogger(CSVLogger):
    """``out/csv/metrics.csv``. Lightning's own deletes what an earlier start of the run had written.

    ``resumed_step``: rows of earlier steps stay, later ones go; None: a new file.
    """

    def __init__(self, out: Path, resumed_step: int | None = None) -> None:
        super().__init__(out, name="csv", version="")
        if is_first_process():
            self._experiment = _ResumableWriter(self.log_dir, resumed_step)


class _ResumableWriter(ExperimentWriter):
    def __init__(self, log_dir: str, resumed_step: int | None) -> None:
        self._resumed_step = resumed_step
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        path, end = Path(self.metrics_file_path), self._resumed_step
        if end is None:
            path.unlink(missing_ok=True)
        elif path.is_file():
            self._rewrite(lambda row: row.get("step", "").isdigit() and int(row["step"]) < end)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        # Lightning's own truncates the file first: killed just then, the run would have lost all of it.
        self._rewrite(lambda row: True, fieldnames)

    def _rewrite(self, stays: Callable[[dict[str, str]], Any], columns: list[str] | None = None) -> None:
        """The rows that stay, without what a kill has cut short: a last line without an end."""
        path = Path(self.metrics_file_path)
        text = path.read_text(encoding="utf-8", errors="replace")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        rows = [row for row in reader if None not in row and None not in row.values() and stays(row)]
        self.metrics_keys = columns or list(reader.fieldnames or [])
        with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class WandbRun(WandbLogger):
    """A W&B run of the first rank. What fails inside W&B is said once, and the run is given up; the training continues.

    ``record`` is what ``run.json`` keeps, so that a later start resumes this run.
    """

    def __init__(self, run: Any, out: Path) -> None:
        super().__init__(experiment=run, save_dir=out, project=run.project)
        self._run, self.is_lost = run, False
        mode, folder = "offline" if run.offline else "online", str(Path(run.dir).parent.resolve())
        self.record = {"id": run.id, "project": run.project, "mode": mode, "folder": folder}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """``step`` is Lightning's; it travels as a metric of its own, because W&B's counts the calls."""
        self.log(lambda: metrics if step is None else {**metrics, "trainer/global_step": step})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration is in the run's config from the start."""

    def log(self, row: Callable[[], Mapping[str, Any]]) -> None:
        """One row of history: numbers, images, charts, which may fail to be made as they may to be sent."""
        self._attempt(lambda: self._run.log(dict(row())))

    def describe(self, values: Mapping[str, Any]) -> None:
        """Add facts that no step has (the model's size, final scores) to the run's summary."""
        self._attempt(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Send what is left within ``finish_timeout``; of an offline run the command for it is printed."""
        import wandb

        self._attempt(lambda: self._run.finish(exit_code=exit_code), "what it has kept can be sent later")
        if self.is_lost:
            with contextlib.suppress(Exception):  # the dead connection would get into the next run's way
                wandb.teardown()
        if self.record["mode"] == "offline" or self.is_lost:
            starts = Path(self.record["folder"]).parent.glob(f"*run-*-{self.record['id']}")
            ordered = sorted(starts, key=lambda path: path.name.split("run-")[1])
            print(f"W&B: send this run with: {shlex.join(['wandb', 'sync', *map(str, ordered)])}", flush=True)

    def _attempt(self, action: Callable[[], Any], consequence: str = "the run continues without it") -> None:
        if self.is_lost:
            return
        try:
            action()
        except Exception as error:  # several unrelated classes, OSError among them when W&B's process has died
            self.is_lost = True
            _warn(f"W&B has failed ({first_line(error)}); {consequence}")


def start_wandb(
    settings: Mapping[str, Any], options: Mapping[str, Any], out: Path, earlier: Mapping[str, Any] | None = None
) -> WandbRun | None:
    """A W&B run with files in ``out/wandb``: sweep = group, variant = name, the whole configuration in its config.

    ``earlier`` is the :attr:`WandbRun.record` of an earlier start, which is then resumed. Never asks on the terminal.
    None where W&B is switched off or cannot start at all.
    """
    import wandb

    mode = resolve_mode(str(settings["mode"]))
    if mode == "disabled":
        return None
    limits = {name: settings[name] for name in ("init_timeout", "finish_timeout")}
    arguments: dict[str, Any] = {
        **{name: settings[name] for name in ("project", "entity", "tags")},
        "group": options["group"], "name": f"{options['name']}_seed{options['seed']}", "job_type": "train",
        "config": dict(options), "dir": out, "id": str(earlier["id"]) if earlier else secrets.token_hex(6),
        "resume": "allow", "settings": {"silent": True, "finish_timeout_raises": True, **limits},
    }  # fmt: skip
    # Where huggingface_hub is loaded, as for a model of the hub, W&B would advertise its tool for language models.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    # W&B writes to the system's temporary folder when this one is not there.
    out.mkdir(parents=True, exist_ok=True)
    run = None
    if mode == "online":
        stdin = sys.stdin
        try:
            # No terminal, so that nothing can ask for a key and wait.
            with Path(os.devnull).open() as sys.stdin:
                run = wandb.init(mode="online", **arguments)
            print(f"W&B: {run.url}", flush=True)
        except Exception as error:
            _warn(
                f"W&B cannot go online ({first_line(error)}); this run continues offline. Check WANDB_API_KEY and the "
                "network, or give logger.wandb.mode=offline"
            )
            # W&B's process still holds the id.
            arguments["id"] = secrets.token_hex(6)
        finally:
            sys.stdin = stdin
    try:
        run = run or wandb.init(mode="offline", **arguments)
        # Otherwise the panels' x axis would count log calls.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    except Exception as error:
        _warn(f"W&B cannot start ({first_line(error)}); this run continues without it")
        return None
    return WandbRun(run, out)


def resolve_mode(mode: str) -> str:
    """``auto`` → ``WANDB_MODE`` where it is set, else ``online`` where a key is set up, else ``offline``."""
    return mode if mode != "auto" else os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")


def has_key() -> bool:
    """Whether a key is set up: ``WANDB_API_KEY``, W&B's settings, or its host in netrc; no server is asked."""
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    told = os.environ.get("WANDB_API_KEY") or settings.api_key
    return bool(told or get_netrc_auth(os.environ.get("WANDB_BASE_URL") or settings.base_url))


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


# A page of images must stay light; boxes are scaled with them.
LONG_SIDE = 512
MIN_SCORE = 0.3
CURVE_POINTS = 200


class WandbValidation(Callback):
    """After each validation: curves per setting, and ``images`` validation images with boxes, the same ones always."""

    def __init__(self, run: WandbRun, images: int) -> None:
        self._run, self._images = run, images

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            self._run.log(lambda: self._row(trainer, module))

    def _row(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        # One behind the count, as Lightning's own metrics of the same validation: the step that it came after.
        logged: dict[str, Any] = {"trainer/global_step": max(trainer.global_step - 1, 0)}
        curves: dict[str, Curve] = module.curves  # type: ignore[assignment]
        if curves:
            logged["val/pr_curves"] = curves_chart(curves)
        records: list[ImageRecord] = trainer.datamodule.val_records  # type: ignore[attr-defined]
        detections: dict[str, Detections] = module.detections  # type: ignore[assignment]
        for number, index in enumerate(spread(len(records), self._images)):
            # A panel each: W&B wants the images of one panel to be of one size.
            logged[f"images/{number}"] = _wandb_image(records[index], detections.get(records[index].image_id))
        return logged


def _wandb_image(record: ImageRecord, found: Detections | None) -> Any:
    import wandb

    image = read_image_rgb(record.path)
    scale = min(1.0, LONG_SIDE / max(image.shape[:2]))
    boxes = {"ground_truth": [_box(box * scale) for box in record.boxes_xyxy]}
    if found is not None:
        boxes["predictions"] = [_box(np.array(face.box_xyxy) * scale, face.score) for face in found.above(MIN_SCORE)]
    return wandb.Image(
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image,
        caption=record.image_id,
        boxes={name: {"box_data": data, "class_labels": {0: "face"}} for name, data in boxes.items()},
        file_type="jpg",  # encoding PNG would be most of what a validation waits for here
    )


def _box(box_xyxy: npt.NDArray[np.floating], score: float | None = None) -> dict[str, Any]:
    position = dict(zip(("minX", "minY", "maxX", "maxY"), map(float, box_xyxy), strict=True))
    box: dict[str, Any] = {"position": position, "domain": "pixel", "class_id": 0}
    return box if score is None else box | {"box_caption": f"{score:.2f}", "scores": {"confidence": score}}


def spread(size: int, count: int) -> list[int]:
    """``count`` of ``size`` indices, the first and the last among them, as evenly apart as whole numbers can be."""
    return sorted(set(np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()))


def curves_chart(curves: Mapping[str, Curve]) -> Any:
    """Setting → curve, as one W&B chart of precision over recall; at most :data:`CURVE_POINTS` points each."""
    import wandb

    recall, precision = [], []
    for curve in curves.values():
        # Where nothing has been proposed yet there is no precision.
        points = np.stack([curve.recall, curve.precision], axis=1)[curve.precision > 0]
        points = points[spread(len(points), CURVE_POINTS)]
        recall.append(points[:, 0].tolist())
        precision.append(points[:, 1].tolist())
    return wandb.plot.line_series(recall, precision, keys=list(curves), title="precision over recall", xname="recall")
