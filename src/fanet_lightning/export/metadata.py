"""What an exported file says of itself: its input, its outputs, its settings, where it comes from and on what terms.

In an ONNX file these are metadata properties, in torch's files an extra file ``fanet_lightning.json``.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from fanet_lightning.cli.device import bytes_per_pixel
from fanet_lightning.cli.files import file_sha256
from fanet_lightning.cli.provenance import to_plain
from fanet_lightning.detect.detector import FORMAT_VERSION, INPUT_NAME, PREFIX
from fanet_lightning.models.blocks import fuse
from fanet_lightning.models.pretrained import CARD_FILE, Model, weights_file


def metadata(
    name: str, path: Path, model: Model, detection: Mapping[str, Any], *, form: str, dtype: str
) -> dict[str, str]:
    """By keys that begin with ``fanet_lightning.``; what is no text is JSON.

    Args:
        name: of the model.
        path: what :func:`fanet_lightning.models.pretrained.locate` gave.
        model: what was read there.
        detection: the settings inside the graph.
        form: ``onnx``, ``torchscript`` or ``torch_export``.
        dtype: ``float32`` or ``int8``.
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
        "bytes_per_pixel": str(bytes_per_pixel(fuse(model.network), torch.device("cpu"))),
        "model_sha256": file_sha256(weights_file(path)),
        "package_version": version("fanet-lightning"),
        "license": terms(path, model),
        "training_images": listed,
        "training_images_sha256": hashlib.sha256(listed.encode()).hexdigest() if images is not None else "unknown",
    }
    if form != "onnx":
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
    if data == ["synthetic"]:
        return "mit"
    return f"other: on the terms of the training images ({', '.join(data) or 'unknown'})"
