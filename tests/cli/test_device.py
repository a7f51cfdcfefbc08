"""Each job of a sweep gets devices of its own."""

import math
import threading
import time
from pathlib import Path

import pytest

from fanet_lightning.cli import cores as cpu
from fanet_lightning.cli import device as devices
from fanet_lightning.cli.device import claimed, resolve_precision, visible_gpus
from fanet_lightning.cli.errors import InputError


def test_jobs_side_by_side_get_different_devices(tmp_path: Path) -> None:
    with claimed(["0", "1", "2"], 1, tmp_path) as first, claimed(["0", "1", "2"], 2, tmp_path) as second:
        assert (first, second) == (["0"], ["1", "2"])
    with claimed(["0", "1", "2"], 3, tmp_path) as all_of_them:
        assert all_of_them == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"trainer.devices=3.* 2 "), claimed(["0", "1"], 3, tmp_path):
        pass


def test_a_job_waits_for_a_device_and_holds_none_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "POLL_SECONDS", 0.02)
    got: list[list[str]] = []

    def wants_two() -> None:
        with claimed(["0", "1"], 2, tmp_path) as mine:
            got.append(mine)

    with claimed(["0", "1"], 1, tmp_path):
        thread = threading.Thread(target=wants_two)
        thread.start()
        time.sleep(0.1)
        # The waiting job must not sit on device 1: somebody who needs only one may have it (in one of its pauses).
        with claimed(["1"], 1, tmp_path):
            assert got == []
    thread.join(timeout=300)
    assert got == [["0", "1"]]


def test_devices_that_the_environment_hides_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5c")
    assert visible_gpus() == ["3", "GPU-5c"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


def test_apple_gpus_compute_in_float32_whatever_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cpu_multiplies_bf16", lambda: True)
    assert resolve_precision("auto", "mps") == "32-true" and resolve_precision("auto", "cpu") == "bf16-mixed"


def test_cores_that_others_keep_busy_are_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 100.0 + cpu.SAMPLE_SECONDS])
    monkeypatch.setattr(cpu, "_own_cores", lambda: {0, 1, 2})
    monkeypatch.setattr(cpu, "_quota", lambda: math.inf)
    monkeypatch.setattr(cpu, "_busy_seconds", lambda cores: next(seconds))
    assert cpu.free_cores() == (2, "3 cores, 1 busy")


def test_a_container_may_use_what_its_quota_says(tmp_path: Path) -> None:
    assert cpu._quota(tmp_path) == math.inf
    for text, cores in (("150000 100000\n", 1.5), ("max 100000\n", math.inf)):
        (tmp_path / "cpu.max").write_text(text)
        assert cpu._quota(tmp_path) == cores
