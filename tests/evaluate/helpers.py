"""What the tests of evaluate share."""

from pathlib import Path
from typing import Any

import torch

from fanet_lightning.models.fanet import build_network


def write_checkpoint(path: Path, level: int, detection: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    network = {"level": level, "width": 0.0625}
    torch.manual_seed(0)
    state = {f"network.{name}": value for name, value in build_network(**network).state_dict().items()}
    torch.save({"hyper_parameters": {"network": network, "detection": detection}, "state_dict": state}, path)
    return path
