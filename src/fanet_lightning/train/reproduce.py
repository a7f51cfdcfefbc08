"""``fanet reproduce RUN_FOLDER``: train a finished run again from its record, and compare the two to the last bit."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import (
    CIRCUMSTANCES,
    RunRecord,
    TerminalLog,
    as_today,
    is_first_process,
    read_record,
    state_now,
)
from fanet_lightning.models.pretrained import read_checkpoint
from fanet_lightning.train.run import machine, origin, prepare, train

USAGE = """fanet reproduce RUN_FOLDER [out=DIR] [data.root=DIR] [other_data=true]

Trains with the run's configuration, seed and number of threads, says what else differs (versions, machine, data), and
compares scores and weights. Exit code 0: equal to the last bit; 1: not; 2: the run cannot be repeated."""
CHECKPOINT = "checkpoints/last.ckpt"
# In csv/metrics.csv; no two runs agree in them.
TIMES = {"train/images_per_second", "train/wait_share"}


def options_of(record: RunRecord, folder: Path, out: Path) -> dict[str, Any]:
    """The run's configuration for a run of its own in ``out``, from the beginning, with a CSV log alone.

    InputError: a setting is missing, which an earlier version did without.
    """
    today = plain(compose_config("train", []))
    # What changes nothing that is trained may be as today; the rest is as it was recorded.
    options = {key: value for key, value in today.items() if key in CIRCUMSTANCES} | as_today(record.settings)
    missing = sorted(set(today) - set(options))
    if missing:
        version, commit = record.made_by.get("packages", {}).get("fanet-lightning"), record.made_by.get("git_commit")
        raise InputError(
            f"run={folder} has no {missing[0]}; repeat it with fanet-lightning {version} (commit {commit}), its own"
        )
    resume = options["resume"]
    if resume == "auto" or (resume and Path(resume).resolve().is_relative_to(folder.resolve())):
        options["resume"] = None  # it was cut off; an exact resume gives the same weights as a run at a stretch
    for callback in options["callbacks"].values():
        if isinstance(callback, dict) and "dirpath" in callback:
            callback["dirpath"] = str(out / Path(callback["dirpath"]).name)
    return options | {
        "out": str(out), "overwrite": False, "group": None, "profile": False, "logger": {"csv": True},
        "threads": record.train.get("threads", options["threads"]),
    }  # fmt: skip


def differences(then: RunRecord, origin: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """What this process does not share with a run, a line each: versions, code, machine."""
    before = then.made_by
    pairs = {name: (before.get("packages", {}).get(name), version) for name, version in origin["packages"].items()}
    pairs |= {name: (before.get(name), origin[name]) for name in ("python", "git_commit", "code_sha256")}
    pairs |= {name: (then.train.get(name), value) for name, value in machine.items()}
    return [f"{name}: {old or 'not recorded'} then, {new} now" for name, (old, new) in pairs.items() if old != new]


def data_difference(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first value of two digests (``FaceDataModule.digest``) that differs; None where none does."""
    values = (
        (part, key, then.get(part, {}).get(key), new) for part, digest in now.items() for key, new in digest.items()
    )
    return next((f"{key} of {part}: {old} then, {new} now" for part, key, old, new in values if old != new), None)


def _different_weight(first: Path, second: Path) -> str | None:
    old, new = (read_checkpoint(path)["state_dict"] for path in (first, second))
    for key in {**old, **new}:
        if key not in old or key not in new or old[key].shape != new[key].shape:
            return f"{key} of last.ckpt is not of the same shape, or in one of them alone"
        a, b = old[key], new[key]
        # Bytes, because NaN is not equal to itself.
        if not torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (a, b))):
            apart = (a.double() - b.double()).abs()
            return f"{key} of last.ckpt: {int((a != b).sum())} of {a.numel()} values, by up to {float(apart.max()):.2g}"
    return None


def _different_score(then: RunRecord, now: RunRecord) -> str | None:
    for protocol, old in then.scores.items():
        new = now.scores.get(protocol, {}).get("ap", {})
        for setting, ap in old["ap"].items():
            if json.dumps(ap) != json.dumps(new.get(setting)):  # as text, because NaN is not equal to itself
                return f"AP {setting} under {protocol}: {ap} then, {new.get(setting)} now"
    return None


def _different_step(first: Path, second: Path) -> str | None:
    with first.open(encoding="utf-8") as a, second.open(encoding="utf-8") as b:
        for old, new in zip(csv.DictReader(a), csv.DictReader(b), strict=False):
            for key, value in old.items():
                if key in new and key not in TIMES and value != new[key]:
                    return f"{key} from step {old['step']} on: {value} then, {new[key]} now"
    return None


def reproduce(folder: Path, out: Path, *, root: str | None = None, other_data: bool = False) -> bool:
    """Train the run in ``folder`` again in ``out`` and print how the two compare: equal to the last bit?

    ``root``: of the data; None: the run's. ``other_data``: train although the data differ. InputError: no finished run;
    ``out`` holds a run; the data are gone or differ; see :func:`options_of`.
    """
    then = read_record(folder)
    state = "not there" if then is None else state_now(folder, then)
    if then is None or state != "finished" or not (folder / CHECKPOINT).is_file():
        raise InputError(f"run={folder} is {state}; give the folder of a finished run, with run.json and {CHECKPOINT}")
    first = is_first_process()  # Lightning starts further ranks with the same words
    if first and read_record(out) is not None:
        raise InputError(f"out={out} holds a run already; remove it, or give another out")
    options = options_of(then, folder, out)
    if root is not None:
        options["data"]["root"] = root
    run = prepare(options)
    if first:
        if options["threads"]:
            torch.set_num_threads(options["threads"])
        for line in differences(then, origin(), machine(run.trainer)):
            print(line)
        run.datamodule.source.prepare()
        found = data_difference(then.data, run.datamodule.digest()) if then.data else None
        if found and not other_data:
            raise InputError(f"the data differ from the run's: {found}; data.root=DIR, or other_data=true to go on")
        print(found or ("the run's data were not recorded" if not then.data else "the data are the run's"))
    train(run)
    now = read_record(out)
    if not first or now is None:
        return True
    weights = _different_weight(folder / CHECKPOINT, out / CHECKPOINT)
    logs = [run / "csv/metrics.csv" for run in (folder, out)]
    steps = _different_step(*logs) if (logged := all(map(Path.is_file, logs))) else None
    different = "; ".join(text for text in (weights or _different_score(then, now), steps) if text)
    compared = ", ".join(["weights", *["scores"] * bool(then.scores), *["log"] * logged])
    print(f"differs: {different}" if different else f"bit-equal: {compared} of {folder}")
    return not different


def main(argv: list[str]) -> int:
    """The command line."""
    words = [f"run={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] and argv[0][:1] != "-" else argv
    config = cli.verb_config("reproduce", words, USAGE, required=["run"])
    if config is None:
        return 0
    folder = Path(config.run)
    if folder.name in ("", ".."):
        folder = folder.resolve()
    out = Path(config.out) if config.out else folder.with_name(f"{folder.name}_again")
    with TerminalLog():
        return 0 if reproduce(folder, out, root=config.data.root, other_data=config.other_data) else 1


if __name__ == "__main__":
    cli.run(main)
