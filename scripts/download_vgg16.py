"""Fetch torchvision's VGG16, trained on ImageNet, for machines without a network.

``python scripts/download_vgg16.py [--root DIR]`` puts vgg16-397923af.pth (553 MB) where ``weights=imagenet`` looks for
it, or into DIR, from where ``weights=DIR/vgg16-397923af.pth`` takes it. The first digits of its SHA-256 are in its name
and are checked. An interrupted transfer is resumed by the same command. ``--source`` names another address, or a folder
or file on disk where there is no network.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable, replaced, without_empty_folders
from fanet_lightning.data.download import (
    DownloadProgress,
    RemoteFile,
    add_patience,
    check_space,
    fault,
    fetch,
    patience_of,
)

MODELS = ("vgg16", "vgg16_bn")
# torch.hub's rule for names of weights: the first digits of the SHA-256, eight or more.
DIGEST = re.compile(r"(?:^|/)[^/]+-([0-9a-f]{8,64})\.pth$")


def default_root() -> Path:
    """Where torch.hub keeps weights; as its documentation says, without the seconds that importing it takes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch"
    return Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="download_vgg16.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=default_root(), help="folder for the file (%(default)s)")
    parser.add_argument("--model", choices=MODELS, default="vgg16", help="vgg16_bn: with batch normalisation")
    parser.add_argument(
        "--source", help="address or path of another such file (NAME-DIGEST.pth), or of a folder that has it"
    )
    add_patience(parser)
    options = parser.parse_args(argv)
    patience = patience_of(options)
    at_hand = _at_hand(options.source)
    if options.source and DIGEST.search(options.source):
        url = options.source
    else:
        url = _published(options.model)
        if options.source:
            url = f"{options.source.rstrip('/')}/{url.rsplit('/', 1)[-1]}"
    name, digest = url.rsplit("/", 1)[-1], DIGEST.search(url)[1]
    path, file = options.root / name, RemoteFile(name, (url,), digest)
    if path.is_file() and fault(path, file) is None:
        print(f"{path}: complete; nothing to do")
    else:
        check_writable(options.root, "--root")
        with without_empty_folders(options.root):
            if at_hand is not None:
                _copy(at_hand if at_hand.is_file() else at_hand / name, path, file)
            else:
                report, by_hand = DownloadProgress(), f"fetch it by hand and put it into {options.root}"
                try:
                    with report.bar(name) as progress:
                        fetch(file, options.root, patience=patience, say=report.say, progress=progress, by_hand=by_hand)
                except KeyboardInterrupt:
                    print("what has arrived is kept: the same command resumes", file=sys.stderr)
                    raise
        print(f"{path}: {'fetched' if at_hand is None else 'copied'}, its SHA-256 begins with {digest}")
    where = "imagenet" if options.root == default_root() else str(path)
    print(f"use it with weights={where}; ImageNet's terms (research only) hold for it")
    return 0


def _at_hand(source: str | None) -> Path | None:
    """The file or folder that ``--source`` names, or None where it is an address, or nothing.

    Raises:
        InputError: neither an http address nor there, or a file whose name lacks the digest.
    """
    if not source or source.startswith(("http://", "https://")):
        return None
    path = Path(source.removeprefix("file://"))
    if not path.exists():
        raise InputError(f"--source={source}: neither an http(s) address nor a file or folder; give one that has it")
    if not path.is_dir() and not DIGEST.search(path.name):
        raise InputError(
            f"--source={source}: the name has no digest (NAME-DIGEST.pth), so the file cannot be checked; "
            "use it as weights=PATH, or name the folder"
        )
    return path


def _copy(source: Path, path: Path, file: RemoteFile) -> None:
    """``source`` at ``path``, checked once it is there.

    Raises:
        InputError: there is none, it is another file than its name says, or the disk did not take it.
    """
    try:
        check_space(path.parent, source.stat().st_size, f"copying {source}")
        with replaced(path) as temporary:
            shutil.copyfile(source, temporary)
            reason = fault(temporary, file)
            if reason is not None:
                raise InputError(f"{source}: {reason}; it is damaged or another file, fetch it again")
    except OSError as error:
        raise InputError(f"--source: {error.filename or path}: {error.strerror or error}; give another") from error


def _published(model: str) -> str:
    """The address that torchvision states."""
    from torchvision.models import VGG16_BN_Weights, VGG16_Weights

    return (VGG16_BN_Weights if model == "vgg16_bn" else VGG16_Weights).IMAGENET1K_V1.url


if __name__ == "__main__":
    cli.run(main)
