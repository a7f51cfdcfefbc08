"""Trained models as folders: reading, writing, the card, checkpoints, the Hugging Face hub.

Trained models as folders that can be given away: ``model.safetensors`` and ``config.json``, never a pickle.

A folder also holds ``training_images.txt`` (:mod:`cli.provenance`), the model card ``README.md`` and ``scores/``;
``scripts/package_model.py`` writes it from a checkpoint. Some are shipped with the package.

The card of a model that is given away: what it was trained on and how, its scores, its limits, its terms.

Markdown under the YAML heading that the Hugging Face hub reads (hf.co/docs/hub/model-cards).
"""

import difflib
import json
import pickle
import pickletools
import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.provenance import TRAINING_IMAGES_FILE, TrainingImages, images_of, read_training_images
from fanet_lightning.models.fanet import Network

if TYPE_CHECKING:
    from torch import Tensor


def fetch_model(name: str, files: Sequence[str]) -> Path:
    """The folder of a model, fetched once and kept in the hub's own cache.

    Args:
        name: ``organisation/name``, or ``organisation/name@revision``.
        files: patterns of the files that are fetched.

    Raises:
        InputError: the package is not installed, no connection and nothing in the cache, no such model or revision, or
            a repository that holds no model of this kind.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise InputError(
            f"{name} is neither a file, a folder nor a shipped model; to fetch it from the Hugging Face hub install "
            "huggingface_hub (pip install 'fanet-lightning[hub]')"
        ) from error
    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except RevisionNotFoundError as error:
        raise InputError(f"{repository} on the hub has no revision {revision}; leave it out for the newest") from error
    # The hub answers alike for a name that nobody has and for a private one.
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no file or folder {name}, and no model of that name on the hub, or only a private one; check "
            "the name, or log in with `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise InputError(f"{name} is no name of a model on the hub; give organisation/name") from error
    # It is an OSError too, whatever kept the hub from answering: no network, offline mode, a proxy.
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{name} is neither a file nor a folder here, and cannot be fetched from the Hugging Face hub "
            f"({first_line(error)[:120]}); check the connection, or give a folder"
        ) from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} on the hub holds no config.json; give a model of fanet_lightning")
    return folder


# What every way to faces begins with where nothing else is asked for; benchmarks and training name their own protocol
# and take all scores. conf/detect.yaml and conf/app.yaml say the same. The size: docs/experiments.md, section 9.
DEFAULT_MODEL, DEFAULT_PROTOCOL, DEFAULT_THRESHOLD = "fanet_light", "short640", 0.5
SHIPPED = Path(__file__).parent / "shipped"
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

    ``network_options`` keyword arguments of :func:`fanet_lightning.models.fanet.build_network`.
    ``detection``       keyword arguments of :func:`fanet_lightning.ops.postprocess.detect`, as far as they are stated.
    ``training_images`` None where they are not known.
    ``source``          what :func:`locate` gave: the checkpoint, or the folder.
    """

    network: "Network"
    network_options: dict[str, Any]
    detection: dict[str, Any]
    training_images: list[TrainingImages] | None
    source: Path | None = None


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
    return Model(network, config["network"], config["detection"], images, folder)


def network_with(options: Mapping[str, Any], weights: Mapping[str, "Tensor"], where: Path) -> "Network":
    """A network with these weights, whatever precision they are stored in, as float32 in evaluation mode.

    Args:
        options: of :func:`fanet_lightning.models.fanet.build_network`.
        weights: by the names of its state dict.
        where: the file, for messages.

    Raises:
        InputError: options that this version does not know; weights that are missing, of other shapes, not numbers or
            too many.
    """
    import torch

    from fanet_lightning.models.fanet import build_network

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
        folder: best one of :func:`fanet_lightning.cli.files.replaced_folder`.
        model: what is written.
        config: further entries of ``config.json``.
        half: convolution weights as float16. Biases, normalisation and the normaliser's means stay float32: they are
            few, and their rounding shows.
    """
    import torch
    from safetensors.torch import save

    from fanet_lightning.cli.provenance import write_training_images

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


def _network(checkpoint: Mapping[str, Any], path: Path) -> Network:
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return network_with(checkpoint["hyper_parameters"]["network"], weights, path)


def load_model(model: Path | str) -> Model:
    """What a checkpoint of ``train``, a model's folder or a model's name stands for.

    Raises:
        InputError: see :func:`locate`, :func:`read_model` and :func:`read_checkpoint`; weights that do not fit the
            configuration stored with them.
    """
    path = locate(model)
    if path.is_dir():
        return read_model(path)
    checkpoint = read_checkpoint(path)
    hyper_parameters = checkpoint["hyper_parameters"]
    network = _network(checkpoint, path)
    options = {**hyper_parameters["network"], "normaliser": network.normaliser.kind}
    return Model(network, options, dict(hyper_parameters.get("detection") or {}), images_of(checkpoint, path), path)


WIDER_FACE_HOMEPAGE = "http://shuoyang1213.me/WIDERFACE/"
BENCHMARKS = {
    "wider_face": "WIDER FACE", "synthetic": "drawn faces", "fddb": "FDDB", "pascal_face": "PASCAL face", "afw": "AFW",
    "coco": "COCO", "folder": "own data",
}  # fmt: skip
MEASURES = ("ap", "discrete", "continuous")
# Words of an evaluation that do not change its numbers, or that are another's folders.
_CIRCUMSTANCES = ("checkpoint", "out", "data.root", "data.val.images", "workers", "device", "resume", "attributes",
                  "errors", "worst", "data.annotations", "data.ground_truth", "data", "protocol", "hydra")  # fmt: skip
# A folder of somebody's machine in front of a name.
_FOLDERS = re.compile(
    r"(?<![\w.~\]/:])(?:/|~/|[A-Za-z]:\\)(?:[^\s\"',=\]\[/\\][^\n\"',=\]\[/\\]*[/\\])+(?=[^\s\"',=\]\[/\\])"
)


@dataclass(frozen=True)
class ScoreSet:
    """One evaluation of the model.

    ``name``   of its files in ``scores/``, without ending.
    ``scores`` what ``scores.json`` holds.
    ``listed`` whether ``scores/<name>_images.txt`` lists the images, being only a part of the benchmark.
    """

    name: str
    scores: Mapping[str, Any]
    listed: bool


@dataclass(frozen=True)
class Recipe:
    """How a model was trained, as far as it is recorded: nothing in it is required.

    ``earlier``: (what it was, command) of the trainings whose weights this one started from, the first one first.
    ``input_size``: side of the training crops, pixels.
    """

    command: str | None = None
    commit: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    earlier: Sequence[tuple[str, str]] = ()
    input_size: int | None = None


def portable(value: Any) -> Any:
    """The same value with the folders of one machine taken off every path: ``out=/home/x/run`` becomes ``out=run``."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return value


def training_command(command: Sequence[str]) -> str:
    """The line that starts the same training, from a record's ``command``, whose first word is the program.

    Of a key that is given several times the last value counts, and it alone is kept.
    """
    words: dict[str, str] = {}
    for word in map(str, command[1:]):
        key = word.partition("=")[0]
        words.pop(key, None)  # so that the last one also stands last
        words[key] = str(portable(word))
    return " ".join(["python -m fanet_lightning.train", *map(shlex.quote, words.values())])


def evaluation_command(scored: ScoreSet, model: str) -> str:
    """The line that computes these scores again, from the folder of the model ``model``."""
    made_by = scored.scores.get("made_by", {})
    kept = []
    for word in made_by.get("command", [])[1:]:
        key = str(word).lstrip("+~").partition("=")[0]
        # A training that evaluates itself records its own words.
        if "evaluate" in str(made_by["command"][0]) and key and not key.startswith("-") and key not in _CIRCUMSTANCES:
            kept.append(str(portable(word)))
    data = made_by.get("data", scored.scores["benchmark"])
    words = [f"checkpoint={model}", f"data={data}", "data.root=DATA"]
    if scored.listed:
        words.append(f"data.val.images={model}/scores/{scored.name}_images.txt")
    words += [f"protocol={scored.scores['protocol']}", *kept, f"out={scored.name}_again"]
    return " ".join(["python -m fanet_lightning.evaluate", *words])


def model_card(
    name: str,
    *,
    training_images: Sequence[TrainingImages],
    scores: Sequence[ScoreSet],
    recipe: Recipe,
    parameters: int,
    flops_640x480: int,
    weights_bytes: int,
    weights: str,
) -> str:
    """The text of ``README.md``.

    Args:
        name: of the model.
        training_images: every image that it has seen.
        scores: its evaluations; may be empty.
        recipe: how it was trained.
        parameters: of :func:`fanet_lightning.models.fanet.inference_parameters`.
        flops_640x480: floating-point operations of one image of 640×480.
        weights_bytes: size of the weight file.
        weights: ``float32`` or ``float16``.
    """
    datasets = sorted({part.data for part in training_images if part.data})
    parts = [
        f"# {name}",
        "A face detector after \"Feature Agglomeration Networks for Single Stage Face Detection\" (Zhang, Wu, Zhu, "
        f"Hoi; arXiv 1712.00721), trained with `fanet_lightning`. {parameters / 1e6:.2f} M parameters "
        "that detection uses (heads of the last hierarchy alone, batch normalization folded into the convolutions), "
        f"{flops_640x480 / 1e9:.1f} GFLOP at 640×480, weights in {weights}, {weights_bytes / 1e6:.1f} MB.",
        "```python\nfrom fanet_lightning import FaceDetector\n\n"
        f'detector = FaceDetector.from_pretrained("{name}")  # or the path of this folder\n'
        "faces = detector.detect(image_rgb)  # (H, W, 3) uint8; boxes_xyxy in pixels, scores from 0.5 on\n```",
        "## Scores", _scores_text(scores, name),
        "## Training data", _data_text(training_images),
        "## Recipe", _recipe_text(recipe),
        "## Limits", _limits_text(training_images, scores, recipe.input_size),
        "## Terms", _terms_text(datasets),
    ]  # fmt: skip
    return f"---\n{_heading(name, datasets, scores)}---\n" + "\n\n".join(parts) + "\n"


def _heading(name: str, datasets: Sequence[str], scores: Sequence[ScoreSet]) -> str:
    terms: dict[str, Any] = {"license": "mit"}
    if datasets != ["synthetic"]:
        terms = {"license": "other", "license_name": "research-only", "license_link": WIDER_FACE_HOMEPAGE}
    results = [
        {
            "task": {"type": "object-detection", "name": "Face detection"},
            "dataset": {
                "type": scored.scores["benchmark"], "name": _title(scored),
                "args": {"protocol": scored.scores["protocol"], "images": scored.scores["images"]},
            },
            "metrics": [
                {"type": measure, "name": f"{_measure(measure)} {setting}", "value": value}
                for measure, setting, value, _ in _rows(scored.scores)
                if value is not None
            ],
        }
        for scored in scores
    ]  # fmt: skip
    content = {
        **terms, "library_name": "fanet_lightning", "pipeline_tag": "object-detection",
        "tags": ["face-detection", "object-detection", "fanet", "pytorch-lightning"],
        **({"datasets": list(datasets)} if datasets else {}),
        "metrics": ["ap"],
        # The hub refuses an entry without results.
        **({"model-index": [{"name": name, "results": results}]} if results else {}),
    }  # fmt: skip
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return text


def _rows(scores: Mapping[str, Any]) -> list[tuple[str, str, float | None, Sequence[float] | None]]:
    """(measure, setting, value, interval) of every number."""
    measures = [measure for measure in MEASURES if isinstance(scores.get(measure), Mapping)]
    intervals = scores.get("intervals") or {}
    if measures == ["ap"]:
        intervals = {"ap": intervals}
    return [
        (measure, setting, value, intervals.get(measure, {}).get(setting))
        for measure in measures
        for setting, value in scores[measure].items()
    ]


def _measure(measure: str) -> str:
    return "AP" if measure == "ap" else measure


def _title(scored: ScoreSet) -> str:
    scores = scored.scores
    benchmark = BENCHMARKS.get(scores["benchmark"], scores["benchmark"])
    whole = scores.get("images_of_benchmark") or scores["images"]
    part = f"{scores['images']:,} images" if whole == scores["images"] else f"{scores['images']:,} of {whole:,} images"
    return f"{benchmark}, {part}, protocol {scores['protocol']}"


def _scores_text(scores: Sequence[ScoreSet], name: str) -> str:
    if not scores:
        return "Not measured."
    texts = []
    for scored in scores:
        faces = scored.scores.get("faces") or {}
        lines = [f"### {_title(scored)}", "", "| setting | faces | score | 95 % interval |", "|---|--:|--:|---|"]
        for measure, setting, value, interval in _rows(scored.scores):
            number = "no face" if value is None else f"{value:.4f}"
            bounds = "–" if interval is None else f"{interval[0]:.4f} … {interval[1]:.4f}"
            count = faces.get(setting, sum(faces.values()))
            lines.append(f"| {_measure(measure)} {setting} | {count:,} | {number} | {bounds} |")
        seen = scored.scores.get("trained_on_images") or {}
        if seen.get("count"):
            lines += [
                "",
                f"**{seen['count']:,} of these images were trained on: this says nothing about unseen ones.**",
            ]
        elif seen:
            lines += ["", "None of these images was trained on."]
        lines += ["", f"Again, in the folder that holds {name}, with the data set's folder for DATA; it writes the "
                  f"folder `{scored.name}_again`:", "",
                  f"```\n{evaluation_command(scored, name)}\n```"]  # fmt: skip
        texts.append("\n".join(lines))
    texts.append(
        "Intervals are over images (bootstrap). Numbers on a part of a benchmark do not compare with published ones, "
        "which are about all of it."
    )
    return "\n\n".join(texts)


def _data_text(training_images: Sequence[TrainingImages]) -> str:
    lines = []
    for part in training_images:
        split = f" of its {part.split} split" if part.split else ""
        data = BENCHMARKS.get(part.data or "", part.data or "data that nobody has named")
        lines.append(f"* {data}: {len(part.image_ids):,} images{split}")
    return "\n".join([*lines, "", "`training_images.txt` names every one. `evaluate` and `score` say so when a scored "
                      "image is among them."])  # fmt: skip


def _recipe_text(recipe: Recipe) -> str:
    lines = [f"* {name}: {value}" for name, value in recipe.facts.items()]
    lines.append(f"* commit: {recipe.commit or 'not recorded'}")
    command = f"\n```\n{recipe.command}\n```" if recipe.command else "\nThe command is not recorded."
    parts = ["\n".join([*lines, command])]
    if recipe.earlier:
        numbered = enumerate(recipe.earlier, start=1)
        steps = "\n\n".join(f"{number}. {what}:\n\n```\n{text}\n```" for number, (what, text) in numbered)
        parts.append(
            "It started from the weights of an earlier training, `init=`. A model of the same name and of another "
            f"SHA-256 is another model:\n\n{steps}"
        )
    parts.append(
        "Lists and checkpoints that the commands name are those of whoever trained: the images are named in "
        "`training_images.txt`, the weights told by their SHA-256."
    )
    return "\n\n".join(parts)


def _limits_text(training_images: Sequence[TrainingImages], scores: Sequence[ScoreSet], input_size: int | None) -> str:
    count = sum(len(part.image_ids) for part in training_images)
    of_val = [part for part in training_images if (part.data, part.split) == ("wider_face", "val")]
    lines = [
        f"* It has seen {count:,} training images. The paper's model has seen 12,880 and starts from ImageNet weights.",
        "* It finds faces; it knows no person, age or expression, and was not examined for differences between groups "
        "of people.",
        "* Faces of less than about 10 pixels, strongly blurred or mostly hidden ones are often missed.",
    ]
    if input_size is not None:
        lines.append(
            f"* Its training crops were {input_size} pixels wide, so it knows few faces above some "
            f"{input_size * 4 // 5} pixels: larger ones need a smaller image (`protocol=short640`, the default of "
            "`detect`)."
        )
    if of_val:
        lines.append(
            "* It was trained on images of WIDER FACE's *val* split. Its numbers on all of val are not to be quoted: "
            "score it on images that `training_images.txt` does not name."
        )
    if not scores:
        lines.append("* It was not scored on anything.")
    return "\n".join(lines)


def _terms_text(datasets: Sequence[str]) -> str:
    if datasets == ["synthetic"]:
        return "Trained on drawn pictures alone; the weights are under the package's licence (MIT)."
    return (
        "The code is under the MIT licence. The weights come from images of "
        f"{', '.join(BENCHMARKS.get(name, name) for name in datasets) or 'data that are not named'}; WIDER FACE is "
        f"published for research ([homepage]({WIDER_FACE_HOMEPAGE})), its images remain their owners'. Use the weights "
        'for research alone, and cite the data set: Yang, Luo, Loy, Tang, "WIDER FACE: A Face Detection Benchmark", '
        "CVPR 2016."
    )
