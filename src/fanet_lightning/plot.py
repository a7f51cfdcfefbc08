"""``fanet plot``: curves of scored folders in one figure. No torch."""

from fanet_lightning.cli.main import run
from fanet_lightning.report.plot import main

if __name__ == "__main__":
    run(main)
