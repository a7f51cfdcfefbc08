"""Trained models as folders that can be given away: ``model.safetensors`` and ``config.json``, never a pickle.

A folder also holds ``training_images.txt`` (:mod:`training_images`), the model card ``README.md`` and ``scores/``;
``scripts/package_model.py`` writes it from a checkpoint. Some are shipped with the package.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError, first_line
from fanet_lightning.training_images import TRAINING_IMAGES_FILE, TrainingImages, read_training_images

if TYPE_CHECKING:
    from torch import Tensor

    from fanet_lightning.net.build import Network

# What every way to faces begins with where nothing else is asked for; benchmarks and training name their own protocol
# and take all scores. conf/detect.yaml and conf/app.yaml say the same. The size: docs/experiments.md, section 9.
DEFAULT_MODEL, DEFAULT_PROTOCOL, DEFAULT_THRESHOLD = "fanet_light", "short640", 0.5
SHIPPED = Path(__file__).parent / "pretrained_models"
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, SCORES_FOLDER = "config.json", "model.safetensors", "README.md", "scores"
# What a run's folder stands for, the first that is there.
OF_A_RUN = ("best.ckpt", "last.ckpt")
FORMAT, FORMAT_VERSION = "fanet_lightning", 1
# What a model on the hub is made of; nothing else is fetched.
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, TRAINING_IMAGES_FILE, f"{SCORES_FOLDER}/*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
_FILE_ENDINGS = (".ckpt", ".pt", ".pth", ".safetensors", ".onnx")


@dataclass(frozen=True, eq=False)
class Model:
    """A network with trained weights, in evaluation mode.

    ``network_options`` keyword arguments of :func:`fanet_lightning.net.build.build_network`.
    ``detection``       keyword arguments of :func:`fanet_lightning.postprocess.detect`, as far as they are stated.
    ``training_images`` None where they are not known.
    """

    network: "Network"
    network_options: dict[str, Any]
    detection: dict[str, Any]
    training_images: list[TrainingImages] | None


def shipped_models() -> list[str]:
    """Names of the models inside the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` is a folder of the format."""
    return (path / CONFIG_FILE).is_file()


def locate(model: str | Path) -> Path:
    """The checkpoint or model folder that a person means.

    Args:
        model: a checkpoint of ``train``; the folder of its run or of the run's checkpoints, which stands for
            ``best.ckpt`` or, without one, ``last.ckpt``; the name of a shipped model (``./fanet_light`` is a folder of
            that name); a model's folder; or ``organisation/name``, ``organisation/name@revision`` of a model on the
            Hugging Face hub, which is fetched once.

    Returns:
        An existing file, or a folder with ``config.json``.

    Raises:
        InputError: none of these; or the hub cannot give it.
    """
    text, path = str(model), Path(model).expanduser()
    if path.is_file():
        # Whoever names a file of the folder means the folder.
        return path.parent if path.name in (WEIGHTS_FILE, CONFIG_FILE) and is_model_folder(path.parent) else path
    if text in shipped_models():
        return SHIPPED / text
    if is_model_folder(path):
        return path
    if path.is_dir():
        for file in (*(path / "checkpoints" / name for name in OF_A_RUN), *(path / name for name in OF_A_RUN)):
            if file.is_file():
                return file
        raise InputError(
            f"{model} is a folder with neither a model ({CONFIG_FILE}) nor a run's checkpoints "
            f"({' or '.join(OF_A_RUN)}, there or in checkpoints); give a .ckpt file, or the folder of a run or a model"
        )
    if _HUB_NAME.fullmatch(text) and not text.endswith(_FILE_ENDINGS) and not path.parent.is_dir():
        from fanet_lightning.hub import fetch_model

        return fetch_model(text, FILES)
    known = shipped_models()
    near = difflib.get_close_matches(text, known, n=1)
    also = f", did you mean {near[0]}?" if near else f", a model's folder or one of {', '.join(known)}" if known else ""
    raise InputError(f"no checkpoint at {model}; give a .ckpt file that train has written{also}")


def weights_file(path: Path) -> Path:
    """Of what :func:`locate` gave: the file that holds the weights."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def is_onnx(checkpoint: Path | str) -> bool:
    """Whether it names a file of ``export format=onnx``, by its ending."""
    return Path(checkpoint).suffix.lower() == ".onnx"


def name_of(checkpoint: Path) -> str:
    """A model folder's name; of a checkpoint that of its run's folder; an exported file's own, without its ending."""
    path = checkpoint.resolve()
    if is_onnx(path):
        return path.stem
    return path.name if path.is_dir() else path.parent.parent.name or path.stem


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model's folder.

    Raises:
        InputError: it is missing, no JSON, of another program or of a newer version of this one.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a model's folder") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}); fetch the model again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{path} is of another program; give a model of fanet_lightning")
    version = config.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{path} is of format {version}, written by fanet-lightning {config.get('package_version')}; this version "
            f"reads format {FORMAT_VERSION}: install a newer one"
        )
    for key in ("network", "detection"):
        if not isinstance(config.get(key), dict):
            raise InputError(f"{path}: {key} is {str(config.get(key))[:40]}, no options; fetch the model again")
    return config


def read_model(folder: Path) -> Model:
    """The model in a folder.

    Raises:
        InputError: a file is missing, damaged or of something else, or the weights do not fit the configuration.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, path = read_config(folder), folder / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{path} is missing; fetch the model again")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is no whole safetensors file ({first_line(error)}); fetch it again") from error
    network = network_with(config["network"], weights, path)
    listed = folder / TRAINING_IMAGES_FILE
    images = read_training_images(listed).parts if listed.is_file() else None
    return Model(network, config["network"], config["detection"], images)


def network_with(options: Mapping[str, Any], weights: Mapping[str, "Tensor"], where: Path) -> "Network":
    """A network with these weights, whatever precision they are stored in, as float32 in evaluation mode.

    Args:
        options: of :func:`fanet_lightning.net.build.build_network`.
        weights: by the names of its state dict.
        where: the file, for messages.

    Raises:
        InputError: options that this version does not know; weights that are missing, of other shapes, not numbers or
            too many.
    """
    import torch

    from fanet_lightning.net.build import build_network

    try:
        # Fresh weights are drawn and overwritten; whoever loads a model keeps their random state.
        with torch.random.fork_rng(devices=[]):
            network = build_network(**options)
    except TypeError as error:
        raise InputError(f"{where}: {first_line(error)}; the model may be of another version") from error
    own = network.state_dict()
    missing, foreign = [name for name in own if name not in weights], [name for name in weights if name not in own]
    shapes = [name for name, x in own.items() if name in weights and weights[name].shape != x.shape]
    fault = None
    if missing or foreign:
        fault = ", ".join(
            f"{len(names)} {kind}, e.g. {names[0]}"
            for kind, names in (("are missing", missing), ("are unknown", foreign))
            if names
        )
    elif shapes:
        fault = f"{shapes[0]} is {tuple(weights[shapes[0]].shape)} and not {tuple(own[shapes[0]].shape)}"
    if fault is not None:
        raise InputError(f"{where}: the weights do not fit the configuration stored with them ({fault})")
    bad = next((name for name in own if not bool(weights[name].isfinite().all())), None)
    if bad is not None:
        raise InputError(f"{where}: {bad} holds values that are not finite; take another checkpoint")
    network.load_state_dict(weights)
    return network.eval()


def write_model(folder: Path, model: Model, config: Mapping[str, Any], *, half: bool = False) -> None:
    """Write weights, configuration and the list of training images into an existing folder.

    Args:
        folder: best one of :func:`fanet_lightning.files.replaced_folder`.
        model: what is written.
        config: further entries of ``config.json``.
        half: convolution weights as float16. Biases, normalisation and the normaliser's means stay float32: they are
            few, and their rounding shows.
    """
    import torch
    from safetensors.torch import save

    from fanet_lightning.training_images import write_training_images

    def stored(x: "Tensor") -> "Tensor":
        x = x.detach().cpu()
        x = x.half() if half and x.ndim > 3 and x.is_floating_point() else x
        return x.contiguous(memory_format=torch.contiguous_format).clone()

    weights = {name: stored(x) for name, x in model.network.state_dict().items()}
    bad = next((name for name, x in weights.items() if not bool(x.isfinite().all())), None)
    if bad is not None:
        raise InputError(f"{bad} does not fit into float16; take half=false")
    # Not save_file, which leaves the file to its owner alone; the folder's other files follow the umask.
    (folder / WEIGHTS_FILE).write_bytes(save(weights, metadata={"format": "pt"}))
    content = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "package_version": version("fanet-lightning"),
        "network": model.network_options, "detection": model.detection,
        "weights": "float16" if half else "float32", **config,
    }  # fmt: skip
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    if model.training_images is not None:
        write_training_images(folder / TRAINING_IMAGES_FILE, model.training_images)
