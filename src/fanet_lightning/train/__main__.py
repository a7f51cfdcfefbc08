"""Train one cell of the grid, or a baseline: ``python -m fanet_lightning.train level=3 context=true hl=true``."""

from fanet_lightning.cli import main as cli

USAGE = """python -m fanet_lightning.train [level=3] [context=true] [hl=true] [data=…] [experiment=…] [key=value …]

Trains one network; -m with several values of a key (level=1,2,3) trains a grid, and experiment=ablation the paper's.
The defaults take minutes on two CPU cores. conf/train.yaml says what each key means."""


def main(argv: list[str]) -> int:
    """The command line."""
    if any(word in ("-h", "--help") for word in argv):
        cli.print_help("train", [word for word in argv if "=" in word], USAGE)
        return 0
    from fanet_lightning.train.run import start

    return start(argv)


if __name__ == "__main__":
    cli.run(main)
