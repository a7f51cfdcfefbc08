"""Score a checkpoint: ``python -m fanet_lightning.evaluate checkpoint=FILE data=wider_face protocol=short640``."""

import sys
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanet_lightning import cli
from fanet_lightning.config import plain
from fanet_lightning.errors import InputError
from fanet_lightning.files import check_writable
from fanet_lightning.open_detector import open_detector
from fanet_lightning.precision import device_name
from fanet_lightning.pretrained import is_onnx

if TYPE_CHECKING:
    from fanet_lightning.detector import FaceDetector
    from fanet_lightning.inference_store import Inferred, Journal

USAGE = (
    "python -m fanet_lightning.evaluate checkpoint=FILE|FOLDER|NAME|EXPORT.onnx [data=wider_face data.root=DIR] "
    "[protocol=short640] [out=DIR]"
)
PACKAGES = ("fanet-lightning", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy", "opencv-python-headless")
# The loader processes of a killed evaluation hold its lock until they notice, within five seconds.
LOCK_PATIENCE_SECONDS = 15.0


def evaluate(
    checkpoint: Path | str,
    source: Any,
    protocol: Mapping[str, Any],
    out: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 1,
    detection: Mapping[str, Any] | None = None,
    resume: str | bool = "auto",
    lower_top: float = 0.0,
    labelled: bool = True,
    attributes: bool = False,
    errors: bool = False,
    worst: int = 200,
    detector: "FaceDetector | None" = None,
) -> dict[str, float]:
    """Run a checkpoint over the validation images of ``source`` and score it by the source's benchmark.

    Writes ``predictions`` in the benchmark's own format, ``scores.json``, its curves, ``detections.*``, and
    ``scales.json``: the passes over each image. Until it has ended, what was found lies in ``unfinished.jsonl``.
    Where the model says what it was trained on, that list comes to lie beside the predictions, and a warning says how
    many of the scored images are in it.

    Args:
        checkpoint: file that ``train`` has written, or a model: see :func:`fanet_lightning.pretrained.locate`; or an
            ``.onnx`` file of ``export``, which onnxruntime runs.
        source: what :func:`fanet_lightning.data.sources.build_source` made.
        protocol: ``name`` and what :func:`fanet_lightning.multiscale.build_protocol` reads.
        out: folder, made if need be.
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: ``auto``, ``32-true`` or ``bf16-mixed``.
        workers: processes that read and resize images.
        detection: keyword arguments of :func:`fanet_lightning.postprocess.detect`.
        resume: ``auto`` goes on where an evaluation with the same settings was cut off; False begins anew.
        lower_top: fraction of its height by which a box's top edge is moved down before it is written, see
            :func:`fanet_lightning.scoring.pascal_face.lower_top`.
        labelled: False for images without labels: instead of scores, ``submission.zip`` for WIDER's test server.
        attributes, errors, worst: with WIDER's ground truth also :func:`wider_face_report.report_by_attribute` and
            :func:`wider_face_report.report_errors`.
        detector: ``checkpoint`` as :func:`opened` gives it with these options, where it is open already.

    Returns:
        AP per setting, in [0, 1]; empty without labels and for a benchmark without AP.

    Raises:
        InputError: see :mod:`detector` and :mod:`data`; ``out`` is in use, or holds results of the other kind.
    """
    from fanet_lightning import evaluation_files as files
    from fanet_lightning.inference import detect_records
    from fanet_lightning.inference_store import JOURNAL_FILE, Journal, code_sha256, file_sha256, images_sha256
    from fanet_lightning.multiscale import build_protocol, full_settings
    from fanet_lightning.pretrained import locate, weights_file
    from fanet_lightning.run_record import locked
    from fanet_lightning.scoring.results import made_by

    stated, checkpoint = str(checkpoint), locate(checkpoint)
    _check_options(resume, lower_top, out, labelled)
    if attributes or errors:
        files.check_wider(source, labelled)
    scale = build_protocol(protocol)
    detector = detector or opened(checkpoint, device, precision, detection or {})
    device = detector.runs_on
    records = source.val()
    origin = {
        **made_by(sys.argv, checkpoint=stated, packages=PACKAGES),
        "checkpoint_sha256": file_sha256(weights_file(checkpoint)), "protocol_settings": full_settings(protocol),
        "data": source.name, "device": device_name(device), "precision": detector.precision,
        "detection": detector.detection, "lower_top": lower_top, "network": detector.network_options,
    }  # fmt: skip
    depends_on = (
        "checkpoint_sha256", "protocol_settings", "device", "precision", "detection", "network", "packages",
    )  # fmt: skip
    fingerprint = {**{key: origin[key] for key in depends_on}, "code": code_sha256(), "images": images_sha256(records)}
    label = f"{source.name}, {len(records)} images, protocol {protocol['name']}"
    with locked(out, "run of evaluate", LOCK_PATIENCE_SECONDS):
        ids = [record.image_id for record in records]
        journal = Journal(out / JOURNAL_FILE, fingerprint, ids, resume=resume == "auto")
        print(_opening(journal, len(records), protocol["name"], device_name(device)), flush=True)
        with journal:
            found = detect_records(detector, records, scale, workers, journal)
        origin |= _how_it_went(found)
        files.write_passes(out, found)
        predictions = {image_id: files.boxes_to_write(item.detections, lower_top) for image_id, item in found.items()}
        ap: dict[str, float] = {}
        if labelled:
            scores = files.score_and_write(
                out, source, predictions, label, protocol["name"], origin, detector.training_images
            )
            ap = dict(scores.values.get("ap", {}))
            files.report_more(out, source, records, label, origin, attributes=attributes, errors=errors, worst=worst)
        else:
            files.write_unscored(out, source, predictions, protocol["name"], origin)
        files.draw_sheet(out, checkpoint, records, found, label)
        journal.remove()
    return ap


def opened(checkpoint: Path, device: str, precision: str, detection: Mapping[str, Any]) -> "FaceDetector":
    """The detector with the settings ``detection``, those it has already underneath.

    Raises:
        InputError: see :func:`open_detector`; or settings other than those inside an export.
    """
    from fanet_lightning.postprocess import detect

    detector = open_detector(checkpoint, device, precision)
    if is_onnx(checkpoint):
        for key, value in detection.items():
            if value != detector.detection[key]:
                raise InputError(
                    f"detection.{key}={value}: inside {checkpoint} it is {detector.detection[key]}; give that, or "
                    f"export again with detection.{key}={value}"
                )
        return detector
    defaults = {name: p.default for name, p in signature(detect).parameters.items() if p.kind is p.KEYWORD_ONLY}
    detector.detection = {**defaults, **detector.detection, **detection}
    return detector


def _check_options(resume: object, lower_top: object, out: Path, labelled: bool) -> None:
    from fanet_lightning.evaluation_files import SUBMISSION_FILE, check_out
    from fanet_lightning.scoring.results import SCORES_FILE

    if resume != "auto" and resume is not False:
        raise InputError(f"resume={resume}: take auto (go on where it was cut off) or false (begin anew)")
    if isinstance(lower_top, bool) or not isinstance(lower_top, int | float) or not 0 <= lower_top < 1:
        raise InputError(f"lower_top={lower_top}: give a fraction of a box's height, at least 0 and below 1")
    check_writable(out)
    other = SUBMISSION_FILE if labelled else SCORES_FILE
    if (out / other).exists():
        raise InputError(f"out={out} holds {other} of an evaluation of another split; give another out")
    check_out(out)


def _opening(journal: "Journal", images: int, protocol: str, device: str) -> str:
    lines = [f"detecting faces in {images} images, protocol {protocol}, {device}"]
    if (journal.path.parent / "scores.json").exists() and not journal.done:
        lines.append(f"{journal.path.parent} holds a finished evaluation, which this one replaces")
    if journal.refused:
        lines.append(f"beginning anew: {journal.path} is of other settings ({', '.join(journal.refused)})")
    elif journal.done:
        lines.append(f"going on: {len(journal.done)} images are done already; resume=false begins anew")
    return "\n".join(lines)


def _how_it_went(found: "Mapping[str, Inferred]") -> dict[str, Any]:
    """``images_per_second`` over all images, those of an earlier process by the time that they took there."""
    seconds = sum(item.seconds for item in found.values())
    return {
        "tiled_images": sum(any(step.tiles > 1 for step in item.passes) for item in found.values()),
        "images_per_second": round(len(found) / max(seconds, 1e-9), 2),
    }


def choose_split(data: Mapping[str, Any], split: object) -> dict[str, Any]:
    """``data`` with the split to evaluate on set, ``split`` being short for ``data.val.split``; None leaves it.

    Raises:
        InputError: an unknown split, or data that are not divided into splits.
    """
    from fanet_lightning.data.wider_face import SPLITS

    if split is None:
        return dict(data)
    if split not in SPLITS:
        raise InputError(f"split={split} is unknown; take one of {', '.join(SPLITS)}")
    if not isinstance(data.get("val"), Mapping) or "split" not in data["val"]:
        raise InputError(f"split={split}: data={data['name']} has no splits; take data=wider_face, or leave split out")
    return {**data, "val": {**data["val"], "split": split}}


def data_of_run(checkpoint: Path, words: list[str]) -> dict[str, Any] | None:
    """The data that the checkpoint's run was trained and validated on; None where words choose data or none is known.

    A model's folder belongs to no run.

    Drawn pictures have many settings, and those of another set are other pictures.
    """
    from fanet_lightning.run_record import read_record

    if (
        checkpoint.is_dir()
        or is_onnx(checkpoint)
        or any(word.lstrip("+~").startswith(("data=", "data.")) for word in words)
    ):
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
    cli.check_report_keys(config)
    from fanet_lightning.data.sources import build_source
    from fanet_lightning.pretrained import locate, name_of

    checkpoint = locate(str(options["checkpoint"]))
    # Before the data are read, which may take long.
    detector = opened(checkpoint, options["device"], options["precision"], options["detection"])
    data = data_of_run(checkpoint, argv)
    if data is not None and data != options["data"]:
        print(f"data={data['name']} with the settings of the checkpoint's run; data=… chooses others")
    data = choose_split(data or options["data"], options["split"])
    split = (data.get("val") or {}).get("split", "val")
    source = build_source(**data)
    source.check(train=False)
    run = name_of(checkpoint)
    data_name = data["name"] if split == "val" else f"{data['name']}_{split}"
    default = Path("outputs/evaluate") / f"{data_name}_{options['protocol']['name']}" / run
    out = Path(options["out"]) if options["out"] else default
    evaluate(
        checkpoint, source, options["protocol"], out, device=options["device"], precision=options["precision"],
        workers=options["workers"], detection=options["detection"], resume=options["resume"],
        lower_top=options["lower_top"], labelled=split != "test", attributes=options["attributes"],
        errors=options["errors"], worst=options["worst"], detector=detector,
    )  # fmt: skip
    print(f"the results lie in {out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
