"""The variants of a Hydra sweep: each in a process of its own, done once, and told apart when they fail.

Lightning's launcher re-uses the command line, so the ranks of a distributed variant would run the whole sweep again,
and it leaves LOCAL_RANK, NODE_RANK and MASTER_PORT behind, so the next variant would start none. One that runs out of
memory or crashes takes nothing else with it. It works the same way under the basic, joblib and submitit launchers.
"""

import contextlib
import ctypes
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fanet_lightning.cli.config import canonical, hydra_text, plain
from fanet_lightning.cli.cores import usable_cores
from fanet_lightning.cli.device import claimed, visible_gpus
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import replaced
from fanet_lightning.cli.provenance import LOG_FILE, InUse, RunRecord, locked, now, read_record, refuse_other_settings
from fanet_lightning.models.pretrained import read_checkpoint

# The process id of a sweep, for the workers that it starts.
SWEEP_PROCESS = "FANET_SWEEP_PID"


def never_trained(out: Path, record: RunRecord) -> bool:
    """Whether a run that no process holds ended before its first checkpoint; the model that it started from is none."""
    return (
        record.state in ("failed", "running")
        and not record.scores
        and all(
            path.name == "best.ckpt" and read_checkpoint(path).get("global_step") == 0
            for path in (out / "checkpoints").glob("[!.]*")
        )
    )


# Tells a variant's process that the sweep writes its log, which then has what a crash leaves behind, too.
LOG_IS_KEPT = "FANET_LOG_IS_KEPT"
# One file per job of the current launch. Jobs may run on other machines, so they report through the sweep's folder.
JOBS_FOLDER = ".jobs"
LOCKS_FOLDER = ".locks"

# What one distributed job leaves in the environment and the next must not inherit. Without SLURM_NTASKS Lightning
# starts its ranks itself, also inside a cluster's job.
LEAKING = (
    "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID",
)  # fmt: skip


class Terminated(SystemExit):
    """SIGTERM came, from ``kill``, a scheduler or a machine that shuts down. Leaves with a shell's code for it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@dataclass(frozen=True)
class Variant:
    """What became of one job of a sweep.

    ``state``: ``running``, ``finished``, ``stopped`` (by ``stop_after``), ``failed``, ``done before`` (by an earlier
    start of the sweep) or ``same as`` (another job of this sweep means the same model and is on it). ``ap`` per setting
    of the run's protocol.
    """

    job: int
    name: str
    folder: str
    state: str
    seconds: float = 0.0
    ap: dict[str, float] | None = None
    error: str | None = None

    @property
    def value(self) -> float:
        """What an optimizing sweeper maximizes: the AP of the last setting; 0 where there is none or it is NaN."""
        value = list(self.ap.values())[-1] if self.ap else 0.0
        return value if math.isfinite(value) else 0.0


def task(config: DictConfig) -> float:
    """Hydra's task for one job of a sweep."""
    hydra = HydraConfig.get()
    config.out = hydra.runtime.output_dir
    main_process = os.environ.get(SWEEP_PROCESS)
    # joblib's workers outlive a sweep that is killed outright, and would start its next variants.
    if "joblib" in str(hydra.launcher.get("_target_")) and main_process not in (None, str(os.getpid())):
        die_with(int(main_process))
    canonical(config)
    config.name = Path(config.out).name.removesuffix(f"_seed{config.seed}")
    jobs = int(hydra.launcher.get("n_jobs") or 1)
    return run_variant(
        job=hydra.job.num,
        overrides=hydra.overrides.task,
        settings=plain(config),
        folder=Path(config.out),
        sweep=Path(hydra.sweep.dir).absolute(),
        parallel_jobs=jobs if jobs > 0 else usable_cores() + 1 + jobs,
    ).value


def run_variant(
    *, job: int, overrides: Sequence[str], settings: Mapping[str, Any], folder: Path, sweep: Path, parallel_jobs: int
) -> Variant:
    """Train the variant in ``folder``, unless it is there already; never raises for what goes wrong inside it.

    ``overrides`` are the words that make it, ``settings`` its whole configuration; ``parallel_jobs`` variants run side
    by side on this machine and share its cores.
    """
    start, variant = time.monotonic(), Variant(job, folder.name, str(folder), "running")
    _report(sweep, variant)
    try:
        with locked(sweep / LOCKS_FOLDER / folder.name, "variant"):
            changes = _run_or_skip(overrides, settings, folder, sweep, parallel_jobs)
    except InUse:
        changes = {"state": "same as"}
    except (InputError, OSError) as error:
        changes = {"state": "failed", "error": str(error)}
    variant = replace(variant, seconds=round(time.monotonic() - start, 1), **changes)
    _report(sweep, variant)
    print(f"[{folder.name}] {variant.state}  {_ap_text(variant)}{variant.error or ''}".rstrip(), flush=True)
    return variant


def _report(sweep: Path, variant: Variant) -> None:
    # Two processes of one search count their jobs each for themselves.
    with replaced(sweep / JOBS_FOLDER / f"{variant.job}-{variant.name}.json") as path:
        path.write_text(json.dumps(asdict(variant)), encoding="utf-8")


def _run_or_skip(
    overrides: Sequence[str], settings: Mapping[str, Any], folder: Path, sweep: Path, parallel_jobs: int
) -> dict[str, Any]:
    """``state``, ``ap`` and ``error`` of the :class:`Variant`."""
    record, protocols, code, state = read_record(folder), wanted_protocols(settings), 0, "done before"
    if record is not None and not never_trained(folder, record):
        refuse_other_settings(f"{folder} holds a run", record.settings, settings, "give another folder with sweep=DIR")
    if record is None or not record.is_complete(protocols):
        code, state = _train(overrides, settings, folder, sweep, parallel_jobs), "finished"
        record = read_record(folder)
    if code == 0 and record is not None and record.is_complete(protocols):
        return {"state": state, "ap": record.scores.get(settings["protocol"]["name"], {}).get("ap")}
    if code == 0 and record is not None and record.state == "stopped":
        return {"state": "stopped"}
    lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    # A start that was refused leaves the record, and the error in it, of an earlier one.
    error = last if last.startswith("error: ") or not (record and record.error) else record.error
    if code < 0:
        error = f"killed by {signal.Signals(-code).name}" + (f"; {error}" if record and record.error else "")
    error = error.strip().removeprefix("error: ")
    if record is None or record.state in ("running", "failed"):
        # It was refused before it began, or killed before it could say why; a report should know all the same.
        name, seed = settings["name"], settings["seed"]
        record = record or RunRecord(name=name, seed=seed, settings=dict(settings), started=now())
        record.state, record.error, record.ended = "failed", error, now()
        record.write(folder)
    return {"state": "failed", "error": error}


def wanted_protocols(settings: Mapping[str, Any]) -> set[str]:
    """Names of the protocols under which a finished run has scores."""
    if not settings["evaluate_at_end"]:
        return set()
    return {settings["protocol"]["name"], *settings["also_protocols"]}


def _train(overrides: Sequence[str], settings: Mapping[str, Any], folder: Path, sweep: Path, parallel_jobs: int) -> int:
    words = [word for word in overrides if word.split("=")[0].lstrip("+") not in ("out", "resume", "group", "name")]
    command = [
        sys.executable, "-m", "fanet_lightning.train", *words, "hydra.mode=RUN", "resume=auto",
        f"out={hydra_text(str(folder))}", f"group={hydra_text(sweep.name)}",
        f"name={hydra_text(str(settings['name']))}",
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with _environment(settings, parallel_jobs) as environment, (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        child = subprocess.Popen(
            command, env={**environment, LOG_IS_KEPT: "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
            preexec_fn=partial(die_with, os.getpid()) if os.name == "posix" else None,
        )  # fmt: skip
        try:
            # Not before: a signal while Python forks would be lost in the functions that it calls then.
            print(f"[{folder.name}] started", flush=True)
            assert child.stdout is not None
            for line in child.stdout:
                log.write(line)
                log.flush()
                if line.startswith(("epoch ", "error: ", "resuming from ")):
                    print(f"[{folder.name}] {line}", end="", flush=True)
            return child.wait()
        finally:
            # Whatever ends this process (Ctrl-C, a cluster that takes the machine back) ends the training.
            child.terminate()
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def _environment(settings: Mapping[str, Any], parallel_jobs: int) -> Iterator[dict[str, str]]:
    """The child's environment: no ranks or ports of another job, GPUs of its own, its share of the cores."""
    kept = (name for name in os.environ if name not in LEAKING and not name.startswith(("PL_", "TORCHELASTIC")))
    environment = {name: os.environ[name] for name in kept}
    devices, accelerator = settings["trainer"]["devices"], settings["trainer"]["accelerator"]
    gpus = visible_gpus() if parallel_jobs > 1 and accelerator in ("auto", "gpu", "cuda") else []
    count = devices if isinstance(devices, int) and devices > 0 else len(gpus)
    if gpus:
        parallel_jobs = min(parallel_jobs, max(1, len(gpus) // count))
    if parallel_jobs > 1:
        # Threads of several processes on the same cores wait for each other in barriers: ten times slower, measured.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // parallel_jobs)))
    with claimed(gpus, count) if gpus else contextlib.nullcontext(()) as mine:
        yield environment | ({"CUDA_VISIBLE_DEVICES": ",".join(mine)} if gpus else {})


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the process that started it, ``parent``, ends; on Linux alone."""
    # 1 is PR_SET_PDEATHSIG. A sweep that is killed outright must not leave trainings behind.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.name == "posix" and os.getppid() != parent:  # it was gone before the kernel was told
        sys.exit(1)


def _ap_text(variant: Variant) -> str:
    return "  ".join(f"{setting} {ap:.3f}" for setting, ap in (variant.ap or {}).items())


def clear_jobs(sweep: Path) -> None:
    """Forget the jobs of an earlier launch of the sweep."""
    for path in (sweep / JOBS_FOLDER).glob("*.json"):
        path.unlink()


def read_jobs(sweep: Path) -> list[Variant]:
    """What the jobs of the current launch have reported so far, in their order."""
    paths = (sweep / JOBS_FOLDER).glob("*.json")
    variants = [Variant(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return sorted(variants, key=lambda variant: variant.job)


def summary(variants: Sequence[Variant], sweep: Path, *, interrupted: bool = False) -> str:
    """The table at the end of a sweep; failed variants with reason and log. Jobs that mean one variant are one line."""
    by_name: dict[str, Variant] = {}
    for variant in variants:
        if interrupted and variant.state == "running":
            variant = replace(variant, state="cut off")
        if variant.name not in by_name or by_name[variant.name].state in ("same as", "done before"):
            by_name[variant.name] = variant
    width = max(map(len, by_name), default=0)
    lines = [f"sweep {sweep}"]
    for variant in by_name.values():
        row = f"  {variant.name:<{width}}  {variant.state:<11}  {variant.seconds / 60:>6.1f} min  {_ap_text(variant)}"
        lines.append(row.rstrip())
    failed = [variant for variant in by_name.values() if variant.state == "failed"]
    for variant in failed:
        lines += [f"failed: {variant.name}: {variant.error}", f"        log: {Path(variant.folder) / LOG_FILE}"]
    if failed or interrupted:
        lines.append(
            f"{len(failed)} of {len(by_name)} variants failed{', interrupted' if interrupted else ''}; "
            "the same command trains what is missing, the others are kept"
        )
    lines.append(f"report: fanet report runs={sweep}")
    return "\n".join(lines)
