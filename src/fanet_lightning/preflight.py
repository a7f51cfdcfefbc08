"""What ``train`` refuses before anything is made: whatever would fail later, hours into a run."""

import os
from pathlib import Path
from typing import Any

from fanet_lightning.errors import InputError
from fanet_lightning.files import check_names_free, check_writable
from fanet_lightning.run_record import differing_settings, is_first_process, read_record, state_now

AUTO = "auto"


def check(options: dict[str, Any]) -> None:
    """Check network options, data folders, output folder, checkpoint, devices.

    Args:
        options: ``conf/config.yaml`` composed, as plain containers.

    Raises:
        InputError: the first thing that is wrong.
    """
    import torch

    from fanet_lightning.assembly import initial_model
    from fanet_lightning.data.image_cache import check_cache
    from fanet_lightning.data.sources import build_source
    from fanet_lightning.loggers import check_loggers
    from fanet_lightning.loss import HierarchicalLoss
    from fanet_lightning.multiscale import build_protocol
    from fanet_lightning.net.build import build_network
    from fanet_lightning.schedule import lr_factor

    for key in ("batch_size", "input_size", "epochs", "validate_every", "seeds"):
        if options[key] < 1:
            raise InputError(f"{key}={options[key]} must be at least 1")
    if options["workers"] < 0:
        raise InputError(f"workers={options['workers']} must not be negative; 0 loads samples in the main process")
    if options["threads"] is not None and options["threads"] < 1:
        raise InputError(f"threads={options['threads']} must be at least 1; null chooses by the cores that are free")
    if options["ema"] is not None and not 0 < options["ema"] < 1:
        raise InputError(f"ema={options['ema']} must lie between 0 and 1; null switches it off")
    if options["checkpoint_every"] is not None and options["checkpoint_every"] < 1:
        raise InputError(f"checkpoint_every={options['checkpoint_every']} must be at least 1 step; null: epochs alone")
    check_cache(*(options[key] for key in ("cache", "cache_gib", "cache_dir", "cache_side", "input_size")))
    check_loggers(options["logger"] or {})
    lr_factor(0, 1, kind=options["optim"].get("schedule", "step"))
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
    if is_first_process():
        _check_earlier_run(out, options)
    initial = initial_model(options)
    if initial is not None and initial.training_images is None and is_first_process():
        print(f"warning: init={options['init']} does not name its training images; the run's list will lack them")
    if options["resume"] not in (None, AUTO):
        check_checkpoint(Path(options["resume"]), options["model"], "resume")
    build_source(**options["data"]).check()


def folders_of_run() -> list[str]:
    """Names in ``out`` under which a run keeps what it makes, beside ``run.json``."""
    from fanet_lightning.config import config_dir

    protocols = sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))
    return ["checkpoints", "csv", "tensorboard", "evaluation", *(f"evaluation_{name}" for name in protocols)]


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
    record = read_record(out)
    if record is None and options["resume"] is None:
        # Not a run that goes on: that one may have nothing but its checkpoints.
        check_names_free(out, folders_of_run(), "a run")
    if record is None or options["overwrite"]:
        return
    if options["resume"] is None:
        raise InputError(
            f"out={out} holds a run already ({record.name}, {state_now(out, record)}); resume=auto goes on with it, "
            "overwrite=true replaces it, or give another out"
        )
    different = differing_settings(record.settings, options)
    if options["resume"] == AUTO and different:
        key, old, new = different[0]
        raise InputError(
            f"out={out} holds a run with {key}={old}, this one has {key}={new}; give the same configuration, or "
            "another out"
        )


def check_checkpoint(path: Path, network: dict[str, Any], key: str) -> dict[str, Any]:
    """The checkpoint, if it is one of ``network``.

    Raises:
        InputError: no checkpoint, or one of another network.
    """
    from fanet_lightning.detector import read_checkpoint

    if not path.is_file():
        raise InputError(f"{key}={path}: no such file; give a checkpoint, e.g. …/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(path)
    stored = checkpoint["hyper_parameters"]["network"]
    for name in sorted({*stored, *network}):
        if stored.get(name) != network.get(name):
            raise InputError(
                f"{key}={path}: the checkpoint was trained with {name}={stored.get(name)}, this run has "
                f"{name}={network.get(name)}; give the same configuration, or leave {key} out"
            )
    return checkpoint
