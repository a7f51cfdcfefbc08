"""Weights & Biases: a run next to a training that asks nothing and never ends the training; its images and curves.

A dashboard is worth less than what it shows. Where the server or the key fails, one line says so and the training
continues, offline where that is possible.
"""

import contextlib
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import wandb
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from requests.utils import get_netrc_auth

from fanet_lightning.cli.errors import first_line
from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.records import ImageRecord
from fanet_lightning.ops.structures import Detections
from fanet_lightning.score.curves import Curve

# Older words that W&B still takes in WANDB_MODE.
SYNONYMS = {"run": "online", "dryrun": "offline"}


class WandbRun(WandbLogger):
    """A W&B run of the first rank. What fails inside W&B is said once, and the run is given up; nothing is raised.

    Args:
        run: as ``wandb.init`` made it.
        out: the training run's folder.
    """

    def __init__(self, run: wandb.Run, out: Path) -> None:
        super().__init__(experiment=run, save_dir=out, project=run.project)
        self._run, self.is_lost = run, False
        # What `run.json` keeps, so that a later start resumes this run.
        self.record = {
            "id": run.id,
            "project": run.project,
            "mode": "offline" if run.offline else "online",
            "folder": str(Path(run.dir).parent.resolve()),
        }

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """``step`` is Lightning's; it travels as a metric of its own, because W&B's counts the calls."""
        self.log(metrics if step is None else {**metrics, "trainer/global_step": step})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration is in the run's config from the start."""

    def log(self, values: Mapping[str, Any]) -> None:
        """One row of history: numbers, images, charts."""
        self._attempt(lambda: self._run.log(dict(values)))

    def validation(self, images: int) -> Callback:
        """A callback that shows each validation: curves, and so many images."""
        return WandbValidation(self, images)

    def describe(self, values: Mapping[str, Any]) -> None:
        """Add to the run's summary."""
        self._attempt(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Send what is left, for as long as ``finish_timeout`` allows, and mark the run as failed where not 0.

        The next run of this process is a new one. An offline run's command for sending it is printed.
        """
        self._attempt(lambda: self._run.finish(exit_code=exit_code), "what it has kept can be sent later")
        if self.is_lost:
            # The dead connection would get into the next run's way.
            with contextlib.suppress(Exception):
                wandb.teardown()
        if self.record["mode"] == "offline" or self.is_lost:
            folder = Path(self.record["folder"])
            starts = folder.parent.glob(f"*run-*-{self.record['id']}")
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


def start_run(
    settings: Mapping[str, Any], options: Mapping[str, Any], out: Path, earlier: Mapping[str, Any] | None = None
) -> WandbRun | None:
    """A W&B run: sweep = group, variant = name, the whole configuration in its config. Never asks on the terminal.

    Args:
        settings: ``logger.wandb``.
        options: the whole configuration, plain.
        out: the training run's folder; W&B's files go to ``out/wandb``.
        earlier: the :attr:`WandbRun.record` of an earlier start, which is then resumed.

    Returns:
        The run; None where W&B is switched off or cannot start at all.
    """
    mode = resolve_mode(str(settings["mode"]))
    if mode == "disabled":
        return None
    limits: dict[str, Any] = {"silent": True, "finish_timeout_raises": True}
    limits |= {name: settings[name] for name in ("init_timeout", "finish_timeout")}
    arguments: dict[str, Any] = {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": options["group"],
        "name": f"{options['name']}_seed{options['seed']}",
        "job_type": "train",
        "tags": list(settings["tags"]),
        "config": dict(options),
        "dir": out,
        "id": str(earlier["id"]) if earlier else secrets.token_hex(6),
        "resume": "allow",
        # Releases before 0.29 know no limit for the last data.
        "settings": wandb.Settings(**{k: v for k, v in limits.items() if k in wandb.Settings.model_fields}),
    }
    # Where huggingface_hub is loaded, as for a model of the hub, W&B would advertise its tool for language models.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    # W&B writes to the system's temporary folder when this one is not there.
    out.mkdir(parents=True, exist_ok=True)
    run = None
    if mode == "online":
        try:
            with _no_terminal():
                run = wandb.init(mode="online", **arguments)
            print(f"W&B: {run.url}", flush=True)
        except Exception as error:
            _warn(
                f"W&B cannot go online ({first_line(error)}); this run continues offline. Check WANDB_API_KEY and the "
                "network, or give logger.wandb.mode=offline"
            )
            # W&B's process still holds the id.
            arguments["id"] = secrets.token_hex(6)
    try:
        run = run or wandb.init(mode="offline", **arguments)
        # Without this the panels' x axis would count log calls.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    except Exception as error:
        _warn(f"W&B cannot start ({first_line(error)}); this run continues without it")
        return None
    return WandbRun(run, out)


def resolve_mode(mode: str) -> str:
    """``auto`` → ``WANDB_MODE`` where it is set, else ``online`` where a key is set up, else ``offline``."""
    if mode != "auto":
        return mode
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    told = os.environ.get("WANDB_MODE") or (settings.mode if settings.mode != "online" else None)
    if told:
        return SYNONYMS.get(told, told)
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether a key is set up: ``WANDB_API_KEY``, ``WANDB_IDENTITY_TOKEN_FILE``, W&B's settings, or its host in netrc.

    Nothing is asked of the server.
    """
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    told = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key
    return bool(told or get_netrc_auth(os.environ.get("WANDB_BASE_URL") or settings.base_url))


@contextlib.contextmanager
def _no_terminal() -> Iterator[None]:
    """Standard input that is no terminal, so that nothing can ask for a key and wait."""
    with Path(os.devnull).open() as nothing:
        stdin, sys.stdin = sys.stdin, nothing
        try:
            yield
        finally:
            sys.stdin = stdin


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


# A page of images must stay light; boxes are scaled with them.
LONG_SIDE = 512
MIN_SCORE = 0.3
CURVE_POINTS = 200


class WandbValidation(Callback):
    """After each validation: curves per setting, and ``images`` fixed validation images with their boxes.

    The images are spread evenly over the sorted validation set, so that every epoch and every variant shows the same.

    Args:
        run: takes them.
        images: how many; 0: none.
    """

    def __init__(self, run: WandbRun, images: int) -> None:
        self._run, self._images = run, images
        self._cache: dict[str, tuple[npt.NDArray[np.uint8], float]] = {}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        # One behind the count, as Lightning's own metrics of the same validation: the step that it came after.
        logged: dict[str, Any] = {"trainer/global_step": max(trainer.global_step - 1, 0)}
        curves: dict[str, Curve] = module.curves  # type: ignore[assignment]
        if curves:
            logged["val/pr_curves"] = curves_chart(curves)
        records: list[ImageRecord] = trainer.datamodule.val_records  # type: ignore[attr-defined]
        detections: dict[str, Detections] = module.detections  # type: ignore[assignment]
        chosen = [records[index] for index in spread(len(records), self._images)]
        for number, record in enumerate(chosen):
            # A panel each: W&B wants the images of one panel to be of one size.
            logged[f"images/{number}"] = self._image(record, detections.get(record.image_id))
        self._run.log(logged)

    def _image(self, record: ImageRecord, found: Detections | None) -> wandb.Image:
        image, scale = self._read(record)
        boxes: dict[str, Any] = {
            "ground_truth": {"box_data": [_box(b * scale) for b in record.boxes_xyxy], "class_labels": {0: "face"}}
        }
        if found is not None:
            data = [_box(np.array(face.box_xyxy) * scale, face.score) for face in found.above(MIN_SCORE)]
            boxes["predictions"] = {"box_data": data, "class_labels": {0: "face"}}
        # JPEG, because encoding PNG would be most of what a validation waits for here.
        return wandb.Image(image, caption=record.image_id, boxes=boxes, file_type="jpg")

    def _read(self, record: ImageRecord) -> tuple[npt.NDArray[np.uint8], float]:
        if record.image_id not in self._cache:
            image = read_image_rgb(record.path)
            scale = min(1.0, LONG_SIDE / max(image.shape[:2]))
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
            self._cache[record.image_id] = (np.asarray(resized, np.uint8), scale)
        return self._cache[record.image_id]


def _box(box_xyxy: npt.NDArray[np.floating], score: float | None = None) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(v) for v in box_xyxy)
    box: dict[str, Any] = {
        "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
        "domain": "pixel",
        "class_id": 0,
    }
    if score is not None:
        box |= {"box_caption": f"{score:.2f}", "scores": {"confidence": score}}
    return box


def spread(size: int, count: int) -> list[int]:
    """``count`` of ``size`` indices, the first and the last among them, as evenly apart as whole numbers can be."""
    return sorted(set(np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()))


def curves_chart(curves: Mapping[str, Curve]) -> Any:
    """Setting → curve, as one W&B chart of precision over recall; at most :data:`CURVE_POINTS` points each.

    Thresholds at which nothing has been proposed yet have no precision and are left out.
    """
    recall, precision = [], []
    for curve in curves.values():
        points = np.stack([curve.recall, curve.precision], axis=1)[curve.precision > 0]
        # Many thresholds in a row see the same boxes.
        changes = np.any(np.diff(points, axis=0, prepend=np.nan) != 0, axis=1)
        points = points[changes]
        points = points[spread(len(points), CURVE_POINTS)]
        recall.append(points[:, 0].tolist())
        precision.append(points[:, 1].tolist())
    return wandb.plot.line_series(recall, precision, keys=list(curves), title="precision over recall", xname="recall")
