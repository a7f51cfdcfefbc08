"""One training run: checks, assembly, fit, scores, run record; the Hydra task.

Train one cell of the grid, or a baseline: ``python -m fanet_lightning.train level=3 context=true hl=true``.

With ``-m`` or ``experiment=ablation`` it trains whole grids (:mod:`fanet_lightning.train.sweep`).
"""

import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import warnings
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import CommandLine, canonical, config_dir, hydra_text, plain, read_words, without_hydra
from fanet_lightning.cli.device import usable_cores
from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import check_names_free, check_writable
from fanet_lightning.cli.provenance import (
    LOG_FILE,
    RunRecord,
    TerminalLog,
    differing_settings,
    flat,
    is_first_process,
    locked,
    now,
    read_record,
    state_now,
)
from fanet_lightning.train import sweep
from fanet_lightning.train.sweep import (
    LOG_IS_KEPT,
    Terminated,
    _has_checkpoints,
    die_with_parent,
    never_trained,
    wanted_protocols,
)

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from fanet_lightning.data.datamodule import FaceDataModule
    from fanet_lightning.models.pretrained import Model
    from fanet_lightning.train.loggers import Loggers
    from fanet_lightning.train.module import FaceDetectionModule


# Options of a network that its weights bring along, or that only say how fresh weights are drawn.
NOT_THE_NETWORK = {"normaliser", "face_prior"}
# The options that have to be the same for init_part=trunk.
TRUNK_OPTIONS = {"backbone", "width", "batch_norm", "fc6"}


def build_module(
    options: dict[str, Any], *, with_weights: bool = True, initial: "Model | None" = None
) -> "FaceDetectionModule":
    """The LightningModule of a composed configuration, with the weights of ``initial`` or the trunk of ``weights``."""
    from fanet_lightning.models.weights import load_trunk_weights
    from fanet_lightning.train.module import FaceDetectionModule

    module = FaceDetectionModule(
        network=dict(options["model"]),
        loss=options["loss"],
        optim=options["optim"],
        batch_size=options["batch_size"],
        channels_last=options["channels_last"],
        freeze_until=options["freeze_until"],
        freeze_epochs=options["freeze_epochs"],
    )
    if initial is not None:
        if options["init_part"] == "trunk":
            module.network.trunk.load_state_dict(initial.network.trunk.state_dict())
            module.network.normaliser.load_state_dict(initial.network.normaliser.state_dict())
        else:
            module.network.load_state_dict(initial.network.state_dict())
    if with_weights:
        load_trunk_weights(module.network, options["weights"], say=print if is_first_process() else str)
    # It follows the weights, and travels in the checkpoint.
    module.hparams["network"]["normaliser"] = module.network.normaliser.kind
    if options["compile"]:
        module.network.compile(dynamic=None)
    return module


def initial_model(options: dict[str, Any]) -> "Model | None":
    """The trained model that ``init`` names, if what ``init_part`` takes of it fits the run's network.

    ``init_part=trunk`` leaves A-blocks and heads to chance, so level, context and hl may differ: the cells of a grid
    can then start from one trunk.

    Returns:
        None where no model is named.

    Raises:
        InputError: no such model, another network or trunk, or trunk weights named as well.
    """
    from fanet_lightning.models.pretrained import load_model

    init, part, network = options["init"], options["init_part"], options["model"]
    if init is None:
        if part != "all":
            raise InputError(f"init_part={part} has nothing to take it from; give init=MODEL, or leave it out")
        return None
    if options["weights"] is not None:
        raise InputError(f"init={init} and weights={options['weights']} are both given; init brings the trunk along")
    model = load_model(init)
    of_model, of_run = ({**_network_defaults(), **given} for given in (model.network_options, network))
    names = TRUNK_OPTIONS if part == "trunk" else {*model.network_options, *network} - NOT_THE_NETWORK
    for name in sorted(names):
        stored, own = of_model.get(name), of_run.get(name)
        if stored != own:
            words = _words_for(of_model, of_run, options, names)
            trunk_alone = (
                "" if part == "trunk" or name in TRUNK_OPTIONS else ", give init_part=trunk for the trunk alone"
            )
            raise InputError(
                f"init={init}: that model has model.{name}={stored}, this run has {own}; add {words}{trunk_alone}, or "
                "leave init out"
            )
    return model


def _words_for(wanted: dict[str, Any], own: dict[str, Any], options: dict[str, Any], names: set[str]) -> str:
    """The words that turn a run's network ``own`` into the one that is ``wanted``, as far as ``names`` go.

    Another option of the group ``model`` where one comes nearer, then switches and single keys.
    """
    from omegaconf import OmegaConf

    switches: dict[str, Any] = {name: wanted[name] for name in ("level", "context", "hl") if name in names}
    tops = OmegaConf.create({**{name: options[name] for name in ("level", "context", "hl")}, **switches})
    networks: dict[str, dict[str, Any]] = {}
    for path in sorted((config_dir() / "model").glob("*.yaml")):
        whole: Any = OmegaConf.to_container(OmegaConf.merge(tops, {"model": OmegaConf.load(path)}), resolve=True)
        networks[f"model={path.stem}"] = {**_network_defaults(), **whole["model"]}
    # What the run has chosen, and what it was given beside that and would keep.
    chosen = min(networks, key=lambda word: len(_differing(networks[word], own)))
    given = {name: own[name] for name in _differing(networks[chosen], own) if name not in ("name", *switches)}
    networks = {word: {**network, **given} for word, network in networks.items() if word != chosen}
    missing = {
        word: [name for name in _differing(network, wanted) if name in names]
        for word, network in {"": {**own, **switches}, **networks}.items()
    }
    word = min(missing, key=lambda word: len(missing[word]))
    values: dict[str, Any] = {name: value for name, value in switches.items() if own.get(name) != value}
    values |= {f"model.{name}": wanted.get(name) for name in missing[word]}
    texts = [f"{key}={json.dumps(value, separators=(',', ':'))}".replace('"', "") for key, value in values.items()]
    return " ".join([word, *texts] if word else texts)


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]


def _network_defaults() -> dict[str, Any]:
    from fanet_lightning.models.fanet import build_network

    return {name: parameter.default for name, parameter in signature(build_network).parameters.items()}


def build_datamodule(options: dict[str, Any], source: Any) -> "FaceDataModule":
    """The LightningDataModule of a composed configuration."""
    from fanet_lightning.data.datamodule import FaceDataModule
    from fanet_lightning.data.transforms import TestScale, build_augment

    protocol = {key: value for key, value in options["protocol"].items() if key != "name"}
    return FaceDataModule(
        source,
        augment=build_augment(options["augment"]),
        batch_size=options["batch_size"],
        workers=options["workers"],
        seed=options["seed"],
        input_size=options["input_size"],
        val_scale=TestScale(**protocol),
        cache=options["cache"],
        cache_gib=options["cache_gib"],
        cache_dir=options["cache_dir"],
        cache_side=options["cache_side"],
    )


def build_trainer(
    options: dict[str, Any],
    out: Path,
    *,
    loggers: "Loggers | None" = None,
    record: RunRecord | None = None,
    initial: "Model | None" = None,
) -> "Trainer":
    """The Lightning trainer with checkpoints, averaged weights and the line per epoch.

    Args:
        options: the composed configuration, plain.
        out: the run's folder.
        loggers: what :func:`fanet_lightning.train.loggers.build_loggers` made.
        record: kept up to date after every epoch; None on all ranks but the first.
        initial: what the run starts from; its training images become part of the run's list.

    Raises:
        InputError: devices, strategy or precision that Lightning refuses.
    """
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import LearningRateMonitor, RichProgressBar

    from fanet_lightning.cli.device import resolve_precision
    from fanet_lightning.train.callbacks import (
        AtomicCheckpointIO,
        EpochReport,
        RecordProgress,
        checkpoint_callbacks,
        ema_callback,
    )
    from fanet_lightning.train.profiling import StepProfiler

    # Tips and hardware lists are noise; warnings still come through.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # between Lightning and torch, nothing that a person could mend
    warnings.filterwarnings("ignore", ".*number of training batches.*")
    # Every rank has gathered the same detections and computed the same AP: there is nothing to reduce.
    warnings.filterwarnings("ignore", r".*self\.log\('val/.*sync_dist=True.*")
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")  # the line of the run's beginning says it
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # a run that goes on writes where it wrote
    trainer = dict(options["trainer"])
    # A run shorter than the interval is still validated once, or it would have no best checkpoint.
    trainer["check_val_every_n_epoch"] = min(trainer["check_val_every_n_epoch"], options["epochs"])
    trainer["precision"] = resolve_precision(trainer["precision"], trainer["accelerator"])
    # EMA before the checkpoints: what they save are the averaged weights.
    callbacks: list[Any] = [] if options["ema"] is None else [ema_callback(options["ema"])]
    earlier = (initial.training_images if initial is not None else None) or []
    from_trained = options["init"] is not None and options["init_part"] == "all"
    callbacks += checkpoint_callbacks(
        out / "checkpoints", options, options["checkpoint_every"], earlier, from_trained=from_trained
    )
    callbacks.append(EpochReport(options["stop_after"]))
    if record is not None:
        callbacks.append(RecordProgress(record, out))
    if loggers is not None and loggers.loggers:
        callbacks.append(LearningRateMonitor("step"))
    if loggers is not None and loggers.wandb_run is not None:
        from fanet_lightning.train.wandb_run import WandbValidation

        callbacks.append(WandbValidation(loggers.wandb_run, options["logger"]["wandb"]["images"]))
    progress = sys.stdout.isatty()
    if progress:
        callbacks.append(RichProgressBar())
    try:
        return Trainer(
            **trainer,
            max_epochs=options["epochs"],
            gradient_clip_val=options["gradient_clip"],
            logger=(loggers.loggers if loggers is not None else None) or False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            profiler=StepProfiler(out / "profile") if options["profile"] else None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=-1 if from_trained and initial is not None else 0,
            use_distributed_sampler=False,
            default_root_dir=out,
        )
    except Exception as error:
        # Lightning's own refusals (a device that is not there, an unknown strategy) come in several classes.
        raise InputError(f"trainer: {first_line(error)}") from error


AUTO = "auto"
PRECISIONS = ("auto", "32-true", "32", "bf16-mixed", "16-mixed")

# What settings may be: numbers within limits, words or null. What is not here is checked by whoever is given it.
VALUES = {
    "whole [1, inf)": "batch_size input_size epochs validate_every seeds data.train_images data.val_images "
    "trainer.accumulate_grad_batches trainer.check_val_every_n_epoch trainer.num_nodes",
    "whole [1, inf) or null": "checkpoint_every stop_after threads freeze_epochs",
    "whole [1, inf) or -1": "trainer.max_steps",
    "whole [1, inf) or (0, 1] or null": "trainer.limit_train_batches",
    "whole [0, inf)": "workers data.seed optim.warmup_steps trainer.log_every_n_steps",
    "(0, inf)": "optim.lr optim.backbone_factor loss.lambda_cls loss.box_weight loss.negatives_per_positive",
    "(0, inf) or null": "gradient_clip",
    "(0, 1) or null": "ema",
    "(0, 1]": "optim.gamma",
    "[0, 1]": "optim.final",
    "[0, 1)": "optim.momentum",
    "[0, inf)": "optim.weight_decay",
    "each (0, 1)": "optim.milestones",  # shares of the run
    "each [0, inf) or null": "loss.weights",
    "all or trunk": "init_part",
    "sgd or adamw": "optim.name",
    "step or cosine or constant": "optim.schedule",
    "true or false": "optim.nesterov optim.decay_all loss.second_stage trainer.detect_anomaly trainer.inference_mode "
    "trainer.sync_batchnorm",
    "true or false or warn": "trainer.deterministic",
}
_ALLOWED = {key: allowed for allowed, keys in VALUES.items() for key in keys.split()}
# Arguments of Lightning's Trainer that a run gives itself or cannot be trained with, and the words to give instead.
NOT_OF_TRAINER = {
    "max_epochs": "epochs=…", "min_epochs": "epochs=…", "gradient_clip_val": "gradient_clip=…", "logger": "logger=…",
    "profiler": "profile=true", "default_root_dir": "out=…", "overfit_batches": "data.train.images=LIST",
    "fast_dev_run": "stop_after=1", "callbacks": "", "plugins": "", "enable_checkpointing": "",
    "enable_progress_bar": "", "enable_model_summary": "", "num_sanity_val_steps": "", "use_distributed_sampler": "",
    "barebones": "",
}  # fmt: skip
_LIMITS = re.compile(r"(whole )?([\[(])(\S+), (\S+)([\])])")


def check_values(options: dict[str, Any]) -> None:
    """Refuse settings of the wrong sign, size or type, and those that would train nothing.

    Raises:
        InputError: the first setting that is not as :data:`VALUES` has it.
    """
    for key, value in flat(options).items():
        if key.startswith("optim.") and key not in _ALLOWED:
            raise InputError(f"{key} is unknown; --help lists the keys")
        argument = key.removeprefix("trainer.").partition(".")[0]
        if key.startswith("trainer.") and argument in NOT_OF_TRAINER:
            instead = NOT_OF_TRAINER[argument]
            raise InputError(f"trainer.{argument} is not to be set; {f'give {instead}' if instead else 'leave it out'}")
        if key in _ALLOWED:
            each = _ALLOWED[key].startswith("each ")
            allowed = _ALLOWED[key].removeprefix("each ").split(" or ")
            values = value if each and isinstance(value, list) and value else [value]
            if not all(_is_one_of(item, allowed) for item in values) or (each and isinstance(value, int | float)):
                text = " or ".join(_in_words(choice) for choice in allowed)
                raise InputError(f"{key}={_as_given(value)}: give {'a list, of which each is ' if each else ''}{text}")
    if options["optim"].get("nesterov") and not options["optim"].get("momentum"):
        raise InputError("optim.nesterov=true needs optim.momentum above 0")
    weights = options["loss"].get("weights")
    if weights is not None and not weights[-1]:
        raise InputError(f"loss.weights={weights}: the last hierarchy is the detector, and 0 would not train it")
    precision = options["trainer"].get("precision")
    if str(precision) not in PRECISIONS:  # "true" ones would round the boxes as well
        raise InputError(f"trainer.precision={precision}: boxes are 32 bits; give one of {', '.join(PRECISIONS)}")
    limit = options["trainer"].get("limit_val_batches")
    if limit is not None:
        raise InputError(
            f"trainer.limit_val_batches={limit}: checkpoints are chosen by AP over the whole validation set; leave it "
            "out, and make that set smaller (data.val.images=LIST) or validate less often (validate_every)"
        )


def _is_one_of(value: Any, allowed: list[str]) -> bool:
    for choice in allowed:
        limits = _LIMITS.fullmatch(choice)
        if limits is None:
            if str(_as_given(value)) == choice and (choice in ("true", "false")) == isinstance(value, bool):
                return True
        elif isinstance(value, int | float) and not isinstance(value, bool):
            whole, low_bracket, low, high, high_bracket = limits.groups()
            above = value > float(low) or (value == float(low) and low_bracket == "[")
            below = value < float(high) or (value == float(high) and high_bracket == "]")
            if above and below and not (whole and isinstance(value, float)):
                return True
    return False


def _as_given(value: Any) -> Any:
    """As it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def _in_words(choice: str) -> str:
    limits = _LIMITS.fullmatch(choice)
    if limits is None:
        return choice
    whole, low_bracket, low, high, high_bracket = limits.groups()
    kind = "whole" if whole else "finite" if high == "inf" else ""
    text = " ".join(f"a {kind} number {'of at least' if low_bracket == '[' else 'above'} {low}".split())
    return text if high == "inf" else f"{text} and {'at most' if high_bracket == ']' else 'below'} {high}"


def check(options: dict[str, Any]) -> None:
    """Check values, network, data, output folder, checkpoint, weights, devices.

    Args:
        options: ``conf/train.yaml`` composed, as plain containers.

    Raises:
        InputError: the first thing that is wrong.
    """
    import torch

    from fanet_lightning.data.datamodule import check_cache
    from fanet_lightning.data.sources import build_source
    from fanet_lightning.detect.multiscale import build_protocol, protocol_names, protocol_settings
    from fanet_lightning.models.fanet import build_network
    from fanet_lightning.models.weights import load_trunk_weights
    from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss
    from fanet_lightning.train.callbacks import newest_whole_checkpoint
    from fanet_lightning.train.loggers import check_loggers
    from fanet_lightning.train.module import frozen_layers

    check_values(options)
    check_cache(*(options[key] for key in ("cache", "cache_gib", "cache_dir", "cache_side", "input_size")))
    check_loggers(options["logger"] or {})
    if options["protocol"].get("kind") == "multiscale":
        raise InputError(
            f"protocol={options['protocol']['name']}: training validates at a single scale; choose another and "
            f"give also_protocols=[{options['protocol']['name']}] for a multi-scale score at the end"
        )
    for name in options["also_protocols"]:
        if name not in protocol_names():
            raise InputError(f"also_protocols: there is no protocol {name}; choose from {', '.join(protocol_names())}")
        build_protocol(protocol_settings(name))
    with torch.device("meta"):
        network = build_network(**options["model"])
    frozen_layers(network.trunk, options["freeze_until"])
    HierarchicalLoss(**options["loss"])
    weights, hierarchies = options["loss"].get("weights"), 1 + len(network.training_only())
    if weights is not None and len(weights) != hierarchies:
        raise InputError(f"loss.weights={weights}: {len(weights)} weights for {hierarchies} hierarchies with heads")
    _check_devices(options)
    out = Path(options["out"])
    check_writable(out)
    build_trainer(options, out)
    if is_first_process():
        _check_earlier_run(out, options)
    if options["resume"] not in (None, AUTO):
        _check_something_is_left(check_checkpoint(Path(options["resume"]), options), options)
    elif options["resume"] == AUTO and _has_checkpoints(out):
        newest, _ = newest_whole_checkpoint(out / "checkpoints") if read_record(out) is None else (None, [])
        if newest is not None:
            check_checkpoint(newest, options)
    else:  # a run that goes on has its weights in the checkpoint
        initial = initial_model(options)
        if initial is not None and initial.training_images is None and is_first_process():
            print(f"warning: init={options['init']} does not name its training images; the run's list will lack them")
        if options["weights"] not in (None, "none"):
            load_trunk_weights(network, options["weights"], say=str)
    source = build_source(**options["data"])
    build_datamodule(options, source)
    source.check()


def names_of_run() -> list[str]:
    """Names in ``out`` under which a run keeps what it makes, beside ``run.json``."""
    from fanet_lightning.detect.multiscale import protocol_names

    evaluations = [f"evaluation_{name}" for name in protocol_names()]
    return ["checkpoints", "csv", "tensorboard", "evaluation", *evaluations, LOG_FILE]


def _check_devices(options: dict[str, Any]) -> None:
    import torch

    devices, accelerator = options["trainer"]["devices"], options["trainer"]["accelerator"]
    available = torch.cuda.device_count()
    wants_gpu = accelerator in ("gpu", "cuda")
    if (wants_gpu or (accelerator == "auto" and available)) and isinstance(devices, int) and devices > available:
        raise InputError(
            f"trainer.devices={devices} trainer.accelerator={accelerator}: this machine has {available} CUDA devices"
        )
    total = devices * int(options["trainer"]["num_nodes"]) if isinstance(devices, int) else 1
    if total > 1 and options["batch_size"] % total:
        raise InputError(
            f"batch_size={options['batch_size']} is the total over devices and must be divisible by "
            f"trainer.devices={devices}" + (f" × trainer.num_nodes={total // devices}" if total != devices else "")
        )
    ranks = int(os.environ.get("WORLD_SIZE", total)) if "TORCHELASTIC_RUN_ID" in os.environ else total
    if ranks != total:
        raise InputError(
            f"torchrun has started {ranks} processes, the configuration has {total} devices; give trainer=ddp "
            "trainer.devices=<processes per node> trainer.num_nodes=<nodes>"
        )


def _check_earlier_run(out: Path, options: dict[str, Any]) -> None:
    resume = options["resume"]
    if options["overwrite"] and resume is not None:
        raise InputError(
            f"overwrite=true replaces the run in {out}, resume={resume} goes on with a run; give one of them"
        )
    record = read_record(out)
    if record is None and resume is None:
        # Not a run that goes on: that one may have nothing but its checkpoints.
        check_names_free(out, names_of_run(), "a run")
    if record is None or options["overwrite"]:
        return
    if never_trained(out, record) and state_now(out, record) != "running":
        return
    if resume is None or (resume != AUTO and not Path(resume).resolve().is_relative_to(out.resolve())):
        raise InputError(
            f"out={out} holds a run already ({record.name}, {state_now(out, record)}); resume=auto goes on with it, "
            "overwrite=true replaces it, or give another out"
        )
    refuse_other_settings(f"out={out} holds a run", record.settings, options, "another out")


def refuse_other_settings(what: str, stored: dict[str, Any], options: dict[str, Any], remedy: str) -> None:
    """
    Args:
        what: ``out=DIR holds a run``, for the message.
        stored: the settings that it was trained with.
        options: those of the run that would go on with it.
        remedy: what to give where they differ, beside the same configuration.

    Raises:
        InputError: a setting differs that changes what is trained.
    """
    different = differing_settings(stored, options)
    if different:
        key, old, new = different[0]
        raise InputError(
            f"{what} with {key}={_as_given(old)}, this one has {key}={_as_given(new)}; give the same configuration, or "
            f"{remedy}"
        )


def check_checkpoint(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint of ``resume=path``, if it is one of a run with the settings of ``options``.

    Raises:
        InputError: no checkpoint, one of other settings, or one that holds weights alone.
    """
    from fanet_lightning.models.pretrained import read_checkpoint

    if not path.is_file():
        raise InputError(f"resume={path}: no such file; give a checkpoint, e.g. …/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(path)
    if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
        raise InputError(f"resume={path}: it holds weights alone; init={path} starts a new run from them")
    remedy = f"start a new run from its weights with init={path}"
    record = read_record(path.resolve().parent.parent) if path.parent.name == "checkpoints" else None
    settings = checkpoint.get("settings") or (record and record.settings)
    if settings:
        refuse_other_settings(f"resume={path} is of a run", settings, options, remedy)
    else:  # of an earlier version: what it was built with, but for the normaliser, which follows the weights
        stored = checkpoint["hyper_parameters"]
        stored = {key: stored[key] for key in ("loss", "optim", "batch_size")} | {"model": {**stored["network"]}}
        stored["model"]["normaliser"] = options["model"].get("normaliser")
        refuse_other_settings(f"resume={path} is of a run", stored, {key: options[key] for key in stored}, remedy)
    return checkpoint


def _check_something_is_left(checkpoint: dict[str, Any], options: dict[str, Any]) -> None:
    loop = checkpoint["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]["processed"]
    if epochs == checkpoint["epoch"] and loop["epoch_loop.batch_progress"]["is_last_batch"]:
        epochs += 1  # written by its validation, behind the last batch and before the epoch's end
    for key, limit, done in (
        ("epochs", options["epochs"], epochs),
        ("stop_after", options["stop_after"], epochs),
        ("trainer.max_steps", options["trainer"]["max_steps"], checkpoint["global_step"]),
    ):
        if limit is not None and 0 < limit <= done:
            raise InputError(
                f"resume={options['resume']} has {key}={limit} behind it, so nothing is left to train; evaluate "
                "scores it, init=… starts a new run from its weights"
            )


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
        config: ``conf/train.yaml`` composed.

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
    from fanet_lightning.cli.provenance import made_by

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
    from fanet_lightning.train.loggers import build_loggers

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
    from fanet_lightning.train.callbacks import newest_whole_checkpoint

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

    from fanet_lightning.cli.device import free_cores

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

    from fanet_lightning.cli.device import device_name
    from fanet_lightning.models.fanet import flops, inference_parameters

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
    from fanet_lightning.detect.multiscale import protocol_settings
    from fanet_lightning.evaluate.runner import evaluate

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
    from fanet_lightning.cli.device import resolve_precision

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


# The process id of a sweep, for the workers that it starts.
SWEEP_PROCESS = "FANET_SWEEP_PID"
# Keys that a cell's folder name tells already, unless name= is given.
TOLD_BY_NAME = {"level", "context", "hl", "model", "cell"}
# Sweepers that optimize minimize unless they are told otherwise: Optuna's key for it, Nevergrad's and Ax's.
MAXIMIZE = {"direction": "maximize", "optim.maximize": "true", "ax_config.experiment.minimize": "false"}
# What Hydra itself answers, once the words are checked.
HYDRA_FLAGS = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
# numpy's generators take no others.
SEEDS = range(2**32)


def _task(config: DictConfig) -> float:
    hydra_config = HydraConfig.get()
    # Hydra's folder, which a sweep and the children of a distributed run have been told; `${now:}` would differ there.
    config.out = hydra_config.runtime.output_dir
    if hydra_config.mode == RunMode.MULTIRUN:
        _end_with_sweep(hydra_config)
        canonical(config)
        config.name = Path(config.out).name.removesuffix(f"_seed{config.seed}") if config.out else config.name
        return sweep.run_cell(
            job=hydra_config.job.num,
            overrides=hydra_config.overrides.task,
            settings=plain(config),
            folder=Path(config.out),
            sweep=Path(hydra_config.sweep.dir).absolute(),
            parallel_jobs=_parallel_jobs(hydra_config),
        ).value
    try:
        return _last(train(config).ap)
    except Exception as error:
        # Here, because Hydra would print a traceback, and the other ranks must not wait for this one.
        sys.exit(cli.report_error(error))


def _end_with_sweep(hydra_config: Any) -> None:
    """joblib's workers outlive a sweep that is killed outright, and would begin its next cells."""
    main_process = os.environ.get(SWEEP_PROCESS)
    if "joblib" not in str(hydra_config.launcher.get("_target_")) or main_process in (None, str(os.getpid())):
        return
    if os.name == "posix":
        sweep.die_with_parent()
        if str(os.getppid()) != main_process:  # it was gone before the kernel was told
            sys.exit(1)


def _last(ap: dict[str, float]) -> float:
    return list(ap.values())[-1] if ap else math.nan


def _parallel_jobs(hydra_config: Any) -> int:
    """How many cells Hydra's launcher runs side by side on this machine."""
    jobs = int(hydra_config.launcher.get("n_jobs") or 1)
    return jobs if jobs > 0 else usable_cores() + 1 + jobs


def start(argv: list[str]) -> int:
    """Check the configuration in full where it is one run, and what the cells share where it is a sweep; then Hydra."""
    words = [word for word in argv if word not in ("-m", "--multirun")]
    if HYDRA_FLAGS & {*words}:
        checked = [word for word in words if "=" in word and not word.startswith("-")]
        line = read_words("train", checked, multirun=len(words) < len(argv), with_hydra=True)
        _run_hydra([*(word for word in argv if word not in checked), *line.for_hydra])
        return 0
    if words and words[-1] == "hydra.output_subdir=null":
        # Lightning has started this rank, and added the folder in quotes that do not hold every path; out= has it.
        words = [word for word in words if not word.startswith('hydra.run.dir="')]
    line = read_words("train", words, multirun=bool({"-m", "--multirun"} & {*argv}), with_hydra=True)
    if line.is_sweep:
        return _sweep(line)
    with TerminalLog():
        return _single(line)


def _single(line: CommandLine) -> int:
    config, given = without_hydra(line.config()), {word.key for word in line.words}
    if "TORCHELASTIC_RUN_ID" in os.environ and not given & {"out", "hydra.run.dir"}:
        raise InputError("under torchrun give out=DIR, or every rank would make a folder of its own")
    if config.resume == AUTO and not given & {"out", "hydra.run.dir"}:
        raise InputError("resume=auto goes on in the folder of the run: give out=DIR as well")
    canonical(config)
    _check(plain(config))
    # The other ranks are started with these words, and `${now:}` would differ there.
    _run_hydra([*(word.for_hydra for word in line.words if word.key != "out"), f"out={hydra_text(config.out)}"])
    return 0


def _check(options: dict[str, Any]) -> None:
    if options["seed"] not in SEEDS:
        raise InputError(f"seed={options['seed']} must be from {SEEDS[0]} to {SEEDS[-1]}")
    check(options)


def _run_hydra(words: list[str]) -> None:
    sys.argv = [sys.argv[0], *words]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")(_task)()


def _sweep(line: CommandLine) -> int:
    config = line.config()
    folder, optimizes = Path(config.hydra.sweep.dir), "Basic" not in str(config.hydra.sweeper._target_)
    options = plain(without_hydra(config))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("a sweep starts the ranks of its cells itself: leave torchrun out")
    if options["resume"] not in (None, AUTO):
        raise InputError(f"resume={options['resume']}: a sweep's cells go on by themselves; leave resume out")
    if options["overwrite"]:
        raise InputError(
            f"overwrite=true: a sweep goes on with what is in {folder}; give another sweep=DIR to begin anew"
        )
    if int(options["trainer"]["num_nodes"]) > 1:
        raise InputError(f"trainer.num_nodes={options['trainer']['num_nodes']}: a sweep's cell runs on one machine")
    if optimizes and not options["evaluate_at_end"]:
        raise InputError("evaluate_at_end=false leaves an optimizing sweeper nothing to go by; leave it out")
    given = {word.key for word in line.words}
    if "out" in given:
        out = next(word for word in line.words if word.key == "out")
        raise InputError(f"{out.for_hydra}: names the folder of one run; a sweep takes sweep=DIR")
    _check_cells(line, folder)
    # What is swept beside the switches (optim.lr=1e-3,2e-3) becomes part of the cells' names; what is fixed does not.
    words = [
        f"hydra.sweeper.{key}={value}" for key, value in MAXIMIZE.items()
        if f"hydra.sweeper.{key}" not in given and OmegaConf.select(config.hydra.sweeper, key) is not None
    ]  # fmt: skip
    told = {"seed"} | (given - {word.key for word in line.swept}) | (set() if "name" in given else TOLD_BY_NAME)
    os.environ[SWEEP_PROCESS] = str(os.getpid())
    with locked(folder, "sweep"):
        sweep.clear_jobs(folder)
        print(f"sweep {folder}", flush=True)
        code: Any = 0
        signal.signal(signal.SIGTERM, _terminate)
        try:
            exclude = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(told))}]"
            _run_hydra(["--multirun", *line.for_hydra, *words, exclude])
        except (KeyboardInterrupt, sweep.Terminated):
            cells = sweep.read_jobs(folder)
            print(sweep.summary(cells, folder, sweep.never_began(sys.argv[2:], config.hydra, cells)), flush=True)
            raise
        except SystemExit as error:  # a launcher that gave up; what the cells reported is still true
            code = error.code
        cells = sweep.read_jobs(folder)
        print(sweep.summary(cells, folder), flush=True)
    return 1 if code or any(cell.state == "failed" for cell in cells) else 0


def _check_cells(line: CommandLine, folder: Path) -> None:
    """What the cells share: a sweep in which one cell may be trained is begun, and the others say why they fail.

    Raises:
        InputError: what the first of them says, where none may.
    """
    refused: InputError | None = None
    for cell in range(max((len(word.values) for word in line.swept), default=1)):
        options = plain(without_hydra(line.config(cell)))
        try:
            return _check({**options, "out": str(folder), "resume": AUTO})
        except InputError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _terminate(*_: object) -> NoReturn:
    raise sweep.Terminated
