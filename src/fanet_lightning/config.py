"""Where the configuration lies, its typed top level, and how one verb's configuration is composed.

Values live in YAML under ``conf/``; types live in the constructors that receive them. Only the top level of
``train`` has a schema of its own, because ``hl=no`` would otherwise arrive as a truthy string.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
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
    batch_size: int = 12
    input_size: int = 640
    epochs: int = 120
    validate_every: int = 1
    stop_after: int | None = None
    workers: int = 2
    ema: float | None = None
    gradient_clip: float | None = None
    compile: bool = False
    channels_last: bool = True
    weights: str | None = None
    evaluate_at_end: bool = True
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


def run_name(model: str, level: int, context: bool, hl: bool) -> str:
    """Name of a cell of the grid: ``level3_context_hl``. ``s3fd_fpn`` reads no switch, so its name has none.

    There is no ``=`` in it, because Hydra could not parse a path with one back.
    """
    if model != "fanet":
        return model
    return f"level{level}" + ("_context" if context else "") + ("_hl" if hl else "")


def register() -> None:
    """Make the schema and the resolver known to Hydra. Idempotent."""
    ConfigStore.instance().store(name="train_schema", node=TrainSchema)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def compose_config(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose ``conf/<config_name>.yaml`` with command-line overrides ``key=value``.

    Raises:
        InputError: an unknown key, group or option, or a value of the wrong type; one line, with the nearest known key.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(config_name, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, config_name)) from error


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with everything resolved: what constructors and checkpoints are given."""
    options: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return options


def _one_line(error: Exception, config_name: str) -> str:
    # "Error merging override hl=maybe" says nothing of why; its cause does.
    merging = str(error).startswith("Error merging override") and error.__cause__ is not None
    text = str(error.__cause__ if merging else error)
    full_key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"(?:Could not override|Key) '([^']+)'", text)
    if unknown and ("not in struct" in text or "Could not override" in text) and "could not be converted" not in text:
        key = full_key.group(1) if full_key else unknown.group(1)
        near = difflib.get_close_matches(key, _known_keys(config_name), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "--help lists the keys"
        return f"unknown key '{key}': {hint}"
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


def _known_keys(config_name: str) -> list[str]:
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config = compose(config_name)
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
