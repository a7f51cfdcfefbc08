"""``python -m fanet_lightning.package``: a checkpoint → a model's folder that can be given away."""

from fanet_lightning.cli.main import run
from fanet_lightning.models.packaging import main

if __name__ == "__main__":
    run(main)
