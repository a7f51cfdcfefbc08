"""One training run: from a composed configuration to checkpoints, scores and its record; also a run that goes on."""

import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from fanet_lightning.assembly import build_datamodule, build_module, build_trainer, initial_model
from fanet_lightning.config import canonical, plain
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.preflight import AUTO, check, check_checkpoint, names_of_run, never_trained, protocol_settings
from fanet_lightning.run_record import LOG_FILE, RunRecord, TerminalLog, is_first_process, locked, now, read_record
from fanet_lightning.sweep import LOG_IS_KEPT, Terminated, die_with_parent, wanted_protocols

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

# The loader processes of a killed run hold its lock until they notice, within five seconds.
LOCK_PATIENCE_SECONDS = 15.0
# The process id of the first rank, for those that it starts.
FIRST_RANK = "FANET_FIRST_RANK_PID"


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies and what it reached: ``ap`` per setting of the best checkpoint under the run's protocol."""

    out: Path
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    ap: dict[str, float]


def train(config: DictConfig) -> TrainResult:
    """Train, validate, and evaluate the best checkpoint at the end; or go on with a run that was cut off.

    Args:
        config: ``conf/config.yaml`` composed.

    Returns:
        The run's folder, checkpoints and AP.

    Raises:
        InputError: anything in the configuration, the data or the machine that a person can mend. The record of the
            run (``run.json``) then says so, and whatever was saved before stays.
        KeyboardInterrupt, Terminated: Ctrl-C, SIGTERM; ``resume=auto`` goes on from the last checkpoint.
    """
    canonical(config)
    options = plain(config)
    out = Path(options["out"])
    check(options)
    if not is_first_process():
        _end_with_first_rank()
        return _fit_and_evaluate(options, out, None)
    os.environ[FIRST_RANK] = str(os.getpid())
    with locked(out, patience_seconds=LOCK_PATIENCE_SECONDS):
        record = _open_record(options, out)
        if TerminalLog.current is not None and LOG_IS_KEPT not in os.environ:
            TerminalLog.current.begin(out / LOG_FILE)
        if options["resume"] == AUTO and _is_done(record, options):
            print(f"{options['name']} in {out} is {record.state} already")
            return _result(out, options, record)
        record.state, record.error, record.ended = "running", None, None
        record.train["starts"] = int(record.train.get("starts", 0)) + 1
        record.write(out)
        try:
            result = _fit_and_evaluate(options, out, record)
        except (KeyboardInterrupt, Terminated):
            # The record still says "running", which without a process means that it was interrupted.
            record.ended = now()
            record.write(out)
            print(f"{out} is kept as its last checkpoint has it; resume=auto goes on from there", file=sys.stderr)
            raise
        except BaseException as error:
            record.state, record.ended = "failed", now()
            record.error = _one_line(error)
            record.write(out)
            raise
        stopped = options["stop_after"] is not None and record.train.get("epoch", 0) < options["epochs"]
        record.state, record.ended = "stopped" if stopped else "finished", now()
        record.write(out)
        return result


def _is_done(record: RunRecord, options: dict[str, Any]) -> bool:
    """Whether the same command has trained and scored before what it would now."""
    if record.state == "stopped":
        return options["stop_after"] is not None and record.train.get("epoch", 0) >= options["stop_after"]
    return record.is_complete(wanted_protocols(options))


def _end_with_first_rank() -> None:
    """A rank that Lightning has started ends when the first one is killed; torchrun looks after its ranks itself."""
    first = os.environ.get(FIRST_RANK)
    if first is None or "TORCHELASTIC_RUN_ID" in os.environ or os.name != "posix":
        return
    die_with_parent()
    if os.getppid() != int(first):  # it was gone before the kernel was told
        sys.exit(1)


def _open_record(options: dict[str, Any], out: Path) -> RunRecord:
    from fanet_lightning.scoring.results import made_by

    if options["overwrite"] and options["resume"] is None:
        for path in [out / "run.json", *(out / name for name in names_of_run())]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    record = read_record(out)
    if record is None or never_trained(out, record):
        record = RunRecord(name=options["name"], seed=options["seed"], settings=options, started=now())
    record.settings = options
    packages = ("fanet-lightning", "torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy")
    record.made_by = made_by(sys.argv, packages=packages)
    return record


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _fit_and_evaluate(options: dict[str, Any], out: Path, record: RunRecord | None) -> TrainResult:
    """``record`` is None on all ranks but the first."""
    from pytorch_lightning import seed_everything

    from fanet_lightning.data.sources import build_source
    from fanet_lightning.loggers import build_loggers

    seed_everything(options["seed"], workers=True, verbose=False)
    source = build_source(**options["data"])
    resume, resumed_step = _checkpoint_to_resume(options, out)
    # A resumed run's checkpoint has the weights, and the list of all images that they were trained on.
    initial = initial_model(options) if resume is None else None
    module = build_module(options, with_weights=resume is None, initial=initial)
    loggers = build_loggers(options, out, resumed_step=resumed_step, wandb_run=record.wandb if record else None)
    finished = False
    try:
        trainer = build_trainer(options, out, loggers=loggers, record=record, initial=initial)
        threads = _set_threads(options["threads"], resume, trainer)
        if record is not None:
            _describe(record, options, module, trainer)
            record.wandb = loggers.wandb_record
            record.write(out)
            loggers.describe({f"model/{name}": value for name, value in record.model.items()})
            print(_opening(options, record, out, threads, resume, resumed_step), flush=True)
        _fit(trainer, module, build_datamodule(options, source), resume)
        if record is not None and trainer.global_step != resumed_step:
            record.scores = {}  # they were about the weights of before
        if record is not None and trainer.is_global_zero:
            _evaluate(options, out, source, record, trainer)
            for protocol, scored in record.scores.items():
                loggers.describe({f"final/{protocol}/ap_{setting}": ap for setting, ap in scored["ap"].items()})
            print(_closing(out))
        finished = True
    finally:
        loggers.finish(0 if finished else 1)
    return _result(out, options, record)


def _checkpoint_to_resume(options: dict[str, Any], out: Path) -> tuple[Path | None, int | None]:
    """The checkpoint to go on from, and the optimiser step that it was written after; both None: from the beginning."""
    from fanet_lightning.checkpoints import newest_whole_checkpoint

    if options["resume"] is None:
        return None, None
    path: Path | None = Path(options["resume"])
    if options["resume"] == AUTO:
        path, damaged = newest_whole_checkpoint(out / "checkpoints")
        if is_first_process():
            for line in damaged:
                print(f"warning: {line}", file=sys.stderr)
    if path is None:
        return None, None
    return path, int(check_checkpoint(path, options)["global_step"])


def _fit(trainer: "Trainer", module: Any, datamodule: Any, resume: Path | None) -> None:
    import torch
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except BaseException as error:
        # Ranks that wait for this one would wait for half an hour.
        launcher: Any = trainer.strategy.launcher
        if hasattr(launcher, "kill"):
            launcher.kill(signal.SIGTERM)
        # Lightning answers Ctrl-C with exit code 1 and SIGTERM with 0, without a word.
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        # The signal may have reached the loader's processes as well, and their end is then what is raised.
        if isinstance(error, SIGTERMException) or trainer.received_sigterm:
            raise Terminated from error
        if isinstance(error, MisconfigurationException):  # e.g. a share of the batches that is less than one
            raise InputError(f"trainer: {first_line(error)}") from error
        if not isinstance(error, torch.distributed.DistNetworkError):
            raise
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
        raise InputError(
            f"the ranks cannot meet at MASTER_ADDR={address} MASTER_PORT={port} ({first_line(error)}); the port may "
            "be in use: unset MASTER_PORT, or give a free one"
        ) from error


def _set_threads(asked: int | None, resume: Path | None, trainer: "Trainer") -> str:
    """The threads of PyTorch's operators where the CPU trains; and in words, with a comma before them.

    Their number decides how sums are rounded. So a resumed run takes that of before, unless it is told another.
    """
    import torch

    from fanet_lightning.devices import free_cores

    if trainer.strategy.root_device.type != "cpu":
        return ""
    earlier = read_record(resume.parent.parent) if resume is not None else None
    before = earlier.train.get("threads") if earlier is not None else None
    count, why = asked or torch.get_num_threads(), ""
    if asked is None and "OMP_NUM_THREADS" in os.environ:
        why = " (OMP_NUM_THREADS)"
    elif asked is None and before is not None:
        count, why = before, " (as before)"
    elif asked is None:
        free, reason = free_cores()
        count, why = max(1, free // trainer.num_devices), f" ({reason})"
    torch.set_num_threads(count)
    if trainer.num_devices > 1:
        os.environ["OMP_NUM_THREADS"] = str(count)  # for the ranks that Lightning is about to start
    return f", {count} {'thread' if count == 1 else 'threads'}{why}"


def _describe(record: RunRecord, options: dict[str, Any], module: Any, trainer: "Trainer") -> None:
    import torch

    from fanet_lightning.net.build import flops, inference_parameters
    from fanet_lightning.precision import device_name

    record.model = {
        "parameters": inference_parameters(module.network),
        "flops_640x480": flops(module.network, 480, 640),
    }
    record.train |= {
        "epochs": options["epochs"],
        "devices": trainer.world_size,
        "device": device_name(str(trainer.strategy.root_device)),
    }
    if trainer.strategy.root_device.type == "cpu":
        record.train["threads"] = torch.get_num_threads()


def _evaluate(options: dict[str, Any], out: Path, source: Any, record: RunRecord, trainer: "Trainer") -> None:
    """Score the best checkpoint under the run's protocol and the further ones; what is done already is kept."""
    from fanet_lightning.evaluate import evaluate

    chosen = _chosen_checkpoint(out)
    if not options["evaluate_at_end"] or chosen is None:
        return
    wanted = {options["protocol"]["name"]: (options["protocol"], out / "evaluation")}
    for name in options["also_protocols"]:
        wanted.setdefault(name, (protocol_settings(name), out / f"evaluation_{name}"))
    for name, (settings, folder) in wanted.items():
        if name not in record.scores:
            ap = evaluate(chosen, source, settings, folder, device=str(trainer.strategy.root_device))
            written = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
            record.scores[name] = {
                "folder": folder.name,
                "ap": ap,
                "images": written["images"],
                "images_per_second": written["made_by"]["images_per_second"],
            }
            record.write(out)


def _chosen_checkpoint(out: Path) -> Path | None:
    found = (out / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    return next((path for path in found if path.is_file()), None)


def _result(out: Path, options: dict[str, Any], record: RunRecord | None) -> TrainResult:
    if record is None:
        return TrainResult(out, None, None, {})
    best, last = out / "checkpoints/best.ckpt", out / "checkpoints/last.ckpt"
    ap = record.scores.get(options["protocol"]["name"], {}).get("ap", {})
    return TrainResult(out, best if best.is_file() else None, last if last.is_file() else None, ap)


def _opening(
    options: dict[str, Any], record: RunRecord, out: Path, threads: str, resume: Path | None, resumed_step: int | None
) -> str:
    from fanet_lightning.precision import resolve_precision

    precision = resolve_precision(options["trainer"]["precision"], options["trainer"]["accelerator"])
    lines = [
        f"{options['name']}: {record.model['parameters'] / 1e6:.2f} M inference parameters, "
        f"data {options['data']['name']}, {options['epochs']} epochs, "
        f"batch {options['batch_size']}, crop {options['input_size']}², {precision}, "
        f"seed {options['seed']}{threads}",
        f"writing to {out}",
    ]
    if resume is not None:
        lines.append(f"going on from {resume}, step {resumed_step}")
        if not resume.resolve().is_relative_to(out.resolve()):
            lines.append("best.ckpt here is the best of the epochs that follow")
    elif options["resume"] == AUTO:
        lines.append("no checkpoint there yet: starting from the beginning")
    return "\n".join(lines)


def _closing(out: Path) -> str:
    chosen = _chosen_checkpoint(out)
    rows = [
        ("best checkpoint", chosen), ("metrics", out / "csv/metrics.csv"), ("TensorBoard", out / "tensorboard"),
        ("record of the run", out / "run.json"),
        ("scores", out / "evaluation/scores.json"), ("predictions", out / "evaluation/predictions"),
        ("precision-recall curves", out / "evaluation/pr_curves.png"),
        ("sheet of detections", out / "evaluation/detections.png"),
    ]  # fmt: skip
    return "\n".join(f"{name:<24}{path}" for name, path in rows if path is not None and path.exists())
