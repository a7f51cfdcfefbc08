"""Train one variant of the grid, or a baseline: ``fanet train level=3 context=true hl=true``."""

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import read_words

USAGE = """fanet train [level=3] [context=true] [hl=true] [data=…] [experiment=…] [key=value …]

Trains one network; -m with several values of a key (level=1,2,3) trains a grid, and experiment=ablation the paper's.
The defaults take minutes on two CPU cores."""


def main(argv: list[str]) -> int:
    """The command line."""
    if cli.answered("train", argv, USAGE, with_hydra=True):
        return 0
    words = [word for word in argv if word not in ("-m", "--multirun")]
    multirun = len(words) < len(argv)
    if words and words[-1] == "hydra.output_subdir=null":
        # Lightning has started this rank, and added the folder in quotes that do not hold every path; out= has it.
        words = [word for word in words if not word.startswith('hydra.run.dir="')]
    line = read_words("train", words, multirun=multirun, with_hydra=True)
    from fanet_lightning.train.run import start

    return start(line)


if __name__ == "__main__":
    cli.run(main)
