"""A checkpoint → a model's folder that can be given away, with its card: the verb ``package``.

The card is Markdown under the YAML heading of the Hugging Face hub (hf.co/docs/hub/model-cards): what the model was
trained on and how, its scores, its limits, its terms. Its text is in ``card.md.jinja``.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError, counted, first_line
from fanet_lightning.cli.files import check_replaceable, check_writable, file_sha256, replaced_folder
from fanet_lightning.cli.provenance import TRAINING_IMAGES_FILE, merged, read_record
from fanet_lightning.models.fanet import Network, flops, inference_parameters
from fanet_lightning.models.pretrained import (
    CARD_FILE,
    CONFIG_FILE,
    SCORES_FOLDER,
    WEIGHTS_FILE,
    load_model,
    locate,
    read_checkpoint,
    weights_file,
    write_model,
)
from fanet_lightning.ops.postprocess import detection_settings
from fanet_lightning.score.results import TITLES
from fanet_lightning.score.wider_face.published import HOMEPAGE

USAGE = "fanet package checkpoint=FILE|FOLDER out=DIR name=NAME [scores=[DIR,…]] [half=true]"
# Above it float16 has changed what the model finds, not only rounded it.
LARGEST_SCORE_DIFFERENCE = 0.02
_OWN = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, SCORES_FOLDER, TRAINING_IMAGES_FILE)
# Words of an evaluation that do not change its numbers, or that are another's folders.
_CIRCUMSTANCES = ("checkpoint", "out", "data.root", "data.val.images", "workers", "device", "resume", "attributes",
                  "errors", "worst", "data.annotations", "data.ground_truth", "data", "protocol", "hydra")  # fmt: skip
# A folder of somebody's machine in front of a name.
_FOLDERS = re.compile(
    r"(?<![\w.~\]/:])(?:/|~/|[A-Za-z]:\\)(?:[^\s\"',=\]\[/\\][^\n\"',=\]\[/\\]*[/\\])+(?=[^\s\"',=\]\[/\\])"
)


def package(checkpoint: str | Path, out: Path, name: str, *, scores: Sequence[Path] = (), half: bool = False) -> float:
    """Write a model's folder ``out`` by rename: weights, ``config.json``, training images, scores and card.

    ``checkpoint``: of ``train``; where its run has left a record, that tells the recipe. ``name``: in the card.
    ``scores``: folders of ``evaluate``, about this checkpoint or the packaged weights. ``half``: convolution weights as
    float16. Returns the largest difference to the checkpoint in the score of any anchor, over images of noise.

    InputError: the folder has other files than a model's; the checkpoint does not name its training images; scores of
    other weights; float16 changes what the model finds.
    """
    check_writable(out)
    check_replaceable(out, "a model", lambda entry: entry.name in _OWN and (out / CONFIG_FILE).is_file())
    path = locate(checkpoint)
    model = load_model(path)
    if not model.training_images:
        raise InputError(f"{checkpoint} does not name its training images; give a checkpoint of train")
    images = merged(model.training_images)
    model = replace(model, detection=detection_settings(model.detection), training_images=images)
    recipe, sha256 = _recipe(path), file_sha256(weights_file(path))
    with replaced_folder(out) as folder:
        config = {
            "name": name, "class_names": ["face"],
            "input": {"layout": "RGB uint8, any height and width", "trained_at_pixels": recipe["input_size"]},
            "protocols": ["auto", "original", "short640"], "checkpoint_sha256": sha256, "git_commit": recipe["commit"],
        }  # fmt: skip
        write_model(folder, model, config, half=half)
        difference = _difference(model.network, load_model(folder).network)
        if difference > (LARGEST_SCORE_DIFFERENCE if half else 0.0):
            raise InputError(f"out={out}: the packaged model differs by {difference:.2g} in a score; take half=false")
        # Scores may be of the packaged weights themselves; of a checkpoint's only where they are the same numbers.
        known = {file_sha256(folder / WEIGHTS_FILE), *([] if half else [sha256])}
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, keep_trailing_newline=True,
        )  # fmt: skip
        text = environment.get_template("card.md.jinja").render(
            name=name, sets=[_copy_scores(source, folder / SCORES_FOLDER, known, name) for source in scores],
            recipe=recipe, training_images=images, datasets=sorted({part.data for part in images if part.data}),
            benchmarks=TITLES, homepage=HOMEPAGE, counted=counted,
            images_seen=sum(len(part.image_ids) for part in images),
            of_val=any((part.data, part.split) == ("wider_face", "val") for part in images),
            parameters=inference_parameters(model.network), flops_640x480=flops(model.network, 480, 640),
            weights_bytes=(folder / WEIGHTS_FILE).stat().st_size, weights="float16" if half else "float32",
        )  # fmt: skip
        (folder / CARD_FILE).write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
    return difference


@torch.inference_mode()
def _difference(*networks: Network) -> float:
    """Of two networks: the largest of any anchor's score, over coarse noise, which has edges of all contrasts."""
    coarse = torch.randint(0, 256, (4, 3, 25, 33), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    first, second = (network(images, all_hierarchies=False).hierarchies[-1].logits.softmax(-1) for network in networks)
    return float((first - second)[..., 1].abs().max())


def _recipe(checkpoint: Path) -> dict[str, Any]:
    """``command``, ``commit``, ``facts`` and ``input_size`` of a training, as far as its run has recorded them."""
    record = None if checkpoint.is_dir() else read_record(checkpoint.resolve().parent.parent)
    if record is None:
        return {"command": None, "commit": None, "facts": {}, "input_size": None}
    train, settings, saved = record.train, record.settings, read_checkpoint(checkpoint)
    size, init, hours = settings.get("input_size"), settings.get("init"), float(train.get("seconds", 0)) / 3600
    facts = {
        "weights": f"after {saved.get('global_step')} steps of batch {settings.get('batch_size')} at {size}×{size} "
        f"pixels (epoch {saved.get('epoch', 0) + 1} of {train.get('epochs')})",
        "seed": str(record.seed),
        "averaged weights": _averaging(settings),
        "hardware": f"{train.get('devices')} × {train.get('device')}, {hours:.1f} hours",
        "versions": ", ".join(f"{name} {v}" for name, v in record.made_by.get("packages", {}).items()),
    }
    if init:
        try:
            told = f"SHA-256 {file_sha256(weights_file(locate(init)))[:16]}…"
        except InputError:
            told = "which is no longer there"
        facts["started from"] = f"`{portable(str(init))}`, {told}"
    words = [shlex.quote(portable(str(word))) for word in (record.made_by.get("command") or [])[1:]]
    return {
        "command": " ".join(["fanet train", *words]) if words else None,
        "commit": record.made_by.get("git_commit"), "facts": facts, "input_size": size,
    }  # fmt: skip


def _averaging(settings: Mapping[str, Any]) -> str:
    callbacks = settings.get("callbacks", {"ema": True})  # earlier versions knew no other
    if swa := callbacks.get("swa"):
        return f"the mean from {swa['start']:g} of the steps on" if "start" in swa else f"by {swa.get('_target_')}"
    return f"decay {settings['ema']}" if settings.get("ema") and callbacks.get("ema") else "no"


def _copy_scores(source: Path, folder: Path, known: set[str], model: str) -> dict[str, Any]:
    """``scores.json`` of an evaluation into the folder, and the list of its images if a part; the card's words."""
    try:
        content = json.loads((source / "scores.json").read_text(encoding="utf-8"))
        ids = list(json.loads((source / "scales.json").read_text(encoding="utf-8")))
        made_by, benchmark, protocol = content["made_by"], content["benchmark"], content["protocol"]
        own, images = made_by["checkpoint_sha256"], content["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"scores: {source} is no folder that evaluate has written ({reason})") from error
    if own not in known:
        raise InputError(
            f"scores: {source} is about other weights (sha256 {own[:12]}…); evaluate this checkpoint, or with "
            "half=true the packaged folder"
        )
    stem = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{benchmark}_{protocol}_{images}")
    folder.mkdir(exist_ok=True)
    # Without the names of curves and tables that are left behind.
    kept = {key: value for key, value in content.items() if key != "files"}
    text = json.dumps(portable(kept), indent=2, ensure_ascii=False) + "\n"
    (folder / f"{stem}.json").write_text(text, encoding="utf-8")
    whole = content.get("images_of_benchmark") or images
    part, listed = counted(images, "image"), []
    if images != whole:
        part, listed = f"{images:,} of {whole:,} images", [f"data.val.images={model}/scores/{stem}_images.txt"]
        (folder / f"{stem}_images.txt").write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8")
    # The words that change the numbers; a training that evaluates itself records its own.
    command = [str(word) for word in made_by.get("command", [""])]
    words = [
        portable(word) for word in command[1:]
        if "evaluate" in command[0] and word.lstrip("+~").partition("=")[0] not in _CIRCUMSTANCES
    ]  # fmt: skip
    data = made_by.get("data", benchmark)
    again = [f"checkpoint={model} data={data} data.root=DATA", *listed, f"protocol={protocol}", *words]
    seen = content.get("trained_on_images")
    return {
        "title": f"{TITLES.get(benchmark, benchmark)}, {part}, protocol {protocol}", "rows": _rows(content),
        "scored_as": stem, "seen": {"count": 0, **seen} if seen else {},
        "command": f"fanet evaluate {' '.join(again)} out={stem}_again", "scores": content,
    }  # fmt: skip


def portable(value: Any) -> Any:
    """The same value with the folders of one machine taken off every path: ``out=/home/x/run`` becomes ``out=run``."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return value


def _rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number: its measure, what it is called, value, faces and interval, None where there is none."""
    measures = [measure for measure in ("ap", "discrete", "continuous") if isinstance(scores.get(measure), Mapping)]
    intervals, faces = scores.get("intervals") or {}, scores.get("faces") or {}
    intervals = {"ap": intervals} if measures == ["ap"] else intervals
    return [
        {
            "measure": measure, "name": f"{'AP' if measure == 'ap' else measure} {setting}", "value": value,
            "faces": faces.get(setting, sum(faces.values())), "interval": intervals.get(measure, {}).get(setting),
        }
        for measure in measures
        for setting, value in scores[measure].items()
    ]  # fmt: skip


def main(argv: list[str]) -> int:
    """The command line."""
    config = cli.verb_config("package", argv, USAGE, required=["checkpoint", "out", "name"])
    if config is None:
        return 0
    out, scores = Path(str(config.out)), [Path(str(folder)) for folder in config.scores]
    difference = package(str(config.checkpoint), out, str(config.name), scores=scores, half=config.half)
    print(
        f"written: {out}, weights of {(out / WEIGHTS_FILE).stat().st_size / 1e6:.2f} MB; largest difference to the "
        f"checkpoint's scores, over images of noise: {difference:.2g}"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
