"""What the tests of evaluate share."""

from pathlib import Path
from typing import Any

import torch

from fanet_lightning.models.fanet import network_of


def write_checkpoint(path: Path, level: int, detection: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    network = {"level": level, "width": 0.0625, **options}
    torch.manual_seed(0)
    state = {f"network.{name}": value for name, value in network_of(network).state_dict().items()}
    torch.save({"hyper_parameters": {"network": network, "detection": detection}, "state_dict": state}, path)
    return path
