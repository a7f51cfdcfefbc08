"""Exporting a model: one file, tried on images before it is kept.

The file takes uint8 RGB pixels of any batch and size and gives faces (:mod:`fanet_lightning.export.graph`). It is run
once written, in its own runtime, and stays only where it finds the same faces as the model.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import cbook

from fanet_lightning.cli.errors import InputError, counted, is_whole
from fanet_lightning.cli.files import check_writable, has_image_extension, replaced, walk_files
from fanet_lightning.cli.provenance import TrainingImages
from fanet_lightning.data.images import UnreadableImage, read_image_rgb
from fanet_lightning.detect.detector import OnnxBackend, TorchBackend
from fanet_lightning.export.graph import quiet
from fanet_lightning.export.metadata import metadata
from fanet_lightning.export.onnx_graph import OPSETS, need_packages, onnx_model
from fanet_lightning.export.torch_program import write_torch_export, write_torchscript
from fanet_lightning.export.verify import SHOWN, Comparison, Run, compare, speeds
from fanet_lightning.models.blocks import fuse
from fanet_lightning.models.pretrained import Model, load_model, name_of
from fanet_lightning.ops.postprocess import detection_settings

Image8 = npt.NDArray[np.uint8]

# (height, width): an ordinary one, odd ones, one whose deepest maps are a single cell, one smaller than most anchors.
SIZES = ((600, 512), (480, 640), (217, 333), (129, 128), (33, 40))
# As many as a person waits for.
MOST_IMAGES = 20
ENDINGS = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "torch_export": ".pt2"}
RUNTIMES = {"onnx": "onnxruntime", "torchscript": "torch.jit", "torch_export": "torch.export"}
DTYPES = ("float32", "bf16", "int8")
# Of the verb, where the file does not find the same faces.
DISAGREES = 1
# Fewer images leave ranges to chance.
FEW_CALIBRATION_IMAGES = 20


def batches_to_try(folder: Path | None) -> list[Image8]:
    """Batches (B, 3, H, W) RGB: images of several sizes one by one, a single pixel, and three together.

    ``folder``: with images, of which up to 20 are taken as they are; None: the photograph that comes with matplotlib,
    in five sizes.

    Raises:
        InputError: no image in the folder, or matplotlib came without its own.
    """
    if folder is None:
        photograph = _photograph()
        # The face, so that small images show one too.
        face = photograph[20:380, 100:420]
        images = [
            cv2.resize(photograph if height > 200 else face, (width, height), interpolation=cv2.INTER_AREA)
            for height, width in SIZES
        ]
    else:
        images = [read_image_rgb(path) for path in spread(image_files(folder, "images"), MOST_IMAGES)]
    three = cv2.resize(images[0], (320, 240), interpolation=cv2.INTER_AREA)
    # The middle one is dark: it has few faces or none, and must not shift those of the others.
    together = np.stack([three, three // 16, three[:, ::-1]])
    return [*(_nchw(image[None]) for image in images), _nchw(images[0][None, :1, :1]), _nchw(together)]


def vga(batches: Sequence[Image8]) -> Image8:
    """The first image at 640 × 480, (480, 640, 3): what speed is stated for."""
    return np.asarray(cv2.resize(batches[0][0].transpose(1, 2, 0), (640, 480), interpolation=cv2.INTER_AREA), np.uint8)


def _nchw(images: npt.NDArray[Any]) -> Image8:
    # A copy, since torch does not like pixels that cannot be written to.
    return np.array(images.transpose(0, 3, 1, 2), dtype=np.uint8, order="C")


def _photograph() -> Image8:
    try:
        return read_image_rgb(Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))))
    except (OSError, InputError) as error:
        raise InputError("this matplotlib comes without its photograph; give images=FOLDER with images") from error


def image_files(folder: Path, key: str) -> list[Path]:
    """Every image in it and below, sorted.

    Raises:
        InputError: not a directory, or no image; names ``key``.
    """
    if not folder.is_dir():
        raise InputError(f"{key}={folder} is not a directory; give one with images")
    found = sorted(folder / name for name in walk_files(folder) if has_image_extension(name))
    if not found:
        raise InputError(f"{key}={folder} holds no image; give another folder")
    return found


def spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many, evenly over the list."""
    count = min(most, len(paths))
    return [paths[k * len(paths) // count] for k in range(count)]


def trained_among(paths: Sequence[Path], parts: Sequence[TrainingImages] | None) -> list[Path]:
    """Those that are in the model's list of training images, by the end of their path."""
    ids = {image_id.removesuffix(".jpg") for part in parts or [] for image_id in part.image_ids}
    depths = {image_id.count("/") + 1 for image_id in ids}
    return [path for path in paths if any("/".join((*path.parts[-depth:-1], path.stem)) in ids for depth in depths)]


@dataclass(frozen=True)
class Exported:
    """What was found when the file was run: differences over all inputs, and median milliseconds at 640 × 480.

    ``score_floor``: of the boxes compared, where the weights are not rounded.
    """

    comparison: Comparison
    score_floor: float
    eager_ms: float
    exported_ms: float
    bytes: int
    kept: bool


def export(
    checkpoint: Path | str,
    out: Path,
    *,
    form: str = "onnx",
    dtype: str = "float32",
    detection: Mapping[str, Any] | None = None,
    opset: int = 20,
    calibration: Path | None = None,
    calibration_images: int = 100,
    images: Path | None = None,
    rounds: int = 15,
    overwrite: bool = False,
) -> Exported:
    """Write the file, run it, and keep it if it agrees with the model.

    Args:
        checkpoint: see :func:`fanet_lightning.models.pretrained.locate`.
        out: the file. It appears whole, or not at all; with float32 not where it disagrees.
        form: ``onnx``, ``torchscript`` or ``torch_export``.
        dtype: ``float32``; for onnx also ``bf16`` and ``int8``, whose differences are stated and refuse nothing.
        detection: keyword arguments of :func:`fanet_lightning.ops.postprocess.detect` in place of the model's own.
        opset: of ONNX.
        calibration, calibration_images: with int8, folder of images and how many of them are used.
        images: folder of images that both sides run on; None: a photograph in five sizes.
        rounds: calls that each speed is the median of.
        overwrite: replace ``out``.

    Raises:
        InputError: an option outside its choices, a model or image that cannot be read, a missing package.
    """
    _check(form, dtype, calibration, calibration_images, opset, rounds, out, overwrite)
    model = load_model(checkpoint)
    assert model.source is not None
    path = model.source
    settings = detection_settings(model.detection, detection)
    batches = batches_to_try(images)
    notes = metadata(name_of(path), path, model, settings, form=form, dtype=dtype)
    try:
        with replaced(out) as temporary:
            print(f"tracing {name_of(path)} for {form}, {dtype} …", flush=True)
            if form == "onnx":
                chosen = _readable(_calibration(calibration, calibration_images, model))
                content = onnx_model(model.network, settings, notes, opset=opset, dtype=dtype, calibration=chosen)
                temporary.write_bytes(content.SerializeToString())
            elif form == "torchscript":
                write_torchscript(temporary, model, settings, notes)
            else:
                write_torch_export(temporary, model, settings, notes)
            print(f"comparing in {RUNTIMES[form]} on {len(batches)} inputs, and timing …", flush=True)
            result = _tried(model, settings, batches, temporary, form, rounds, gated=dtype == "float32")
            if not result.kept:
                raise _Disagreement
    except _Disagreement:
        pass
    except OSError as error:
        raise InputError(f"out={out} cannot be written ({error.strerror or error}); give another place") from error
    return result


class _Disagreement(Exception):
    """Makes :func:`replaced` remove the file."""


def _check(
    form: str, dtype: str, calibration: Path | None, calibration_images: int, opset: int, rounds: int, out: Path,
    overwrite: bool,
) -> None:  # fmt: skip
    if form not in ENDINGS:
        raise InputError(f"format={form} is unknown; take {' or '.join(ENDINGS)}")
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype} is unknown; take {' or '.join(DTYPES)}")
    if form != "onnx" and dtype != "float32":
        raise InputError(f"dtype={dtype} is for format=onnx; format={form} takes float32")
    if dtype == "int8" and calibration is None:
        raise InputError("dtype=int8 needs calibration=FOLDER: images that set the range of the 8 bits")
    if dtype != "int8" and calibration is not None:
        raise InputError(f"calibration={calibration} is for dtype=int8; leave it out")
    for key, value in (("calibration_images", calibration_images), ("rounds", rounds)):
        if not is_whole(value, 1):
            raise InputError(f"{key}={value}; give a whole number, at least 1")
    if out.is_dir():
        raise InputError(f"out={out} is a folder; give a file")
    if out.exists() and not overwrite:
        raise InputError(f"out={out} is there already; give another out, or overwrite=true")
    check_writable(out.parent)
    if form == "onnx":
        if opset not in OPSETS:
            raise InputError(f"opset={opset}; give {OPSETS[0]} … {OPSETS[-1]}")
        need_packages()


def _calibration(folder: Path | None, count: int, model: Model) -> list[Path]:
    """The images that set the ranges of the 8 bits."""
    if folder is None:
        return []
    files = image_files(folder, "calibration")
    trained = trained_among(files, model.training_images)
    chosen = spread(trained or files, count)
    note = "all of them trained on" if trained else "do not measure AP on them"
    print(f"calibrating on {len(chosen)} images of {folder}: {note}")
    if len(chosen) < FEW_CALIBRATION_IMAGES:
        print(
            f"warning: only {counted(len(chosen), 'calibration image')}: int8 is best with "
            f"{FEW_CALIBRATION_IMAGES} or more, of the kind that it will see",
            file=sys.stderr,
        )
    return chosen


def _readable(paths: Sequence[Path]) -> Iterator[Image8]:
    """(H, W, 3) RGB, one by one; those that cannot be read are left out."""
    for path in paths:
        try:
            yield read_image_rgb(path)
        except UnreadableImage as error:
            print(f"warning: left out: {error}")


def _tried(
    model: Model, settings: Mapping[str, Any], batches: list[Any], path: Path, form: str, rounds: int, *, gated: bool
) -> Exported:
    backend = TorchBackend(fuse(model.network), detection=settings)
    run = runner(path, form)
    whole = Comparison()
    for images in batches:
        whole += compare(backend, run, images, rounded=not gated)
    image = torch.from_numpy(vga(batches).transpose(2, 0, 1).copy())[None]
    pixels = image.numpy()
    eager_ms, exported_ms = speeds(lambda: backend.find(image), lambda: run(pixels), rounds)
    return Exported(
        whole, settings["score_floor"], eager_ms, exported_ms, path.stat().st_size, whole.agrees or not gated
    )


def runner(path: Path, form: str) -> Run:
    """The file in its own runtime: (B, 3, H, W) uint8 RGB → boxes, scores, image_index, as arrays.

    Raises:
        InputError: it cannot be read.
    """
    if form == "onnx":
        return OnnxBackend.open(path, device="cpu").run
    import torchvision  # noqa: F401  as the file's own notes ask for

    jit: Any = torch.jit
    with quiet():
        module = jit.load(str(path)) if form == "torchscript" else torch.export.load(path).module()

    def call(images: Any) -> Any:
        with torch.inference_mode():
            return tuple(x.numpy() for x in module(torch.from_numpy(images)))

    return call


def summary_lines(
    result: Exported, name: str, out: Path, form: str, dtype: str, batches: str, rounds: int
) -> list[str]:
    runtime, threads = RUNTIMES[form], torch.get_num_threads()
    what = f"boxes above the floor of {result.score_floor:g}" if dtype == "float32" else f"faces of scores from {SHOWN}"
    lines = [f"compared with {runtime} on {batches}: {result.comparison.text(what)}"]
    lines.append(
        f"640×480, {threads} {'thread' if threads == 1 else 'threads'}, median of {rounds}: the model "
        f"{result.eager_ms:.1f} ms, {runtime} {result.exported_ms:.1f} ms, "
        f"{result.eager_ms / result.exported_ms:.2f} × as fast"
    )
    if not result.kept:
        return lines
    if dtype != "float32":
        lines.append(f"{dtype} has its price: python -m fanet_lightning.evaluate checkpoint={out} data=… measures AP")
    if form != "onnx":
        lines.append("import torchvision before loading it: it holds torchvision's NMS")
    return [*lines, f"written: {out}, {name} as {form}, {dtype}, {result.bytes / 1e6:.1f} MB"]
