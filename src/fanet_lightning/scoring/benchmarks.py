"""The benchmarks by name."""

from collections.abc import Callable
from typing import Any

from fanet_lightning.errors import InputError
from fanet_lightning.scoring.benchmark import Benchmark


def build_benchmark(name: str, **options: Any) -> Benchmark[Any]:
    """The benchmark of a ``benchmark`` group of the configuration: its ``name``, the rest as arguments.

    Raises:
        InputError: an unknown name, or an argument that this benchmark does not take.
    """
    benchmarks = {"wider_face": _wider_face}
    if name not in benchmarks:
        raise InputError(f"benchmark={name} is not known; choose one of {', '.join(benchmarks)}")
    try:
        return benchmarks[name]()(**options)
    except TypeError as error:
        raise InputError(f"benchmark={name}: {error}") from error


# One function each: a benchmark imports scipy, OpenCV or pycocotools, and only that of the one asked for.
def _wider_face() -> Callable[..., Benchmark[Any]]:
    from fanet_lightning.scoring.wider_face_benchmark import WiderFaceBenchmark

    return WiderFaceBenchmark
