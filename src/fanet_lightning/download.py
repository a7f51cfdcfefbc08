"""``python -m fanet_lightning.download``: WIDER FACE and VGG16 on disk. No torch."""

from fanet_lightning.cli.main import run
from fanet_lightning.data.download import main

if __name__ == "__main__":
    run(main)
