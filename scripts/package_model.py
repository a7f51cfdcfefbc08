"""``fanet package`` from a checkout: ``python scripts/package_model.py checkpoint=best.ckpt out=DIR name=NAME``."""

from fanet_lightning.cli.main import run
from fanet_lightning.models.packaging import main

if __name__ == "__main__":
    run(main)
