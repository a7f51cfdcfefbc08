"""Train one cell of the grid, or a baseline: ``python -m fanet_lightning.train level=3 context=true hl=true``."""

import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fanet_lightning import cli
from fanet_lightning.config import compose_config, config_dir, plain, register
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies and what it reached: ``ap`` per setting of the best checkpoint under ``protocol``."""

    out: Path
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    ap: dict[str, float]


def train(config: DictConfig) -> TrainResult:
    """Train, validate each epoch, and evaluate the best checkpoint at the end.

    Args:
        config: ``conf/config.yaml`` composed.

    Returns:
        The run's folder, checkpoints and AP.

    Raises:
        InputError: anything in the configuration or the data that a person can mend.
    """
    import torch
    from pytorch_lightning import seed_everything

    from fanet_lightning.data.sources import build_source
    from fanet_lightning.module import FaceDetectionModule
    from fanet_lightning.net.weights import load_trunk_weights

    options = plain(config)
    out = Path(options["out"])
    check(options)
    seed_everything(options["seed"], workers=True, verbose=False)
    source = build_source(**options["data"])
    datamodule = build_datamodule(options, source)
    module = FaceDetectionModule(
        network=options["model"],
        loss=options["loss"],
        optim=options["optim"],
        batch_size=options["batch_size"],
        channels_last=options["channels_last"],
    )
    if options["resume"] is None and options["weights"] is not None:
        # The normaliser follows the weights, and travels in the checkpoint.
        module.hparams["network"]["normaliser"] = load_trunk_weights(module.network, options["weights"])
    if options["compile"]:
        module.network.compile(dynamic=None)
    trainer = build_trainer(options, out)
    if trainer.is_global_zero:
        print(_opening(options, module.network, out), flush=True)
    trainer.fit(module, datamodule=datamodule, ckpt_path=options["resume"], weights_only=True)
    if not trainer.is_global_zero:
        return TrainResult(out, None, None, {})
    best, last = out / "checkpoints/best.ckpt", out / "checkpoints/last.ckpt"
    ap = {setting: curve.ap for setting, curve in module.curves.items()}
    chosen = best if best.is_file() else last
    if options["evaluate_at_end"] and chosen.is_file():
        from fanet_lightning.evaluate import evaluate

        device = "cuda" if torch.cuda.is_available() and options["trainer"]["accelerator"] != "cpu" else "cpu"
        ap = evaluate(chosen, source, options["protocol"], out / "evaluation", device=device)
    print(_closing(out, chosen))
    return TrainResult(out, best if best.is_file() else None, last if last.is_file() else None, ap)


def check(options: dict[str, Any]) -> None:
    """Refuse before anything is made what would fail later: network options, data folders, output folder, checkpoint.

    Raises:
        InputError: the first thing that is wrong.
    """
    import torch

    from fanet_lightning.data.sources import build_source
    from fanet_lightning.net.build import build_network
    from fanet_lightning.schedule import lr_factor

    for key in ("batch_size", "input_size", "epochs"):
        if options[key] < 1:
            raise InputError(f"{key}={options[key]} must be at least 1")
    if options["workers"] < 0:
        raise InputError(f"workers={options['workers']} must not be negative; 0 loads samples in the main process")
    if options["ema"] is not None and not 0 < options["ema"] < 1:
        raise InputError(f"ema={options['ema']} must lie between 0 and 1; null switches it off")
    lr_factor(0, 1, kind=options["optim"].get("schedule", "step"))
    with torch.device("meta"):
        network = build_network(**options["model"])
    weights, hierarchies = options["loss"].get("weights"), 1 + len(network.training_only())
    if weights is not None and len(weights) != hierarchies:
        raise InputError(f"loss.weights={weights}: {len(weights)} weights for {hierarchies} hierarchies with heads")
    check_writable(Path(options["out"]))
    if options["resume"] is not None:
        _check_resume(Path(options["resume"]), options["model"])
    devices, accelerator = options["trainer"]["devices"], options["trainer"]["accelerator"]
    available = torch.cuda.device_count()
    wants_gpu = accelerator in ("gpu", "cuda")
    if (wants_gpu or (accelerator == "auto" and available)) and isinstance(devices, int) and devices > available:
        raise InputError(
            f"trainer.devices={devices} trainer.accelerator={accelerator}: this machine has {available} CUDA devices"
        )
    if isinstance(devices, int) and devices > 1 and options["batch_size"] % devices:
        raise InputError(
            f"batch_size={options['batch_size']} is the total over devices and must be divisible by "
            f"trainer.devices={devices}"
        )
    build_source(**options["data"]).check()


def build_datamodule(options: dict[str, Any], source: Any) -> Any:
    """The LightningDataModule of a composed configuration."""
    from hydra.utils import instantiate

    from fanet_lightning.data.datamodule import FaceDataModule
    from fanet_lightning.data.resize import TestScale

    augment = instantiate(options["augment"], _convert_="all")
    protocol = {key: value for key, value in options["protocol"].items() if key != "name"}
    return FaceDataModule(
        source,
        augment=augment,
        batch_size=options["batch_size"],
        workers=options["workers"],
        seed=options["seed"],
        input_size=options["input_size"],
        val_scale=TestScale(**protocol),
    )


def build_trainer(options: dict[str, Any], out: Path) -> Any:
    """The Lightning trainer with loggers, checkpoints and averaged weights."""
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import LearningRateMonitor, RichProgressBar
    from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

    from fanet_lightning.callbacks import EpochReport, checkpoint_callbacks, ema_callback
    from fanet_lightning.precision import resolve_precision

    # Tips and hardware lists are noise; warnings still come through.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and torch, nothing that a person could mend
    warnings.filterwarnings("ignore", ".*number of training batches.*")
    trainer = dict(options["trainer"])
    # A run shorter than the interval is still validated once, or it would have no best checkpoint.
    trainer["check_val_every_n_epoch"] = min(trainer["check_val_every_n_epoch"], options["epochs"])
    trainer["precision"] = resolve_precision(trainer["precision"], trainer["accelerator"])
    loggers: list[Logger] = []
    if options["logger"].get("csv"):
        loggers.append(CSVLogger(out, name="csv", version=""))
    if options["logger"].get("tensorboard"):
        loggers.append(TensorBoardLogger(out, name="tensorboard", version="", default_hp_metric=False))
    callbacks: list[Any] = [*checkpoint_callbacks(out / "checkpoints"), EpochReport(options["stop_after"])]
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    if options["ema"] is not None:
        callbacks.append(ema_callback(options["ema"]))
    progress = sys.stdout.isatty()
    if progress:
        callbacks.append(RichProgressBar())
    try:
        return Trainer(
            **trainer,
            max_epochs=options["epochs"],
            gradient_clip_val=options["gradient_clip"],
            logger=loggers or False,
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=out,
        )
    except Exception as error:
        # Lightning's own refusals (a device that is not there, an unknown strategy) come in several classes.
        raise InputError(f"trainer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_resume(path: Path, network: dict[str, Any]) -> None:
    from fanet_lightning.detector import read_checkpoint

    if not path.is_file():
        raise InputError(f"resume={path}: no such file; give a checkpoint, e.g. …/checkpoints/last.ckpt")
    stored = read_checkpoint(path)["hyper_parameters"]["network"]
    for key in sorted({*stored, *network}):
        if stored.get(key) != network.get(key):
            raise InputError(
                f"resume={path}: the checkpoint was trained with {key}={stored.get(key)}, this run has "
                f"{key}={network.get(key)}; give the same configuration, or leave resume out"
            )


def _opening(options: dict[str, Any], network: Any, out: Path) -> str:
    from fanet_lightning.net.build import inference_parameters
    from fanet_lightning.precision import resolve_precision

    precision = resolve_precision(options["trainer"]["precision"], options["trainer"]["accelerator"])
    return (
        f"{options['name']}: {inference_parameters(network) / 1e6:.2f} M inference parameters, "
        f"data {options['data']['name']}, {options['epochs']} epochs, "
        f"batch {options['batch_size']}, crop {options['input_size']}², {precision}, "
        f"seed {options['seed']}\nwriting to {out}"
    )


def _closing(out: Path, chosen: Path) -> str:
    rows = [
        ("best checkpoint", chosen), ("metrics", out / "csv/metrics.csv"), ("TensorBoard", out / "tensorboard"),
        ("scores", out / "evaluation/scores.json"), ("predictions", out / "evaluation/predictions"),
        ("precision-recall curves", out / "evaluation/pr_curves.png"),
        ("sheet of detections", out / "evaluation/detections.png"),
    ]  # fmt: skip
    return "\n".join(f"{name:<24}{path}" for name, path in rows if path.exists())


def _task(config: DictConfig) -> dict[str, float]:
    # Hydra's folder, which a sweep and the children of a distributed run have been told; `${now:}` would differ there.
    config.out = HydraConfig.get().runtime.output_dir
    try:
        return train(config).ap
    except InputError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the sweep goes on to its other cells
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(cli.BAD_INPUT)


def main(argv: list[str]) -> int:
    """Check a single run's configuration in full, then hand over to Hydra."""
    register()
    if not any(word.startswith("-") for word in argv):
        for word in argv:
            if "=" not in word and not word.startswith("~"):
                raise InputError(f"'{word}' is not key=value; --help lists the keys")
        check(plain(compose_config("config", argv)))
    elif {"-m", "--multirun"} & set(argv):
        # What is the same in every cell is checked before the first one; a comma outside brackets is a sweep.
        fixed = [word for word in argv if not word.startswith("-") and ("," not in word or "[" in word)]
        compose_config("config", [word for word in fixed if "(" not in word and not word.startswith("hydra")])
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(_task)()
    return 0


if __name__ == "__main__":
    cli.run(main)
