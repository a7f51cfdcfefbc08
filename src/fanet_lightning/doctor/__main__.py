"""``fanet doctor data=…``: what is wrong with images and labels, and a fixed copy of them."""

from pathlib import Path

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import counted

USAGE = """fanet doctor data=wider_face data.root=DIR [out=DIR] [images=false] [fix=true]

Reads every image and label and says what is wrong. Written to out: page/index.html with figures, findings.csv,
doctor.json; with fix=true also cleaned/, a fixed copy in WIDER FACE's layout, with changes.csv.
Exit code: 0 no errors found (warnings and notes may be), 1 errors found, 2 the doctor could not be run."""
HEALTHY, ERRORS_FOUND = 0, 1


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("doctor", argv, USAGE)
    if config is None:
        return HEALTHY
    from fanet_lightning.doctor.run import CSV_FILE, PAGE, diagnose

    out = Path(str(config.out)) if config.out is not None else Path("outputs") / "doctor" / str(config.data.name)
    report = diagnose(config, out, argv)
    verdict = counted(len(report.errors), "error") if report.errors else "no errors"
    written = out / PAGE / "index.html" if config.page else out / CSV_FILE
    print(f"{verdict}, {counted(len(report.findings), 'finding')} in {report.seconds:.1f} s; written: {written}")
    return ERRORS_FOUND if report.errors else HEALTHY


if __name__ == "__main__":
    cli.run(main)
