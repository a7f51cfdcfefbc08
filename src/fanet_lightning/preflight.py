"""What ``train`` refuses before anything is made: whatever would fail later, hours into a run."""

import os
import re
from pathlib import Path
from typing import Any

from fanet_lightning.errors import InputError
from fanet_lightning.files import check_names_free, check_writable
from fanet_lightning.run_record import (
    LOG_FILE,
    RunRecord,
    differing_settings,
    flat,
    is_first_process,
    read_record,
    state_now,
)

AUTO = "auto"
PRECISIONS = ("auto", "32-true", "32", "bf16-mixed", "16-mixed")

# What settings may be: numbers within limits, words or null. What is not here is checked by whoever is given it.
VALUES = {
    "whole [1, inf)": "batch_size input_size epochs validate_every seeds data.train_images data.val_images "
    "augment.attempts trainer.accumulate_grad_batches trainer.check_val_every_n_epoch trainer.num_nodes",
    "whole [1, inf) or null": "checkpoint_every stop_after threads",
    "whole [1, inf) or -1": "trainer.max_steps",
    "whole [1, inf) or (0, 1] or null": "trainer.limit_train_batches",
    "whole [0, inf)": "workers data.seed optim.warmup_steps trainer.log_every_n_steps",
    "(0, inf)": "optim.lr loss.lambda_cls loss.box_weight loss.negatives_per_positive",
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
        options: ``conf/config.yaml`` composed, as plain containers.

    Raises:
        InputError: the first thing that is wrong.
    """
    import torch

    from fanet_lightning.assembly import build_datamodule, build_trainer, initial_model
    from fanet_lightning.checkpoints import newest_whole_checkpoint
    from fanet_lightning.data.image_cache import check_cache
    from fanet_lightning.data.sources import build_source
    from fanet_lightning.loggers import check_loggers
    from fanet_lightning.loss import HierarchicalLoss
    from fanet_lightning.multiscale import build_protocol
    from fanet_lightning.net.build import build_network
    from fanet_lightning.net.weights import load_trunk_weights

    check_values(options)
    check_cache(*(options[key] for key in ("cache", "cache_gib", "cache_dir", "cache_side", "input_size")))
    check_loggers(options["logger"] or {})
    if options["protocol"].get("kind") == "multiscale":
        raise InputError(
            f"protocol={options['protocol']['name']}: training validates at a single scale; choose another and "
            f"give also_protocols=[{options['protocol']['name']}] for a multi-scale score at the end"
        )
    for name in options["also_protocols"]:
        build_protocol(protocol_settings(name))
    with torch.device("meta"):
        network = build_network(**options["model"])
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


def _has_checkpoints(out: Path) -> bool:
    """Whether a run in ``out`` has been trained: any checkpoint but the model that it started from."""
    from fanet_lightning.model_loading import read_checkpoint

    found = list((out / "checkpoints").glob("*"))
    return bool(found) and not (
        [path.name for path in found] == ["best.ckpt"] and read_checkpoint(found[0]).get("global_step") == 0
    )


def never_trained(out: Path, record: RunRecord) -> bool:
    """Whether the run of ``record`` in ``out``, which no process holds, ended before its first checkpoint.

    Nothing is lost where another takes its place.
    """
    return record.state in ("failed", "running") and not record.scores and not _has_checkpoints(out)


def names_of_run() -> list[str]:
    """Names in ``out`` under which a run keeps what it makes, beside ``run.json``."""
    from fanet_lightning.config import config_dir

    protocols = sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))
    return ["checkpoints", "csv", "tensorboard", "evaluation", *(f"evaluation_{name}" for name in protocols), LOG_FILE]


def protocol_settings(name: str) -> dict[str, Any]:
    """The settings of ``conf/protocol/<name>.yaml``.

    Raises:
        InputError: there is none.
    """
    from omegaconf import OmegaConf

    from fanet_lightning.config import config_dir

    path = config_dir() / "protocol" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise InputError(f"also_protocols: there is no protocol {name}; choose from {known}")
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    return settings


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
    from fanet_lightning.model_loading import read_checkpoint

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
