"""The W&B workspace of an ablation: ``fanet workspace [entity=TEAM] [project=NAME]``.

Runs are grouped by sweep and variant, so that a line is the mean over a variant's seeds. ``dry_run=true`` prints the
panels as JSON; that needs no key, no network and not the extra ``dashboards``.
"""

import json
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
COUNTS = ("skipped_steps", "images_per_second", "positives", "unmatched_faces")
OVER_SEEDS = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}

Panel = tuple[str, dict[str, Any]]  # a class of wandb_workspaces.reports.v2 and its arguments


def sections(levels: int, images: int) -> dict[str, list[Panel]]:
    """The panels under their headings, for runs with ``levels`` hierarchies that log ``images`` validation images."""
    parts = {"classification": "cls", "boxes": "box"}
    keys = [f"images/{i}" for i in range(images)]
    media = {"title": "validation images", "media_keys": keys, "grid_x_axis": "step", "grid_y_axis": "run"}
    curves = {
        "query": {"summaryTable": {"tableKey": "val/pr_curves_table"}},
        "chart_name": "wandb/lineseries/v0",
        "chart_fields": {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
        "chart_strings": {"title": "precision over recall", "xname": "recall"},
    }
    bars: list[Panel] = [
        ("BarPlot", {"title": f"AP {s} at the end", "metrics": [f"val/ap_{s}"], "range_x": [0, 1], **OVER_SEEDS})
        for s in SETTINGS
    ]
    return {
        "Average precision": [*(_line(f"AP {setting}", f"val/ap_{setting}") for setting in SETTINGS), *bars],
        "Precision and recall": [("CustomChart", curves)],
        "Losses per hierarchy": [
            _line("loss, all hierarchies", "train/loss"),
            *(
                _line(f"hierarchy {level}{' or the only one' if level == 1 else ''}: {name}", f"train/h{level}/{part}")
                for level in range(1, levels + 1)
                for name, part in parts.items()
            ),
        ],
        "Optimization and speed": [
            _line("learning rate", metric_regex="^lr-.*"),
            _line("gradient norm before clipping", "train/grad_norm", log_y=True),
            *(_line(name.replace("_", " "), f"train/{name}") for name in COUNTS),
        ],
        "Accuracy and cost": [
            ("ScatterPlot", {"title": title, "x": f"model/{key}", "y": "val/ap_hard"}) for key, title in COSTS.items()
        ],
        "Images": [("MediaBrowser", media)] if keys else [],
    }


def _line(title: str, *metrics: str, **more: Any) -> Panel:
    return "LinePlot", {"title": title, "x": STEP, "y": list(metrics), "log_y": False, **OVER_SEEDS, **more}


def workspace(project: str, name: str, entity: str, panels: dict[str, list[Panel]]) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace`` of :func:`sections`; InputError: that is not installed."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise InputError(
            f"wandb-workspaces is needed ({error}): pip install 'fanet-lightning[dashboards]', or dry_run=true"
        ) from error

    def made(kind: str, arguments: dict[str, Any]) -> Any:
        if kind == "ScatterPlot":  # the last values, not the history's
            arguments = {**arguments, **{axis: wr.SummaryMetric(arguments[axis]) for axis in ("x", "y")}}
        return getattr(wr, kind)(**arguments)

    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name=title, panels=[made(*panel) for panel in several], is_open=True)
            for title, several in panels.items()
            if several
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=30),
        # Group is the sweep, name the variant.
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group"), ws.Config("name")], pinned_columns=list(COLUMNS)
        ),
    )


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("workspace", argv, USAGE)
    if config is None:
        return 0
    panels = sections(config.levels, config.images)
    if config.dry_run:
        print(json.dumps(panels, indent=2, ensure_ascii=False))
        return 0
    from fanet_lightning.train.loggers import has_key

    # What can be said without a server is said first.
    built = workspace(config.project, config.name, config.entity or "unknown", panels)
    if not has_key():
        raise InputError("no W&B key is set up: set WANDB_API_KEY, run wandb login, or give dry_run=true")
    import wandb

    try:
        # The first call to the server: it fails here, in bounded time, where it cannot be reached.
        built.entity = config.entity or str(wandb.Api(timeout=config.timeout).default_entity)
        print(built.save().url)
    except Exception as error:
        raise InputError(
            f"W&B did not take the workspace ({first_line(error)}); check WANDB_API_KEY, entity= and the network"
        ) from error
    return 0


if __name__ == "__main__":
    cli.run(main)
