"""The detection graph as an ONNX file of standard operators, also in 8 bits.

The network is written by torch's exporter, the rest here. What follows the heads is in ONNX's own text form, since its
operators fit postprocess.detect exactly: TopK puts the lower index first at equal values, NonMaxSuppression works image
by image.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fanet_lightning.detect.detector import INPUT_NAME, PREFIX
from fanet_lightning.export.graph import HeadsGraph, any_size, example_images, quiet

# Where HeadsGraph keeps the heads: what their convolutions' weights are called in the graph.
HEADS_PREFIX = "network.heads."
# Convolutions at the beginning that stay in float32. With the shipped model, the first one alone leaves errors of 0.118
# in the offsets, two 0.083, three 0.068, four 0.064 (root mean square), at no measurable time.
FLOAT_FIRST = 3


def quantized(model: Any, images: Iterable[npt.NDArray[np.uint8]]) -> Any:
    """Convolutions in 8 bits (weights per channel, signed; activations unsigned), as QuantizeLinear/DequantizeLinear.

    In float32 stay the first convolutions, whose errors all others inherit, and those of the heads: their outputs are
    scores and offsets, for which 255 steps are too few. ``model``: uint8 images → heads, an ``onnx.ModelProto``;
    ``images``: (H, W, 3) RGB, of the kind that the network will see.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        batches = ({INPUT_NAME: np.ascontiguousarray(image.transpose(2, 0, 1))[None]} for image in images)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            return next(self.batches, None)

    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    inner = [node for node in convolutions[FLOAT_FIRST:] if not node.input[1].startswith(HEADS_PREFIX)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            # Seven bits of the weights: processors without VNNI add pairs of products in 16 bits, which eight overflow.
            reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"], nodes_to_quantize=[node.name for node in inner],
            # The mean over the images of each one's least and largest value: the least and largest of all belong to
            # single cells of one image, and with them half of the steps are never used.
            extra_options={"CalibMovingAverage": True},
        )  # fmt: skip
        return onnx.load(target)


# What torch's exporter writes and onnxruntime reads; the operators used here are all older.
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
_HEADS = ("heads_scores", "heads_offsets", "heads_anchors")
# ln 1000 and SSD's variances: see fanet_lightning.ops.boxes.decode.
_FACES = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
faces (float[batch, anchors] in_scores, float[batch, anchors, 4] in_offsets, float[anchors, 4] in_anchors)
    => (float[faces, 4] boxes_xyxy, float[faces] scores, int64[faces] image_index)
<float floor = {{{floor}}}, float dropped = {{-1.0}}, float none = {{-0.5}}, float iou = {{{iou}}}, float inf = {{inf}},
 int64[1] top_k = {{{top_k}}}, int64 keep = {{{keep}}}, int64[1] one = {{1}}, int64[1] last = {{-1}},
 int64 first_column = {{0}}, int64[2] image_and_box = {{0, 2}}, int64[2] halves = {{2, 2}},
 float variance_center = {{0.1}}, float variance_size = {{0.2}}, float two = {{2.0}}, float largest_log = {{6.907755}}>
{{
    passed = GreaterOrEqual (in_scores, floor)
    candidates = Where (passed, in_scores, dropped)
    shape = Shape (in_scores)
    count = Gather <axis = 0> (shape, one)
    k = Min (count, top_k)
    best_scores, best = TopK <axis = 1> (candidates, k)
    best_column = Unsqueeze (best, last)
    offsets = GatherND <batch_dims = 1> (in_offsets, best_column)
    anchors = Gather <axis = 0> (in_anchors, best)
    shift, log_size = Split <axis = 2> (offsets, halves)
    center, side = Split <axis = 2> (anchors, halves)
    shift_scaled = Mul (shift, variance_center)
    shift_pixels = Mul (shift_scaled, side)
    box_center = Add (center, shift_pixels)
    log_scaled = Mul (log_size, variance_size)
    log_capped = Min (log_scaled, largest_log)
    factor = Exp (log_capped)
    box_side = Mul (side, factor)
    half = Div (box_side, two)
    low = Sub (box_center, half)
    high = Add (box_center, half)
    boxes = Concat <axis = 2> (low, high)
    magnitude = Abs (boxes)
    finite_corner = Less (magnitude, inf)
    finite_number = Cast <to = 1> (finite_corner)
    finite_least = ReduceMin <keepdims = 0> (finite_number, last)
    finite = Cast <to = 9> (finite_least)
    nms_scores = Where (finite, best_scores, dropped)
    nms_classes = Unsqueeze (nms_scores, one)
    selected = NonMaxSuppression (boxes, nms_classes, keep, iou, none)
    pairs = Gather <axis = 1> (selected, image_and_box)
    boxes_xyxy = GatherND (boxes, pairs)
    scores = GatherND (best_scores, pairs)
    image_index = Gather <axis = 1> (selected, first_column)
}}
"""


def onnx_model(
    network: nn.Module,
    detection: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    opset: int = DEFAULT_OPSET,
    dtype: str = "float32",
    calibration: Iterable[npt.NDArray[np.uint8]] = (),
) -> Any:
    """The file's content, an ``onnx.ModelProto``.

    Args:
        network: as :func:`fanet_lightning.models.blocks.fuse` gives it, on the CPU.
        detection: all four settings of :func:`fanet_lightning.ops.postprocess.detect`.
        metadata: what the file says of itself.
        opset: one of :data:`OPSETS`.
        dtype: ``float32``, or ``int8``: see :func:`quantized`, which takes ``calibration``.
    """
    import onnx
    from onnx.compose import merge_models

    heads = _heads_model(network, opset)
    if dtype == "int8":
        heads = quantized(heads, calibration)
    faces = _faces_model(heads, opset, detection)
    merged = merge_models(
        heads, faces, io_map=list(zip(_HEADS, ("in_scores", "in_offsets", "in_anchors"), strict=True))
    )
    _tidy(merged, metadata)
    onnx.checker.check_model(merged)
    return merged


def write_openvino(path: Path, content: bytes) -> None:
    """Write an ONNX file of :func:`onnx_model` as OpenVINO's ``.xml`` and ``.bin``, its metadata as JSON in rt_info."""
    import onnx
    import openvino

    model = openvino.Core().read_model(content)
    entries = {entry.key: entry.value for entry in onnx.load_model_from_string(content).metadata_props}
    model.set_rt_info(json.dumps(entries, ensure_ascii=False), PREFIX.rstrip("."))
    # By default it would round the weights to float16.
    openvino.save_model(model, path, compress_to_fp16=False)


def _heads_model(network: nn.Module, opset: int) -> Any:
    """uint8 images → scores, offsets and anchors."""
    graph = HeadsGraph(network, channels_last=False).eval()
    dynamic = {INPUT_NAME: {0: "batch", 2: "height", 3: "width"}}
    with quiet(), any_size(), torch.no_grad():
        program = torch.onnx.export(
            graph, (example_images(),), dynamo=True, verbose=False, dynamic_shapes=dynamic, opset_version=opset,
            input_names=[INPUT_NAME], output_names=list(_HEADS),
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _faces_model(heads: Any, opset: int, detection: Mapping[str, Any]) -> Any:
    import onnx

    floor, iou = repr(float(np.float32(detection["score_floor"]))), repr(_float32_below(detection["nms_iou"]))
    counts = {key: int(detection[key]) for key in ("top_k", "keep")}
    return onnx.parser.parse_model(
        _FACES.format(ir_version=heads.ir_version, opset=opset, floor=floor, iou=iou, **counts)
    )


def _float32_below(value: float) -> float:
    """The largest float32 that is not above ``value``: an IoU in float32 exceeds the one when it exceeds the other."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))


def _tidy(model: Any, metadata: Mapping[str, str]) -> None:
    """Metadata and producer set; the exporter's notes, which name files of this machine, removed."""
    import onnx

    graph = model.graph
    graph.name, model.producer_name = "fanet_lightning", "fanet_lightning"
    model.producer_version = metadata.get(f"{PREFIX}package_version", "")
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    # Both halves have stated the same one.
    opset = max(entry.version for entry in model.opset_import if not entry.domain)
    del model.opset_import[:]
    model.opset_import.add(domain="", version=opset)
    # Shapes between are for reading only, and the exporter's formulas are long.
    del graph.value_info[:], graph.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
