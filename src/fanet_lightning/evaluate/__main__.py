"""Score a checkpoint: ``fanet evaluate checkpoint=FILE data=wider_face protocol=short640``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.config import plain
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import read_record

USAGE = (
    "fanet evaluate checkpoint=FILE|FOLDER|NAME|EXPORT.onnx [data=wider_face data.root=DIR] "
    "[protocol=short640] [out=DIR]"
)


def choose_split(data: Mapping[str, Any], split: object) -> dict[str, Any]:
    """``data`` with the split to evaluate on set, ``split`` being short for ``data.val.split``; None leaves it."""
    from fanet_lightning.data.wider_face import SPLITS

    if split is None:
        return dict(data)
    known = SPLITS if isinstance(data.get("val"), Mapping) and "split" in data["val"] else ()
    if split not in known:
        raise InputError(f"split={split}: data={data['name']} has {', '.join(known) or 'no splits; leave split out'}")
    return {**data, "val": {**data["val"], "split": split}}


def data_of_run(checkpoint: Path, words: list[str]) -> dict[str, Any] | None:
    """The data of the checkpoint's run: synthetic images have many settings. None: words choose others, or no run."""
    from fanet_lightning.models.pretrained import is_export

    chosen = any(word.lstrip("+~").startswith(("data=", "data.")) for word in words)
    if chosen or checkpoint.is_dir() or is_export(checkpoint):
        return None
    try:
        record = read_record(checkpoint.resolve().parent.parent)
    except InputError:  # a checkpoint alone is enough
        return None
    data = record.settings.get("data") if record else None
    return dict(data) if isinstance(data, Mapping) and "name" in data else None


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("evaluate", argv, USAGE, required=["checkpoint"])
    if config is None:
        return 0
    options = plain(config)
    cli.check_whole(config, worst=1)
    from fanet_lightning.data.sources import build_source
    from fanet_lightning.detect.detector import open_detector
    from fanet_lightning.evaluate.runner import evaluate
    from fanet_lightning.models.pretrained import name_of

    # Before the data are read, which may take long.
    detector = open_detector(options["checkpoint"], options["device"], options["precision"], options["detection"])
    checkpoint = detector.source
    assert checkpoint is not None
    data = data_of_run(checkpoint, argv)
    if data is not None and data != options["data"]:
        print(f"data={data['name']} with the settings of the checkpoint's run; data=… chooses others")
    data = choose_split(data or options["data"], options["split"])
    split = (data.get("val") or {}).get("split", "val")
    source = build_source(**data)
    source.check(train=False)
    run = name_of(checkpoint)
    listed = (data.get("val") or {}).get("images") or data.get("images")
    parts = [data["name"], *[split] * (split != "val"), *[Path(str(listed)).stem] * isinstance(listed, str)]
    out = Path(options["out"] or f"outputs/evaluate/{'_'.join(parts)}_{options['protocol']['name']}/{run}")
    more = {key: options[key] for key in ("workers", "resume", "lower_top", "attributes", "errors", "worst")}
    evaluate(detector, source, options["protocol"], out, labelled=split != "test", **more)
    print(f"the results are in {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
