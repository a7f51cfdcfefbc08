"""Configuration: where conf/ is, how words of a command line become one, the text of --help.

Every verb checks its words here first (:func:`read_words`): keys, options, types, and text, which is taken as typed.
Hydra composes the groups, and gets the words with everything quoted that its grammar would read otherwise.
Values are in YAML under ``conf/``; a key's type is that of its default there.
"""

import difflib
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fanet_lightning.cli.errors import InputError, first_line, is_number

# Keys that are null (or ???) at first and hold numbers or lists; every other key that is null holds text.
NOT_TEXT = (
    "checkpoint_every", "stop_after", "threads", "freeze_epochs", "cache_gib", "ema", "gradient_clip",
    "loss.weights", "max_frames", "model.face_prior", "data.val.share", "protocol.size", "protocol.max_long",
    "detection.score_floor", "detection.top_k", "detection.nms_iou", "detection.keep", "redact_regions", "redact_from",
    "redact_to", "max_faces",
)  # fmt: skip
# Numbers that may be null as well, and text that may not.
NULL_TOO = ("ema", "gradient_clip", "port", "max_false_positives")
NEVER_NULL = (
    "name", "out", "sweep", "init_part", "checkpoint", "host", "layout", "precision", "resume", "scale", "optim.name",
)  # fmt: skip
TEXT_LISTS = ("scores", "names", "published", "data.classes")
# As OmegaConf has them, but for numbers besides 0 and 1.
BOOLEANS = dict.fromkeys(("true", "yes", "on", "y", "1"), True) | dict.fromkeys(("false", "no", "off", "n", "0"), False)
# Keys that are null until ``_target_`` names a class; all at which it names one in place of the package's; and
# groups whose every entry is such a node.
NODES, COLLECTIONS = ("optim.optimizer", "optim.scheduler"), ("callbacks", "logger")
SWAPPED = (*NODES, "loss", "loss.assignment", "model", "data", "protocol")
# Groups whose name labels results: a class of one's own is not what the name says.
LABELS = ("data", "protocol")
# Nodes whose values are what Hydra's grammar makes of them.
NOT_OURS = ("trainer.", "hydra.", "augment.", "callbacks.", "optim.optimizer.", "optim.scheduler.")
# Bytes of a folder's name that a sweep makes of its values; file systems take 255, and some is added to it.
LONGEST_NAME = 150


def config_dir() -> Path:
    """The folder ``conf``: the copy inside the installed package, else the one of the checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf/train.yaml").is_file() else package.parents[1] / "conf"


def run_name(model: str, level: int, context: bool, hl: bool, backbone: str = "vgg") -> str:
    """Name of a variant: ``level3_context_hl``. What reads no switch has none in its name: ``level1``, ``s3fd_fpn``.

    A backbone that is not the paper's is in front: ``light_level3_context_hl`` is no row of the paper's table.
    """
    if model != "fanet":
        return model
    prefix = "" if backbone == "vgg" else re.sub(r"[^A-Za-z0-9.-]+", "_", backbone) + "_"
    if level == 1:
        return f"{prefix}level1"  # S3FD: no A-block that could have a context module, and one hierarchy
    return f"{prefix}level{level}" + ("_context" if context else "") + ("_hl" if hl else "")


def register() -> None:
    """Make the resolvers known to Hydra. Idempotent."""
    # conf/hydra/launcher/submitit_slurm.yaml is meant to have the plug-in's schema; hydra 1.3 warns about it.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/submitit_slurm' is validated against")
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it logs, it raises as well
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    # `_<what is swept>` or nothing, and all of it as one name, for the folder of a variant.
    OmegaConf.register_new_resolver("and_also", lambda text: f"_{text}" if text else "", replace=True)
    OmegaConf.register_new_resolver("file_name", file_name, replace=True)


def file_name(text: str) -> str:
    """``text`` as the name of one folder, by a hash unique: what no file system takes becomes ``-``, its end is cut."""
    bare = re.sub(r"""["']""", "", text)
    name = re.sub(r"[/\\:*?<>|$\s\x00-\x1f-]+", "-", bare)
    if name == bare and len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    cut = os.fsencode(name)[: LONGEST_NAME - 10].decode(errors="ignore")
    return f"{cut}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:8]}"


@dataclass(frozen=True)
class Word:
    """One ``key=value``; ``values``: what it stands for, several in a sweep; ``for_hydra``: in Hydra's grammar."""

    key: str
    values: tuple[Any, ...]
    for_hydra: str
    is_swept: bool = False
    is_group: bool = False

    def at(self, variant: int) -> Any:
        return self.values[min(variant, len(self.values) - 1)]


@dataclass(frozen=True)
class CommandLine:
    """The checked words of a verb."""

    config_name: str
    words: tuple[Word, ...]
    is_sweep: bool
    with_hydra: bool

    @property
    def for_hydra(self) -> list[str]:
        return [word.for_hydra for word in self.words if not (word.is_group and word.values == ("null",))]

    @property
    def swept(self) -> list[Word]:
        """The words with several values: ``level=1,2``, ``seed=range(3)``."""
        return [word for word in self.words if word.is_swept]

    def config(self, variant: int = 0) -> DictConfig:
        """The configuration; of a sweep with the value ``variant`` of every swept key, or with the key's last."""
        config = _base(self.config_name, _options_at(self.words, variant), self.with_hydra).copy()
        for word in self.words:
            if not word.is_group:
                _set(config, word.key, word.at(variant))
        return config


def read_words(
    config_name: str, words: Sequence[str], *, multirun: bool = False, with_hydra: bool = False
) -> CommandLine:
    """Check ``key=value`` words before Hydra sees them; of a key that is given twice, the last word counts.

    Text stands for itself, whatever Hydra's grammar makes of its signs, with ``~`` for the home folder. ``null`` and
    ``${…}`` keep their meaning, quotes around all of it are taken off, and in a sweep commas separate values.

    InputError: what is not ``key=value``, an unknown key, group or option, a value of the wrong type, several values
    outside a sweep; one line, with the nearest known key.
    """
    typed: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        problem = None
        if key.startswith("~") and (equals or "/" not in word):
            problem = f"{word}: no key can be left out; give it another value instead"
        elif not equals or key.startswith("-"):
            problem = f"'{word}' is not key=value; --help lists the keys"
        elif value.strip() in ("", "''", '""'):
            problem = f"{word}: nothing stands behind the =; give a value, null for none"
        if problem:
            raise InputError(problem)
        typed.pop(key.lstrip("+"), None)
        typed[key.lstrip("+")] = value
    for group in LABELS:
        if f"{group}._target_" in typed:
            typed.setdefault(f"{group}.name", f"${{{group}._target_}}")
    groups = groups_of(config_name)
    chosen = [key for key in typed if key in groups or (with_hydra and key.startswith("hydra/"))]
    read = [_option(key, typed.pop(key), groups.get(key)) for key in chosen]
    config = _base(config_name, _options_at(read, 0), with_hydra).copy()
    mode = typed.get("hydra.mode") or getattr(OmegaConf.select(config, "hydra.mode"), "name", "")
    is_sweep = multirun or "MULTIRUN" in str(mode)
    known = _dotted(OmegaConf.to_container(config, resolve=False))
    # What takes a key is known once its class is.
    for key, value in sorted(typed.items(), key=lambda item: not item[0].endswith("._target_")):
        target, argument = _target_above(config, key)
        swapped = target and key.removesuffix(argument) + "_target_" in typed and argument != "name"
        if (key not in known or swapped) and not _is_free(config, key):
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "--help lists the keys"
            raise InputError(f"unknown key '{key}': {f'{target} takes no argument of that name' if target else hint}")
        default = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        one = _value(key, value, default if key in known else FREE, is_sweep)
        if not one.values:
            raise InputError(f"{key}={value} stands for no value at all")
        if key not in known:
            one = replace(one, for_hydra=f"++{one.for_hydra}")
        for each in reversed(one.values if is_sweep else one.values[:1]):  # the first of a sweep stays
            found = _set(config, key, each)
            by_size = (config_name, key) == ("detect", "threshold") and OmegaConf.is_dict(found)
            if key in known and not by_size:
                _check_kind(key, default, found)
        read.append(one)
    line = CommandLine(config_name, tuple(read), is_sweep, with_hydra)
    if line.swept and not is_sweep:  # only what Hydra itself runs can be one
        remedy = "add -m to train a grid, or give one" if with_hydra else "give one (numbers take no comma)"
        raise InputError(f"{line.swept[0].for_hydra} stands for several values; {remedy}")
    for variant in range(1, max((len(word.values) for word in line.swept if word.is_group), default=0)):
        line.config(variant)
    return line


def compose_config(config_name: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose ``conf/<config_name>.yaml`` with words (:func:`read_words`); ``with_hydra``: with Hydra's node."""
    return read_words(config_name, overrides, with_hydra=with_hydra).config()


def canonical(config: DictConfig) -> None:
    """Set the switches that a model does not read to false, in place, so that equal models have equal settings."""
    if config.level == 1 or (config.model.name != "fanet" and "_target_" not in config.model):
        config.context = config.hl = False


def without_hydra(config: DictConfig) -> DictConfig:
    """The configuration of the program alone."""
    own = config.copy()
    with open_dict(own):
        own.pop("hydra", None)
    return own


def hydra_text(value: str | bool | None) -> str:
    """A value in Hydra's grammar: quoted where commas, blanks and brackets would not mean themselves."""
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower()
    override = _parsed(value)
    as_it_is = override is not None and not override.is_sweep_override() and override.value() == value
    # In front of a comma or bracket, which may follow, a backslash would take its meaning from it.
    return value if as_it_is and "\\" not in value else str(QuotedString(value, Quote.single).with_quotes())


def groups_of(config_name: str) -> dict[str, str | None]:
    """The groups of ``conf/<config_name>.yaml`` and the option that each has by default."""
    content: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{config_name}.yaml"))
    entries = (entry for entry in content.get("defaults", []) if isinstance(entry, dict))
    return {key: value for entry in entries for key, value in entry.items()}


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers with everything resolved: what constructors and checkpoints are given."""
    try:
        options: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:  # a value that others are made of
        raise InputError(_one_line(error)) from error
    return options


def made(key: str, node: Any, *args: Any, **kwargs: Any) -> Any:
    """What a node with ``_target_`` makes; InputError with ``key``: no such class, or it refuses its arguments."""
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ImportError) and str(cause).startswith("Error loading"):  # Hydra's own
            raise _not_found(key, node["_target_"], cause) from error
        raise InputError(str(cause) if isinstance(cause, InputError) else f"{key}: {_one_line(cause)}") from error


def own(key: str, group: Mapping[str, Any], kind: type | tuple[type, ...]) -> Any:
    """What the class at ``_target_`` makes of those of a group's settings that it takes; ``name`` is a label alone.

    InputError with ``key``: it cannot be imported, is no ``kind`` (nothing else is called: checkpoints name classes),
    or refuses its arguments.
    """
    target = str(group["_target_"])
    try:
        found, taken = get_object(target), _accepted(target, {k: v for k, v in group.items() if k != "name"})
    except Exception as error:  # whatever importing somebody's module raises
        raise _not_found(key, target, error) from error
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise InputError(f"{key}._target_={target} is no {' or '.join(each.__name__ for each in kinds)} class")
    return made(key, {**taken, "_target_": target}, _recursive_=False)


def _accepted(target: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``values`` that the object at ``target`` takes as keyword arguments."""
    parameters = signature(get_object(target)).parameters
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in values.items() if takes_all or name in parameters}


@lru_cache(maxsize=32)
def _base(config_name: str, options: tuple[str, ...], with_hydra: bool) -> DictConfig:
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(config_name, list(options), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error)) from error


def _options(group: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def _parsed(value: str) -> Any:
    """The value as Hydra's grammar reads it, an ``Override``; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def _option(group: str, typed: str, default: str | None) -> Word:
    """``group=option``: one, a list of them that are merged, or several in a sweep."""
    options, override = _options(group), _parsed(typed)
    is_swept = override is not None and override.is_choice_sweep()
    values: list[Any] = [typed if override is None else override.value()]
    texts = []
    for each in list(override.sweep_iterator()) if is_swept else values:
        switched_off = each is None or each is False
        names = each if isinstance(each, list) else ["none" if switched_off else each if is_swept else typed]
        names = [name.text if isinstance(name, QuotedString) else str(name) for name in names]
        if switched_off and default is None and "none" not in options:
            names = ["null"]
        elif unknown := [name for name in names if name not in options]:
            hint = "; data.root=DIR names a folder" if group == "data" and re.search(r"[/\\~.]", unknown[0]) else ""
            reason = "something must be chosen; one of" if switched_off else "there is no such option; choose one of"
            given = typed if switched_off else unknown[0]
            raise InputError(f"{group}={given}: {reason} {', '.join(options)}{hint}")
        texts.append(f"[{','.join(names)}]" if isinstance(each, list) else names[0])
    return Word(group, tuple(texts), f"{group}={','.join(texts)}", is_swept, is_group=True)


def _options_at(words: Sequence[Word], variant: int) -> tuple[str, ...]:
    """``group=option`` of a variant; Hydra takes no null for a group, which is what it is without a word."""
    return tuple(f"{word.key}={word.at(variant)}" for word in words if word.is_group and word.at(variant) != "null")


# A value among several: its commas are inside quotes around all of it, or inside brackets.
_PIECE = re.compile(r"""\s*(?:(['"]).*?\1\s*(?=,|$)|(?:[\[({][^][(){}]*[\])}]|[^,])+)""")


def _value(key: str, typed: str, default: Any, is_sweep: bool) -> Word:
    """``key=value`` read by what the key holds: text, a list of texts, or anything that Hydra's grammar has."""
    is_other = key in (*NOT_TEXT, *TEXT_LISTS, *NODES) or default is FREE
    of_text = not is_other and (isinstance(default, str) or (default is None and not key.startswith(NOT_OURS)))
    is_list = OmegaConf.is_list(default) and not key.startswith(NOT_OURS)
    of_texts = (is_list and all(isinstance(item, str) for item in default)) or (
        key in TEXT_LISTS and not isinstance(default, bool)  # detect's scores are true or false
    )
    override = _parsed(typed)
    swept = override is not None and override.is_sweep_override()
    # Hydra's ways to name several values: choice(a,b), range(3), interval(0,1) …
    is_function = is_sweep and swept and re.match(r"[a-z_]+ ?\(", typed)
    if is_function or (override is not None and not (of_text or of_texts)):
        values = [override.value()]
        if isinstance(values[0], IntervalSweep):
            values = [values[0].start, values[0].end]
        elif swept:
            values = list(override.sweep_iterator())
        values = [Override._convert_value(value) for value in values]
        if isinstance(default, bool):
            values = [BOOLEANS.get(str(value).lower(), value) for value in values]
            typed = typed if is_function else ",".join(map(hydra_text, values))
        return Word(key, tuple(map(str, values) if of_text else values), f"{key}={typed}", swept)
    pieces = _pieces(typed) if is_sweep else [typed]
    if of_texts and not is_sweep and not _is_list(typed) and not os.path.exists(_at_home(typed)):  # noqa: PTH110
        pieces = [f"[{typed}]"] if len(_pieces(typed)) > 1 or OmegaConf.is_list(default) else pieces
    values, texts = [], []
    for piece in pieces:
        if of_texts and (_is_list(piece) or (OmegaConf.is_list(default) and not is_sweep)):
            named = _pieces(piece.strip()[1:-1]) if _is_list(piece) else [piece]  # one path, which may have commas
            parts = [_text(part.strip(), default) for part in named]
            values.append(parts)
            texts.append(f"[{','.join(map(hydra_text, parts))}]")
        else:
            values.append(_text(piece, default))
            texts.append(hydra_text(values[-1]))
    return Word(key, tuple(values), f"{key}={','.join(texts)}", len(pieces) > 1)


def _pieces(text: str) -> list[str]:
    return [piece[0] for piece in _PIECE.finditer(text) if piece[0].strip()]


def _is_list(text: str) -> bool:
    return text.strip().startswith("[") and text.strip().endswith("]")


def _text(typed: str, default: Any) -> str | bool | None:
    """Text as it was typed; also null, and true and false where they stand next to ``auto``."""
    bare = typed.strip()
    if bare.lower() == "null":
        return None
    if default == "auto" and bare.lower() in ("true", "false"):
        return bare.lower() == "true"
    override = _parsed(typed) if bare[0] == bare[-1] and bare[0] in "'\"" else None
    quoted = None if override is None else override.value()
    return quoted if isinstance(quoted, str) else _at_home(typed)


def _at_home(typed: str) -> str:
    # pathlib raises for a name that is no user's, and for one that is too long for a file.
    return os.path.expanduser(typed) if typed.startswith("~") else typed  # noqa: PTH111


# The default of what is none of the configuration's keys.
FREE = object()


def _set(config: DictConfig, key: str, value: Any) -> Any:
    """Set a key, and return what is then found there."""
    try:
        OmegaConf.update(config, key, value, merge=True, force_add=_is_free(config, key))
        found = OmegaConf.select(config, key, throw_on_resolution_failure="${hydra" not in str(value))
        if OmegaConf.is_config(found) and "${" in str(value):
            OmegaConf.to_container(found, resolve=True)
        return found
    except OmegaConfBaseException as error:
        raise InputError(f"{key}={value}: {_one_line(error)}") from error


def _is_free(config: DictConfig, key: str) -> bool:
    """Whether it is no key of the configuration and read all the same: by the Trainer, Hydra, a ``_target_``."""
    above, _, name = key.rpartition(".")
    group, _, entry = above.partition(".")
    target, argument = _target_above(config, key)
    if above == "trainer" and name not in config.get("trainer", {name: None}):
        target, argument = "pytorch_lightning.Trainer", name
    if target is not None:
        accepted = argument.partition(".")[0]
        try:
            return accepted in _accepted(target, {accepted: None})
        except Exception as error:  # whatever importing somebody's module raises
            raise _not_found(key.removesuffix(f".{argument}"), target, error) from error
    if name == "_target_" and group in config:
        return above in SWAPPED or (group in COLLECTIONS and bool(entry) and "." not in entry)
    node = OmegaConf.select(config, above, throw_on_resolution_failure=False) if key.startswith("hydra.") else None
    return isinstance(node, DictConfig) and name not in node and OmegaConf.get_type(node) is dict


def _target_above(config: DictConfig, key: str) -> tuple[str | None, str]:
    """``_target_`` of the nearest node above a key that has one, and the key below that node."""
    above, _, argument = key.rpartition(".")
    while above and not above.startswith("hydra"):
        node = OmegaConf.select(config, above, throw_on_resolution_failure=False)
        if isinstance(node, DictConfig) and node.get("_target_") and argument != "_target_":
            return str(node["_target_"]), argument
        above, _, name = above.rpartition(".")
        argument = f"{name}.{argument}"
    return None, argument


def _not_found(key: str, target: str, error: BaseException) -> InputError:
    why = f"cannot be imported ({first_line(error.__cause__ or error)})"
    return InputError(f"{key}._target_={target} {why}; run where its module is, or put that folder on PYTHONPATH")


def _check_kind(key: str, default: Any, value: Any) -> None:
    """InputError: the value is of another kind than what the key has by default."""
    is_list, is_dict = OmegaConf.is_list(value), OmegaConf.is_dict(value)
    reason = f" is of another kind than its default, {default}"
    if OmegaConf.is_dict(default):
        fits = is_dict
        below = f"{key.replace('.', '/')}={value}" if key.startswith("hydra.") else f"{key}.{next(iter(default), '')}=…"
        reason = f": {key} has keys below it; write {below}"
    elif key in NODES:
        fits, reason = value is None or (is_dict and "_target_" in value), f": name a class with {key}._target_=…"
    elif key.startswith(NOT_OURS):
        fits = True
    elif value is None:
        fits = default is None or key in NULL_TOO or (isinstance(default, str) and key not in NEVER_NULL)
    elif key in ("loss.weights", "model.block_channels", "redact_regions"):
        fits = is_list or (is_number(value) and key == "model.block_channels")
    elif key in NOT_TEXT:
        fits = is_number(value)
    elif isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, int | float):  # seconds and megabytes may be broken numbers; they have no group
        fits = is_number(value) and (isinstance(default, float) or "." not in key or isinstance(value, int))
    elif OmegaConf.is_list(default):
        fits = is_list  # what is in it, the reader of the key checks
    else:
        fits = not OmegaConf.is_config(value) or key in TEXT_LISTS
    if not fits:
        raise InputError(f"{key}={value}{reason}")


def _one_line(error: BaseException) -> str:
    noise = ("full_key", "object_type", "reference_type")
    body = [line.strip() for line in str(error).splitlines() if line.strip() and not line.strip().startswith(noise)]
    return re.sub(r"\s+", " ", "; ".join(body))


def _dotted(node: object, prefix: str = "") -> list[str]:
    items = node.items() if isinstance(node, dict) else ()
    return [own for key, value in items for own in (f"{prefix}{key}", *_dotted(value, f"{prefix}{key}."))]


def choices_text(config_name: str) -> str:
    """Every group of ``conf/<config_name>.yaml`` with its choices, the default first; "" where there is none."""
    lines: list[str] = []
    for group, default in groups_of(config_name).items():
        paths = sorted((config_dir() / group).glob("*.yaml"), key=lambda path: (path.stem != default, path.stem))
        if paths:
            lines += ["", f"{group}=…" + ("" if default is None else f"  (default: {default})")]
            width = max(len(path.stem) for path in paths) + 4
            lines += [f"  {path.stem}".ljust(width) + description(path) for path in paths]
    return "\n".join(["Choices:", *lines]) if lines else ""


def description(path: Path) -> str:
    """The first line of the comment that a file begins with, without ``@package``; may be empty."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith("# @package")), "")
    return first.removeprefix("# ") if first.startswith("# ") else ""


def keys_text(config_name: str, keys: str) -> str:
    """``keys``, the composed configuration as YAML, with what ``conf/<config_name>.yaml`` says of each next to it."""
    text = (config_dir() / f"{config_name}.yaml").read_text(encoding="utf-8")
    comments = dict(re.findall(r"^(\w+):.*?\s(# .+)$", text, re.MULTILINE))
    return "\n".join(f"{line:<31} {comments.get(line.partition(':')[0], '')}".rstrip() for line in keys.splitlines())
