"""The W&B workspace of an ablation: ``fanet workspace [entity=TEAM] [project=NAME]``.

Runs are grouped by sweep and variant, so that a line is the mean over a variant's seeds. ``dry_run=true`` prints the
panels as JSON; that needs no key, no network and not the extra ``dashboards``.
"""

import json
from collections.abc import Mapping
from typing import Any

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError, first_line

USAGE = "fanet workspace [entity=TEAM] [project=fanet_lightning] [dry_run=true]"
SETTINGS = ("easy", "medium", "hard")
STEP = "trainer/global_step"
COLUMNS = (
    "config:level", "config:context", "config:hl", "config:model.name", "config:seed", "summary:val/ap_easy",
    "summary:val/ap_medium", "summary:val/ap_hard", "summary:model/parameters", "summary:model/flops_640x480",
)  # fmt: skip
COSTS = {"parameters": "AP hard over parameters", "flops_640x480": "AP hard over FLOPs, 640 × 480"}


def specification(project: str, name: str, levels: int, images: int) -> dict[str, Any]:
    """The workspace as plain containers.

    A panel is ``{"kind", "title", …}``: ``line`` with ``y`` (metrics) or ``y_regex`` and ``log_y``, over the optimizer
    step; ``bar`` with ``metrics``, their last values; ``scatter`` with ``x``, ``y`` (last values); ``curves`` with
    ``table``; ``images`` with ``keys``.
    """
    losses = [_line("loss, all hierarchies", "train/loss")]
    for level in range(1, levels + 1):
        losses.append(_line(f"hierarchy {level}: classification", f"train/h{level}/cls"))
        losses.append(_line(f"hierarchy {level}: boxes", f"train/h{level}/box"))
    keys = [f"images/{i}" for i in range(images)]
    sections = {
        "Average precision": [
            *(_line(f"AP {setting}", f"val/ap_{setting}") for setting in SETTINGS),
            *({"kind": "bar", "title": f"AP {s} at the end", "metrics": [f"val/ap_{s}"]} for s in SETTINGS),
        ],
        "Precision and recall": [{"kind": "curves", "title": "precision over recall", "table": "val/pr_curves_table"}],
        "Losses per hierarchy": losses,
        "Optimization and speed": [
            {"kind": "line", "title": "learning rate", "y_regex": "^lr-.*", "log_y": False},
            {**_line("gradient norm before clipping", "train/grad_norm"), "log_y": True},
            _line("skipped steps", "train/skipped_steps"),
            _line("images per second", "train/images_per_second"),
            _line("positive anchors", "train/positives"),
            _line("faces without an anchor", "train/unmatched_faces"),
        ],
        "Accuracy and cost": [
            {"kind": "scatter", "title": title, "x": f"model/{key}", "y": "val/ap_hard"} for key, title in COSTS.items()
        ],
        "Images": [{"kind": "images", "title": "validation images", "keys": keys}] if keys else [],
    }
    return {
        "project": project,
        "name": name,
        "x_axis": STEP,
        # Group: the sweep. The rest are keys of the run's config.
        "group_by": ["Group", "config:name"],
        "columns": list(COLUMNS),
        "sections": [{"name": title, "panels": panels} for title, panels in sections.items() if panels],
    }


def _line(title: str, metric: str) -> dict[str, Any]:
    return {"kind": "line", "title": title, "y": [metric], "log_y": False}


def workspace(spec: Mapping[str, Any], entity: str) -> Any:
    """:func:`specification` as a ``wandb_workspaces.workspaces.Workspace``; InputError: that is not installed."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise InputError(
            f"wandb-workspaces is needed ({error}): pip install 'fanet-lightning[dashboards]'; "
            "dry_run=true does without"
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
    over_seeds: dict[str, Any] = {"title": title, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if kind == "line":
        regex = panel.get("y_regex")
        return wr.LinePlot(x=STEP, y=panel.get("y", []), metric_regex=regex, log_y=panel["log_y"], **over_seeds)
    if kind == "bar":
        return wr.BarPlot(metrics=panel["metrics"], range_x=(0, 1), **over_seeds)
    if kind == "scatter":
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(panel["x"]), y=wr.SummaryMetric(panel["y"]))
    if kind == "curves":
        return wr.CustomChart(
            query={"summaryTable": {"tableKey": panel["table"]}},
            chart_name="wandb/lineseries/v0",
            chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
            chart_strings={"title": title, "xname": "recall"},
        )
    return wr.MediaBrowser(title=title, media_keys=panel["keys"], grid_x_axis="step", grid_y_axis="run")


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("workspace", argv, USAGE)
    if config is None:
        return 0
    spec = specification(config.project, config.name, config.levels, config.images)
    if config.dry_run:
        print(json.dumps(spec, indent=2, ensure_ascii=False))
        return 0
    from fanet_lightning.train.loggers import has_key

    # What can be said without a server is said first.
    workspace(spec, entity="unknown")
    if not has_key():
        raise InputError("no W&B key is set up: set WANDB_API_KEY or run wandb login; dry_run=true does without")
    import wandb

    try:
        # The first call to the server: it fails here, in bounded time, where it cannot be reached.
        entity = config.entity or str(wandb.Api(timeout=config.timeout).default_entity)
        print(workspace(spec, entity).save().url)
    except Exception as error:
        raise InputError(
            f"W&B did not take the workspace ({first_line(error)}); check WANDB_API_KEY, entity= and the network"
        ) from error
    return 0


if __name__ == "__main__":
    cli.run(main)
