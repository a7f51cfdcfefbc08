"""``python -m fanet_lightning.show``: grids of augmented or synthetic images."""

from fanet_lightning.cli.main import run
from fanet_lightning.data.show import main

if __name__ == "__main__":
    run(main)
