"""One training run: checked once, assembled, trained, scored, recorded; a sweep's beginning and end."""

import contextlib
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import Checkpoint, LearningRateMonitor, ModelCheckpoint, ProgressBar, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import PyTorchProfiler
from pytorch_lightning.utilities.exceptions import SIGTERMException

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import CommandLine, canonical, config_dir, hydra_text, made, plain, without_hydra
from fanet_lightning.cli.cores import free_cores
from fanet_lightning.cli.device import device_name, resolve_precision
from fanet_lightning.cli.errors import InputError, check, check_values, first_line, is_whole
from fanet_lightning.cli.files import check_names_free, check_writable
from fanet_lightning.cli.provenance import (
    LOG_FILE,
    RunRecord,
    TerminalLog,
    code_sha256,
    flat,
    is_first_process,
    locked,
    made_by,
    now,
    read_record,
    refuse_other_settings,
    state_now,
)
from fanet_lightning.data.datamodule import FaceDataModule
from fanet_lightning.data.sources import build_source
from fanet_lightning.data.transforms import TestScale, build_augment
from fanet_lightning.detect.detector import open_detector
from fanet_lightning.detect.protocols import build_protocol, protocol_names, protocol_settings
from fanet_lightning.evaluate.runner import evaluate
from fanet_lightning.models.fanet import OPTIONS, flops, inference_parameters
from fanet_lightning.models.pretrained import Model, checkpoint_of_run, load_model, read_checkpoint
from fanet_lightning.models.weights import load_backbone_weights
from fanet_lightning.train import search, sweep
from fanet_lightning.train.callbacks import (
    AtomicCheckpointIO,
    EpochReport,
    FewImages,
    Origin,
    RandomState,
    StartingModel,
    newest_valid_checkpoint,
)
from fanet_lightning.train.loggers import WandbValidation, build_loggers, check_loggers
from fanet_lightning.train.module import OPTIMIZERS, FaceDetectionModule
from fanet_lightning.train.sweep import LOG_IS_KEPT, Terminated, never_trained, wanted_protocols

AUTO = "auto"

# What settings may be besides their type. Whatever is not here is checked by whoever is given it; null is none.
LIMITS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("a whole number of at least 1", lambda v: is_whole(v, 1),
     "level batch_size input_size epochs validate_every seeds checkpoint_every stop_after threads freeze_epochs "
     "data.train_images data.val_images trainer.accumulate_grad_batches trainer.check_val_every_n_epoch "
     "trainer.num_nodes trainer.limit_train_batches"),
    ("a whole number of at least 0", lambda v: is_whole(v, 0),
     "workers data.seed optim.warmup_steps trainer.log_every_n_steps"),
    ("a whole number of at least 1, or -1", lambda v: v == -1 or is_whole(v, 1), "trainer.max_steps"),
    (f"from 0 to {2**32 - 1}, as numpy's generators take it", lambda v: is_whole(v, 0) and v < 2**32, "seed"),
    ("a number above 0", lambda v: 0 < v < math.inf, "optim.lr optim.backbone_factor gradient_clip"),
    ("above 0 and below 1", lambda v: 0 < v < 1, "ema optim.milestones"),
    ("above 0 and at most 1", lambda v: 0 < v <= 1, "optim.gamma"),
    ("from 0 to 1", lambda v: 0 <= v <= 1, "optim.final"),
    ("at least 0 and below 1", lambda v: 0 <= v < 1, "optim.momentum"),
    ("at least 0", lambda v: 0 <= v < math.inf, "optim.weight_decay"),
    ("all or trunk", ("all", "trunk").__contains__, "init_part"),
    ("auto, online, offline or disabled", ("auto", "online", "offline", "disabled").__contains__, "logger.wandb.mode"),
    ("sgd or adamw", OPTIMIZERS.__contains__, "optim.name"),
    ("null: checkpoints are chosen by AP over the whole validation set, which data.val.images=LIST makes smaller",
     lambda v: False, "trainer.limit_val_batches"),
    ("step, cosine or constant", ("step", "cosine", "constant").__contains__, "optim.schedule"),
    ("auto, 32-true, bf16-mixed or 16-mixed: boxes are 32 bits",
     ("auto", "32-true", "32", 32, "bf16-mixed", "16-mixed").__contains__, "trainer.precision"),
)  # fmt: skip


def check_settings(options: dict[str, Any]) -> None:
    """Refuse settings that are not as :data:`LIMITS` has them, and those that would train nothing, with InputError."""
    settings = flat(options)
    check_values(settings, *LIMITS)
    for name in options["also_protocols"]:
        build_protocol(protocol_settings(name))
    one_scale = isinstance(build_protocol(options["protocol"]), TestScale)
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        check(options["trainer"][key] is not None, f"trainer.{key}=null; give a whole number of at least 1")
    devices, nodes, batch = options["trainer"]["devices"], options["trainer"]["num_nodes"] or 1, options["batch_size"]
    total = devices * nodes if isinstance(devices, int) else 1
    started = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else total
    check(one_scale, f"protocol={options['protocol']['name']}: validation has one scale; see also_protocols=[…]")
    check(
        total <= 1 or batch % total == 0,
        f"batch_size={batch} is the total over devices and must be divisible by "
        f"trainer.devices={devices} × trainer.num_nodes={nodes}",
    )
    check(
        started == total,
        f"torchrun has started {started} processes, the configuration has {total} devices; give "
        "trainer=ddp trainer.devices=<processes per node> trainer.num_nodes=<nodes>",
    )


def names_of_run() -> list[str]:
    """Names in ``out`` under which a run keeps what it makes, next to ``run.json``."""
    evaluations = [f"evaluation_{name}" for name in protocol_names()]
    return ["checkpoints", "csv", "tensorboard", "comet", "profile", "evaluation", *evaluations, LOG_FILE]


def _check_earlier_run(out: Path, options: dict[str, Any]) -> None:
    resume = options["resume"]
    if options["overwrite"] and resume is not None:
        raise InputError(f"overwrite=true replaces the run in {out}, resume={resume} resumes a run; give one of them")
    record = read_record(out)
    if record is None and resume is None:
        # Not a run that is resumed: that one may have nothing but its checkpoints.
        check_names_free(out, names_of_run(), "a run")
    if record is None or options["overwrite"]:
        return
    state = state_now(out, record)
    if never_trained(out, record) and state != "running":
        return
    if resume is None or (resume != AUTO and not Path(resume).resolve().is_relative_to(out.resolve())):
        raise InputError(
            f"out={out} holds a run already ({record.name}, {state}); resume=auto resumes it, overwrite=true replaces "
            "it, or give another out"
        )
    remedy = "give the same configuration, or another out"
    refuse_other_settings(f"out={out} holds a run", record.settings, options, remedy)


def _checkpoint_to_resume(options: dict[str, Any], out: Path) -> tuple[Path | None, int | None]:
    """The checkpoint to resume, and the optimizer step that it was written after; both None: from the beginning."""
    path = None if options["resume"] in (None, AUTO) else Path(options["resume"])
    if options["resume"] == AUTO:
        path, damaged = newest_valid_checkpoint(out / "checkpoints")
        for line in damaged if is_first_process() else []:
            print(f"warning: {line}", file=sys.stderr)
    if path is None:
        return None, None
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
        raise InputError(f"resume={path}: it holds weights alone; init={path} starts a new run from them")
    record = read_record(path.resolve().parent.parent) if path.parent.name == "checkpoints" else None
    settings = checkpoint.get("settings") or (record.settings if record else {})  # those of before are in the record
    remedy = f"give the same configuration, or start a new run from its weights with init={path}"
    refuse_other_settings(f"resume={path} is of a run", settings, options, remedy)
    return path, int(checkpoint["global_step"])


# Options of a network that its weights bring along, or that only say how fresh weights are drawn.
NOT_THE_NETWORK = {"normaliser", "face_prior"}
# The options that have to be the same for init_part=trunk.
TRUNK_OPTIONS = {"backbone", "width", "batch_norm", "fc6"}


def initial_model(options: dict[str, Any]) -> Model | None:
    """The trained model that ``init`` names, if what ``init_part`` takes of it fits the run's network."""
    init, part, network = options["init"], options["init_part"], options["model"]
    if init is None:
        check(part == "all", f"init_part={part} has nothing to take it from; give init=MODEL as well")
        return None
    weights = options["weights"]
    check(weights in (None, "none"), f"init={init} brings a backbone along; give weights=null instead of {weights}")
    model = load_model(init)
    of_model, of_run = ({"name": "fanet", **OPTIONS, **given} for given in (model.network_options, network))
    names = TRUNK_OPTIONS if part == "trunk" else {*model.network_options, *network} - NOT_THE_NETWORK
    if part == "trunk" and (model.network_options.get("_target_") or network.get("_target_")):
        names = set()  # what fits a network of one's own, its weights say
    for name in sorted(names):
        if of_model.get(name) != of_run.get(name):
            raise InputError(
                f"init={init}: that model has model.{name}={of_model.get(name)}, this run has {of_run.get(name)}; give "
                "the model's own options (of fanet_light: model=fanet_light), or init_part=trunk for the backbone"
            )
    if model.training_images is None and is_first_process():
        print(f"warning: init={init} does not name its training images; the run's list will lack them")
    return model


def _build_module(options: dict[str, Any], *, with_weights: bool, initial: Model | None) -> FaceDetectionModule:
    """With the weights of ``initial`` or of the option ``weights``; None of them where a checkpoint is to be loaded."""
    keys = ("loss", "optim", "batch_size", "channels_last", "freeze_until", "freeze_epochs")
    module = FaceDetectionModule(network=dict(options["model"]), **{key: options[key] for key in keys})
    network = module.network
    if initial is not None:
        try:
            for part in ("trunk", "normaliser") if options["init_part"] == "trunk" else ("",):
                network.get_submodule(part).load_state_dict(initial.network.get_submodule(part).state_dict())
        except (AttributeError, RuntimeError) as error:  # a network of one's own
            raise InputError(f"init={options['init']} does not fit this network: {first_line(error)}") from error
    if with_weights and options["weights"] not in (None, "none"):
        load_backbone_weights(network, options["weights"], say=print if is_first_process() else str)
    # It follows the weights, and travels in the checkpoint.
    module.hparams["network"]["normaliser"] = network.normaliser.kind
    if options["compile"]:
        network.compile(dynamic=None)
    weights, count = options["loss"].get("weights"), 1 + len(network.training_only())
    fits = weights is None or len(weights) == count
    check(fits, f"loss.weights={weights}: give one for each of the {count} hierarchies with heads")
    return module


def _build_callbacks(options: dict[str, Any], initial: Model | None) -> list[Callback]:
    """Those of the group ``callbacks``, and what every run has: its report, and what its checkpoints carry."""
    nodes = {name: node for name, node in options["callbacks"].items() if node and node.get("_target_")}
    found = {name: made(f"callbacks.{name}", node) for name, node in nodes.items()}
    for name, callback in found.items():
        is_one = isinstance(callback, Callback | None)
        check(is_one, f"callbacks.{name}._target_={nodes[name]['_target_']} is no Lightning callback")
    callbacks: list[Callback] = [callback for callback in found.values() if callback is not None]
    averages = [name for name, callback in found.items() if isinstance(callback, WeightAveraging)]
    check(len(averages) < 2, f"callbacks: {' and '.join(averages)} both average the weights; of a list, give swa last")
    best = next((c for c in callbacks if isinstance(c, ModelCheckpoint) and c.monitor == "val/ap"), None)
    # Averaging comes first: what the checkpoints save are the averaged weights. Lightning puts the checkpoints last.
    callbacks += [RandomState(), Origin(options, (initial and initial.training_images) or ())]
    if best is not None and options["init"] is not None and options["init_part"] == "all":
        callbacks.append(StartingModel(best))
    return callbacks


def _build_trainer(options: dict[str, Any], out: Path, initial: Model | None) -> Trainer:
    """The Lightning trainer without its loggers."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)  # without tips and lists of hardware
    for noise in (
        ".*LeafSpec.*",  # between Lightning and torch, nothing that a person could fix
        ".*number of training batches.*",
        r".*self\.log\('val/.*sync_dist=True.*",  # every rank has gathered the same detections
        ".*The dirpath has changed.*",  # the line of the run's beginning says it
        ".*exists and is not empty.*",  # a resumed run writes where it wrote
    ):
        warnings.filterwarnings("ignore", noise)
    trainer = dict(options["trainer"])
    trainer["precision"] = resolve_precision(trainer["precision"], trainer["accelerator"])
    callbacks, profiler = _build_callbacks(options, initial), None
    if options["profile"]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells that it starts, stops and finds no GPU
        # Not the first steps, which choose algorithms, fill caches and allocate.
        watched = torch.profiler.schedule(wait=3, warmup=1, active=3, repeat=1)
        profiler = PyTorchProfiler(out / "profile", "steps", schedule=watched, row_limit=60)
        profiler.STEP_FUNCTIONS = {"training_step"}  # validation would take the table's place
    try:
        return Trainer(
            **trainer,
            max_epochs=options["epochs"],
            gradient_clip_val=options["gradient_clip"],
            logger=False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            profiler=profiler,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=-1 if initial and any(isinstance(c, StartingModel) for c in callbacks) else 0,
            use_distributed_sampler=False,
            default_root_dir=out,
        )
    except Exception as error:
        # Lightning's own refusals (a device that is not there, an unknown strategy) come in several classes.
        raise InputError(f"trainer: {first_line(error)}") from error


@dataclass(frozen=True)
class Prepared:
    """A run whose settings, data, network and folder are checked, with everything that it trains with.

    ``resume``, ``resumed_step``: the checkpoint to resume and its optimizer step; None: a run from the beginning.
    """

    options: dict[str, Any]
    out: Path
    datamodule: FaceDataModule
    module: FaceDetectionModule
    trainer: Trainer
    resume: Path | None
    resumed_step: int | None


def prepare(options: dict[str, Any]) -> Prepared:
    """Check a configuration (``conf/train.yaml``, plain) and build from it, each once; nothing is written.

    InputError: the first thing that is wrong with values, devices, output folder, checkpoint, data or weights.
    """
    check_settings(options)
    check_loggers(options["logger"] or {})
    out = Path(options["out"])
    check_writable(out)
    if is_first_process():
        _check_earlier_run(out, options)
    resume, resumed_step = _checkpoint_to_resume(options, out)
    # A resumed run's checkpoint has the weights, and the list of all images that they were trained on.
    initial = initial_model(options) if resume is None else None
    trainer = _build_trainer(options, out, initial)
    seed_everything(options["seed"], workers=True, verbose=False)
    module = _build_module(options, with_weights=resume is None, initial=initial)
    source = build_source(**options["data"])
    source.check()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FewImages):
            source = callback.part_of(source)
    keys = ("batch_size", "workers", "seed", "input_size", "cache", "cache_gib")
    datamodule = FaceDataModule(
        source,
        augment=build_augment(options["augment"]),
        val_scale=build_protocol(options["protocol"]),  # type: ignore[arg-type]  # check_settings
        **{key: options[key] for key in keys},
    )
    out = out.absolute()
    return Prepared({**options, "out": str(out)}, out, datamodule, module, trainer, resume, resumed_step)


# The loader processes of a killed run hold its lock until they notice, within five seconds.
LOCK_PATIENCE_SECONDS = 15.0
# The process id of the first rank, for those that it starts.
FIRST_RANK = "FANET_FIRST_RANK_PID"


def train(run: Prepared) -> None:
    """Train, validate, and evaluate the best checkpoint at the end; or resume a run that was cut off.

    InputError: anything in the configuration, the data or the machine that a person can fix. The record of the run
    (``run.json``) then says so, and whatever was saved before stays. KeyboardInterrupt, Terminated: Ctrl-C, SIGTERM;
    ``resume=auto`` resumes from the last checkpoint.
    """
    options, out = run.options, run.out
    if not is_first_process():
        # Torchrun looks after its ranks itself; one that Lightning has started ends when the first is killed.
        if FIRST_RANK in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
            sweep.die_with(int(os.environ[FIRST_RANK]))
        _fit_and_evaluate(run, None)
        return
    os.environ[FIRST_RANK] = str(os.getpid())
    with locked(out, patience_seconds=LOCK_PATIENCE_SECONDS):
        record = _open_record(options, out)
        if TerminalLog.current is not None and LOG_IS_KEPT not in os.environ:
            TerminalLog.current.begin(out / LOG_FILE)
        stop_after, epoch = options["stop_after"], record.train.get("epoch", 0)
        # Whether the same command has trained and scored before what it would now.
        stopped = record.state == "stopped" and stop_after is not None and epoch >= stop_after
        if options["resume"] == AUTO and (stopped or record.is_complete(wanted_protocols(options))):
            print(f"{options['name']} in {out} is {record.state} already")
            return
        record.state, record.error, record.ended = "running", None, None
        record.train["starts"] = int(record.train.get("starts", 0)) + 1
        record.write(out)
        try:
            _fit_and_evaluate(run, record)
            stopped = (stop_after or options["epochs"]) <= record.train.get("epoch", 0) < options["epochs"]
            record.state = "stopped" if stopped else "finished"
        except (KeyboardInterrupt, Terminated):
            # The record still says "running", which without a process means that it was interrupted.
            print(f"{out} is kept as its last checkpoint has it; resume=auto resumes from there", file=sys.stderr)
            raise
        except BaseException as error:
            text = " ".join(str(error).split()) or type(error).__name__
            record.state = "failed"
            record.error = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
            raise
        finally:
            record.ended = now()
            record.write(out)


def _open_record(options: dict[str, Any], out: Path) -> RunRecord:
    if options["overwrite"] and options["resume"] is None:
        for path in [out / "run.json", *(out / name for name in names_of_run())]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    record = read_record(out)
    if record is None or never_trained(out, record):
        record = RunRecord(name=options["name"], seed=options["seed"], settings=options, started=now())
    record.settings, record.made_by = options, origin()
    return record


def origin() -> dict[str, Any]:
    """``made_by`` of a run: the command line and the versions of what computes."""
    packages = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "opencv-python-headless")
    return made_by(sys.argv, packages=("fanet-lightning", *packages)) | {"code_sha256": code_sha256()}


def _fit_and_evaluate(run: Prepared, record: RunRecord | None) -> None:
    """``record`` is None on all ranks but the first."""
    options, out, trainer = run.options, run.out, run.trainer
    earlier = record.wandb if record else None
    loggers, wandb = build_loggers(options, out, resumed_step=run.resumed_step, wandb_run=earlier)
    exit_code = 1
    try:
        added: list[Callback] = [EpochReport(options["stop_after"], record, out)]
        if wandb is not None:
            added.append(WandbValidation(wandb, options["logger"]["wandb"]["images"]))
        if loggers:
            added.append(LearningRateMonitor("step"))
        trainer.loggers = loggers
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        before_checkpoints = len(callbacks) - len(trainer.checkpoint_callbacks)
        callbacks[before_checkpoints:before_checkpoints] = added
        threads = _set_threads(options["threads"], run.resume, trainer)
        if record is not None:
            network = run.module.network
            record.model = {"parameters": inference_parameters(network), "flops_640x480": flops(network, 480, 640)}
            record.train |= {"epochs": options["epochs"], **machine(trainer)}
            record.wandb = None if wandb is None else wandb.record
            record.write(out)
            if wandb is not None:
                wandb.describe({f"model/{name}": value for name, value in record.model.items()})
            _print_opening(run, record, threads)
        _fit(run)
        if threading.current_thread() is threading.main_thread():  # Lightning has put the handler of before back
            signal.signal(signal.SIGTERM, _terminate)
        if record is not None and trainer.is_global_zero and (chosen := checkpoint_of_run(out)) is not None:
            if options["evaluate_at_end"]:
                _evaluate(run, record, chosen)
            if wandb is not None:
                scores = {name: one["ap"] for name, one in record.scores.items()}
                wandb.describe({f"final/{name}/ap_{key}": x for name, ap in scores.items() for key, x in ap.items()})
            print(f"{chosen.stem} checkpoint: {chosen}")
        exit_code = 0
    finally:
        if wandb is not None:
            wandb.finish(exit_code)


def _fit(run: Prepared) -> None:
    trainer = run.trainer
    try:
        trainer.fit(run.module, datamodule=run.datamodule, ckpt_path=run.resume, weights_only=True)
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
        if isinstance(error, MisconfigurationException | torch.distributed.DistNetworkError):  # e.g. a port in use
            raise InputError(f"trainer: {first_line(error)}") from error
        if not isinstance(error, InputError) and (part := _part_that_raised(error)):
            raise InputError(f"{part}: {type(error).__name__}: {first_line(error)}; resume=auto resumes") from error
        raise


def _part_that_raised(error: BaseException) -> str | None:
    """The callback or logger, not one of ours, in which the error arose, and where; None: it is the training's own."""
    part, place = None, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner, place = frame.f_locals.get("self"), f"{Path(frame.f_code.co_filename).name}:{line}"
        if isinstance(owner, Callback | Logger) and not type(owner).__module__.startswith("fanet_lightning."):
            part = f"{type(owner).__module__}.{type(owner).__name__}"
    return None if part is None else f"{part} ({place})"


def _set_threads(asked: int | None, resume: Path | None, trainer: Trainer) -> str:
    """The threads of PyTorch's operators where the CPU trains; in words, with a comma before them.

    They decide how sums are rounded, so a resumed run takes their number of before, unless it is told another.
    """
    if trainer.strategy.root_device.type != "cpu":
        return ""
    earlier = read_record(resume.parent.parent) if resume is not None else None
    count, why = asked or torch.get_num_threads(), ""
    if asked is None and "OMP_NUM_THREADS" in os.environ:
        why = " (OMP_NUM_THREADS)"
    elif asked is None and earlier is not None and "threads" in earlier.train:
        count, why = earlier.train["threads"], " (as before)"
    elif asked is None:
        free, reason = free_cores()
        count, why = max(1, free // trainer.num_devices), f" ({reason})"
    torch.set_num_threads(count)
    if trainer.num_devices > 1:
        os.environ["OMP_NUM_THREADS"] = str(count)  # for the ranks that Lightning is about to start
    return f", {count} {'thread' if count == 1 else 'threads'}{why}"


def machine(trainer: Trainer) -> dict[str, Any]:
    """What trains, for the record: ``devices``, ``device``, ``cpu`` and, where it trains, ``threads``."""
    device, info = trainer.strategy.root_device, Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    cpu = f"{model[1] if model else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
    found = {"devices": trainer.world_size, "device": device_name(str(device)), "cpu": cpu}
    return found | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})


def _evaluate(run: Prepared, record: RunRecord, chosen: Path) -> None:
    """Score a checkpoint under the run's protocol and the further ones; what is done already is kept."""
    options, out = run.options, run.out
    wanted = {options["protocol"]["name"]: (options["protocol"], out / "evaluation")}
    for name in options["also_protocols"]:
        wanted.setdefault(name, (protocol_settings(name), out / f"evaluation_{name}"))
    for name, (settings, folder) in wanted.items():
        if name not in record.scores:
            detector = open_detector(chosen, str(run.trainer.strategy.root_device))
            ap = evaluate(detector, run.datamodule.source, settings, folder)
            written = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
            speed = {"images_per_second": written["made_by"]["images_per_second"]}
            record.scores[name] = {"folder": folder.name, "ap": ap, "images": written["images"], **speed}
            record.write(out)


def _print_opening(run: Prepared, record: RunRecord, threads: str) -> None:
    options, trainer = run.options, run.options["trainer"]
    print(
        f"{options['name']}: {record.model['parameters'] / 1e6:.2f} M inference parameters, "
        f"data {options['data']['name']}, {options['epochs']} epochs, batch {options['batch_size']}, "
        f"crop {options['input_size']}², {resolve_precision(trainer['precision'], trainer['accelerator'])}, "
        f"seed {options['seed']}{threads}\nwriting to {run.out}"
    )
    if run.resume is not None:
        print(f"resuming from {run.resume}, step {run.resumed_step}")
        if not run.resume.resolve().is_relative_to(run.out.resolve()):
            print("best.ckpt here is the best of the epochs that follow")
    elif options["resume"] == AUTO:
        print("no checkpoint there yet: starting from the beginning")
    sys.stdout.flush()


# Keys that a variant's folder name tells already, unless name= is given.
TOLD_BY_NAME = {"level", "context", "hl", "model", "cell"}


def start(line: CommandLine) -> int:
    """Check one run's configuration in full, of a sweep what the variants share; then Hydra runs it."""
    if line.is_sweep:
        return _sweep(line)
    with TerminalLog():
        config, given = without_hydra(line.config()), {word.key for word in line.words}
        several = "TORCHELASTIC_RUN_ID" in os.environ  # each rank would make a folder of its own
        is_named = not (several or config.resume == AUTO) or "out" in given
        check(is_named, f"{'torchrun' if several else 'resume=auto'} needs the run's folder; give out=DIR as well")
        canonical(config)
        run = prepare(plain(config))
        # The other ranks are started with these words, and `${now:}` would differ there.
        words = [*(word.for_hydra for word in line.words if word.key != "out"), f"out={hydra_text(config.out)}"]
        _run_hydra(words, lambda config: _task(run))  # the configuration is the one that the run was prepared from
    return 0


def _task(run: Prepared) -> None:
    try:
        train(run)
    except Exception as error:  # Hydra would print a traceback, and the other ranks must not wait for this one
        sys.exit(cli.report_error(error))


def _run_hydra(words: list[str], task: Callable[[DictConfig], float | None]) -> None:
    sys.argv = [sys.argv[0], *words]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(task)()


def _sweep(line: CommandLine) -> int:
    config = line.config()
    sweeper, folder, options = config.hydra.sweeper, Path(config.hydra.sweep.dir), plain(without_hydra(config))
    given = {word.key for word in line.words}
    optimizes = "Basic" not in str(sweeper._target_)
    resume, trainer, torchrun = options["resume"], options["trainer"], "TORCHELASTIC_RUN_ID" in os.environ
    check(not torchrun, "a sweep starts the ranks of its variants itself: leave torchrun out")
    check(resume in (None, AUTO), f"resume={resume}: a sweep's variants resume by themselves")
    check(not options["overwrite"], "overwrite=true: a sweep keeps variants that are done; take another sweep=DIR")
    check(trainer["num_nodes"] == 1, "trainer.num_nodes above 1: a sweep's variant runs on one machine")
    check(options["evaluate_at_end"] or not optimizes, "evaluate_at_end=false leaves a sweeper nothing to optimize")
    check("out" not in given, f"out={options['out']}: names the folder of one run; a sweep takes sweep=DIR")
    _check_variants(line, folder)
    # What is swept besides the switches (optim.lr=1e-3,2e-3) becomes part of the variants' names.
    told = {"seed"} | (given - {word.key for word in line.swept}) | (set() if "name" in given else TOLD_BY_NAME)
    words = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(told))}]"]
    if "hydra.sweeper.direction" not in given and "direction" in sweeper:
        words.append("hydra.sweeper.direction=maximize")  # Optuna minimizes unless it is told otherwise
    os.environ[sweep.SWEEP_PROCESS] = str(os.getpid())
    # left: trials that the study still wants; another sweep is started whatever is done.
    is_search, left = bool(sweeper.get("storage") and sweeper.get("study_name")), 1
    with contextlib.ExitStack() as held:
        if is_search:
            searched = [word.for_hydra for word in line.swept]
            left = held.enter_context(search.joined(sweeper, folder, options, searched))
            words.append(f"hydra.sweeper.n_trials={left}")
        else:
            held.enter_context(locked(folder, "sweep"))
            sweep.clear_jobs(folder)
        print(f"sweep {folder}", flush=True)
        code: Any = 0
        signal.signal(signal.SIGTERM, _terminate)
        try:
            if left:
                _run_hydra(["--multirun", *line.for_hydra, *words], sweep.task)
        except (KeyboardInterrupt, Terminated):
            print(sweep.summary(sweep.read_jobs(folder), folder, interrupted=True), flush=True)
            raise
        except SystemExit as error:  # a launcher that gave up; what the variants reported is still true
            code = error.code
        variants = sweep.read_jobs(folder)
        print(sweep.summary(variants, folder), flush=True)
        if is_search:
            print(search.best(sweeper), flush=True)
    return 1 if code or any(variant.state == "failed" for variant in variants) else 0


def _check_variants(line: CommandLine, folder: Path) -> None:
    """A sweep in which one variant may be trained is started, and the others say why they fail; else the first says."""
    refused: list[InputError] = []
    for variant in range(max((len(word.values) for word in line.swept), default=1)):
        try:
            prepare({**plain(without_hydra(line.config(variant))), "out": str(folder), "resume": AUTO})
            return
        except InputError as error:
            refused.append(error)
    raise refused[0]


def _terminate(*_: object) -> NoReturn:
    raise Terminated
