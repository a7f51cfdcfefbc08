"""Set up the W&B workspace of the ablation: ``python scripts/wandb_workspace.py --entity TEAM [--project NAME]``.

Runs are grouped by sweep and cell, so that a line is the mean over a cell's seeds. ``--dry-run`` prints the panels as
JSON; that needs no key, no network and not the extra ``dashboards`` (``pip install 'fanet-lightning[dashboards]'``).
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError

SETTINGS = ("easy", "medium", "hard")
STEP = "trainer/global_step"
# Group: the sweep. The rest are keys of the run's config.
GROUP_BY = ("Group", "config:name")
COLUMNS = (
    "config:level", "config:context", "config:hl", "config:model.name", "config:seed", "summary:val/ap_easy",
    "summary:val/ap_medium", "summary:val/ap_hard", "summary:model/parameters", "summary:model/flops_640x480",
)  # fmt: skip


def specification(project: str, name: str, levels: int, images: int) -> dict[str, Any]:
    """The workspace as plain containers.

    A panel is ``{"kind", "title", …}``: ``line`` with ``y`` (metrics) or ``y_regex`` and ``log_y``, over the optimiser
    step; ``bar`` with ``metrics``, their last values; ``scatter`` with ``x``, ``y`` (last values) and ``log_x``;
    ``curves`` with ``table``; ``images`` with ``keys``.
    """
    ap = [_line(f"AP {setting}", f"val/ap_{setting}") for setting in SETTINGS]
    losses = [_line("loss, all hierarchies", "train/loss")]
    for level in range(1, levels + 1):
        losses += [
            _line(f"hierarchy {level}: {title}", f"train/h{level}/{part}")
            for part, title in (("cls", "classification"), ("box", "boxes"))
        ]
    optimisation = [
        {"kind": "line", "title": "learning rate", "y_regex": "^lr-.*", "log_y": False},
        {**_line("gradient norm before clipping", "train/grad_norm"), "log_y": True},
        _line("skipped steps", "train/skipped_steps"),
        _line("images per second", "train/images_per_second"),
        _line("positive anchors", "train/positives"),
        _line("faces without an anchor", "train/unmatched_faces"),
    ]
    cost = [
        {"kind": "scatter", "title": title, "x": f"model/{key}", "y": "val/ap_hard", "log_x": False}
        for key, title in (
            ("parameters", "AP hard over parameters"),
            ("flops_640x480", "AP hard over FLOPs, 640 × 480"),
        )
    ]
    bars = [{"kind": "bar", "title": f"AP {s} at the end", "metrics": [f"val/ap_{s}"]} for s in SETTINGS]
    curves = [{"kind": "curves", "title": "precision over recall", "table": "val/pr_curves_table"}]
    browser = [{"kind": "images", "title": "validation images", "keys": [f"images/{i}" for i in range(images)]}]
    sections = {
        "Average precision": ap + bars,
        "Precision and recall": curves,
        "Losses per hierarchy": losses,
        "Optimisation and speed": optimisation,
        "Accuracy and cost": cost,
        "Images": browser if images else [],
    }
    return {
        "project": project,
        "name": name,
        "x_axis": STEP,
        "group_by": list(GROUP_BY),
        "columns": list(COLUMNS),
        "sections": [{"name": title, "panels": panels} for title, panels in sections.items() if panels],
    }


def _line(title: str, metric: str) -> dict[str, Any]:
    return {"kind": "line", "title": title, "y": [metric], "log_y": False}


def workspace(spec: Mapping[str, Any], entity: str) -> Any:
    """:func:`specification` as a ``wandb_workspaces.workspaces.Workspace``.

    Raises:
        InputError: the package is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise InputError(
            f"wandb-workspaces is needed ({error}): pip install 'fanet-lightning[dashboards]'; --dry-run does without"
        ) from error
    groups = [ws.Config(key.removeprefix("config:")) if ":" in key else ws.Metric(key) for key in spec["group_by"]]
    return ws.Workspace(
        entity=entity,
        project=spec["project"],
        name=spec["name"],
        sections=[
            ws.Section(name=section["name"], panels=[_panel(panel) for panel in section["panels"]], is_open=True)
            for section in spec["sections"]
        ],
        settings=ws.WorkspaceSettings(x_axis=spec["x_axis"], max_runs=30),
        runset_settings=ws.RunsetSettings(groupby=groups, pinned_columns=list(spec["columns"])),
    )


def _panel(panel: Mapping[str, Any]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    kind, title = panel["kind"], panel["title"]
    if kind == "line":
        return wr.LinePlot(
            title=title, x=STEP, y=panel.get("y", []), metric_regex=panel.get("y_regex"), log_y=panel["log_y"],
            groupby_aggfunc="mean", groupby_rangefunc="minmax",
        )  # fmt: skip
    if kind == "bar":
        return wr.BarPlot(
            title=title, metrics=panel["metrics"], groupby_aggfunc="mean", groupby_rangefunc="minmax", range_x=(0, 1)
        )
    if kind == "scatter":
        return wr.ScatterPlot(
            title=title, x=wr.SummaryMetric(panel["x"]), y=wr.SummaryMetric(panel["y"]), log_x=panel["log_x"]
        )
    if kind == "curves":
        return wr.CustomChart(
            query={"summaryTable": {"tableKey": panel["table"]}},
            chart_name="wandb/lineseries/v0",
            chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
            chart_strings={"title": title, "xname": "recall"},
        )
    if kind == "images":
        return wr.MediaBrowser(title=title, media_keys=panel["keys"], grid_x_axis="step", grid_y_axis="run")
    raise ValueError(f"panel of kind {kind!r}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="user or team; default: the key's")
    parser.add_argument("--project", default="fanet_lightning")
    parser.add_argument("--name", default="Ablation", help="of the workspace")
    parser.add_argument("--levels", type=int, default=3, help="hierarchies with losses of their own")
    parser.add_argument("--images", type=int, default=8, help="as logger.wandb.images of the runs")
    parser.add_argument("--timeout", type=int, default=30, help="seconds to wait for the server")
    parser.add_argument("--dry-run", action="store_true", help="print the panels as JSON and send nothing")
    arguments = parser.parse_args(argv)
    spec = specification(arguments.project, arguments.name, arguments.levels, arguments.images)
    if arguments.dry_run:
        print(json.dumps(spec, indent=2, ensure_ascii=False))
        return 0
    from fanet_lightning.train.wandb_run import has_key

    # What can be said without a server is said first.
    workspace(spec, entity="unknown")
    if not has_key():
        raise InputError("no W&B key is set up: set WANDB_API_KEY or run wandb login; --dry-run does without")
    print(_save(spec, arguments.entity, arguments.timeout))
    return 0


def _save(spec: Mapping[str, Any], entity: str | None, timeout: int) -> str:
    import wandb

    try:
        # The first call to the server: it fails here, in bounded time, where it cannot be reached.
        api = wandb.Api(timeout=timeout)
        return str(workspace(spec, entity or str(api.default_entity)).save().url)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"W&B did not take the workspace ({text}); check WANDB_API_KEY, --entity, network") from error


if __name__ == "__main__":
    cli.run(main)
