"""Exporting a model: a file, tried on images before it is kept.

The file takes uint8 RGB pixels of any batch and size and gives faces (:mod:`fanet_lightning.export.graph`). It is run
once written, in its own runtime, and stays only where it finds the same faces as the model.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from matplotlib import cbook
from torch import nn

from fanet_lightning.cli.device import bytes_per_pixel
from fanet_lightning.cli.errors import check, counted, import_extra
from fanet_lightning.cli.files import check_writable, file_sha256, has_image_extension, walk_files
from fanet_lightning.cli.provenance import to_plain
from fanet_lightning.data.images import Image8, read_image_rgb
from fanet_lightning.detect.detector import FORMAT_VERSION, INPUT_NAME, PREFIX, ExportBackend, TorchBackend
from fanet_lightning.export.graph import quiet, write_torch
from fanet_lightning.export.onnx_graph import DEFAULT_OPSET, OPSETS, onnx_model, write_openvino
from fanet_lightning.export.verify import BOX_LIMIT, SCORE_LIMIT, Comparison, Run, compare, speeds
from fanet_lightning.models.blocks import fuse
from fanet_lightning.models.pretrained import CARD_FILE, Model, load_model, name_of, weights_file
from fanet_lightning.ops.postprocess import detection_settings


def metadata(
    name: str, path: Path, model: Model, fused: nn.Module, detection: Mapping[str, Any], *, form: str, dtype: str
) -> dict[str, str]:
    """What the file says of itself: keys that begin with ``fanet_lightning.``; what is no text is JSON.

    ``path`` of the model, which was read there; ``fused``: its network; ``detection``: the settings inside the graph;
    ``form``: the format.
    """
    images = None if model.training_images is None else to_plain(model.training_images)
    listed = json.dumps(images, ensure_ascii=False)
    entries = {
        "format_version": str(FORMAT_VERSION),
        "name": name,
        "input": f"{INPUT_NAME}: uint8 RGB, 0…255, (batch, 3, height, width), any batch, height and width",
        "outputs": (
            "boxes_xyxy: float32 (faces, 4), x1 y1 x2 y2 in pixels of the input, not clipped to it; "
            "scores: float32 (faces,), 0…1; image_index: int64 (faces,), the image of the batch; "
            "image by image, scores descending"
        ),
        "class_names": json.dumps(["face"]),
        "detection": json.dumps(dict(detection)),
        "network": json.dumps(model.network_options),
        "graph": form,
        "dtype": dtype,
        "bytes_per_pixel": str(bytes_per_pixel(fused, torch.device("cpu"))),
        "model_sha256": file_sha256(weights_file(path)),
        "package_version": version("fanet-lightning"),
        "license": terms(path, model),
        "training_images": listed,
        "training_images_sha256": hashlib.sha256(listed.encode()).hexdigest() if images is not None else "unknown",
    }
    if form in ("torchscript", "torch_export"):
        entries["needs"] = "import torchvision before loading: the graph calls torchvision::nms"
    return {PREFIX + key: value for key, value in entries.items()}


def terms(path: Path, model: Model) -> str:
    """The license of the weights: the model card's, else what follows from the training images."""
    card = path / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    if isinstance(head, dict) and "license" in head:
        return " ".join(str(head[key]) for key in ("license", "license_name", "license_link") if key in head)
    data = sorted({part.data or "unknown" for part in model.training_images or []})
    named = ", ".join(data) or "unknown"
    return "mit" if data == ["synthetic"] else f"other: on the terms of the training images ({named})"


# (height, width): an ordinary one, odd ones, one whose deepest maps are a single cell, one smaller than most anchors.
SIZES = ((600, 512), (480, 640), (217, 333), (129, 128), (33, 40))
# As many as a person waits for.
MOST_IMAGES = 20
# Format → ending of its files, and its runtime.
FORMATS = {
    "onnx": (".onnx", "onnxruntime"), "openvino": (".xml", "OpenVINO"), "torchscript": (".torchscript.pt", "torch.jit"),
    "torch_export": (".pt2", "torch.export"),
}  # fmt: skip
DTYPES = ("float32", "int8")


def export(
    checkpoint: Path | str, out: Path | None = None, *, form: str = "onnx", dtype: str = "float32",
    detection: Mapping[str, Any] | None = None, opset: int = DEFAULT_OPSET, calibration: Path | None = None,
    calibration_images: int = 100, images: Path | None = None, rounds: int = 15, overwrite: bool = False,
) -> None:  # fmt: skip
    """Write the file, run it, keep it if it agrees with the model, and print what was found.

    Args:
        form: the ``format`` of ``conf/export.yaml``, which says what it and all others are.
        out: appears whole, or not at all.

    Raises:
        InputError: an option outside its choices, a model or image that cannot be read, a missing package; or the file
            finds other faces than the model.
    """
    is_onnx = form in ("onnx", "openvino")
    check(form in FORMATS, f"format={form} is unknown; take {' or '.join(FORMATS)}")
    dtypes = DTYPES if form == "onnx" else DTYPES[:1]
    check(dtype in dtypes, f"dtype={dtype}: format=onnx takes {' or '.join(DTYPES)}, the others float32")
    needed = "dtype=int8 needs calibration=FOLDER: images that set the range of the 8 bits"
    check(dtype != "int8" or calibration, needed)
    check(not is_onnx or opset in OPSETS, f"opset={opset}; give {OPSETS[0]} … {OPSETS[-1]}")
    check(calibration is None or dtype == "int8", f"calibration={calibration} is for dtype=int8; leave it out")
    fits = not is_onnx or out is None or out.suffix.lower() == FORMATS[form][0]
    check(fits, f"out={out}: format={form} writes a file that ends in {FORMATS[form][0]}")
    for package in ("onnx", "onnxruntime", "onnxscript") if is_onnx else ():
        import_extra(package, f"format={form}", "openvino" if form == "openvino" else "export")
    if form == "openvino":
        import_extra("openvino", f"format={form}", "openvino")
    model = load_model(checkpoint)
    assert model.source is not None
    name = name_of(model.source)
    ending, runtime = FORMATS[form]
    if out is None:
        out = Path("outputs/export") / f"{name}{'' if dtype == 'float32' else f'.{dtype}'}{ending}"
    for file in (out, out.with_suffix(".bin")) if form == "openvino" else (out,):
        is_free = not file.exists() or (overwrite and file.is_file())
        check(is_free, f"out={file} is there already; give another out, or overwrite=true for a file")
    check_writable(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = detection_settings(model.detection, detection)
    batches = batches_to_try(images)
    network = fuse(model.network).requires_grad_(False)
    notes = metadata(name, model.source, model, network, settings, form=form, dtype=dtype)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        temporary = Path(folder) / out.name
        print(f"tracing {name} for {form}, {dtype} …", flush=True)
        if is_onnx:
            files = [] if calibration is None else image_files(calibration, "calibration", calibration_images)
            chosen = (read_image_rgb(path) for path in files)
            content = onnx_model(network, settings, notes, opset=opset, dtype=dtype, calibration=chosen)
            write_onnx = write_openvino if form == "openvino" else Path.write_bytes
            write_onnx(temporary, content.SerializeToString())
        else:
            write_torch(temporary, network, settings, notes, scripted=form == "torchscript")
        print(f"comparing in {runtime} on {len(batches)} inputs, and timing …", flush=True)
        backend, run = TorchBackend(network, detection=settings), runner(temporary, form)
        if dtype == "float32":
            found = sum((compare(backend, run, batch) for batch in batches), Comparison())
            tried = f"images of {images}" if images else "a photograph in five sizes, a pixel and a batch of three"
            print(
                f"compared with {runtime} on {tried}: {found.faces:,} boxes above the floor of "
                f"{settings['score_floor']:g}, boxes differ by at most {found.box:.2g} px, scores by {found.score:.2g}"
            )
            limits = f"limits: {BOX_LIMIT} px, {SCORE_LIMIT:g} in score"
            said = f"{runtime} does not find the same faces ({found.alone} by one side alone; {limits})"
            check(found.agrees, f"{said}; {out} was not written")
        vga = _resized(batches[0][0].transpose(1, 2, 0), 640, 480)  # what speed is stated for
        pixels = np.ascontiguousarray(vga.transpose(2, 0, 1))[None]
        eager_ms, exported_ms = speeds(lambda: backend.find(torch.from_numpy(pixels)), lambda: run(pixels), rounds)
        written = sorted(Path(folder).iterdir())  # of OpenVINO's two files the weights first
        size = sum(file.stat().st_size for file in written)
        for file in written:
            file.replace(out.parent / file.name)
    print(
        f"640×480, {counted(torch.get_num_threads(), 'thread')}, median of {rounds}: the model {eager_ms:.1f} ms, "
        f"{runtime} {exported_ms:.1f} ms, {eager_ms / exported_ms:.2f} × as fast"
    )
    if dtype != "float32":
        print(f"{dtype} finds other faces: fanet evaluate checkpoint={out} data=… measures AP")
    if not is_onnx:
        print("import torchvision before loading it: it holds torchvision's NMS")
    print(f"written: {out}, {name} as {form}, {dtype}, {size / 1e6:.1f} MB")


def batches_to_try(folder: Path | None) -> list[Image8]:
    """Batches (B, 3, H, W) RGB: images one by one, a single pixel, and three together.

    Up to 20 images of ``folder`` as they are; None: the photograph that comes with matplotlib, in five sizes.
    """
    if folder is None:
        photograph = read_image_rgb(Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))))
        # The face, so that small images show one too.
        face = photograph[20:380, 100:420]
        images = [_resized(photograph if height > 200 else face, width, height) for height, width in SIZES]
    else:
        images = [read_image_rgb(path) for path in image_files(folder, "images", MOST_IMAGES)]
    three = _resized(images[0], 320, 240)
    # The middle one is dark: it has few faces or none, and must not shift those of the others.
    together = np.stack([three, three // 16, three[:, ::-1]])
    batches = [*(image[None] for image in images), images[0][None, :1, :1], together]
    # Copies, since torch does not like pixels that cannot be written to.
    return [np.array(batch.transpose(0, 3, 1, 2), dtype=np.uint8, order="C") for batch in batches]


def _resized(image: Image8, width: int, height: int) -> Image8:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def image_files(folder: Path, key: str, most: int) -> list[Path]:
    """At most so many images in it and below, evenly over their sorted list; InputError: none, names ``key``."""
    found = sorted(folder / name for name in walk_files(folder) if has_image_extension(name))
    check(found, f"{key}={folder} has no images; give a folder with some")
    count = min(most, len(found))
    return [found[k * len(found) // count] for k in range(count)]


def runner(path: Path, form: str) -> Run:
    """The file in its own runtime: (B, 3, H, W) uint8 RGB → boxes, scores, image_index, as arrays."""
    if form in ("onnx", "openvino"):
        return ExportBackend.open(path, device="cpu").run
    import torchvision  # noqa: F401  as the file's own notes ask for

    jit: Any = torch.jit
    with quiet():
        module = jit.load(str(path)) if form == "torchscript" else torch.export.load(path).module()

    def call(images: Any) -> Any:
        with torch.inference_mode():
            return tuple(x.numpy() for x in module(torch.from_numpy(images)))

    return call
