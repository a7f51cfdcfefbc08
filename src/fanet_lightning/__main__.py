"""``python -m fanet_lightning``: which verbs there are."""

import difflib

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import config_dir
from fanet_lightning.cli.errors import InputError


def main(argv: list[str]) -> int:
    """Name the verbs; refuse a word, as each verb is a module of its own."""
    verbs = sorted(path.stem for path in config_dir().glob("*.yaml"))
    if argv and argv[0] not in ("-h", "--help"):
        near = difflib.get_close_matches(argv[0], verbs, n=1) or verbs
        raise InputError(f"{argv[0]}: write python -m fanet_lightning.{'|'.join(near)} …")
    for verb in verbs:
        print(f"python -m fanet_lightning.{verb} --help")
    return 0


if __name__ == "__main__":
    cli.run(main)
