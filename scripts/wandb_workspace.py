"""``fanet workspace`` from a checkout: ``python scripts/wandb_workspace.py entity=TEAM``."""

from fanet_lightning.cli.main import run
from fanet_lightning.train.workspace import main

if __name__ == "__main__":
    run(main)
