"""The benchmarks by name."""

from collections.abc import Callable
from typing import Any

from fanet_lightning.errors import InputError
from fanet_lightning.scoring.benchmark import Benchmark

NAMES = ("wider_face", "fddb", "pascal_face", "afw", "coco")


def build_benchmark(name: str, **options: Any) -> Benchmark[Any]:
    """The benchmark of a ``benchmark`` group of the configuration: its ``name``, the rest as arguments.

    Raises:
        InputError: an unknown name, or an argument that this benchmark does not take.
    """
    if name not in NAMES:
        raise InputError(f"benchmark={name} is not known; choose one of {', '.join(NAMES)}")
    try:
        return _class_of(name)(**options)
    except TypeError as error:
        raise InputError(f"benchmark={name}: {error}") from error


def _class_of(name: str) -> Callable[..., Benchmark[Any]]:
    # A benchmark imports scipy, OpenCV or pycocotools; only what the one asked for needs is waited for.
    if name == "fddb":
        from fanet_lightning.scoring.fddb_benchmark import FddbBenchmark

        return FddbBenchmark
    if name == "pascal_face":
        from fanet_lightning.scoring.pascal_face_benchmark import PascalFaceBenchmark

        return PascalFaceBenchmark
    if name == "afw":
        from fanet_lightning.scoring.pascal_face_benchmark import AfwBenchmark

        return AfwBenchmark
    if name == "coco":
        from fanet_lightning.scoring.coco_benchmark import CocoBenchmark

        return CocoBenchmark
    from fanet_lightning.scoring.wider_face_benchmark import WiderFaceBenchmark

    return WiderFaceBenchmark
