"""The page: one HTML file with everything inside, drawn from ``templates/report.html``."""

import base64
import io
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from fanet_lightning.cli.provenance import now
from fanet_lightning.report import ablation as table
from fanet_lightning.report.ablation import (
    CELLS,
    LABELS,
    PAPER_PROTOCOL,
    PAPER_SPEED,
    SOURCE,
    Found,
    Part,
    Run,
    legend,
    shared_settings,
    sweep_command,
)
from fanet_lightning.score.wider_face.ground_truth import SETTINGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ALT = {
    "pr_curves": "Precision-recall curves, a panel per setting and a line per cell",
    "steps": "Forest plot of the paper's steps: our differences with intervals beside the paper's",
    "trade_off": "AP against images per second, parameters and operations",
    "learning": "Validation AP over the epochs, a line per cell",
}


def render(found: Found, parts: Sequence[Part]) -> str:
    """The whole page; it needs no network, no server and no script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": table.percent, "points": table.points, "interval": table.interval_text, "seeds": table.seeds_text,
        "spread": table.spread_text, "duration": duration, "value": _value,
    }  # fmt: skip
    return environment.get_template("report.html").render(
        found=found,
        parts=[_view(part) for part in parts],
        settings=SETTINGS,
        source=SOURCE,
        paper_protocol=PAPER_PROTOCOL,
        paper_speed=PAPER_SPEED,
        written=now(),
    )


def _view(part: Part) -> dict[str, Any]:
    group = part.group
    values = {
        setting: [
            row.ours[setting].value for row in part.rows if setting in row.ours and row.protocol == group.protocol
        ]
        for setting in SETTINGS
    }
    return {
        "part": part,
        "group": group,
        "id": f"-{part.letter.lower()}" if part.letter else "",
        "legend": legend(part),
        "facts": _facts(part),
        "any_status": any(row.status for row in part.rows),
        "best": {setting: max(own) for setting, own in values.items() if own},
        "several_seeds": len(part.seeds) > 1,
        "steps": [part.steps[i : i + len(SETTINGS)] for i in range(0, len(part.steps), len(SETTINGS))],
        "labels": LABELS,
        "verdicts": table.verdict_counts(part.steps),
        "figures": {name: {"src": data_uri(figure), "alt": ALT[name]} for name, figure in part.figures.items()},
        "costs": [(LABELS.get(cell, cell), cell, part.costs[cell], _hard(part, cell)) for cell in _ordered(part)],
        "runs": [_run_view(run) for run in group.runs],
        "failed": [run for run in group.runs if run.record.state == "failed"],
        "problems": [line for run in group.runs for line in run.problems]
        + [line for _, line in group.left_out]
        + [f"{cell}: the network cannot be built ({why})" for cell, why in part.timing.refused.items()],
        "sweep_commands": list(
            filter(None, map(sweep_command, dict.fromkeys(run.folder.parent for run in group.runs)))
        ),
        "shared": shared_settings(group),
        "versions": _versions(group.runs),
        "commits": sorted({str(run.record.made_by.get("git_commit") or "not recorded") for run in group.runs}),
        "commands": [(run.title, command) for run in group.runs if (command := _command(run))],
    }


def _facts(part: Part) -> list[tuple[str, str]]:
    group, settings = part.group, part.group.settings
    devices = sorted({str(run.record.train["device"]) for run in group.runs if run.record.train.get("device")})
    width = settings.get("model", {}).get("width")
    recipe = [f"{settings[key]} {word}" for key, word in (("epochs", "epochs"),) if key in settings]
    recipe += [f"batch {settings['batch_size']}"] if "batch_size" in settings else []
    recipe += [f"{settings['input_size']} px"] if "input_size" in settings else []
    recipe += [f"width ×{width:g}"] if isinstance(width, int | float) and width != 1 else []
    facts = [
        ("Data", group.data_label),
        (
            "Protocol",
            group.protocol if group.protocol == PAPER_PROTOCOL else f"{group.protocol} (paper: {PAPER_PROTOCOL})",
        ),
        ("Recipe", ", ".join(recipe)),
        ("Seeds", ", ".join(map(str, part.seeds))),
        ("Trained on", "; ".join(devices)),
    ]
    return [(name, text) for name, text in facts if text]


def _run_view(run: Run) -> dict[str, Any]:
    train, settings = run.record.train, run.record.settings
    factors = (
        train.get("steps"),
        settings.get("batch_size"),
        settings.get("trainer", {}).get("accumulate_grad_batches", 1),
    )
    images = math.prod(factors) if all(isinstance(factor, int) for factor in factors) else None
    return {
        "run": run,
        "label": LABELS.get(run.cell, run.cell),
        "status": table.run_status(run, run.protocol) or "finished",
        "train": train,
        "images": images,
        "written": run.written.strftime("%Y-%m-%d %H:%M"),
    }


def _hard(part: Part, cell: str) -> float | None:
    own = [row.ours["hard"].value for row in part.rows if row.cell == cell and "hard" in row.ours]
    return own[0] if own else None


def _ordered(part: Part) -> list[str]:
    cells = list(part.costs)
    return [cell for cell in CELLS if cell in cells] + [cell for cell in cells if cell not in CELLS]


def _versions(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(package, its versions among the runs), Python first."""
    found: dict[str, set[str]] = {}
    for run in runs:
        packages = run.record.made_by.get("packages")
        own = {"Python": run.record.made_by.get("python"), **(packages if isinstance(packages, dict) else {})}
        for name, version in own.items():
            if version is not None:
                found.setdefault(str(name), set()).add(str(version))
    return [(name, sorted(versions)) for name, versions in found.items()]


def _command(run: Run) -> str | None:
    words = run.record.made_by.get("command")
    if not isinstance(words, list) or not words:
        return None
    first, *rest = [str(word) for word in words]
    start = ["python", "-m", "fanet_lightning.train"] if Path(first).name in ("train.py", "__main__.py") else [first]
    return shlex.join([*start, *rest])


def data_uri(figure: "Figure") -> str:
    """The figure as SVG inside a URI: an image of its own, so that names inside it clash with nothing on the page."""
    import matplotlib as mpl

    from fanet_lightning.report.figures import STYLE

    text = io.StringIO()
    # Drawn letters rather than text: the reader's machine may lack the font, and then labels would run over.
    with mpl.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "report"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode()).decode()


def duration(seconds: float) -> str:
    """Hours and minutes, below an hour minutes and seconds."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return str(value)
