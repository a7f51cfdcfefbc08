"""The card of a model that is given away: Markdown under the YAML heading of the Hugging Face hub.

What it was trained on and how, its scores, its limits, its terms (hf.co/docs/hub/model-cards); the text is in
``card.md.jinja``.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fanet_lightning.cli.provenance import TrainingImages
from fanet_lightning.score.results import TITLES
from fanet_lightning.score.wider_face.published import HOMEPAGE

MEASURES = ("ap", "discrete", "continuous")
# Words of an evaluation that do not change its numbers, or that are another's folders.
_CIRCUMSTANCES = ("checkpoint", "out", "data.root", "data.val.images", "workers", "device", "resume", "attributes",
                  "errors", "worst", "data.annotations", "data.ground_truth", "data", "protocol", "hydra")  # fmt: skip
# A folder of somebody's machine in front of a name.
_FOLDERS = re.compile(
    r"(?<![\w.~\]/:])(?:/|~/|[A-Za-z]:\\)(?:[^\s\"',=\]\[/\\][^\n\"',=\]\[/\\]*[/\\])+(?=[^\s\"',=\]\[/\\])"
)


@dataclass(frozen=True)
class ScoreSet:
    """One evaluation of the model.

    ``name``   of its files in ``scores/``, without ending.
    ``scores`` what ``scores.json`` holds.
    ``listed`` whether ``scores/<name>_images.txt`` lists the images, being only a part of the benchmark.
    """

    name: str
    scores: Mapping[str, Any]
    listed: bool


@dataclass(frozen=True)
class Recipe:
    """How a model was trained, as far as it is recorded: nothing in it is required.

    ``earlier``: (what it was, command) of the trainings whose weights this one started from, the first one first.
    ``input_size``: side of the training crops, pixels.
    """

    command: str | None = None
    commit: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    earlier: Sequence[tuple[str, str]] = ()
    input_size: int | None = None


def portable(value: Any) -> Any:
    """The same value with the folders of one machine taken off every path: ``out=/home/x/run`` becomes ``out=run``."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return value


def training_command(command: Sequence[str]) -> str:
    """The line that starts the same training, from a record's ``command``, whose first word is the program.

    Of a key that is given several times the last value counts, and it alone is kept.
    """
    words: dict[str, str] = {}
    for word in map(str, command[1:]):
        key = word.partition("=")[0]
        words.pop(key, None)  # so that the last one also stands last
        words[key] = str(portable(word))
    return " ".join(["python -m fanet_lightning.train", *map(shlex.quote, words.values())])


def evaluation_command(scored: ScoreSet, model: str) -> str:
    """The line that computes these scores again, from the folder of the model ``model``."""
    made_by = scored.scores.get("made_by", {})
    kept = []
    for word in made_by.get("command", [])[1:]:
        key = str(word).lstrip("+~").partition("=")[0]
        # A training that evaluates itself records its own words.
        if "evaluate" in str(made_by["command"][0]) and key and not key.startswith("-") and key not in _CIRCUMSTANCES:
            kept.append(str(portable(word)))
    data = made_by.get("data", scored.scores["benchmark"])
    words = [f"checkpoint={model}", f"data={data}", "data.root=DATA"]
    if scored.listed:
        words.append(f"data.val.images={model}/scores/{scored.name}_images.txt")
    words += [f"protocol={scored.scores['protocol']}", *kept, f"out={scored.name}_again"]
    return " ".join(["python -m fanet_lightning.evaluate", *words])


def model_card(
    name: str, *, training_images: Sequence[TrainingImages], scores: Sequence[ScoreSet], recipe: Recipe, **cost: Any
) -> str:
    """The text of ``README.md``.

    Args:
        name: of the model.
        training_images: every image that it has seen.
        scores: its evaluations; may be empty.
        recipe: how it was trained.
        cost: ``parameters`` of :func:`fanet_lightning.models.fanet.inference_parameters`, ``flops_640x480`` of one
            image, ``weights_bytes`` of the weight file, ``weights``: ``float32`` or ``float16``.
    """
    datasets = sorted({part.data for part in training_images if part.data})
    sets = [
        {
            "title": _title(scored.scores), "rows": _rows(scored.scores), "scored_as": scored.name,
            "seen": {"count": 0, **seen} if (seen := scored.scores.get("trained_on_images")) else {},
            "command": evaluation_command(scored, name), "scores": scored.scores,
        }
        for scored in scores
    ]  # fmt: skip
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["of_benchmark"] = lambda data: TITLES.get(data, data)
    text = environment.get_template("card.md.jinja").render(
        name=name, heading=_heading(name, datasets, sets), sets=sets, recipe=recipe, training_images=training_images,
        datasets=datasets, benchmarks=TITLES, homepage=HOMEPAGE,
        images_seen=sum(len(part.image_ids) for part in training_images),
        of_val=any((part.data, part.split) == ("wider_face", "val") for part in training_images), **cost,
    )  # fmt: skip
    return re.sub(r"\n{3,}", "\n\n", text)


def _heading(name: str, datasets: Sequence[str], sets: Sequence[Mapping[str, Any]]) -> str:
    terms: dict[str, Any] = {"license": "mit"}
    if datasets != ["synthetic"]:
        terms = {"license": "other", "license_name": "research-only", "license_link": HOMEPAGE}
    results = [
        {
            "task": {"type": "object-detection", "name": "Face detection"},
            "dataset": {
                "type": one["scores"]["benchmark"], "name": one["title"],
                "args": {"protocol": one["scores"]["protocol"], "images": one["scores"]["images"]},
            },
            "metrics": [
                {"type": row["measure"], "name": row["name"], "value": row["value"]}
                for row in one["rows"] if row["value"] is not None
            ],
        }
        for one in sets
    ]  # fmt: skip
    content = {
        **terms, "library_name": "fanet_lightning", "pipeline_tag": "object-detection",
        "tags": ["face-detection", "object-detection", "fanet", "pytorch-lightning"],
        **({"datasets": list(datasets)} if datasets else {}),
        "metrics": ["ap"],
        # The hub refuses an entry without results.
        **({"model-index": [{"name": name, "results": results}]} if results else {}),
    }  # fmt: skip
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return text


def _rows(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number: its measure, what it is called, value, faces and interval, None where there is none."""
    measures = [measure for measure in MEASURES if isinstance(scores.get(measure), Mapping)]
    intervals, faces = scores.get("intervals") or {}, scores.get("faces") or {}
    if measures == ["ap"]:
        intervals = {"ap": intervals}
    return [
        {
            "measure": measure, "name": f"{'AP' if measure == 'ap' else measure} {setting}", "value": value,
            "faces": faces.get(setting, sum(faces.values())), "interval": intervals.get(measure, {}).get(setting),
        }
        for measure in measures
        for setting, value in scores[measure].items()
    ]  # fmt: skip


def _title(scores: Mapping[str, Any]) -> str:
    benchmark, images = TITLES.get(scores["benchmark"], scores["benchmark"]), scores["images"]
    whole = scores.get("images_of_benchmark") or images
    part = f"{images:,} images" if whole == images else f"{images:,} of {whole:,} images"
    return f"{benchmark}, {part}, protocol {scores['protocol']}"
