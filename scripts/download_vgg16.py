"""``fanet download vgg16`` for a checkout that is not installed."""

from fanet_lightning.cli.main import run
from fanet_lightning.data.download import main

if __name__ == "__main__":
    run(lambda argv: main(["vgg16", *argv]))
