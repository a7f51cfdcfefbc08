"""The card of a model that is given away: what it was trained on and how, its scores, its limits, its terms.

Markdown under the YAML heading that the Hugging Face hub reads (hf.co/docs/hub/model-cards).
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fanet_lightning.training_images import TrainingImages

WIDER_FACE_HOMEPAGE = "http://shuoyang1213.me/WIDERFACE/"
BENCHMARKS = {
    "wider_face": "WIDER FACE", "synthetic": "drawn faces", "fddb": "FDDB", "pascal_face": "PASCAL face", "afw": "AFW",
    "coco": "COCO", "folder": "own data",
}  # fmt: skip
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
    name: str,
    *,
    training_images: Sequence[TrainingImages],
    scores: Sequence[ScoreSet],
    recipe: Recipe,
    parameters: int,
    flops_640x480: int,
    weights_bytes: int,
    weights: str,
) -> str:
    """The text of ``README.md``.

    Args:
        name: of the model.
        training_images: every image that it has seen.
        scores: its evaluations; may be empty.
        recipe: how it was trained.
        parameters: of :func:`fanet_lightning.net.build.inference_parameters`.
        flops_640x480: floating-point operations of one image of 640×480.
        weights_bytes: size of the weight file.
        weights: ``float32`` or ``float16``.
    """
    datasets = sorted({part.data for part in training_images if part.data})
    parts = [
        f"# {name}",
        "A face detector after \"Feature Agglomeration Networks for Single Stage Face Detection\" (Zhang, Wu, Zhu, "
        f"Hoi; arXiv 1712.00721), trained with `fanet_lightning`. {parameters / 1e6:.2f} M parameters "
        "that detection uses (heads of the last hierarchy alone, batch normalization folded into the convolutions), "
        f"{flops_640x480 / 1e9:.1f} GFLOP at 640×480, weights in {weights}, {weights_bytes / 1e6:.1f} MB.",
        "```python\nfrom fanet_lightning import FaceDetector\n\n"
        f'detector = FaceDetector.from_pretrained("{name}")  # or the path of this folder\n'
        "faces = detector.detect(image_rgb)  # (H, W, 3) uint8; boxes_xyxy in pixels, scores from 0.5 on\n```",
        "## Scores", _scores_text(scores, name),
        "## Training data", _data_text(training_images),
        "## Recipe", _recipe_text(recipe),
        "## Limits", _limits_text(training_images, scores, recipe.input_size),
        "## Terms", _terms_text(datasets),
    ]  # fmt: skip
    return f"---\n{_heading(name, datasets, scores)}---\n" + "\n\n".join(parts) + "\n"


def _heading(name: str, datasets: Sequence[str], scores: Sequence[ScoreSet]) -> str:
    terms: dict[str, Any] = {"license": "mit"}
    if datasets != ["synthetic"]:
        terms = {"license": "other", "license_name": "research-only", "license_link": WIDER_FACE_HOMEPAGE}
    results = [
        {
            "task": {"type": "object-detection", "name": "Face detection"},
            "dataset": {
                "type": scored.scores["benchmark"], "name": _title(scored),
                "args": {"protocol": scored.scores["protocol"], "images": scored.scores["images"]},
            },
            "metrics": [
                {"type": measure, "name": f"{_measure(measure)} {setting}", "value": value}
                for measure, setting, value, _ in _rows(scored.scores)
                if value is not None
            ],
        }
        for scored in scores
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


def _rows(scores: Mapping[str, Any]) -> list[tuple[str, str, float | None, Sequence[float] | None]]:
    """(measure, setting, value, interval) of every number."""
    measures = [measure for measure in MEASURES if isinstance(scores.get(measure), Mapping)]
    intervals = scores.get("intervals") or {}
    if measures == ["ap"]:
        intervals = {"ap": intervals}
    return [
        (measure, setting, value, intervals.get(measure, {}).get(setting))
        for measure in measures
        for setting, value in scores[measure].items()
    ]


def _measure(measure: str) -> str:
    return "AP" if measure == "ap" else measure


def _title(scored: ScoreSet) -> str:
    scores = scored.scores
    benchmark = BENCHMARKS.get(scores["benchmark"], scores["benchmark"])
    whole = scores.get("images_of_benchmark") or scores["images"]
    part = f"{scores['images']:,} images" if whole == scores["images"] else f"{scores['images']:,} of {whole:,} images"
    return f"{benchmark}, {part}, protocol {scores['protocol']}"


def _scores_text(scores: Sequence[ScoreSet], name: str) -> str:
    if not scores:
        return "Not measured."
    texts = []
    for scored in scores:
        faces = scored.scores.get("faces") or {}
        lines = [f"### {_title(scored)}", "", "| setting | faces | score | 95 % interval |", "|---|--:|--:|---|"]
        for measure, setting, value, interval in _rows(scored.scores):
            number = "no face" if value is None else f"{value:.4f}"
            bounds = "–" if interval is None else f"{interval[0]:.4f} … {interval[1]:.4f}"
            count = faces.get(setting, sum(faces.values()))
            lines.append(f"| {_measure(measure)} {setting} | {count:,} | {number} | {bounds} |")
        seen = scored.scores.get("trained_on_images") or {}
        if seen.get("count"):
            lines += [
                "",
                f"**{seen['count']:,} of these images were trained on: this says nothing about unseen ones.**",
            ]
        elif seen:
            lines += ["", "None of these images was trained on."]
        lines += ["", f"Again, in the folder that holds {name}, with the data set's folder for DATA; it writes the "
                  f"folder `{scored.name}_again`:", "",
                  f"```\n{evaluation_command(scored, name)}\n```"]  # fmt: skip
        texts.append("\n".join(lines))
    texts.append(
        "Intervals are over images (bootstrap). Numbers on a part of a benchmark do not compare with published ones, "
        "which are about all of it."
    )
    return "\n\n".join(texts)


def _data_text(training_images: Sequence[TrainingImages]) -> str:
    lines = []
    for part in training_images:
        split = f" of its {part.split} split" if part.split else ""
        data = BENCHMARKS.get(part.data or "", part.data or "data that nobody has named")
        lines.append(f"* {data}: {len(part.image_ids):,} images{split}")
    return "\n".join([*lines, "", "`training_images.txt` names every one. `evaluate` and `score` say so when a scored "
                      "image is among them."])  # fmt: skip


def _recipe_text(recipe: Recipe) -> str:
    lines = [f"* {name}: {value}" for name, value in recipe.facts.items()]
    lines.append(f"* commit: {recipe.commit or 'not recorded'}")
    command = f"\n```\n{recipe.command}\n```" if recipe.command else "\nThe command is not recorded."
    parts = ["\n".join([*lines, command])]
    if recipe.earlier:
        numbered = enumerate(recipe.earlier, start=1)
        steps = "\n\n".join(f"{number}. {what}:\n\n```\n{text}\n```" for number, (what, text) in numbered)
        parts.append(
            "It started from the weights of an earlier training, `init=`. A model of the same name and of another "
            f"SHA-256 is another model:\n\n{steps}"
        )
    parts.append(
        "Lists and checkpoints that the commands name are those of whoever trained: the images are named in "
        "`training_images.txt`, the weights told by their SHA-256."
    )
    return "\n\n".join(parts)


def _limits_text(training_images: Sequence[TrainingImages], scores: Sequence[ScoreSet], input_size: int | None) -> str:
    count = sum(len(part.image_ids) for part in training_images)
    of_val = [part for part in training_images if (part.data, part.split) == ("wider_face", "val")]
    lines = [
        f"* It has seen {count:,} training images. The paper's model has seen 12,880 and starts from ImageNet weights.",
        "* It finds faces; it knows no person, age or expression, and was not examined for differences between groups "
        "of people.",
        "* Faces of less than about 10 pixels, strongly blurred or mostly hidden ones are often missed.",
    ]
    if input_size is not None:
        lines.append(
            f"* Its training crops were {input_size} pixels wide, so it knows few faces above some "
            f"{input_size * 4 // 5} pixels: larger ones need a smaller image (`protocol=short640`, the default of "
            "`detect`)."
        )
    if of_val:
        lines.append(
            "* It was trained on images of WIDER FACE's *val* split. Its numbers on all of val are not to be quoted: "
            "score it on images that `training_images.txt` does not name."
        )
    if not scores:
        lines.append("* It was not scored on anything.")
    return "\n".join(lines)


def _terms_text(datasets: Sequence[str]) -> str:
    if datasets == ["synthetic"]:
        return "Trained on drawn pictures alone; the weights are under the package's licence (MIT)."
    return (
        "The code is under the MIT licence. The weights come from images of "
        f"{', '.join(BENCHMARKS.get(name, name) for name in datasets) or 'data that are not named'}; WIDER FACE is "
        f"published for research ([homepage]({WIDER_FACE_HOMEPAGE})), its images remain their owners'. Use the weights "
        'for research alone, and cite the data set: Yang, Luo, Loy, Tang, "WIDER FACE: A Face Detection Benchmark", '
        "CVPR 2016."
    )
