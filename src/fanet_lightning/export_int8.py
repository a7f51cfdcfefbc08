"""The network of an ONNX file in 8 bits: onnxruntime's static quantisation, ranges from calibration images."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fanet_lightning.errors import InputError
from fanet_lightning.export_graph import quiet
from fanet_lightning.export_metadata import INPUT_NAME

# Where HeadsGraph keeps the heads: what their convolutions' weights are called in the graph.
HEADS_PREFIX = "network.heads."
# Convolutions at the beginning that stay in float32. With the shipped model, the first one alone leaves errors of 0.118
# in the offsets, two 0.083, three 0.068, four 0.064 (root mean square), at no measurable time.
FLOAT_FIRST = 3


def quantised(model: Any, images: Iterable[npt.NDArray[np.uint8]]) -> Any:
    """Convolutions in 8 bits (weights per channel, signed; activations unsigned), as QuantizeLinear/DequantizeLinear.

    In float32 stay the first convolutions, whose errors all others inherit, and those of the heads: their outputs are
    scores and offsets, for which 255 steps are too few.

    Args:
        model: uint8 images → heads, an ``onnx.ModelProto``.
        images: (H, W, 3) RGB, of the kind that the network will see. The range of an activation is the mean of
            the images' ranges.

    Raises:
        InputError: no image.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One image at a time."""

        def __init__(self) -> None:
            self.count = 0
            self._images: Iterator[npt.NDArray[np.uint8]] = iter(images)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            image = next(self._images, None)
            if image is None:
                return None
            self.count += 1
            return {INPUT_NAME: np.ascontiguousarray(image.transpose(2, 0, 1))[None]}

    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    inner = [node for node in convolutions[FLOAT_FIRST:] if not node.input[1].startswith(HEADS_PREFIX)]
    reader = Reader()
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            quantize_static(
                source, target, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                # Seven bits of the weights: processors without VNNI add pairs of products in 16 bits, which eight
                # overflow.
                reduce_range=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                op_types_to_quantize=["Conv"], nodes_to_quantize=[node.name for node in inner],
                # The mean over the images of each one's least and largest value: the least and largest of all belong
                # to single cells of one image, and with them half of the steps are never used.
                extra_options={"CalibMovingAverage": True},
            )  # fmt: skip
        except ValueError as error:
            if reader.count:
                raise
            raise InputError("dtype=int8: no calibration image; give calibration=FOLDER with images") from error
        return onnx.load(target)
