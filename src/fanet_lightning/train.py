"""Train one cell of the grid, or a baseline: ``python -m fanet_lightning.train level=3 context=true hl=true``.

With ``-m`` or ``experiment=ablation`` it trains whole grids (:mod:`fanet_lightning.sweep`).
"""

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fanet_lightning import cli, sweep
from fanet_lightning.config import CommandLine, canonical, config_dir, hydra_text, plain, read_words, without_hydra
from fanet_lightning.devices import usable_cores
from fanet_lightning.errors import InputError
from fanet_lightning.preflight import AUTO, check
from fanet_lightning.run_record import TerminalLog, locked
from fanet_lightning.training import train

USAGE = """python -m fanet_lightning.train [level=3] [context=true] [hl=true] [data=…] [experiment=…] [key=value …]

Trains one network; -m with several values of a key (level=1,2,3) trains a grid, and experiment=ablation the paper's.
The defaults take minutes on two CPU cores. conf/config.yaml says what each key means."""

# The process id of a sweep, for the workers that it starts.
SWEEP_PROCESS = "FANET_SWEEP_PID"
# Keys that a cell's folder name tells already, unless name= is given.
TOLD_BY_NAME = {"level", "context", "hl", "model", "cell"}
# Sweepers that optimize minimize unless they are told otherwise: Optuna's key for it, Nevergrad's and Ax's.
MAXIMIZE = {"direction": "maximize", "optim.maximize": "true", "ax_config.experiment.minimize": "false"}
# What Hydra itself answers, once the words are checked.
HYDRA_FLAGS = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
# numpy's generators take no others.
SEEDS = range(2**32)


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
    except Exception as error:
        # Here, because Hydra would print a traceback, and the other ranks must not wait for this one.
        sys.exit(cli.report_error(error))


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
    return jobs if jobs > 0 else usable_cores() + 1 + jobs


def main(argv: list[str]) -> int:
    """Check the configuration in full where it is one run, and what the cells share where it is a sweep; then Hydra."""
    if any(word in ("-h", "--help") for word in argv):
        cli.print_help("config", [word for word in argv if "=" in word], USAGE)
        return 0
    words = [word for word in argv if word not in ("-m", "--multirun")]
    if HYDRA_FLAGS & {*words}:
        checked = [word for word in words if "=" in word and not word.startswith("-")]
        line = read_words("config", checked, multirun=len(words) < len(argv), with_hydra=True)
        _run_hydra([*(word for word in argv if word not in checked), *line.for_hydra])
        return 0
    if words and words[-1] == "hydra.output_subdir=null":
        # Lightning has started this rank, and added the folder in quotes that do not hold every path; out= has it.
        words = [word for word in words if not word.startswith('hydra.run.dir="')]
    line = read_words("config", words, multirun=bool({"-m", "--multirun"} & {*argv}), with_hydra=True)
    if line.is_sweep:
        return _sweep(line)
    with TerminalLog():
        return _single(line)


def _single(line: CommandLine) -> int:
    config, given = without_hydra(line.config()), {word.key for word in line.words}
    if "TORCHELASTIC_RUN_ID" in os.environ and not given & {"out", "hydra.run.dir"}:
        raise InputError("under torchrun give out=DIR, or every rank would make a folder of its own")
    if config.resume == AUTO and not given & {"out", "hydra.run.dir"}:
        raise InputError("resume=auto goes on in the folder of the run: give out=DIR as well")
    canonical(config)
    _check(plain(config))
    # The other ranks are started with these words, and `${now:}` would differ there.
    _run_hydra([*(word.for_hydra for word in line.words if word.key != "out"), f"out={hydra_text(config.out)}"])
    return 0


def _check(options: dict[str, Any]) -> None:
    if options["seed"] not in SEEDS:
        raise InputError(f"seed={options['seed']} must be from {SEEDS[0]} to {SEEDS[-1]}")
    check(options)


def _run_hydra(words: list[str]) -> None:
    sys.argv = [sys.argv[0], *words]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(_task)()


def _sweep(line: CommandLine) -> int:
    config = line.config()
    folder, optimizes = Path(config.hydra.sweep.dir), "Basic" not in str(config.hydra.sweeper._target_)
    options = plain(without_hydra(config))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("a sweep starts the ranks of its cells itself: leave torchrun out")
    if options["resume"] not in (None, AUTO):
        raise InputError(f"resume={options['resume']}: a sweep's cells go on by themselves; leave resume out")
    if options["overwrite"]:
        raise InputError(
            f"overwrite=true: a sweep goes on with what is in {folder}; give another sweep=DIR to begin anew"
        )
    if int(options["trainer"]["num_nodes"]) > 1:
        raise InputError(f"trainer.num_nodes={options['trainer']['num_nodes']}: a sweep's cell runs on one machine")
    if optimizes and not options["evaluate_at_end"]:
        raise InputError("evaluate_at_end=false leaves an optimizing sweeper nothing to go by; leave it out")
    given = {word.key for word in line.words}
    if "out" in given:
        out = next(word for word in line.words if word.key == "out")
        raise InputError(f"{out.for_hydra}: names the folder of one run; a sweep takes sweep=DIR")
    _check_cells(line, folder)
    # What is swept beside the switches (optim.lr=1e-3,2e-3) becomes part of the cells' names; what is fixed does not.
    words = [
        f"hydra.sweeper.{key}={value}" for key, value in MAXIMIZE.items()
        if f"hydra.sweeper.{key}" not in given and OmegaConf.select(config.hydra.sweeper, key) is not None
    ]  # fmt: skip
    told = {"seed"} | (given - {word.key for word in line.swept}) | (set() if "name" in given else TOLD_BY_NAME)
    os.environ[SWEEP_PROCESS] = str(os.getpid())
    with locked(folder, "sweep"):
        sweep.clear_jobs(folder)
        print(f"sweep {folder}", flush=True)
        code: Any = 0
        signal.signal(signal.SIGTERM, _terminate)
        try:
            exclude = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(told))}]"
            _run_hydra(["--multirun", *line.for_hydra, *words, exclude])
        except (KeyboardInterrupt, sweep.Terminated):
            cells = sweep.read_jobs(folder)
            print(sweep.summary(cells, folder, sweep.never_began(sys.argv[2:], config.hydra, cells)), flush=True)
            raise
        except SystemExit as error:  # a launcher that gave up; what the cells reported is still true
            code = error.code
        cells = sweep.read_jobs(folder)
        print(sweep.summary(cells, folder), flush=True)
    return 1 if code or any(cell.state == "failed" for cell in cells) else 0


def _check_cells(line: CommandLine, folder: Path) -> None:
    """What the cells share: a sweep in which one cell may be trained is begun, and the others say why they fail.

    Raises:
        InputError: what the first of them says, where none may.
    """
    refused: InputError | None = None
    for cell in range(max((len(word.values) for word in line.swept), default=1)):
        options = plain(without_hydra(line.config(cell)))
        try:
            return _check({**options, "out": str(folder), "resume": AUTO})
        except InputError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _terminate(*_: object) -> NoReturn:
    raise sweep.Terminated


if __name__ == "__main__":
    cli.run(main)
