"""Put WIDER FACE on disk: ``python scripts/download_wider_face.py --root DIR [--parts train val …]``.

All of it takes about 3.7 GB and as much again while the largest archive is unpacked. The same command resumes after
an interruption, completes a folder that is unpacked in part, and does nothing where everything is there.
"""

import argparse
import os
import sys
from pathlib import Path

from fanet_lightning.cli import main as cli
from fanet_lightning.data.download import (
    PARTS,
    add_patience,
    download_wider_face,
    local_source,
    patience_of,
    read_manifest,
)

DEFAULT_ROOT = os.environ.get("WIDER_FACE_ROOT") or "data/wider_face"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="download_wider_face.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default=DEFAULT_ROOT, help="folder for the data set (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="what to fetch (all)")
    parser.add_argument("--source", help="address or folder that has the archives, instead of the official addresses")
    parser.add_argument(
        "--manifest", help="JSON file with other archives: {part: {size_bytes, sha256, urls, images …}}"
    )
    parser.add_argument("--keep-archives", action="store_true", help="leave the archives in the folder")
    add_patience(parser)
    options = parser.parse_args(argv)
    patience = patience_of(options)
    local_source(options.source)
    archives = read_manifest(Path(options.manifest)) if options.manifest else dict(PARTS)

    root = Path(options.root)
    try:
        lines = download_wider_face(
            root,
            options.parts,
            archives=archives,
            source=options.source,
            keep_archives=options.keep_archives,
            patience=patience,
        )
    except KeyboardInterrupt:
        print("what has arrived is kept: the same command resumes", file=sys.stderr)
        raise
    print("\n".join(lines.values()))
    print(f"use it with data=wider_face data.root={root}; for research only (CC BY-NC-ND 4.0)")
    return 0


if __name__ == "__main__":
    cli.run(main)
