"""A checkpoint of ``train``, a model's folder or name → its network. Code in a checkpoint is never executed."""

import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fanet_lightning.errors import InputError
from fanet_lightning.net.build import Network
from fanet_lightning.pretrained import Model, is_onnx, locate, network_with, read_model
from fanet_lightning.training_images import images_of

# What torch's safe loading says of a function or class that the file wants called.
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ``train`` as plain containers and tensors; code inside it is never executed.

    Raises:
        InputError: no such file, not a checkpoint, or one of another program.
    """
    if is_onnx(path):
        raise InputError(
            f"{path} is an exported file and cannot be loaded here; give the checkpoint that it was made of"
        )
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give a .ckpt file that train has written")
    try:
        with warnings.catch_warnings():
            # torch wonders at pickles of other programs; they are refused in one line anyway.
            warnings.simplefilter("ignore")
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    # What the unpickler meets in a file of something else depends on its bytes: any of a dozen kinds.
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError,
            AttributeError) as error:  # fmt: skip
        code = _code_in(path, error)
        if code is not None:
            raise InputError(
                f"{path} holds code{code}, which was not run; give a .ckpt file that train has written"
            ) from error
        # torch's own text runs over many lines and advises to switch the safe loading off.
        raise InputError(f"{path} is not a readable checkpoint; give a .ckpt file that train has written") from error
    hyper_parameters = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hyper_parameters, dict) or "network" not in hyper_parameters or "state_dict" not in checkpoint:
        raise InputError(f"{path} is a checkpoint, but not one of fanet_lightning.train: it names no network")
    return dict(checkpoint)


def _code_in(path: Path, error: Exception) -> str | None:
    """`` (module.function)`` that a file wants called, "" where its name is not known; None: nothing of the kind."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    named = _GLOBAL.search(str(error))
    if named is not None:
        return f" ({named[1]})"
    # Of newer pickles torch knows no more than that it does not know them.
    try:
        with path.open("rb") as file:
            found = (
                file.read(1) == pickle.PROTO
                and file.seek(0) == 0
                and any(
                    operation.name in ("GLOBAL", "STACK_GLOBAL", "REDUCE")
                    for operation, _, _ in pickletools.genops(file)
                )
            )
    except Exception:  # what is no pickle after all fails anyhow
        return None
    return "" if found else None


def network_from_checkpoint(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its trained (where EMA was on: averaged) weights, and the hyper-parameters of its training.

    Raises:
        InputError: as :func:`read_checkpoint`, or weights that do not fit the configuration stored beside them.
    """
    checkpoint = read_checkpoint(path)
    return _network(checkpoint, path), checkpoint["hyper_parameters"]


def _network(checkpoint: Mapping[str, Any], path: Path) -> Network:
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return network_with(checkpoint["hyper_parameters"]["network"], weights, path)


def load_model(model: Path | str) -> Model:
    """What a checkpoint of ``train``, a model's folder or a model's name stands for.

    Raises:
        InputError: see :func:`fanet_lightning.pretrained.locate`, :func:`fanet_lightning.pretrained.read_model` and
            :func:`network_from_checkpoint`.
    """
    path = locate(model)
    if path.is_dir():
        return read_model(path)
    checkpoint = read_checkpoint(path)
    hyper_parameters = checkpoint["hyper_parameters"]
    network = _network(checkpoint, path)
    options = {**hyper_parameters["network"], "normaliser": network.normaliser.kind}
    return Model(network, options, dict(hyper_parameters.get("detection") or {}), images_of(checkpoint, path))
