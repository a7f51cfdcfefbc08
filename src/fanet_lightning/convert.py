"""``fanet convert``: labels and images in another format."""

from fanet_lightning.cli.main import run
from fanet_lightning.data.folder.convert import main

if __name__ == "__main__":
    run(main)
