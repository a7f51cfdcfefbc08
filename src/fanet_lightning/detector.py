"""From a checkpoint to faces in an image: the Python API.

>>> detector = FaceDetector.from_checkpoint("best.ckpt")        # doctest: +SKIP
>>> detector.detect(image_rgb).boxes_xyxy                       # doctest: +SKIP
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.boxes import clip
from fanet_lightning.data.resize import TestScale
from fanet_lightning.errors import InputError
from fanet_lightning.multiscale import MultiScale
from fanet_lightning.net.build import build_network
from fanet_lightning.postprocess import detect
from fanet_lightning.structures import Detections


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ``train`` as plain containers and tensors; code inside it is never executed.

    Raises:
        InputError: no such file, not a checkpoint, or one of another program.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give a .ckpt file that train has written")
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        # torch's own text runs over many lines and advises to switch the safe loading off.
        raise InputError(f"{path} is not a readable checkpoint; give a .ckpt file that train has written") from error
    hyper_parameters = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hyper_parameters, dict) or "network" not in hyper_parameters or "state_dict" not in checkpoint:
        raise InputError(f"{path} is a checkpoint, but not one of fanet_lightning.train: it names no network")
    return dict(checkpoint)


def network_from_checkpoint(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its trained (where EMA was on: averaged) weights, and the hyper-parameters of its training.

    Raises:
        InputError: as :func:`read_checkpoint`, or weights that do not fit the configuration stored beside them.
    """
    checkpoint = read_checkpoint(path)
    hyper_parameters = checkpoint["hyper_parameters"]
    network = build_network(**hyper_parameters["network"])
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: the weights do not fit the configuration stored with them ({reason})") from error
    return network.eval(), hyper_parameters


class FaceDetector:
    """A trained network with its test-time settings.

    Args:
        network: what :func:`build_network` made; takes uint8 RGB.
        device: where it runs.
        detection: keyword arguments of :func:`fanet_lightning.postprocess.detect`.
        precision: ``32-true`` or ``bf16-mixed``.
        source: the checkpoint that the network came from, for the record.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str = "cpu",
        detection: Mapping[str, Any] | None = None,
        precision: str = "32-true",
        source: Path | None = None,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.device = torch.device(device)
        self.detection = dict(detection or {})
        self.precision = precision
        self.source = source

    @classmethod
    def from_checkpoint(cls, path: Path | str, **options: Any) -> Self:
        """Load a checkpoint of ``train``. ``options`` go to the constructor.

        Raises:
            InputError: see :func:`network_from_checkpoint`.
        """
        path = Path(path)
        network, hyper_parameters = network_from_checkpoint(path)
        options.setdefault("detection", hyper_parameters.get("detection"))
        return cls(network, source=path, **options)

    def detect(self, image_rgb: npt.NDArray[np.uint8], scale: TestScale | MultiScale | None = None) -> Detections:
        """Faces of one image.

        Args:
            image_rgb: (H, W, 3) uint8, RGB.
            scale: the test scale, or several; None takes the image as it is (protocol ``original``).

        Returns:
            Boxes in pixels of ``image_rgb``, clipped to it, float32; scores in descending order.

        Raises:
            ValueError: an array of another shape or type.
        """
        if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
            raise ValueError(f"image_rgb must be (H, W, 3) uint8, not {image_rgb.shape} {image_rgb.dtype}")
        if isinstance(scale, MultiScale):
            return scale.detect(self, image_rgb)[0]
        resized, scale_xy = (scale or TestScale(kind="original"))(image_rgb)
        images = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))[None]
        return self.detect_resized(images, torch.as_tensor(scale_xy)[None], image_rgb.shape[0], image_rgb.shape[1])

    def detect_resized(self, images: torch.Tensor, scale_xy: torch.Tensor, height: int, width: int) -> Detections:
        """As :meth:`detect`, for an image (1, 3, h, w) uint8 that already has test scale ``scale_xy`` (1, 2)."""
        found = self.find(images)
        boxes_xyxy = found.boxes_xyxy / scale_xy[0].to(found.boxes_xyxy.dtype).repeat(2)
        return Detections(clip(boxes_xyxy, height, width), found.scores)

    @torch.inference_mode()
    def find(self, images: torch.Tensor) -> Detections:
        """Faces of one image (1, 3, h, w) uint8 in its own pixels, not clipped to it, on the CPU."""
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            output = self.network(images)
        grid = AnchorGrid(tuple((rows, columns) for rows, columns in output.map_shapes))
        found = detect(output, grid, **self.detection)[0]
        return Detections(found.boxes_xyxy.cpu(), found.scores.cpu())
