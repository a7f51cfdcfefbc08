"""Where the configuration lies, its typed top level, and how one verb's configuration is composed.

Values live in YAML under ``conf/``; types live in the constructors that receive them. Only the top level of
``train`` has a schema of its own, because ``hl=no`` would otherwise arrive as a truthy string.
"""

import difflib
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fanet_lightning.errors import InputError


@dataclass
class TrainSchema:
    """The scalars of ``train``: the paper's three switches and what a run needs beside the groups."""

    level: int = 3
    context: bool = True
    hl: bool = True
    seed: int = 0
    name: str = MISSING
    out: str = MISSING
    resume: str | None = None
    overwrite: bool = False
    sweep: str = MISSING
    group: str | None = None
    seeds: int = 1
    batch_size: int = 12
    input_size: int = 640
    epochs: int = 120
    validate_every: int = 1
    checkpoint_every: int | None = None
    stop_after: int | None = None
    workers: int = 2
    cache: str | None = None
    cache_gib: float | None = None
    cache_dir: str = "data/image_cache"
    cache_side: int | None = None
    ema: float | None = None
    gradient_clip: float | None = None
    compile: bool = False
    channels_last: bool = True
    init: str | None = None
    init_part: str = "all"
    weights: str | None = None
    evaluate_at_end: bool = True
    also_protocols: list[str] = field(default_factory=list)
    final_protocols: list[str] = field(default_factory=list)
    profile: bool = False
    model: Any = MISSING
    loss: Any = MISSING
    data: Any = MISSING
    augment: Any = MISSING
    optim: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    protocol: Any = MISSING


def config_dir() -> Path:
    """The folder ``conf``: the copy inside the installed package, else the one of the checkout.

    Raises:
        InputError: neither is there, so the installation is broken.
    """
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parents[1] / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise InputError(f"no configuration folder at {package / 'conf'}; install the package again")


def run_name(model: str, level: int, context: bool, hl: bool, backbone: str = "vgg") -> str:
    """Name of a cell: ``level3_context_hl``. What reads no switch has none in its name: ``level1``, ``s3fd_fpn``.

    A trunk that is not the paper's stands in front: ``light_level3_context_hl`` is no row of the paper's table.
    There is no ``=`` in it, because Hydra could not parse a path with one back.
    """
    if model != "fanet":
        return model
    trunk = "" if backbone == "vgg" else re.sub(r"[^A-Za-z0-9.-]+", "_", backbone) + "_"
    if level == 1:
        return f"{trunk}level1"  # S3FD: no A-block that could have a context module, and one hierarchy
    return f"{trunk}level{level}" + ("_context" if context else "") + ("_hl" if hl else "")


def register() -> None:
    """Make the schema and the resolver known to Hydra. Idempotent."""
    # conf/hydra/launcher/submitit_slurm.yaml is meant to have the plug-in's schema; hydra 1.3 warns about it.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/submitit_slurm' is validated against")
    ConfigStore.instance().store(name="train_schema", node=TrainSchema)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    # `_<what is swept>` or nothing, for the folder of a cell.
    OmegaConf.register_new_resolver("and_also", lambda text: f"_{text}" if text else "", replace=True)


def compose_config(config_name: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose ``conf/<config_name>.yaml`` with command-line overrides ``key=value``; ``with_hydra``: Hydra's node too.

    Raises:
        InputError: an unknown key, group or option, or a value of the wrong type; one line, with the nearest known key.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(config_name, list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, config_name, overrides)) from error


def canonical(config: DictConfig) -> None:
    """Set the switches that a model does not read to false, in place, so that equal models have equal settings."""
    if config.level == 1 or config.model.name != "fanet":
        config.context = config.hl = False


def swept_keys(words: Sequence[str]) -> list[str]:
    """Keys of the overrides that stand for several values: ``level=1,2``, ``seed=range(3)``.

    Raises:
        InputError: a word that Hydra cannot parse.
    """
    return [override.get_key_element() for override in _parsed(words) if override.is_sweep_override()]


def _parsed(words: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except HydraException as error:
        raise InputError(_one_line(error, "config")) from error


def compose_train(words: Sequence[str], multirun: bool) -> tuple[DictConfig, str | None]:
    """``conf/config.yaml`` with those overrides that stand for one value, and the sweep's folder.

    Args:
        words: ``key=value``.
        multirun: whether ``-m`` was given; a configuration may also ask for a sweep itself (``hydra.mode``).

    Returns:
        The configuration, and the folder of the sweep, None for a single run.

    Raises:
        InputError: as :func:`compose_config`; or a word with several values outside a sweep.
    """
    fixed = [str(override.input_line) for override in _parsed(words) if not override.is_sweep_override()]
    config = compose_config("config", fixed, with_hydra=True)
    is_sweep = multirun or str(OmegaConf.select(config, "hydra.mode")) in ("RunMode.MULTIRUN", "MULTIRUN")
    if not is_sweep:
        swept = swept_keys(words)
        if swept:
            raise InputError(f"{swept[0]} has several values: add -m to train a grid, or give one value")
    folder = str(config.hydra.sweep.dir) if is_sweep else None
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    return config, folder


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with everything resolved: what constructors and checkpoints are given."""
    options: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return options


def _one_line(error: Exception, config_name: str, words: Sequence[str] = ()) -> str:
    # "Error merging override hl=maybe" says nothing of why; its cause does.
    merging = str(error).startswith("Error merging override") and error.__cause__ is not None
    text = str(error.__cause__ if merging else error)
    full_key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"(?:Could not override|Key) '([^']+)'", text)
    if unknown and ("not in struct" in text or "Could not override" in text) and "could not be converted" not in text:
        key = full_key.group(1) if full_key else unknown.group(1)
        return f"unknown key '{key}': {_hint(key, config_name, words)}"
    absent = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if absent:
        group, option = absent.groups()
        options = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        return f"{group}={option}: there is no such option; choose one of {', '.join(options) or 'none'}"
    noise = ("full_key", "object_type", "reference_type")
    body = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(noise)]
    message = re.sub(r"\s+", " ", "; ".join(body))
    if full_key and ("could not be converted" in text or "is not a valid" in text):
        return f"{full_key.group(1)}: {message}"
    return message


def _hint(key: str, config_name: str, words: Sequence[str]) -> str:
    """What to do about an unknown key: the option of its group that has it, the nearest known key, or ``--help``."""
    chosen = [word for word in words if (config_dir() / word.partition("=")[0]).is_dir()]
    group = key.partition(".")[0]
    options = sorted(path.stem for path in (config_dir() / group).glob("*.yaml")) if "." in key else []
    having = [f"{group}={name}" for name in options if key in _known_keys(config_name, [f"{group}={name}"])]
    if having:
        return f"{having[0]} has it; add that word" if len(having) == 1 else f"give one of {', '.join(having)} with it"
    near = difflib.get_close_matches(key, _known_keys(config_name, chosen), n=1)
    return f"did you mean '{near[0]}'?" if near else "--help lists the keys"


def _known_keys(config_name: str, chosen: Sequence[str]) -> list[str]:
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(config_name, list(chosen))
    except (HydraException, OmegaConfBaseException):
        return []
    return _dotted(OmegaConf.to_container(config, resolve=False))


def _dotted(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys = []
    for key, value in node.items():
        keys += [f"{prefix}{key}", *_dotted(value, f"{prefix}{key}.")]
    return keys
