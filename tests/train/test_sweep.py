"""Sweeps through the real command line: one failing variant, resuming, several ranks, launchers, one that is done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from omegaconf import OmegaConf

from fanet_lightning.cli.config import canonical, compose_config, plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import RunRecord, locked, read_record
from fanet_lightning.train import __main__ as train
from fanet_lightning.train import run as training
from fanet_lightning.train import sweep
from tests.train.helpers import TINY, command, record_of, start


def started(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split("]")[0][1:] for line in done.stdout.splitlines() if line.endswith("] started")]


def settings_of(*words: str) -> dict[str, Any]:
    config = compose_config("train", words)
    canonical(config)
    return plain(config)


def variant(folder: Path, settings: dict[str, Any]) -> sweep.Variant:
    return sweep.run_variant(
        job=0, overrides=[], settings=settings, folder=folder, sweep=folder.parent, parallel_jobs=1
    )


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize(
    ("epochs", "state", "found", "error"),
    [(8, "finished", "done before", None), (7, "finished", "failed", "a run with epochs=7, this one has epochs=8"),
     (7, "failed", None, None)],  # in its start: that one may be of other settings
)  # fmt: skip
def test_a_variant_that_is_there_already(
    epochs: int, state: Any, found: str | None, error: str | None, tmp_path: Path, no_process: None
) -> None:
    folder, settings = tmp_path / "level2_seed0", settings_of("level=2", "epochs=8")
    scores = {"original": {"folder": "evaluation", "ap": {"easy": 0.5, "hard": 0.25}}} if state == "finished" else {}
    record = RunRecord("level2", 0, settings_of("level=2", f"epochs={epochs}"), state=state, scores=scores)
    record.write(folder)
    if found is None:
        with pytest.raises(AssertionError, match="a process was started"):
            variant(folder, settings)
        return
    result = variant(folder, settings)
    assert (result.state, result.value) == (found, 0.0 if error else 0.25)
    assert sweep.read_jobs(tmp_path) == [result] and (error or "") in (result.error or "")
    assert read_record(folder) == record


def test_a_full_disk_fails_a_variant_and_not_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_run_or_skip", Mock(side_effect=OSError(28, "No space left on device")))
    found = variant(tmp_path / "level2_seed0", settings_of("level=2"))
    assert found.state == "failed" and found.error is not None and "No space left" in found.error


def test_variants_that_mean_the_same_model_are_one(tmp_path: Path, no_process: None) -> None:
    with locked(tmp_path / sweep.LOCKS_FOLDER / "level1_seed0", "variant"):
        assert variant(tmp_path / "level1_seed0", settings_of("level=1")).state == "same as"
    names = {
        settings_of(*words)["name"] for words in (["level=1"], ["level=1", "context=false"], ["level=1", "hl=false"])
    }
    assert names == {"level1"}


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path) -> None:
    # The lock of the same process counts as another's: file locks belong to open files.
    with locked(tmp_path / "grid", "sweep"), pytest.raises(InputError, match=r"grid is in use by a sweep \(process"):
        train.main(["-m", "level=1,2", "sweep=grid", *TINY])


def test_a_run_is_not_overwritten_by_mistake(tmp_path: Path) -> None:
    RunRecord(name="level1", seed=0, settings=settings_of("level=1"), state="finished").write(tmp_path / "mine")
    with pytest.raises(InputError, match=r"out=mine holds a run already \(level1, finished\).*overwrite=true"):
        train.main(["level=1", "out=mine", *TINY])
    with pytest.raises(InputError, match=r"out=mine holds a run with batch_size=8, this one has batch_size=4"):
        train.main(["level=1", "out=mine", "resume=auto", *TINY])


@pytest.mark.parametrize("words", [[], ["overwrite=true"]])
def test_what_is_of_something_else_is_not_written_over(words: list[str], tmp_path: Path) -> None:
    for name in ("checkpoints/thesis.pt", "evaluation/marks.csv", "evaluation_short640/a.txt", "csv/mine.csv"):
        mine = tmp_path / "mine" / name
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        folder = Path(name).parent.name
        with pytest.raises(InputError, match=f"out=mine: {folder} is there and not of a run; move it away"):
            train.main(["level=1", "out=mine", *TINY, *words])
        assert [path.name for path in (tmp_path / "mine").rglob("*")] == [folder, mine.name]
        mine.unlink()
        mine.parent.rmdir()


def test_overwriting_a_run_removes_what_a_run_makes_and_nothing_else(tmp_path: Path) -> None:
    options = {**settings_of("level=1"), "overwrite": True, "resume": None}
    RunRecord(name="level1", seed=0, settings=options, state="finished").write(tmp_path)
    for name in ("checkpoints/a.ckpt", "evaluation/scores.json", "evaluation_short640/scores.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("old")
    mine = [tmp_path / "evaluation_notes.txt", tmp_path / "evaluation of mine" / "a.txt", tmp_path / "photo.jpg"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    training._open_record(options, tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


def test_the_ablation_is_seven_trainings_per_seed() -> None:
    config = compose_config("train", ["experiment=[paper,ablation]"], with_hydra=True)
    assert config.hydra.sweep.dir == "multirun/ablation_wider_face"
    assert (config.input_size, config.optim.name) == (640, "sgd")
    # The last of the seven carries the rows at other protocols.
    config = compose_config("train", ["experiment=[paper,ablation]", "cell=level3_context_hl"])
    assert list(config.also_protocols) == ["short768", "multiscale"]
    config = compose_config("train", ["experiment=ablation", "cell=level3_hl"])
    assert (list(config.also_protocols), config.context) == ([], False)


def test_the_slurm_configuration_makes_an_array_job_that_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Slurm would be given, by the way that Hydra's launcher takes: no cluster is needed to write the script."""
    submitit = pytest.importorskip("submitit")
    plugin = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    words = ["experiment=paper", "trainer.devices=2", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    launcher = compose_config("train", words, with_hydra=True).hydra.launcher
    gpus, options = launcher.gpus_per_node, dict(OmegaConf.to_container(launcher, resolve=False))
    options |= {"gpus_per_node": gpus}
    assert options.pop("_target_").endswith("SlurmLauncher")
    options.pop("submitit_folder")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    executor = submitit.AutoExecutor(
        folder=tmp_path, cluster="slurm", slurm_max_num_timeout=options.pop("max_num_timeout")
    )
    shared = set(OmegaConf.structured(plugin.BaseQueueConf))
    # Refuses names that Slurm's side does not know.
    executor.update_parameters(**{k if k in shared else f"slurm_{k}": v for k, v in options.items()})
    script = executor._executor._make_submission_file_text("command", "id")
    for line in ("--gpus-per-node=2", "--partition=gpu", "--requeue", "--time=720", "--signal=USR2@120", "--nodes=1"):
        assert f"#SBATCH {line}" in script, script


def test_the_summary_names_what_failed_with_its_log() -> None:
    variants = [
        sweep.Variant(0, "level1_seed0", "s/level1_seed0", "finished", 90.0, {"easy": 0.5, "hard": 0.25}),
        sweep.Variant(1, "level1_seed0", "s/level1_seed0", "same as"),
        sweep.Variant(2, "level2_seed0", "s/level2_seed0", "failed", 1.0, None, "no memory"),
    ]
    lines = sweep.summary(variants, Path("s")).splitlines()
    assert lines[1].split() == ["level1_seed0", "finished", "1.5", "min", "easy", "0.500", "hard", "0.250"]
    assert "failed: level2_seed0: no memory" in lines
    assert "        log: s/level2_seed0/train.log" in lines
    assert any(line.startswith("1 of 2 variants failed") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_sweep_that_is_interrupted_says_what_became_of_its_variants(
    kind: signal.Signals, code: int, tmp_path: Path
) -> None:
    words = [*TINY, "epochs=2000", "evaluate_at_end=false"]
    record = RunRecord(name="level1", seed=0, settings=settings_of("level=1", *words), state="finished")
    record.write(tmp_path / "grid/level1_seed0")
    words += ["level=1,2,3", "context=false", "hl=true,false", "sweep=grid"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = start("train", "-m", *words, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, **heard)
    next(line for line in process.stdout if line.endswith("] started\n"))
    process.send_signal(kind)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == code, rest
    lines = {" ".join(line.split())[:29].rstrip() for line in rest.splitlines()}
    assert lines >= {"level1_seed0 done before 0.0", "level2_hl_seed0 cut off 0.0 m"}
    assert "interrupted" in rest and "Traceback" not in rest


@pytest.mark.slow
def test_a_failing_variant_stops_no_other_and_the_sweep_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """Also where each variant has two ranks."""
    words = ["-m", "level=1,9,2", "hl=true,false", *TINY, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    first = command("train", *words, cwd=tmp_path)
    assert first.returncode == 1
    assert "Traceback" not in first.stdout + first.stderr
    variants = tmp_path / "multirun/synthetic"
    folders = ["level1_seed0", "level2_context_hl_seed0", "level2_context_seed0"]
    assert [name for name in started(first) if not name.startswith("level9")] == [folders[0], *folders[1:]]
    for name in folders:
        assert (variants / name / "checkpoints/best.ckpt").is_file()
        record = record_of(variants / name)
        assert (record.state, set(record.scores), record.train["devices"]) == ("finished", {"original"}, 2)
    # Nothing else of the ranks.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "multirun"]
    failed = record_of(variants / "level9_context_hl_seed0")
    assert (failed.state, failed.error) == ("failed", "level=9: agglomeration from conv_fc7 allows level=1 … 4")
    assert "failed: level9_context_hl_seed0: level=9" in first.stdout
    assert f"log: {variants}/level9_context_hl_seed0/train.log" in first.stdout

    (variants / "level2_context_seed0/run.json").unlink()
    times = {name: (variants / name / "checkpoints/last.ckpt").stat().st_mtime for name in folders[:2]}
    second = command("train", *words, cwd=tmp_path)
    assert sorted(started(second)) == ["level2_context_seed0", "level9_context_hl_seed0", "level9_context_seed0"]
    assert times == {name: (variants / name / "checkpoints/last.ckpt").stat().st_mtime for name in folders[:2]}


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_no_training_behind(tmp_path: Path) -> None:
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TINY, "epochs=5000", "validate_every=5000"]
    process = start("train", "-m", "level=1,2,3", "sweep=grid", *words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    folders = [tmp_path / "grid" / name for name in ("level1_seed0", "level2_context_hl_seed0")]
    deadline = time.monotonic() + 300
    while not all((folder / "checkpoints/last.ckpt").is_file() for folder in folders):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    holders = [Path("/proc", (folder / ".lock.holder").read_text().split()[1], "stat") for folder in folders]
    while any(stat.exists() and stat.read_text().split()[2] != "Z" for stat in holders):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / "grid/level3_context_hl_seed0/train.log").exists()


@pytest.mark.slow
def test_a_preempted_variant_is_queued_again_and_resumes(tmp_path: Path) -> None:
    """submitit's local executor: the signal that Slurm sends before it takes a machine back."""
    words = [*TINY, "epochs=60", "validate_every=60", "evaluate_at_end=false", "hydra/launcher=submitit_local"]
    with (tmp_path / "output").open("w") as log:
        process = start("train", "-m", "level=1", "sweep=grid", *words, cwd=tmp_path, stdout=log)
    folder = tmp_path / "grid/level1_seed0"
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints/previous.ckpt").is_file():
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.1)
    # The job is the training's parent; /proc tells it.
    holder = int((folder / ".lock.holder").read_text().split()[1])
    job = int(Path(f"/proc/{holder}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(job, signal.SIGUSR2)
    assert process.wait(timeout=300) == 0, (tmp_path / "output").read_text()
    record = record_of(folder)
    assert (record.state, record.train["starts"], record.train["epoch"]) == ("finished", 2, 60)
    assert "resuming from" in (folder / "train.log").read_text()


@pytest.mark.slow
def test_torchrun_works_with_a_folder_that_all_ranks_share(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fanet_lightning.train"]
    words = ["level=2", *TINY, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    done = subprocess.run([*command, *words, "out=run"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (record_of("run").state, record_of("run").train["devices"]) == ("finished", 2)
    refused = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert refused.returncode != 0
    assert "error: torchrun needs the run" in refused.stderr and "out=DIR" in refused.stderr
