"""The LightningModule, data module and trainer of a composed configuration."""

import json
import logging
import sys
import warnings
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.run_record import RunRecord, is_first_process

# Options of a network that its weights bring along, or that only say how fresh weights are drawn.
NOT_THE_NETWORK = {"normaliser", "face_prior"}
# The options that have to be the same for init_part=trunk.
TRUNK_OPTIONS = {"backbone", "width", "batch_norm", "fc6"}

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from pytorch_lightning.profilers import Profiler

    from fanet_lightning.data.datamodule import FaceDataModule
    from fanet_lightning.loggers import Loggers
    from fanet_lightning.module import FaceDetectionModule
    from fanet_lightning.pretrained import Model


def build_module(
    options: dict[str, Any], *, with_weights: bool = True, initial: "Model | None" = None
) -> "FaceDetectionModule":
    """The LightningModule of a composed configuration, with the weights of ``initial`` or the trunk of ``weights``."""
    from fanet_lightning.module import FaceDetectionModule
    from fanet_lightning.net.weights import load_trunk_weights

    module = FaceDetectionModule(
        network=dict(options["model"]),
        loss=options["loss"],
        optim=options["optim"],
        batch_size=options["batch_size"],
        channels_last=options["channels_last"],
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
    from fanet_lightning.detector import load_model

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

    from fanet_lightning.config import config_dir

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
    from fanet_lightning.net.build import build_network

    return {name: parameter.default for name, parameter in signature(build_network).parameters.items()}


def build_datamodule(options: dict[str, Any], source: Any) -> "FaceDataModule":
    """The LightningDataModule of a composed configuration."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from fanet_lightning.data.datamodule import FaceDataModule
    from fanet_lightning.data.resize import TestScale

    try:
        augment = instantiate(options["augment"], _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise InputError(str(cause) if isinstance(cause, InputError) else f"augment: {first_line(cause)}") from error
    protocol = {key: value for key, value in options["protocol"].items() if key != "name"}
    return FaceDataModule(
        source,
        augment=augment,
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
        loggers: what :func:`fanet_lightning.loggers.build_loggers` made.
        record: kept up to date after every epoch; None on all ranks but the first.
        initial: what the run starts from; its training images become part of the run's list.

    Raises:
        InputError: devices, strategy or precision that Lightning refuses.
    """
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import LearningRateMonitor, RichProgressBar

    from fanet_lightning.callbacks import EpochReport, RecordProgress, ema_callback
    from fanet_lightning.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
    from fanet_lightning.precision import resolve_precision

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
        from fanet_lightning.dashboard import WandbValidation

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
            profiler=_profiler(out) if options["profile"] else None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=-1 if from_trained and initial is not None else 0,
            use_distributed_sampler=False,
            default_root_dir=out,
        )
    except Exception as error:
        # Lightning's own refusals (a device that is not there, an unknown strategy) come in several classes.
        raise InputError(f"trainer: {first_line(error)}") from error


def _profiler(out: Path) -> "Profiler":
    from fanet_lightning.profiling import build_profiler

    return build_profiler(out)
