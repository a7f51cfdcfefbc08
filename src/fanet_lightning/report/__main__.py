"""Runs → a report: ``fanet report runs=DIR``."""

import sys
from pathlib import Path

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.files import check_replaceable, check_writable, replaced_folder

USAGE = "fanet report runs=DIR [out=DIR] [baseline=NAME] [bootstrap=1000]"
PAGE_FILE, TABLE_FILE, FIGURES_FOLDER = "report.html", "table.md", "figures"


def write_report(runs: Path, out: Path | None = None, *, baseline: str | None = None, bootstrap: int = 1000) -> str:
    """Write ``report.html``, ``table.md`` and ``figures/`` (PDF and PNG) about all runs below a folder.

    Args:
        runs: folder with run folders at any depth; half-finished and broken ones are reported as such.
        out: replaced as a whole; None: ``runs``/report.
        baseline: a row of the table, or the name or folder of a run, that all others are compared with.
        bootstrap: resamples of the images; 0: no intervals over images.

    Returns the tables as Markdown. InputError: no run, none called ``baseline``, an ``out`` that cannot be written or
    that holds something other than a report.
    """
    # Looking takes milliseconds, loading matplotlib seconds: refuse before it is loaded.
    out = out or runs / "report"
    check_writable(out)
    check_replaceable(out, "a report", (PAGE_FILE, TABLE_FILE, FIGURES_FOLDER))
    from fanet_lightning.report.figures import save_figure
    from fanet_lightning.report.runs import find_runs
    from fanet_lightning.report.sweep import build_parts, markdown, page

    found = find_runs(runs)
    parts = build_parts(found, bootstrap=bootstrap, baseline=baseline)
    text = markdown(found, parts)
    with replaced_folder(out) as folder:
        (folder / FIGURES_FOLDER).mkdir()
        for part in parts:
            for name, figure in (pair for made in part.figures.values() for pair in made.items()):
                save_figure(figure, folder / FIGURES_FOLDER / f"{part.letter.lower()}_{name}".removeprefix("_"))
        (folder / TABLE_FILE).write_text(text, encoding="utf-8")
        (folder / PAGE_FILE).write_text(page(found, parts), encoding="utf-8")
    return text


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("report", argv, USAGE, required=["runs"])
    if config is None:
        return 0
    cli.check_whole(config, bootstrap=0)
    runs, out = Path(str(config.runs)), None if config.out is None else Path(str(config.out))
    print(write_report(runs, out, baseline=config.baseline, bootstrap=config.bootstrap))
    print(f"written: {(out or runs / 'report') / PAGE_FILE}, with {TABLE_FILE} and {FIGURES_FOLDER}/", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
