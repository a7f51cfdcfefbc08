"""The detection graph in torch's own files: TorchScript, and a program of ``torch.export``.

Both call ``torchvision::nms``, so whoever loads them imports torchvision first; nothing else of this package is needed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fanet_lightning.export.graph import DetectionGraph, any_size, example_images, for_export, quiet
from fanet_lightning.export.metadata import EXTRA_FILE
from fanet_lightning.models.pretrained import Model


def write_torchscript(path: Path, model: Model, settings: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """
    Args:
        path: the file; ``torch.jit.load`` reads it.
        model: in evaluation mode.
        settings: all four of :func:`fanet_lightning.ops.postprocess.detect`.
        notes: what the file says of itself.
    """
    graph = DetectionGraph(for_export(model.network, plain_heads=False), settings, channels_last=True).eval()
    jit: Any = torch.jit
    with quiet(), torch.no_grad():
        traced = jit.freeze(jit.trace(graph, example_images(), check_trace=False).eval())
        jit.save(traced, str(path), _extra_files={EXTRA_FILE: json.dumps(dict(notes))})


def write_torch_export(path: Path, model: Model, settings: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """As :func:`write_torchscript`; ``torch.export.load(path).module()`` reads it."""
    import torchvision  # noqa: F401  torch.export asks it for the shapes of its NMS

    graph = DetectionGraph(for_export(model.network, plain_heads=True), settings, channels_last=False).eval()
    dynamic = torch.export.Dim.DYNAMIC
    with quiet(), any_size(), torch.no_grad():
        program = torch.export.export(
            graph, (example_images(),), dynamic_shapes={"images": {0: dynamic, 2: dynamic, 3: dynamic}}
        )
        # Else the file holds the images that it was recorded with.
        program.example_inputs = None
        torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(dict(notes))})
