"""A checkpoint → a model that can be given away.

``python scripts/package_model.py checkpoint=best.ckpt out=DIR name=NAME [scores=[DIR,…]] [half=false]
[training_images=LIST data=wider_face split=val]``

Writes ``model.safetensors``, ``config.json``, ``training_images.txt``, the scores of each ``evaluate`` folder and the
model card ``README.md`` into DIR, all at once, after the packaged model has given the checkpoint's detections.
``training_images``, ``data`` and ``split`` are for checkpoints that do not name their training images themselves.
"""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from fanet_lightning.cli import main as cli
from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import check_writable, replaced_folder
from fanet_lightning.cli.provenance import TrainingImages, merged, read_training_images
from fanet_lightning.models.card import Recipe, ScoreSet, model_card, portable, training_command
from fanet_lightning.models.pretrained import CARD_FILE, SCORES_FOLDER, WEIGHTS_FILE, Model, load_model, write_model

KEYS = ("checkpoint", "out", "name", "training_images", "data", "split", "scores", "half")
# Above it float16 has changed what the model finds, not only rounded it.
LARGEST_SCORE_DIFFERENCE = 0.02
CHECKED_IMAGES = 4
PROTOCOLS = ("original", "short640")


class Differences(NamedTuple):
    """Largest differences of a packaged model to its checkpoint: of any anchor's score, of any found box's edge."""

    score: float
    edge_pixels: float


def package(
    checkpoint: Path,
    out: Path,
    name: str,
    *,
    training_images: Sequence[TrainingImages] | None = None,
    scores: Sequence[Path] = (),
    half: bool = False,
) -> Differences:
    """Write the model's folder by rename.

    Args:
        checkpoint: of ``train``; where its run has left a record, that tells the recipe.
        out: the folder.
        name: of the model, in the card.
        training_images: for checkpoints that do not name them.
        scores: folders of ``evaluate``, of this very checkpoint.
        half: convolution weights as float16.

    Raises:
        InputError: nothing tells what the model was trained on; scores of another checkpoint; a packaged model that
            finds something else than the checkpoint.
    """
    from fanet_lightning.cli.files import file_sha256
    from fanet_lightning.models.fanet import flops, inference_parameters
    from fanet_lightning.ops.postprocess import DETECTION_DEFAULTS

    check_writable(out)
    model = load_model(checkpoint)
    images = model.training_images or (None if training_images is None else list(training_images))
    if images is None:
        raise InputError(f"{checkpoint} does not name its training images; give training_images=LIST data=… split=…")
    if model.training_images is not None and training_images is not None:
        raise InputError(f"{checkpoint} names its training images itself; leave training_images out")
    images = merged(images)
    model = Model(model.network, model.network_options, {**DETECTION_DEFAULTS, **model.detection}, images)
    sha256 = file_sha256(checkpoint)
    recipe, facts = _recipe(checkpoint)
    with replaced_folder(out) as folder:
        config = {
            "name": name, "class_names": ["face"],
            "input": {"layout": "RGB uint8, any height and width", "trained_at_pixels": facts.get("input_size")},
            "protocols": list(PROTOCOLS), "checkpoint_sha256": sha256, "git_commit": recipe.commit,
        }  # fmt: skip
        write_model(folder, model, config, half=half)
        differences = _differences(model, load_model(folder), half)
        # Scores may be of the packaged weights themselves; of a checkpoint's only where they are the same numbers.
        known = {file_sha256(folder / WEIGHTS_FILE), *([] if half else [sha256])}
        sets = [_copy_scores(source, folder / SCORES_FOLDER, known) for source in scores]
        if len({scored.name for scored in sets}) < len(sets):
            raise InputError("two of scores= are of the same benchmark, protocol and number of images; leave one out")
        card = model_card(
            name, training_images=images, scores=sets, recipe=recipe,
            parameters=inference_parameters(model.network), flops_640x480=flops(model.network, 480, 640),
            weights_bytes=(folder / WEIGHTS_FILE).stat().st_size, weights="float16" if half else "float32",
        )  # fmt: skip
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return differences


def _differences(first: Model, second: Model, half: bool) -> Differences:
    """Of two models over synthetic images.

    Raises:
        InputError: more than rounding.
    """
    import numpy as np
    import torch

    from fanet_lightning.data.synthetic.scenes import draw_image
    from fanet_lightning.ops.anchors import AnchorGrid
    from fanet_lightning.ops.boxes import decode

    score, edge = 0.0, 0.0
    rng = np.random.default_rng(0)
    for _ in range(CHECKED_IMAGES):
        image = torch.from_numpy(draw_image(rng, (200, 330), (160, 250)).image_rgb.copy()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            outputs = [model.network(image, all_hierarchies=False) for model in (first, second)]
        anchors = AnchorGrid(tuple(map(tuple, outputs[0].map_shapes))).boxes_cxcywh()
        scores = [output.hierarchies[-1].logits[0].softmax(-1)[:, 1] for output in outputs]
        boxes = [decode(output.hierarchies[-1].offsets[0], anchors) for output in outputs]
        score = max(score, float((scores[0] - scores[1]).abs().max()))
        found = scores[0] >= scores[0].topk(min(100, len(anchors))).values[-1]
        edge = max(edge, float((boxes[0] - boxes[1])[found].abs().max()))
    if score > (LARGEST_SCORE_DIFFERENCE if half else 0.0) or (edge > 0 and not half):
        remedy = "take half=false" if half else "this is a mistake in the package"
        raise InputError(f"the packaged model differs from the checkpoint by {score:.2g} in a score; {remedy}")
    return Differences(score, edge)


def _recipe(checkpoint: Path) -> tuple[Recipe, dict[str, Any]]:
    """What the run next to the checkpoint has recorded, and its settings."""
    from fanet_lightning.cli.provenance import read_record
    from fanet_lightning.models.pretrained import read_checkpoint

    record = read_record(checkpoint.resolve().parent.parent)
    if record is None:
        return Recipe(), {}
    train, settings = record.train, record.settings
    hours = float(train.get("seconds", 0)) / 3600
    saved = read_checkpoint(checkpoint)
    size = settings.get("input_size")
    facts = {
        "weights": f"after {saved.get('global_step')} steps of batch {settings.get('batch_size')} at {size}×{size} "
        f"pixels (epoch {saved.get('epoch', 0) + 1} of {train.get('epochs')})",
        "seed": str(record.seed),
        "averaged weights": f"decay {settings['ema']}" if settings.get("ema") else "no",
        "hardware": f"{train.get('devices')} × {train.get('device')}; the run has taken {hours:.1f} hours so far"
        if record.state != "finished"
        else f"{train.get('devices')} × {train.get('device')}, {hours:.1f} hours",
        "versions": ", ".join(f"{name} {v}" for name, v in record.made_by.get("packages", {}).items()),
    }
    command = record.made_by.get("command")
    text = training_command(command) if command else None
    earlier = _earlier(settings.get("init"))
    return Recipe(text, record.made_by.get("git_commit"), facts, earlier, size), settings


def _earlier(init: object) -> list[tuple[str, str]]:
    """(what it was, command) of the trainings behind ``init=``, as far as is recorded; the first one first."""
    if not init:
        return []
    from fanet_lightning.cli.files import file_sha256
    from fanet_lightning.models.pretrained import locate, weights_file

    try:
        path = locate(str(init))
        sha256 = file_sha256(weights_file(path))
    except InputError:
        return [(f"{portable(str(init))}, which is no longer there", "not recorded")]
    name = f"`{portable(str(init))}` (SHA-256 {sha256[:16]}…)"
    if path.is_dir():
        card = path / CARD_FILE
        recipe = card.read_text(encoding="utf-8").partition("## Recipe")[2] if card.is_file() else ""
        own, _, before = recipe.partition("## Limits")[0].partition("It started from the weights")
        command = re.search(r"```\n(.+?)\n```", own, re.DOTALL)
        steps = re.findall(r"^\d+\. (.+?):\n\n```\n(.+?)\n```", before, re.DOTALL | re.MULTILINE)
        return [
            *((what, _once(text)) for what, text in steps),
            (name, _once(command[1]) if command else "not recorded"),
        ]
    recipe, settings = _recipe(path)
    return [*_earlier(settings.get("init")), (name, recipe.command or "not recorded")]


def _once(text: str) -> str:
    """A training's line of an earlier card, every key once; whatever is no such line stays."""
    head = "python -m fanet_lightning.train "
    return training_command(["train", *shlex.split(text.removeprefix(head))]) if text.startswith(head) else text


def _copy_scores(source: Path, folder: Path, known: set[str]) -> ScoreSet:
    """``scores.json`` of an evaluation, and the list of its images where they are a part of the benchmark."""
    try:
        content = json.loads((source / "scores.json").read_text(encoding="utf-8"))
        ids = list(json.loads((source / "scales.json").read_text(encoding="utf-8")))
        own = content["made_by"]["checkpoint_sha256"]
        benchmark, protocol, images = content["benchmark"], content["protocol"], content["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"scores: {source} is no folder that evaluate has written ({error!r:.80})") from error
    if own not in known:
        raise InputError(
            f"scores: {source} is about other weights (sha256 {own[:12]}…); evaluate this checkpoint, or with "
            "half=true the packaged folder"
        )
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{benchmark}_{protocol}_{images}")
    folder.mkdir(exist_ok=True)
    # Without the names of curves and tables that are left behind.
    kept = {key: value for key, value in content.items() if key != "files"}
    text = json.dumps(portable(kept), indent=2, ensure_ascii=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    listed = images != content.get("images_of_benchmark", images)
    if listed:
        (folder / f"{name}_images.txt").write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8")
    return ScoreSet(name, content, listed)


def main(argv: list[str]) -> int:
    if not argv or any(word in ("-h", "--help") for word in argv):
        print(__doc__)
        return 0
    for word in argv:
        if word.partition("=")[0] not in KEYS or "=" not in word:
            raise InputError(f"'{word}' is none of {', '.join(f'{key}=…' for key in KEYS)}")
    given = OmegaConf.to_container(OmegaConf.from_dotlist(argv))
    assert isinstance(given, dict)
    missing = [key for key in ("checkpoint", "out", "name") if given.get(key) is None]
    if missing:
        raise InputError(f"{missing[0]}=… must be given")
    half, scores = given.get("half", False), given.get("scores") or []
    if not isinstance(half, bool):
        raise InputError(f"half={half} is neither true nor false")
    images = None
    if given.get("training_images") is not None:
        images = [
            TrainingImages(part.data or given.get("data"), part.split or given.get("split"), part.image_ids)
            for part in read_training_images(Path(str(given["training_images"]))).parts
        ]
    elif given.get("data") or given.get("split"):
        raise InputError("data= and split= say what training_images=LIST are of; give the list as well")
    checkpoint, out = Path(str(given["checkpoint"])), Path(str(given["out"]))
    folders = [Path(str(folder)) for folder in (scores if isinstance(scores, list) else [scores])]
    differences = package(checkpoint, out, str(given["name"]), training_images=images, scores=folders, half=half)
    print(
        f"written: {out}, weights of {(out / WEIGHTS_FILE).stat().st_size / 1e6:.2f} MB; largest difference to the "
        f"checkpoint over {CHECKED_IMAGES} synthetic images: {differences.score:.2g} of a score, "
        f"{differences.edge_pixels:.2g} pixels of a box"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
