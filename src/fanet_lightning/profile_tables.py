"""The files of a profile: tables of the parts of a step and of a validation, and of the operators."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fanet_lightning.files import replaced
from fanet_lightning.profile_trace import OperatorTime, StepTrace
from fanet_lightning.profiling import STEP_PARTS, VALIDATION_PARTS, WARM_UP_STEPS, Spent

TOP = 20


@dataclass(frozen=True)
class Row:
    """One part: milliseconds (median and 90th percentile over steps), and its share of all their time, 0 … 1."""

    part: str
    median_ms: float
    p90_ms: float
    share: float


def rows_of(spent: Sequence[Spent], parts: Sequence[str]) -> list[Row]:
    """One row per part, and the whole as the last row. Shares add up to 1; medians need not add up."""
    total = sum(item.seconds for item in spent)
    rows = []
    for part in parts:
        seconds = np.asarray([item.parts.get(part, 0.0) for item in spent])
        rows.append(_row(part, seconds, total))
    return [*rows, _row("all", np.asarray([item.seconds for item in spent]), total)]


def _row(name: str, seconds: np.ndarray, total: float) -> Row:
    median, p90 = (float(np.percentile(seconds, q)) * 1e3 for q in (50, 90))
    return Row(name, median, p90, float(seconds.sum()) / total)


def headline(steps: Sequence[Spent], folder: Path) -> str:
    """The largest parts of a step in one line."""
    if not steps:
        return f"profile: no step was measured, the first {WARM_UP_STEPS} and the watched ones are left out; {folder}"
    *rows, whole = rows_of(steps, STEP_PARTS)
    largest = sorted(rows, key=lambda row: -row.share)[:3]
    words = ", ".join(f"{row.part} {row.share:.0%}" for row in largest)
    return f"profile: {whole.median_ms:.1f} ms a step: {words}; {folder / 'steps.md'}"


def write_profile(
    folder: Path,
    steps: Sequence[Spent],
    validations: Sequence[Spent],
    trace: StepTrace,
    *,
    fit_seconds: float,
    train_seconds: float,
    started: int,
    ranks: int,
) -> None:
    """Write ``steps.md``, ``steps.csv`` and, where steps were watched, ``trace.json`` and ``operators.md``.

    Args:
        folder: made if need be; what an earlier start wrote is replaced.
        steps: the measured ones.
        validations: all.
        trace: of the watched steps.
        fit_seconds: from the start of training to its end.
        train_seconds: of all steps, the ones left out too.
        started: steps in all.
        ranks: processes that trained together.
    """
    text = steps_markdown(
        steps, validations, watched=trace.steps, fit_seconds=fit_seconds, train_seconds=train_seconds,
        started=started, ranks=ranks,
    )  # fmt: skip
    _write_text(folder / "steps.md", text)
    _write(folder / "steps.csv", lambda path: _write_csv(path, steps, validations))
    if trace.steps:
        _write(folder / "trace.json", trace.export)
        _write_text(folder / "operators.md", operators_markdown(trace.operators(), trace.steps))


def steps_markdown(
    steps: Sequence[Spent],
    validations: Sequence[Spent],
    *,
    watched: int,
    fit_seconds: float,
    train_seconds: float,
    started: int,
    ranks: int,
) -> str:
    """The page of both tables; see :func:`write_profile`."""
    lines = ["# Where the time goes", "", "## A training step", ""]
    if steps:
        lines += [
            f"{len(steps)} steps of {started}. Left out: the first {WARM_UP_STEPS}, and those that torch.profiler "
            f"watched ({watched}, and one before them). Shares are of the wall time of the measured steps.",
            "",
            *_table(rows_of(steps, STEP_PARTS), "step"),
        ]
        if ranks > 1:
            lines += [
                "",
                f"Of {ranks} ranks the first. Backward includes the averaging of gradients over ranks, the loss that "
                "of the number of positives, the rest the module's wrapper; each waits for the slower rank.",
            ]
    else:
        lines.append(f"No step was measured: there were {started}, too few to leave the first ones out.")
    if validations:
        lines += ["", "## A validation", "", f"{len(validations)} of them.", ""]
        lines += _table(rows_of(validations, VALIDATION_PARTS), "validation")
    spent = {"training steps": train_seconds, "validations": sum(item.seconds for item in validations)}
    spent["start, ends of epochs, checkpoints"] = fit_seconds - sum(spent.values())
    lines += ["", "## The training", "", "| what | seconds | share |", "|---|---:|---:|"]
    lines += [f"| {what} | {seconds:.1f} | {seconds / fit_seconds:.1%} |" for what, seconds in spent.items()]
    lines += [
        "",
        "On CUDA every border between parts waits for the device, so this training was slower than one that is not "
        "profiled; on a CPU the borders cost microseconds.",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Row], unit: str) -> list[str]:
    *parts, whole = rows
    lines = [f"| part | ms per {unit}, median | 90th percentile | share |", "|---|---:|---:|---:|"]
    for row in parts:
        lines.append(f"| {row.part} | {row.median_ms:.2f} | {row.p90_ms:.2f} | {row.share:.1%} |")
    return [*lines, f"| **all** | **{whole.median_ms:.2f}** | **{whole.p90_ms:.2f}** | **{whole.share:.1%}** |"]


def operators_markdown(operators: Sequence[OperatorTime], steps: int) -> str:
    """The operators with the largest self time, on the CPU and, where one was used, on the device."""
    lines = [f"# Operators of {steps} training steps", ""]
    sides: list[tuple[str, Callable[[OperatorTime], float]]] = [
        ("CPU", lambda operator: operator.self_cpu_us),
        ("device", lambda operator: operator.self_device_us),
    ]
    for side, of in sides:
        total = sum(of(operator) for operator in operators)
        if not total:
            continue
        lines += [f"## {side}: {total / steps / 1e3:.2f} ms a step", ""]
        lines += ["| operator | calls a step | self ms a step | share |", "|---|---:|---:|---:|"]
        for operator in sorted(operators, key=of, reverse=True)[:TOP]:
            calls, milliseconds, share = operator.calls / steps, of(operator) / steps / 1e3, of(operator) / total
            lines.append(f"| `{operator.name}` | {calls:.1f} | {milliseconds:.2f} | {share:.1%} |")
        lines.append("")
    return "\n".join(lines)


def _write_csv(path: Path, steps: Sequence[Spent], validations: Sequence[Spent]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["of", "part", "median_ms", "p90_ms", "share", "count"])
        for what, spent, parts in (
            ("training step", steps, STEP_PARTS),
            ("validation", validations, VALIDATION_PARTS),
        ):
            for row in rows_of(spent, parts) if spent else []:
                values = [f"{value:.6g}" for value in (row.median_ms, row.p90_ms, row.share)]
                writer.writerow([what, row.part, *values, len(spent)])


def _write_text(path: Path, text: str) -> None:
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    with replaced(path) as temporary:
        write(temporary)
