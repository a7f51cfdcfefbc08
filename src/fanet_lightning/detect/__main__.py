"""Faces in images and videos: ``python -m fanet_lightning.detect source=photos/ save=images,json``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable

if TYPE_CHECKING:
    from fanet_lightning.detect.detector import FaceDetector


USAGE = (
    "python -m fanet_lightning.detect source=IMAGE|FOLDER|'PATTERN'|LIST.txt|URL|VIDEO|CAMERA "
    "[save=images,json,txt,crops] [checkpoint=fanet_light] [protocol=short640] [threshold=0.5] [redact=blur|pixelate] "
    "[out=DIR]"
)
PACKAGES = ("fanet-lightning", "torch", "numpy", "pillow", "opencv-python-headless")
# The exit code where some inputs could not be read, or a video broke off; the others are done.
SOME_FAILED = 1


def _saving(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :class:`fanet_lightning.detect.outputs.Saving`, checked before torch is imported.

    Raises:
        InputError: an unknown kind or value.
    """
    from fanet_lightning.detect.inputs import KINDS
    from fanet_lightning.detect.redaction import REDACTIONS

    save = options["save"]
    save = [save] if isinstance(save, str) else list(save or [])
    unknown = [kind for kind in save if kind not in KINDS]
    if unknown or not save:
        raise InputError(f"save={','.join(map(str, save))}: take any of {', '.join(KINDS)}, e.g. save=images,json")
    redact = options["redact"] or None
    if redact not in (None, *REDACTIONS):
        raise InputError(f"redact={redact} is unknown; take {' or '.join(REDACTIONS)}, or leave it out")
    draw = redact is None if options["draw"] == "auto" else options["draw"]
    for key, value in (("draw", draw), ("bar", options["bar"])):
        if not isinstance(value, bool):
            raise InputError(f"{key}={value} is neither true nor false")
    return {"save": tuple(dict.fromkeys(save)), "redact": redact, "draw": draw, "bar": options["bar"]}


def _number(options: Mapping[str, Any], key: str, least: float, what: str, most: float = float("inf")) -> Any:
    """
    Raises:
        InputError: ``options[key]`` is no number in this range, or, where ``least`` is one, no whole number.
    """
    value = options[key]
    kind = int if isinstance(least, int) else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        raise InputError(f"{key}={value}; give {what}")
    return value


def _load_detector(checkpoint: str, device: str, precision: str) -> "tuple[FaceDetector, dict[str, Any]]":
    """The detector, and what results depend on in it."""
    from fanet_lightning.cli.files import file_sha256
    from fanet_lightning.cli.provenance import code_sha256
    from fanet_lightning.detect.detector import open_detector
    from fanet_lightning.models.pretrained import weights_file

    detector = open_detector(checkpoint, device, precision)
    assert detector.source is not None
    return detector, {
        "checkpoint_sha256": file_sha256(weights_file(detector.source)), "precision": detector.precision,
        "detection": detector.detection, "code": code_sha256(),
    }  # fmt: skip


def _words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The other words, and the sources, of which a command may have several."""
    from fanet_lightning.detect.inputs import split_source

    words, sources = [], []
    for word in argv:
        key, _, value = word.partition("=")
        if key == "source":
            sources += split_source(value)
        else:
            words.append(word)
    return words, sources


def main(argv: list[str]) -> int:
    """The command line."""
    words, parts = _words(argv)
    config = cli.verb_config("detect", words, USAGE)
    if config is None:
        return 0
    from fanet_lightning.cli.config import plain
    from fanet_lightning.cli.provenance import made_by
    from fanet_lightning.detect.inputs import (
        Limits,
        default_name,
        default_out,
        find_sources,
        stated_sources,
        without_passwords,
    )

    options = plain(config)
    if not parts:
        raise InputError(f"source=… must be given; {USAGE}")
    saving = _saving(options)
    threshold = float(_number(options, "threshold", 0.0, "a score of 0 … 1", 1.0))
    workers = _number(options, "workers", 1, "a number of threads, at least 1", 64)
    limits = Limits(
        int(_number(options, "max_download_mb", 0.001, "megabytes above 0") * 1e6),
        float(_number(options, "download_seconds", 0.1, "seconds, at least 0.1")),
    )
    most = None if options["max_frames"] is None else _number(options, "max_frames", 1, "a number of frames, or null")
    every = _number(options, "every", 1, "1 for every frame, 2 for every other …")
    if options["resume"] != "auto" and options["resume"] is not False:
        raise InputError(f"resume={options['resume']}: take auto (skip what is done) or false (start over)")
    stated, usual = stated_sources(parts), Path("outputs/detect") / default_name(parts)
    out = Path(str(options["out"])) if options["out"] else default_out(usual, stated)
    check_writable(out)
    sources = find_sources(parts, out)
    # What follows takes seconds to be imported; mistakes in the words above have been told by now.
    from fanet_lightning.detect.multiscale import build_protocol
    from fanet_lightning.detect.outputs import Saving
    from fanet_lightning.detect.run import VideoOptions, detect_sources

    build_protocol(options["protocol"])
    checkpoint = str(options["checkpoint"])
    detector, settings = _load_detector(checkpoint, options["device"], options["precision"])
    if not options["out"] and out != usual:
        print(f"{usual} holds results of other sources; these go to {out}", flush=True)
    summary = detect_sources(
        sources, detector, options["protocol"], out, threshold=threshold, saving=Saving(**saving),
        video_options=VideoOptions(every, most), limits=limits, workers=workers, resume=options["resume"] == "auto",
        settings=settings, stated=stated,
        made_by=made_by([without_passwords(word) for word in sys.argv], checkpoint=checkpoint, packages=PACKAGES),
    )  # fmt: skip
    if summary.interrupted:
        print("interrupted; what is done is kept, and the same command resumes", file=sys.stderr)
        return cli.INTERRUPTED
    return SOME_FAILED if summary.failed or summary.broken else 0


if __name__ == "__main__":
    cli.run(main)
