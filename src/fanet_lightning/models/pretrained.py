"""Trained models by name or path: checkpoints, folders that can be given away, the Hugging Face hub.

A model's folder holds ``model.safetensors`` and ``config.json``, never a pickle, and may hold ``training_images.txt``
(:mod:`fanet_lightning.cli.provenance`), the card ``README.md`` and ``scores/``; ``fanet package`` writes it from a
checkpoint (:mod:`fanet_lightning.models.packaging`). Some are shipped with the package.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.provenance import (
    TRAINING_IMAGES_FILE,
    TrainingImages,
    images_of,
    merged,
    read_training_images,
    write_training_images,
)
from fanet_lightning.models.fanet import Network, network_of

# What every way to faces begins with where nothing else is asked for; benchmarks and training name their own protocol
# and take all scores. conf/detect.yaml and conf/app.yaml say the same. The sizes: docs/experiments.md, section 11.
DEFAULT_MODEL, DEFAULT_PROTOCOL, DEFAULT_THRESHOLD = "fanet_light", "auto", 0.5
SHIPPED = Path(__file__).parent / "shipped"
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, SCORES_FOLDER = "config.json", "model.safetensors", "README.md", "scores"
# What a run's folder stands for, the first that is there.
OF_A_RUN = ("best.ckpt", "last.ckpt")
FORMAT, FORMAT_VERSION = "fanet_lightning", 1
# What a model on the hub is made of; nothing else is fetched.
FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, TRAINING_IMAGES_FILE, f"{SCORES_FOLDER}/*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
# Of what runs outside torch: onnxruntime's and OpenVINO's.
EXPORTS = (".onnx", ".xml")
_FILE_ENDINGS = (".ckpt", ".pt", ".pth", ".safetensors", *EXPORTS)


@dataclass(frozen=True, eq=False)
class Model:
    """A network with trained weights, in evaluation mode.

    ``network_options``, ``detection``: keyword arguments of :func:`fanet_lightning.models.fanet.build_network` and
    :func:`fanet_lightning.ops.postprocess.detect`. ``training_images``: None where they are not known. ``source``:
    what :func:`locate` gave: the checkpoint, or the folder.
    """

    network: Network
    network_options: dict[str, Any]
    detection: dict[str, Any]
    training_images: list[TrainingImages] | None
    source: Path | None = None


def load_model(model: Path | str) -> Model:
    """The trained model that a name or path stands for, see :func:`locate`.

    The network has its trained (where EMA was on: averaged) weights as float32, whatever they are stored in.

    InputError: see :func:`locate` and :func:`read_checkpoint`; a file of the folder that is missing, damaged or of
    something else; weights that are not finite or do not fit the configuration stored with them.
    """
    path = locate(model)
    if path.is_dir():
        config, file, listed = _read_config(path / CONFIG_FILE), path / WEIGHTS_FILE, path / TRAINING_IMAGES_FILE
        try:
            weights = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{file} is not a valid safetensors file ({first_line(error)}); fetch it again") from error
        network = _network_with(config["network"], weights, file)
        images = read_training_images(listed)[0] if listed.is_file() else None
        return Model(network, config["network"], config.get("detection") or {}, images, path)
    checkpoint, prefix = read_checkpoint(path), "network."
    stored = checkpoint["hyper_parameters"]
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    network = _network_with(stored["network"], weights, path)
    options = {**stored["network"], "normaliser": network.normaliser.kind}
    return Model(network, options, dict(stored.get("detection") or {}), images_of(checkpoint), path)


def shipped_models() -> list[str]:
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def locate(model: str | Path) -> Path:
    """The checkpoint or model folder that a person means.

    ``model``: a checkpoint of ``train``; the folder of its run or of the run's checkpoints, which stands for
    ``best.ckpt`` or, without one, ``last.ckpt``; the name of a shipped model (``./fanet_light`` is a folder of that
    name); a model's folder, or its weights; or ``organisation/name[@revision]`` of a model on the Hugging Face hub,
    which is fetched once. Returns an existing file or folder. InputError: none of these; or the hub cannot give it.
    """
    text, path = str(model), Path(model).expanduser()
    if path.is_file():
        of_folder = path.name in (WEIGHTS_FILE, CONFIG_FILE) and path.with_name(CONFIG_FILE).is_file()
        return path.parent if of_folder else path
    if text in shipped_models():
        return SHIPPED / text
    if (path / CONFIG_FILE).is_file():
        return path
    if (file := checkpoint_of_run(path) or checkpoint_of_run(path.parent, path.name)) is not None:
        return file
    if _HUB_NAME.fullmatch(text) and not text.endswith(_FILE_ENDINGS) and not path.parent.is_dir():
        return _fetched(text)
    raise InputError(
        f"no checkpoint at {model}; give a .ckpt file of train, a run's folder (with {' or '.join(OF_A_RUN)}, there or "
        f"in checkpoints), a model's (with {CONFIG_FILE}), or {', '.join(shipped_models())}"
    )


def checkpoint_of_run(run: Path, folder: str = "checkpoints") -> Path | None:
    """``best.ckpt`` of a run or, without one, ``last.ckpt``."""
    return next((path for name in OF_A_RUN if (path := run / folder / name).is_file()), None)


def weights_file(path: Path) -> Path:
    """Of what :func:`locate` gave: the file that holds the weights."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def is_export(checkpoint: Path | str) -> bool:
    """Whether it names a file of ``export format=onnx`` or ``openvino``, by its ending."""
    return Path(checkpoint).suffix.lower() in EXPORTS


def name_of(checkpoint: Path) -> str:
    """A model folder's name, on the hub its repository's; of a run's checkpoint that of the run's folder; of any other
    file its own, without its ending."""
    path = checkpoint.resolve()
    if path.is_dir():  # in the hub's cache: models--organisation--name/snapshots/revision
        cached = path.parent.parent.name if path.parent.name == "snapshots" else ""
        return cached.rpartition("--")[2] if cached.startswith("models--") else path.name
    return ((path.parent.name == "checkpoints" and not is_export(path)) and path.parent.parent.name) or path.stem


def _fetched(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, ``organisation/name[@revision]``, in the hub's own cache."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InputError(
            f"no file, folder or shipped model is called {name}; the Hugging Face hub needs huggingface_hub: "
            "pip install 'fanet-lightning[hub]'"
        ) from error
    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(FILES)))
    # OSError: no network, offline mode, a proxy. ValueError: a name that the hub cannot have.
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{name} is neither a file nor a folder here, and cannot be fetched from the Hugging Face hub "
            f"({' '.join(str(error).split()):.200}); private models need `hf auth login`"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
        made_by = f"format {config['format_version']} by version {config.get('package_version')}"
        if (config["format"], config["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"{made_by} of {config['format']}, this package reads {FORMAT_VERSION} of {FORMAT}")
        return config | {"network": dict(config["network"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no configuration of a model ({first_line(error)}); fetch it again") from error


def _network_with(options: Mapping[str, Any], weights: Mapping[str, Tensor], where: Path) -> Network:
    try:
        # Fresh weights are drawn and overwritten; whoever loads a model keeps their random state.
        with torch.random.fork_rng(devices=[]):
            network = network_of(options)
        network.load_state_dict(weights)
    except (InputError, TypeError, RuntimeError) as error:  # options of another version; weights of other names, shapes
        raise InputError(f"{where}: {' '.join(str(error).split()):.400}") from error
    _check_finite(weights, f"{where}; take another checkpoint")
    return network.eval()


def _check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    for name, x in weights.items():
        if not bool(x.isfinite().all()):
            raise InputError(f"{name} holds values that are not finite: {where}")


def write_model(folder: Path, model: Model, config: Mapping[str, Any], *, half: bool = False) -> None:
    """Write weights, configuration and the list of training images into an existing folder.

    ``config``: further entries of ``config.json``. ``half``: convolution weights as float16; biases, normalization and
    the normaliser's means stay float32: they are few, and their rounding shows.
    """

    def stored(x: Tensor) -> Tensor:
        x = x.detach().cpu()
        x = x.half() if half and x.ndim > 3 and x.is_floating_point() else x
        return x.contiguous(memory_format=torch.contiguous_format).clone()

    weights = {name: stored(x) for name, x in model.network.state_dict().items()}
    _check_finite(weights, "take half=false")
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ``train`` as plain containers and tensors; code inside it is never executed.

    InputError: no such file, not a checkpoint, or one of another program.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give a .ckpt file that train has written")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders at pickles of other programs
            checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    # Foreign bytes may raise anything; torch's own text runs over many lines and advises to load unsafely.
    except Exception as error:
        raise InputError(f"{path} is not a readable checkpoint of train; code in it, if any, was not run") from error
    try:
        _ = checkpoint["hyper_parameters"]["network"].keys(), checkpoint["state_dict"].keys()
        merged(images_of(checkpoint) or ())
        return dict(checkpoint)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a checkpoint, but not one of fanet_lightning.train ({error!r:.60})") from error
