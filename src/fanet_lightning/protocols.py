"""What ``protocol=`` may be in Python: a name of ``conf/protocol``, settings, or the protocol itself; its default."""

import difflib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fanet_lightning.data.resize import TestScale
from fanet_lightning.errors import InputError
from fanet_lightning.multiscale import MultiScale, build_protocol

Protocol = str | Mapping[str, Any] | TestScale | MultiScale

# pretrained.DEFAULT_PROTOCOL, without the time that Hydra takes to be imported.
DEFAULT_SCALE = TestScale("short", 640)
# Where the shorter side is longer, faces may well be larger than those of the training, some 400 pixels at most.
LARGE_SHORTER_SIDE = 1000


def protocol_of(protocol: Protocol | None) -> TestScale | MultiScale:
    """The test scale, or scales, that is meant; None is :data:`pretrained.DEFAULT_PROTOCOL`.

    Args:
        protocol: a name (:func:`protocol_names`), settings as in ``conf/protocol/*.yaml``, or a protocol.

    Raises:
        InputError: an unknown name or setting, a value outside its range, or an object of another kind.
    """
    if protocol is None:
        return DEFAULT_SCALE
    if isinstance(protocol, TestScale | MultiScale):
        return protocol
    if isinstance(protocol, str):
        return protocol_named(protocol)
    if isinstance(protocol, Mapping):
        return build_protocol(protocol)
    raise InputError(
        f"protocol is of type {type(protocol).__name__}; give a name ({', '.join(protocol_names())}), settings, "
        "a TestScale or a MultiScale"
    )


def too_large_for(protocol: object, width: int, height: int) -> bool:
    """Whether faces in an image of this size are probably missed, because ``protocol`` (its name) leaves it so."""
    return protocol == "original" and min(width, height) > LARGE_SHORTER_SIDE


@lru_cache(maxsize=64)
def protocol_named(name: str) -> TestScale | MultiScale:
    """A protocol of ``conf/protocol`` by its name; raises as :func:`protocol_settings`."""
    return build_protocol(protocol_settings(name))


def protocol_settings(name: str) -> dict[str, Any]:
    """What ``conf/protocol/<name>.yaml`` holds.

    Raises:
        InputError: there is none of that name; the message lists them.
    """
    # Hydra, which comes with it, takes a fifth of a second to import.
    from fanet_lightning.config import config_dir

    known = protocol_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? There are {', '.join(known)}" if near else f"choose one of {', '.join(known)}"
        raise InputError(f"protocol={name}: there is no such option; {hint}")
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "protocol" / f"{name}.yaml"), resolve=True)
    return dict(settings)


def protocol_names() -> list[str]:
    """Names of the protocols that come with the package, sorted."""
    from fanet_lightning.config import config_dir

    return sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))
