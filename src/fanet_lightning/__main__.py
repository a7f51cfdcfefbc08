"""``python -m fanet_lightning``: the same as ``fanet``."""

from fanet_lightning.cli.main import fanet

if __name__ == "__main__":
    fanet()
