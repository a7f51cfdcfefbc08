"""Train one cell of the grid, or a baseline: ``python -m fanet_lightning.train level=3 context=true hl=true``.

With ``-m`` or ``experiment=ablation`` it trains whole grids (:mod:`fanet_lightning.sweep`).
"""

import math
import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fanet_lightning import cli, sweep
from fanet_lightning.config import canonical, compose_train, config_dir, plain, register, swept_keys
from fanet_lightning.errors import InputError
from fanet_lightning.preflight import AUTO, check
from fanet_lightning.run_record import locked
from fanet_lightning.training import train

USAGE = """python -m fanet_lightning.train [level=3] [context=true] [hl=true] [data=…] [experiment=…] [key=value …]

Trains one network; -m with several values of a key (level=1,2,3) trains a grid, and experiment=ablation the paper's.
The defaults take minutes on two CPU cores. conf/config.yaml says what each key means, --hydra-help Hydra's flags."""

# The process id of a sweep, for the workers that it starts.
SWEEP_PROCESS = "FANET_SWEEP_PID"
# Keys that a cell's folder name tells already, or that do not change it.
TOLD_BY_NAME = ("level", "context", "hl", "model", "cell", "seed", "experiment")


def _task(config: DictConfig) -> float:
    hydra_config = HydraConfig.get()
    # Hydra's folder, which a sweep and the children of a distributed run have been told; `${now:}` would differ there.
    config.out = hydra_config.runtime.output_dir
    if hydra_config.mode == RunMode.MULTIRUN:
        _end_with_sweep(hydra_config)
        canonical(config)
        config.name = Path(config.out).name.removesuffix(f"_seed{config.seed}") if config.out else config.name
        return sweep.run_cell(
            job=hydra_config.job.num,
            overrides=hydra_config.overrides.task,
            settings=plain(config),
            folder=Path(config.out),
            sweep=Path(hydra_config.sweep.dir).absolute(),
            parallel_jobs=_parallel_jobs(hydra_config),
        ).value
    try:
        return _last(train(config).ap)
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        # Not sys.exit: Hydra runs this inside a handler of its own, and the other ranks must not wait for this one.
        sys.exit(cli.BAD_INPUT)


def _end_with_sweep(hydra_config: Any) -> None:
    """joblib's workers outlive a sweep that is killed outright, and would begin its next cells."""
    main_process = os.environ.get(SWEEP_PROCESS)
    if "joblib" not in str(hydra_config.launcher.get("_target_")) or main_process in (None, str(os.getpid())):
        return
    if os.name == "posix":
        sweep.die_with_parent()
        if str(os.getppid()) != main_process:  # it was gone before the kernel was told
            sys.exit(1)


def _last(ap: dict[str, float]) -> float:
    return list(ap.values())[-1] if ap else math.nan


def _parallel_jobs(hydra_config: Any) -> int:
    """How many cells Hydra's launcher runs side by side on this machine."""
    jobs = int(hydra_config.launcher.get("n_jobs") or 1)
    return jobs if jobs > 0 else len(os.sched_getaffinity(0)) + 1 + jobs


def main(argv: list[str]) -> int:
    """Check the configuration in full where it is one run, and what the cells share where it is a sweep; then Hydra."""
    register()
    if any(word in ("-h", "--help") for word in argv):
        cli.print_help("config", [word for word in argv if "=" in word], USAGE)
        return 0
    flags = {word for word in argv if word.startswith("-")}
    if flags - {"-m", "--multirun"}:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(_task)()
        return 0
    words = [word for word in argv if word not in flags]
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise InputError(f"'{word}' is not key=value; --help lists the keys")
    config, sweep_dir = compose_train(words, multirun=bool(flags))
    if sweep_dir is None:
        _check_single(config, words)
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(_task)()
        return 0
    return _sweep(plain(config), words, Path(sweep_dir))


def _check_single(config: DictConfig, words: list[str]) -> None:
    given = {word.split("=")[0] for word in words}
    if "TORCHELASTIC_RUN_ID" in os.environ and not given & {"out", "hydra.run.dir"}:
        raise InputError("under torchrun give out=DIR, or every rank would make a folder of its own")
    if config.resume == AUTO and not given & {"out", "hydra.run.dir"}:
        raise InputError("resume=auto goes on in the folder of the run: give out=DIR as well")
    canonical(config)
    check(plain(config))


def _sweep(options: dict[str, Any], words: list[str], folder: Path) -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("a sweep starts the ranks of its cells itself: leave torchrun out")
    if options["resume"] not in (None, AUTO):
        raise InputError(f"resume={options['resume']}: a sweep's cells go on by themselves; leave resume out")
    if int(options["trainer"]["num_nodes"]) > 1:
        raise InputError(f"trainer.num_nodes={options['trainer']['num_nodes']}: a sweep's cell runs on one machine")
    for word in words:
        if word.split("=")[0] == "out":
            raise InputError(f"{word}: names the folder of one run; a sweep takes sweep=DIR")
    check({**options, "out": str(folder), "resume": AUTO})
    # What is swept beside the switches (optim.lr=1e-3,2e-3) becomes part of the cells' names; what is fixed does not.
    told = {*TOLD_BY_NAME, *(word.split("=")[0].lstrip("+~") for word in words)} - (
        set(swept_keys(words)) - {*TOLD_BY_NAME}
    )
    sys.argv = [
        sys.argv[0], "--multirun", *words, f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(told))}]",
    ]  # fmt: skip
    os.environ[SWEEP_PROCESS] = str(os.getpid())
    with locked(folder, "sweep"):
        sweep.clear_jobs(folder)
        print(f"sweep {folder}", flush=True)
        code: Any = 0
        try:
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(_task)()
        except SystemExit as error:  # a launcher that gave up; what the cells reported is still true
            code = error.code
        except KeyboardInterrupt:
            print(sweep.summary(sweep.read_jobs(folder), folder), flush=True)
            raise
        cells = sweep.read_jobs(folder)
        print(sweep.summary(cells, folder), flush=True)
    return 1 if code or any(cell.state == "failed" for cell in cells) else 0


if __name__ == "__main__":
    cli.run(main)
