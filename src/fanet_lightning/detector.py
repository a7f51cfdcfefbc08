"""From a checkpoint or a model given away to faces in an image: the Python API.

>>> detector = FaceDetector.from_pretrained()                   # doctest: +SKIP
>>> detector.detect(image_rgb).boxes_xyxy                       # doctest: +SKIP
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fanet_lightning.anchors import AnchorGrid
from fanet_lightning.boxes import clip
from fanet_lightning.data.resize import TestScale
from fanet_lightning.errors import InputError, first_line
from fanet_lightning.memory import SHARE, available_bytes, bytes_per_pixel, free_cached, is_out_of_memory
from fanet_lightning.multiscale import Found, MultiScale
from fanet_lightning.net.activation_memory import keep_activation_memory
from fanet_lightning.net.blocks import fuse
from fanet_lightning.net.build import Network
from fanet_lightning.postprocess import detect
from fanet_lightning.pretrained import DEFAULT_MODEL, Model, locate, network_with, read_model
from fanet_lightning.structures import Detections, NetworkOutput
from fanet_lightning.tiled_heads import find_in_tiles
from fanet_lightning.tiles import AUTO, SMALLEST_TILE_PIXELS, Tile, TilePixels, tiles
from fanet_lightning.training_images import TrainingImages, images_of


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ``train`` as plain containers and tensors; code inside it is never executed.

    Raises:
        InputError: no such file, not a checkpoint, or one of another program.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give a .ckpt file that train has written")
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    # What the unpickler meets in a file of something else depends on its bytes: any of a dozen kinds.
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, LookupError, TypeError,
            AttributeError) as error:  # fmt: skip
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


class FaceDetector:
    """A trained network with its test-time settings.

    Args:
        network: what :func:`build_network` made; takes uint8 RGB.
        device: where it runs. On a CPU the process keeps up to 1 GiB of freed memory from then on
            (:mod:`fanet_lightning.net.activation_memory`): a pass is a fifth faster.
        detection: keyword arguments of :func:`fanet_lightning.postprocess.detect`.
        precision: ``32-true`` or ``bf16-mixed``.
        source: the checkpoint or model folder that the network came from, for the record.
        network_options: what ``build_network`` made the network with, for the record.
        training_images: what it was trained on; None where that is not known.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str = "cpu",
        detection: Mapping[str, Any] | None = None,
        precision: str = "32-true",
        source: Path | None = None,
        network_options: Mapping[str, Any] | None = None,
        training_images: Sequence[TrainingImages] | None = None,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_activation_memory()
        self.detection = dict(detection or {})
        self.precision = precision
        self.source = source
        self.network_options = None if network_options is None else dict(network_options)
        self.training_images = training_images
        # Pixels that have run out of memory once are not tried again.
        self._refused_pixels: int | None = None
        self._bytes_per_pixel: float | None = None

    @classmethod
    def from_checkpoint(cls, path: Path | str, **options: Any) -> Self:
        """Load a checkpoint of ``train``; as :meth:`from_pretrained`, which also takes one.

        Raises:
            InputError: see :func:`load_model`.
        """
        return cls.from_pretrained(path, **options)

    @classmethod
    def from_pretrained(cls, model: Path | str = DEFAULT_MODEL, **options: Any) -> Self:
        """Load a trained model, its batch normalisation folded into the convolutions.

        Args:
            model: the name of a shipped model, a model's folder, ``organisation/name`` on the Hugging Face hub, or a
                checkpoint of ``train``; see :func:`fanet_lightning.pretrained.locate`.
            options: to the constructor.

        Raises:
            InputError: see :func:`load_model`.
        """
        path = locate(model)
        loaded = load_model(path)
        options.setdefault("detection", loaded.detection)
        options = {"network_options": loaded.network_options, "training_images": loaded.training_images, **options}
        return cls(fuse(loaded.network), source=path, **options)

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
        scale = scale or TestScale(kind="original")
        resized, scale_xy = scale(image_rgb)
        # The one copy of a large picture that is made: its bytes, channels first.
        images = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))[None]
        height, width = image_rgb.shape[:2]
        return self.detect_resized(images, torch.as_tensor(scale_xy)[None], height, width, scale.tile_pixels).detections

    def detect_resized(
        self, images: torch.Tensor, scale_xy: torch.Tensor, height: int, width: int, tile_pixels: TilePixels = AUTO
    ) -> Found:
        """As :meth:`detect`, for an image (1, 3, h, w) uint8 that already has test scale ``scale_xy`` (1, 2)."""
        found, count = self.find(images, tile_pixels)
        boxes_xyxy = found.boxes_xyxy / scale_xy[0].to(found.boxes_xyxy.dtype).repeat(2)
        return Found(Detections(clip(boxes_xyxy, height, width), found.scores), count)

    def find(self, images: torch.Tensor, tile_pixels: TilePixels = AUTO) -> Found:
        """Faces of one image (1, 3, h, w) uint8 in its own pixels, not clipped to it, on the CPU.

        An image of more than ``tile_pixels`` pixels (``auto``: of more than fit into memory) is computed in tiles,
        which give the same faces (:mod:`fanet_lightning.tiled_heads`). Where memory runs out all the same, tiles become
        smaller, and stay so for the images that follow.

        Raises:
            InputError: not even the smallest tile fits; or, with ``tile_pixels`` None, not the image.
        """
        height, width = images.shape[-2:]
        while True:
            parts = tiles(height, width, self._limit(tile_pixels))
            outcome = self._tried(images, parts)
            if isinstance(outcome, Detections):
                return Found(outcome, len(parts))
            free_cached(self.device)
            largest = max(part.pixels for part in parts)
            size = f"an image of {height} × {width} pixels at test scale"
            if tile_pixels is None:
                raise InputError(f"{size} does not fit into memory ({outcome}); set protocol.tile_pixels=auto")
            if largest <= SMALLEST_TILE_PIXELS:
                raise InputError(
                    f"{size} does not fit into memory, not even in tiles of {largest:,} pixels ({outcome}); free "
                    "memory on the device, or take another one"
                )
            self._refused_pixels = largest

    def _limit(self, tile_pixels: TilePixels) -> int | None:
        if tile_pixels is None:
            return None
        limits = [tile_pixels] if isinstance(tile_pixels, int) else []
        if self._refused_pixels is not None:
            limits.append(self._refused_pixels // 2)
        elif tile_pixels == AUTO:
            limits.extend(self._pixels_in_memory())
        return max(SMALLEST_TILE_PIXELS, min(limits)) if limits else None

    def _pixels_in_memory(self) -> list[int]:
        """One number, or none where the memory is not known."""
        available = available_bytes(self.device)
        if available is None:
            return []
        if self._bytes_per_pixel is None:
            try:
                bf16 = self.precision == "bf16-mixed"
                self._bytes_per_pixel = bytes_per_pixel(self.network, self.device, autocast_bf16=bf16)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return []  # the image itself will say so
        return [int(available * SHARE / self._bytes_per_pixel)] if self._bytes_per_pixel else []

    def _tried(self, images: torch.Tensor, parts: Sequence[Tile]) -> Detections | str:
        """The faces, or the first line of what was said when memory ran out.

        The exception itself ends here: it would hold on to the tensors of the failed try.
        """
        try:
            return self._find(images, parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return first_line(error)

    @torch.inference_mode()
    def _find(self, images: torch.Tensor, parts: Sequence[Tile]) -> Detections:
        if len(parts) > 1:
            found = find_in_tiles(self._heads, images, parts, self.detection)
        else:
            output = self._heads(images)
            grid = AnchorGrid(tuple((rows, columns) for rows, columns in output.map_shapes))
            found = detect(output, grid, **self.detection)[0]
        return Detections(found.boxes_xyxy.cpu(), found.scores.cpu())

    def _heads(self, images: torch.Tensor) -> NetworkOutput:
        images = images.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            output: NetworkOutput = self.network(images)
        return output
