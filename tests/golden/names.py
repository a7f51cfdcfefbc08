"""Where each public name is today: the one table to change when modules move."""

import importlib
from typing import Any

PACKAGE = "fanet_lightning"
# Verb → name of its configuration; ``python -m fanet_lightning.VERB`` runs it.
VERBS = {
    "app": "app",
    "convert": "convert",
    "detect": "detect",
    "doctor": "doctor",
    "evaluate": "evaluate",
    "export": "export",
    "plot": "plot",
    "report": "report",
    "score": "score",
    "train": "config",
}
PUBLIC = {
    "AnchorGrid": "anchors",
    "Batch": "structures",
    "CocoAP": "metrics",
    "Detections": "structures",
    "FANet": "net",
    "FaceDataModule": "data.datamodule",
    "FaceDetectionModule": "module",
    "FaceDetector": "",
    "FddbRoc": "metrics",
    "HeadOutput": "structures",
    "HierarchicalLoss": "loss",
    "InputError": "",
    "NetworkOutput": "structures",
    "PascalFaceAP": "metrics",
    "S3fdFpn": "net",
    "Targets": "structures",
    "TrainAugment": "data.augment",
    "VideoReader": "media.video",
    "VideoWriter": "media.video",
    "WiderFaceAP": "metrics",
    "annotate": "media.drawing",
    "bootstrap_ap": "scoring.bootstrap",
    "bootstrap_difference": "scoring.bootstrap",
    "box_vote": "postprocess",
    "build_network": "net",
    "decode": "boxes",
    "encode": "boxes",
    "flops": "net",
    "fuse": "net",
    "inference_parameters": "net",
    "match": "matching",
    "pairwise_iou": "boxes",
    "redact": "media.redaction",
    "score": "scoring.wider_face",
}
# What the golden files are made with beside the public names.
HELPERS = {
    "GroundTruth": "scoring.ground_truth",
    "compose_config": "config",
    "write_ground_truth": "scoring.ground_truth",
}
METHODS = {
    "FaceDetector": ("from_pretrained", "from_checkpoint", "from_onnx", "detect", "detect_each"),
    "Detections": ("above", "numpy", "to_supervision", "to_coco", "to_wider"),
}


def named(name: str) -> Any:
    """The object of a name in these tables."""
    module = (PUBLIC | HELPERS)[name]
    return getattr(importlib.import_module(f"{PACKAGE}.{module}" if module else PACKAGE), name)
