"""``fanet show augmentations`` for a checkout that is not installed."""

from fanet_lightning.cli.main import run
from fanet_lightning.data.show import main

if __name__ == "__main__":
    run(lambda argv: main(["augmentations", *argv]))
