"""Faces in images and videos: ``fanet detect photos/ save=images,json``."""

import sys
from pathlib import Path

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import check
from fanet_lightning.cli.files import check_writable, file_sha256
from fanet_lightning.cli.provenance import code_sha256, made_by

USAGE = (
    "fanet detect IMAGE|FOLDER|'PATTERN'|LIST.txt|URL|VIDEO|CAMERA "
    "[save=images,json,txt,crops] [checkpoint=fanet_light] [protocol=auto] [threshold=0.5] "
    "[redact=blur|pixelate|solid|image:FILE] [out=DIR]"
)
PACKAGES = ("fanet-lightning", "torch", "numpy", "pillow", "opencv-python-headless")
UNREDACTED = {"shape": "box", "scale": 1.2, "regions": None, "from": None, "to": None}
# The exit code where some inputs could not be read, or a video broke off; the others are done.
SOME_FAILED = 1


def main(argv: list[str]) -> int:
    """The command line."""
    # Sources are told by source=…, or by words that are no key=value: paths, also of addresses with a = in them.
    asked = {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"} & {*argv}
    named = [word for word in argv if word.startswith("source=")]
    bare = [] if asked else [x for x in argv if _is_source(x)]
    config = cli.verb_config("detect", [word for word in argv if word not in {*named, *bare}], USAGE)
    if config is None:
        return 0
    from fanet_lightning.cli.config import plain
    from fanet_lightning.detect.inputs import KINDS, default_name, find_sources, split_source, without_passwords
    from fanet_lightning.detect.redaction import Redaction
    from fanet_lightning.detect.selection import Selection

    parts = [part for word in argv if word in {*named, *bare} for part in
             ([word] if word in bare else split_source(word[len("source=") :]))]  # fmt: skip
    options = plain(config)
    save = (options["save"],) if isinstance(options["save"], str) else tuple(dict.fromkeys(options["save"] or ()))
    redact = None
    if options["redact"]:
        redact = Redaction(
            options["redact"], options["redact_shape"], options["redact_scale"], options["redact_regions"] or (),
            options["redact_from"], options["redact_to"],
        )  # fmt: skip
    Selection(options["threshold"], options["min_face"], options["max_faces"])  # asks for its ranges
    draw = redact is None if options["draw"] == "auto" else options["draw"]
    cli.check_whole(config, workers=1, every=1, max_frames=1)
    check(parts, f"a source must be given; {USAGE}")
    check(save and {*save} <= {*KINDS}, f"save={','.join(map(str, save))}: take any of {', '.join(KINDS)}")
    plain_redaction = all(options[f"redact_{key}"] == value for key, value in UNREDACTED.items())
    needing = "redact_shape, redact_scale, redact_regions, redact_from and redact_to"
    check(redact is not None or plain_redaction, f"{needing} need redact=")
    check(draw in (True, False), f"draw={draw}: take true, false or auto")
    limits = min(options["max_download_mb"], options["download_seconds"])
    check(limits > 0, "max_download_mb and download_seconds must be above 0")
    check(options["resume"] in ("auto", False), f"resume={options['resume']}: take auto or false (start over)")
    sources = find_sources(parts)
    out = Path(str(options["out"])) if options["out"] else Path("outputs/detect") / default_name(parts)
    check_writable(out)
    if options["track"] and not sources.videos:
        print("track=true: there is no video among the sources", file=sys.stderr)
    # What follows takes seconds to be imported; mistakes in the words above have been told by now.
    from fanet_lightning.detect.detector import open_detector
    from fanet_lightning.detect.outputs import Saving
    from fanet_lightning.detect.protocols import build_protocol, full_settings
    from fanet_lightning.detect.run import Run
    from fanet_lightning.detect.stream import StreamSettings
    from fanet_lightning.models.pretrained import weights_file

    look = StreamSettings(
        build_protocol(options["protocol"]),
        **{key: options[key] for key in ("threshold", "min_face", "max_faces", "rotate")},
    )
    checkpoint = str(options["checkpoint"])
    detector = open_detector(checkpoint, options["device"], options["precision"])
    assert detector.source is not None
    run = Run(
        sources=sources, detector=detector, look=look, out=out, resume=options["resume"] == "auto",
        saving=Saving(save, redact, draw, options["bar"], options["scores"]),
        download=(int(options["max_download_mb"] * 1e6), float(options["download_seconds"])),
        settings={
            "protocol": full_settings(options["protocol"]), "precision": detector.precision,
            "checkpoint_sha256": file_sha256(weights_file(detector.source)), "detection": detector.detection,
            "code": code_sha256(),
        },
        made_by=made_by([without_passwords(word) for word in sys.argv], checkpoint=checkpoint, packages=PACKAGES),
        **{key: options[key] for key in ("every", "max_frames", "track", "workers")},
    )  # fmt: skip
    run()
    if run.interrupted:
        print("interrupted; what is done is kept, and the same command resumes", file=sys.stderr)
        return cli.INTERRUPTED
    return SOME_FAILED if run.failed or run.broken else 0


def _is_source(word: str) -> bool:
    if word.startswith(("-", "source=")) or (word.startswith("~") and "/" not in word):
        return False
    return "=" not in word or "://" in word.partition("=")[0]


if __name__ == "__main__":
    cli.run(main)
