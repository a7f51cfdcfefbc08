"""Where each public name is today: the one table to change when modules move."""

import importlib
from typing import Any

PACKAGE = "fanet_lightning"
# Verb → name of its configuration; ``fanet VERB`` runs it.
VERBS = {
    name: name for name in ("app", "convert", "detect", "doctor", "evaluate", "export", "package", "plot", "report",
                            "score", "train", "workspace")
}  # fmt: skip
PUBLIC = {
    "AnchorGrid": "ops.anchors",
    "Batch": "ops.structures",
    "CocoAP": "evaluate.metrics",
    "Detections": "ops.structures",
    "FANet": "models.fanet",
    "FaceDataModule": "data.datamodule",
    "FaceDetectionModule": "train.module",
    "FaceDetector": "",
    "FddbRoc": "evaluate.metrics",
    "HeadOutput": "ops.structures",
    "HierarchicalLoss": "ops.hierarchical_loss",
    "InputError": "",
    "NetworkOutput": "ops.structures",
    "PascalFaceAP": "evaluate.metrics",
    "S3fdFpn": "models.s3fd_fpn",
    "Targets": "ops.structures",
    "TrainAugment": "data.transforms",
    "VideoReader": "detect.video",
    "VideoWriter": "detect.video",
    "WiderFaceAP": "evaluate.metrics",
    "annotate": "ops.draw",
    "bootstrap_ap": "score.bootstrap",
    "bootstrap_difference": "score.bootstrap",
    "box_vote": "ops.postprocess",
    "build_network": "models.fanet",
    "decode": "ops.boxes",
    "encode": "ops.boxes",
    "flops": "models.fanet",
    "fuse": "models.blocks",
    "inference_parameters": "models.fanet",
    "match": "ops.matching",
    "pairwise_iou": "ops.boxes",
    "redact": "detect.redaction",
    "score": "score.wider_face.average_precision",
}
# What the golden files are made with next to the public names.
HELPERS = {
    "GroundTruth": "score.wider_face.ground_truth",
    "compose_config": "cli.config",
    "write_ground_truth": "score.wider_face.ground_truth",
}
METHODS = {
    "FaceDetector": ("from_pretrained", "from_checkpoint", "from_onnx", "detect", "detect_each"),
    "Detections": ("above", "numpy", "to_supervision", "to_coco", "to_wider"),
}


def named(name: str) -> Any:
    """The object of a name in these tables."""
    module = (PUBLIC | HELPERS)[name]
    return getattr(importlib.import_module(f"{PACKAGE}.{module}" if module else PACKAGE), name)
