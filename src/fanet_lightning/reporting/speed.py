"""What a network costs: parameters, operations, and images per second measured on the spot."""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fanet_lightning.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

HEIGHT, WIDTH = 480, 640
WARM_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """Of detecting in one image.

    ``parameters`` that detection uses, ``flops`` at 640×480 (two per multiply-add). ``seconds`` is the median of the
    timed passes, ``quartiles`` the first and third; None where nothing was timed.
    """

    parameters: int
    flops: int
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None

    @property
    def images_per_second(self) -> float | None:
        return None if self.seconds is None else 1 / self.seconds


@dataclass(frozen=True)
class Timing:
    """How the passes were timed. ``passes`` is 0 where none was; ``refused``: name → why a network cannot be built."""

    passes: int
    device: str
    refused: dict[str, str]

    @property
    def text(self) -> str:
        return (
            f"Images per second: median of {self.passes} passes at {WIDTH}×{HEIGHT}, batch 1, float32, after "
            f"{WARM_PASSES} untimed ones, networks in turn so that a slow moment hits them alike; the network alone, "
            f"without reading images, decoding boxes and suppression; {self.device}."
        )


def network_costs(
    models: Mapping[str, Mapping[str, Any]], passes: int, device: str = "auto", known: dict[str, Cost] | None = None
) -> tuple[dict[str, Cost], Timing]:
    """Count and time networks with fresh weights; their speed does not depend on the weights.

    Args:
        models: name → ``name`` and keyword arguments of :func:`fanet_lightning.net.build.build_network`. Equal ones are
            one network, timed once.
        passes: timed passes per network; 0: count alone.
        device: ``auto``, ``cpu``, ``cuda`` …
        known: what earlier calls measured; changed in place.

    Raises:
        InputError: a device that is not there.
    """
    import torch

    from fanet_lightning.net.build import build_network, flops, inference_parameters
    from fanet_lightning.precision import device_name, resolve_device

    device = resolve_device(device)
    image = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8).to(device)
    known = {} if known is None else known
    identities = {name: repr(sorted(settings.items())) for name, settings in models.items()}
    networks, counted, refused = {}, {}, {}
    for name, settings in models.items():
        identity = identities[name]
        if identity in known or identity in counted:
            continue
        try:
            network = build_network(**settings).eval()
        except (InputError, TypeError, ValueError, RuntimeError) as error:  # settings of a run that failed for them
            refused[name] = " ".join(str(error).split())
            continue
        counted[identity] = Cost(inference_parameters(network), flops(network, HEIGHT, WIDTH))
        networks[identity] = network.to(device).to(memory_format=torch.channels_last)
    seconds = _timed(networks, image.to(memory_format=torch.channels_last), passes) if passes else {}
    for identity, cost in counted.items():
        known[identity] = replace(cost, **_summary(seconds[identity])) if passes else cost
    costs = {name: known[identity] for name, identity in identities.items() if identity in known}
    return costs, Timing(passes, device_name(device), refused)


def _timed(networks: "Mapping[str, nn.Module]", image: "Tensor", passes: int) -> dict[str, list[float]]:
    """Seconds of each timed pass, the networks taking turns."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in networks}
    visible = sys.stderr.isatty()
    with torch.inference_mode():
        for number in range(WARM_PASSES + passes):
            for name, network in networks.items():
                _wait(image)
                start = time.perf_counter()
                network(image)
                _wait(image)
                if number >= WARM_PASSES:
                    seconds[name].append(time.perf_counter() - start)
            if visible:
                end = "\n" if number + 1 == WARM_PASSES + passes else ""
                print(f"\rtiming networks, pass {number + 1}/{WARM_PASSES + passes} ", end=end, file=sys.stderr)
    return seconds


def _wait(image: "Tensor") -> None:
    if image.is_cuda:
        import torch

        torch.cuda.synchronize(image.device)


def _summary(seconds: Sequence[float]) -> dict[str, Any]:
    if len(seconds) == 1:
        return {"seconds": seconds[0], "quartiles": (seconds[0], seconds[0])}
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"seconds": middle, "quartiles": (low, high)}
