"""Writes the golden files, what the package says today, so that moving code cannot change it unseen.

    python tests/golden/make.py              # all of them; git diff shows what became different
    python tests/golden/make.py keys losses  # some: keys, losses, networks, run, scores, shared

``shared`` and the part of ``networks`` that needs timm keep what they have where the data or timm are not at hand.
``fddb.json`` and ``wider_scoring.json`` are what the slow oracles of tests/score say of small seeded sets: they change
only when the rules were read wrongly.
"""

import contextlib
import csv
import difflib
import importlib.util
import io
import itertools
import json
import os
import runpy
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "src")]

from tests.golden.names import VERBS, named  # noqa: E402

CONF = HERE.parents[1] / "conf"
SHARED = Path(os.environ.get("FANET_SHARED") or HERE.parents[2] / "shared") / "data"


def run_verb(verb: str, *words: str, cwd: Path) -> str:
    """``python -m fanet_lightning.VERB WORDS`` in this process, which has torch already; what it printed."""
    argv, printed = sys.argv, io.StringIO()
    sys.argv = [verb, *words]
    try:
        with (
            contextlib.chdir(cwd),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            runpy.run_module(f"fanet_lightning.{verb}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{verb} {' '.join(words)}: exit code {end.code}\n{printed.getvalue()}") from end
    finally:
        sys.argv = argv
    return printed.getvalue()


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        k: v for name, inner in node.items() for k, v in flat(inner, f"{prefix}.{name}" if prefix else name).items()
    }


def keys() -> dict[str, dict[str, Any]]:
    """Verb → key → default, interpolations as they are; ``conf/GROUP/OPTION.yaml`` → what is in the file."""
    from omegaconf import OmegaConf

    found = {}
    for verb, name in VERBS.items():
        composed = named("compose_config")(name, [])
        found[verb] = dict(sorted(flat(OmegaConf.to_container(composed, resolve=False)).items()))
    for path in sorted(CONF.glob("*/**/*.yaml")):
        found[path.relative_to(CONF.parent).as_posix()] = flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    return found


# --- networks --------------------------------------------------------------------------------------------------------

FULL = {"width": 1.0, "batch_norm": False}
NETWORKS: dict[str, dict[str, Any]] = {
    "fanet": FULL,
    **{
        f"fanet level={level} context={context} hl={hl}": {**FULL, "level": level, "context": context, "hl": hl}
        for level, context, hl in itertools.product((1, 2, 3), (True, False), (True, False))
    },
    "fanet batch_norm": {"width": 1.0},
    "fanet own_blocks": {**FULL, "own_blocks": True},
    "fanet agglomerate_from=conv5_3": {**FULL, "agglomerate_from": "conv5_3"},
    "fanet fc6=dilated": {**FULL, "fc6": "dilated", "face_prior": 0.01, "normaliser": "caffe"},
    "s3fd_fpn": FULL,
    "s3fd_fpn fpn_maps=6": {**FULL, "fpn_maps": 6},
    "fanet_light": {},
    "fanet_light level=1": {"level": 1},
    "fanet_light level=2": {"level": 2, "context": False, "hl": False},
    "fanet_lite0": {},
    "fanet_timm": {},
}
WHOLE = ("fanet", "s3fd_fpn", "fanet_light", "fanet_lite0", "fanet_timm")


def network(name: str, **options: Any) -> Any:
    """One of the networks: ``conf/model/….yaml`` of its first word, and what differs from it."""
    model = yaml.safe_load((CONF / "model" / f"{name.split()[0]}.yaml").read_text(encoding="utf-8"))
    switches = {"level": 3, "context": True, "hl": True}
    model |= {key: switches[key] for key in model if key in switches}
    return named("build_network")(**model | NETWORKS[name] | options)


def network_keys() -> dict[str, list[str]]:
    """Network → lines ``key shape`` in the order of the state dict, which optimizer states follow.

    Five in whole, the others as a difference to the whole one of the first word, ``@@`` lines giving the places;
    ``= NAME`` where a network before is the same.
    """
    import torch

    whole, found = {}, {}
    for name in NETWORKS:
        if name == "fanet_timm" and importlib.util.find_spec("timm") is None:
            continue
        with torch.device("meta"):
            lines = [f"{key} {tuple(x.shape)}" for key, x in network(name).state_dict().items()]
        if name in WHOLE:
            whole[name] = found[name] = lines
        else:
            changes = list(difflib.unified_diff(whole[name.split()[0]], lines, n=0, lineterm=""))[2:]
            same = next(
                (other for other in found if other.split()[0] == name.split()[0] and found[other] == changes), None
            )
            found[name] = changes if same is None else [f"= {same}"]
    return found


def random_heads(hierarchies: int, images: int, anchors: int, seed: int) -> Any:
    """Logits and offsets of RandomState, whose numbers never change with NumPy or torch."""
    import torch

    rng = np.random.RandomState(seed)

    def leaf(channels: int) -> Any:
        return torch.from_numpy(3 * rng.standard_normal((images, anchors, channels))).float().requires_grad_()

    return named("NetworkOutput")([named("HeadOutput")(leaf(2), leaf(4)) for _ in range(hierarchies)], [])


def faces(counts: tuple[int, ...], side: int, seed: int) -> Any:
    """Squarish faces of 4 … side/2 pixels within the image, some of them over its border."""
    import torch

    rng = np.random.RandomState(seed)
    total = sum(counts)
    size = np.exp(rng.uniform(np.log(4), np.log(side / 2), (total, 1))) * rng.uniform(0.8, 1.25, (total, 2))
    center = rng.uniform(0, side, (total, 2))
    boxes = np.concatenate([center - size / 2, center + size / 2], axis=1)
    return named("Targets")(
        torch.from_numpy(boxes).float(), torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    )


def loss_options() -> dict[str, dict[str, Any]]:
    assignments, boxes = ("iou", "atss", "simota"), ("smooth_l1", "giou", "diou", "ciou")
    classifications = ("cross_entropy", "focal", "quality_focal")
    cases = {
        f"{a} {c} {b}": {"assignment": a, "classification": c, "box": b, "box_weight": 1.5, "lambda_cls": 1.25}
        for a, c, b in itertools.product(assignments, classifications, boxes)
    }
    further: list[dict[str, Any]] = [
        {}, {"second_stage": True}, {"threshold": 0.5}, {"normalise_by": "positives_and_negatives"},
        {"weights": [1, 0.5, 2]}, {"negatives_per_positive": 5.5, "min_negatives": 3}, {"min_negatives": 0},
        {"box_beta": 0.11}, {"classification": "focal", "focal_alpha": 0.6, "focal_gamma": 1.5},
        {"classification": "quality_focal", "focal_gamma": 1},
    ]  # fmt: skip
    return cases | {" ".join(f"{k}={v}" for k, v in case.items()) or "defaults": case for case in further}


def losses() -> dict[str, dict[str, Any]]:
    """On given heads with every option; with the networks that the switches make; and who is matched to whom."""
    grid = named("AnchorGrid")(((16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)))
    targets, found = faces((5, 0, 9), 64, seed=1), {}
    for name, options in loss_options().items():
        found[f"heads: {name}"] = judged(options, random_heads(3, 3, grid.count, seed=2), grid, targets)
    found["heads: no face"] = judged({}, random_heads(1, 2, grid.count, seed=3), grid, faces((0, 0), 64, seed=0))
    for name in NETWORKS:
        if name.startswith(("fanet level", "fanet own", "s3fd", "fanet_light")):
            output, own_grid = through(network(name, width=WIDTH[name.split()[0]]))
            found[f"network: {name}"] = judged({}, output, own_grid, faces((3, 4), 128, seed=4), with_gradient=False)
    for second_stage in (False, True):
        matches = named("match")(grid, targets, 3, second_stage=second_stage)
        found[f"match: second_stage={second_stage}"] = {
            "anchor: face of each image": [
                {str(anchor): int(row[anchor]) for anchor in (row >= 0).nonzero().squeeze(1).tolist()}
                for row in matches.face_index
            ],
            "unmatched": int(matches.unmatched_faces),
        }
    return found


WIDTH = {"fanet": 0.0625, "s3fd_fpn": 0.0625, "fanet_light": 0.5}


def through(network: Any) -> tuple[Any, Any]:
    """Heads in double precision of weights that their names decide, whatever order the layers are made in."""
    import torch

    network = network.double()
    with torch.no_grad():
        for key, weight in network.named_parameters():
            noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(weight.shape))
            if weight.ndim > 1:
                weight.copy_(torch.from_numpy(noise / weight[0].numel() ** 0.5))
            else:
                weight += torch.from_numpy(0.05 * noise)
    images = np.random.RandomState(5).randint(0, 256, (2, 3, 128, 128)).astype(np.uint8)
    output = network.train()(torch.from_numpy(images))
    return output, named("AnchorGrid")(tuple(output.map_shapes))


def judged(options: dict[str, Any], output: Any, grid: Any, targets: Any, with_gradient: bool = True) -> dict[str, Any]:
    """The loss and its parts. Anchors whose offsets have a gradient are the positives, whatever chose them."""
    result = named("HierarchicalLoss")(**options)(output, grid, targets)
    values = {
        "total": result.total.item(),
        **{key: value.item() for key, value in result.parts.items()},
        "positives": int(result.positives),
        "unmatched": int(result.unmatched_faces),
    }
    if with_gradient:
        result.total.backward()
        leaves = [tensor.grad for heads in output.hierarchies for tensor in heads]
        values["gradient"] = float(sum(float(g.double().square().sum()) for g in leaves) ** 0.5)
        if options.get("box", "smooth_l1") == "smooth_l1" and "focal" not in options.get("classification", ""):
            anchors = (leaves[-1] != 0).any(dim=2)
            values["positives of each image"] = [row.nonzero().squeeze(1).tolist() for row in anchors]
    return values


def scores_of(cwd: Path, *words: str) -> dict[str, Any]:
    """``scores.json`` and the other numbers of ``score``, without who made them and when; and the files next to it."""
    out = Path(tempfile.mkdtemp(dir=cwd))
    run_verb("score", *words, f"out={out}", cwd=cwd)
    found = {}
    for name in ("scores.json", "attributes.json", "errors.json"):
        if (out / name).exists():
            content = json.loads((out / name).read_text())
            content.pop("made_by", None)
            if "backend" in content.get("rules", {}):
                content["rules"]["backend"] = content["rules"]["backend"].split()[0]  # without its version
            found[name.removesuffix(".json")] = content
    return found | {"files": sorted(path.name for path in out.iterdir())}


def small_scores(folder: Path) -> dict[str, Any]:
    """Every benchmark on a few images in its official layout."""
    from tests.score import coco_cases, fddb_files
    from tests.score import pascal_face_files as pascal

    rng = np.random.RandomState(6)
    images = json.loads((HERE / "wider_scoring.json").read_text())["images"]
    truth = named("GroundTruth")(
        tuple(images),
        [np.array(image["faces"], np.float64).reshape(-1, 4) for image in images.values()],
        {s: [np.array(i["counted"][s], np.bool_) for i in images.values()] for s in ("easy", "medium", "hard")},
        attributes={"blur": [rng.randint(0, 3, len(image["faces"])).astype(np.int8) for image in images.values()]},
    )
    named("write_ground_truth")(folder / "wider", truth)
    for part, keep in (("all", 1), ("half", 2)):
        for image_id, image in images.items():
            path = folder / f"wider_{part}" / f"{image_id}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            own = image["rows"][::keep]
            text = "".join(" ".join(map(str, row)) + "\n" for row in own)
            path.write_text(f"{Path(image_id).name}\n{len(own)}\n{text}")
    (folder / "half.txt").write_text("".join(f"{image_id}\n" for image_id in [*images][::2]))
    wider = ["predictions=wider_all", "ground_truth=wider"]
    found = {
        "wider_face": scores_of(folder, *wider, "attributes=true", "errors=true", "bootstrap=200"),
        "wider_face against": scores_of(folder, *wider, "against=wider_half", "bootstrap=200"),
        "wider_face images": scores_of(folder, *wider, "images=half.txt", "bootstrap=200"),
    }

    fddb: dict[str, Any] = json.loads((HERE / "fddb.json").read_text())
    ellipses: dict[int, dict[str, Any]] = {}
    boxes: dict[int, dict[str, Any]] = {}
    for place, image in enumerate(fddb["images"]):
        ellipses.setdefault(1 + place // 3, {})[image["image_id"]] = image["faces"]
        boxes.setdefault(1 + place // 3, {})[image["image_id"]] = image["rows"]
    fddb_files.write_folds(folder / "FDDB-folds", ellipses)
    fddb_files.write_sizes(folder / "image_sizes.json", ellipses, (fddb["width"], fddb["height"]))
    fddb_files.write_detections(folder / "fddb", boxes)
    for kind in ("as_given", "inscribed"):
        words = ["benchmark=fddb", "predictions=fddb", "ground_truth=FDDB-folds", f"benchmark.ellipses={kind}"]
        found[f"fddb {kind}"] = scores_of(folder, *words, "bootstrap=200")

    truth_rows, text = {}, ""
    for number in range(8):
        corner, size = rng.randint(0, 300, (3, 2)), rng.randint(15, 90, (3, 1))
        own = np.concatenate([corner, corner + size], axis=1)[: rng.randint(1, 4)]
        truth_rows[f"2008_00{number:02d}.jpg"] = [[*map(int, row), int(rng.rand() < 0.2)] for row in own]
        near = np.concatenate(
            [own + rng.randint(-6, 7, own.shape), rng.randint(0, 150, (2, 4)) + np.array([0, 0, 160, 160])]
        )
        text += "".join(f"2008_00{number:02d} {rng.rand():.4f} {' '.join(map(str, row))}\n" for row in near)
    (folder / "pascal.txt").write_text(text)
    pascal.write_annotations(folder / "labels" / pascal.CORRECTED, truth_rows)
    pascal.write_annotations(folder / "labels" / pascal.ORIGINAL, truth_rows, columns=4)
    pascal.write_annotations(folder / "labels" / pascal.AFW_CORRECTED, truth_rows)
    for name, *more in (
        ("pascal_face",),
        ("pascal_face", "benchmark.labels=original", "benchmark.alignment=false"),
        ("afw",),
    ):
        words = [f"benchmark={name}", "predictions=pascal.txt", "ground_truth=labels", "bootstrap=100", *more]
        found[" ".join([name, *more])] = scores_of(folder, *words)

    annotations, results = coco_cases.random_case(7, images=12, categories=2)
    (folder / "coco_truth.json").write_text(json.dumps(annotations))
    (folder / "coco_rows.json").write_text(json.dumps(results))
    words = ["benchmark=coco", "predictions=coco_rows.json", "ground_truth=coco_truth.json", "bootstrap=100"]
    for more in ("benchmark.backend=pycocotools", "benchmark.category='kind 1'", "benchmark.max_detections=2"):
        found[f"coco {more}"] = scores_of(folder, *words, more)
    return found


SHARED_SCORES = ("wider_face", "fddb", "pascal_face", "pascal_face original", "coco")


def shared_scores(folder: Path, data: Path, name: str) -> dict[str, Any]:
    """Published detections on WIDER's val, FDDB and PASCAL face; the first once more, on a COCO file."""
    benchmark, *original = name.split()
    wider = data / "predictions" / "retinaface_mnet025_wider_val.zip"
    if name == "coco":
        wider_to_coco(data / "wider_face" / "wider_face_split.zip", wider, folder)
    predictions, truth = {
        "wider_face": (wider, data / "wider_face/eval_gt"),
        "fddb": (data / "predictions/fddb_mtcnn", data / "fddb"),
        "pascal_face": (data / "predictions/pascal_headhunter.txt", data / "pascal_face"),
        "coco": (folder / "coco_rows.json", folder / "coco_truth.json"),
    }[benchmark]
    more = ["benchmark.labels=original", "benchmark.alignment=false"] if original else []
    words = [f"benchmark={benchmark}", f"predictions={predictions}", f"ground_truth={truth}", *more]
    return scores_of(folder, *words)


def wider_to_coco(annotations: Path, predictions: Path, folder: Path) -> None:
    """Every fourth image of val; faces whose flag says invalid, or without an area, are crowds."""
    with zipfile.ZipFile(annotations) as archive:
        lines = archive.read("wider_face_split/wider_face_val_bbx_gt.txt").decode().splitlines()
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "face"}]}
    place, images = 0, {}
    while place < len(lines):
        name, count = lines[place], max(int(lines[place + 1]), 1)
        images[name.removesuffix(".jpg")] = [[int(x) for x in line.split()] for line in lines[place + 2 :][:count]]
        place += 2 + count
    chosen = {name: number for number, name in enumerate(images, 1) if number % 4 == 0}
    for name, number in chosen.items():
        truth["images"].append({"id": number, "file_name": f"{name}.jpg"})
        for x, y, w, h, *flags in images[name]:
            face = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(flags[3] or not w * h)}
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 1, **face}
            )
    results = []
    with zipfile.ZipFile(predictions) as archive:
        for entry in archive.namelist():
            if (name := entry.removesuffix(".txt")) in chosen:
                for line in archive.read(entry).decode().splitlines()[2:]:
                    *box, score = map(float, line.split())
                    results.append({"image_id": chosen[name], "category_id": 1, "bbox": box, "score": score})
    (folder / "coco_truth.json").write_text(json.dumps(truth))
    (folder / "coco_rows.json").write_text(json.dumps(results))


# --- a checkpoint of today -------------------------------------------------------------------------------------------

ARCHIVE = HERE / "run.tar.xz"
CHECKPOINT = "run/checkpoints/last.ckpt"
EPOCHS = 40
# The smallest network that has A-blocks and two hierarchies; the rest is the default, but for the precision that "auto"
# chooses by machine. run.tar.xz holds such a run, stopped after its last epoch but one.
RUN = (
    "level=2", "hl=true", "context=false", "model.width=0.01", "input_size=96", "batch_size=4", f"epochs={EPOCHS}",
    "workers=0", "data.train_images=16", "data.val_images=8", "data.image_width=[128,160]",
    "data.image_height=[112,128]", "data.root=data", "augment=s3fd", "trainer.accelerator=cpu",
    "trainer.precision=32-true", "validate_every=5", "trainer.log_every_n_steps=1", "logger=csv", "out=run",
    "evaluate_at_end=false",
)  # fmt: skip


def unpacked(folder: Path) -> Path:
    """The checkpoint of the run, put into ``folder``."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / CHECKPOINT


def boxes(checkpoint: Path) -> list[list[float]]:
    """The best faces in an image of noise in blocks, x1 y1 x2 y2 score."""
    blocks = np.random.RandomState(8).randint(0, 256, (10, 13, 3)).astype(np.uint8)
    image = blocks.repeat(16, axis=0).repeat(16, axis=1)
    detector = named("FaceDetector").from_checkpoint(checkpoint, device="cpu", precision="32-true")
    found = detector.detect(image, protocol="original", threshold=0.0)
    corners, scores = found.numpy()
    return [[*map(float, corner), float(score)] for corner, score in zip(corners[:12], scores[:12], strict=True)]


def resumed(folder: Path, *words: str) -> list[dict[str, float]]:
    """The last epoch, step by step: the same samples in the same order give the same losses."""
    run_verb("train", *RUN, *words, cwd=folder)
    with (folder / "run/csv/metrics.csv").open() as file:
        table = [row for row in csv.DictReader(file) if row["epoch"] == str(EPOCHS - 1) and row["train/loss"]]
    clocks = ("train/images_per_second", "train/wait_share")
    return [{k: float(v) for k, v in row.items() if v and k.startswith("train/") and k not in clocks} for row in table]


def evaluated(folder: Path, *words: str) -> dict[str, float]:
    out = Path(tempfile.mkdtemp(dir=folder))
    run_verb("evaluate", *words, f"out={out}", "device=cpu", "precision=32-true", "workers=0", cwd=folder)
    return dict(json.loads((out / "scores.json").read_text())["ap"])


def aps(folder: Path, checkpoint: Path) -> dict[str, Any]:
    """Of the run's own synthetic images, by protocol."""
    protocols = ("original", "multiscale_quick")
    return {name: evaluated(folder, f"checkpoint={checkpoint}", f"protocol={name}") for name in protocols}


def run(folder: Path) -> dict[str, Any]:
    checkpoint = unpacked(folder)
    return {"boxes": boxes(checkpoint), "ap": aps(folder, checkpoint), "last_epoch": resumed(folder, "resume=auto")}


SHIPPED = ("fanet_light", "fanet_lite0")


def shipped(folder: Path, data: Path, name: str) -> dict[str, float]:
    """AP of a shipped model on the first image of each of twelve events of the test list."""
    by_event = {line.split("/")[0]: line for line in reversed((data / "wider_face/test.txt").read_text().split())}
    (folder / "twelve.txt").write_text("".join(f"{by_event[event]}\n" for event in sorted(by_event)[::-1][:12]))
    root = data / "wider_face"
    words = [f"data.root={root}", f"data.ground_truth={root / 'eval_gt'}", f"data.val.images={folder / 'twelve.txt'}"]
    return evaluated(folder, f"checkpoint={name}", "data=wider_face", *words)


def differences(found: Any, golden: Any, rel: float, abs_: float = 0.0, where: str = "") -> Iterator[str]:
    """Where two values of a golden file are not the same, one line each; floats to ``rel`` or ``abs_``."""
    if isinstance(found, Mapping) and isinstance(golden, Mapping):
        for key in dict.fromkeys([*golden, *found]):
            inner = f"{where} › {key}" if where else str(key)
            if key not in found or key not in golden:
                yield f"{inner}: {'gone' if key in golden else 'new, ' + json.dumps(found[key])[:200]}"
            else:
                yield from differences(found[key], golden[key], rel, abs_, inner)
    elif isinstance(found, list) and isinstance(golden, list) and len(found) == len(golden):
        for i, pair in enumerate(zip(found, golden, strict=True)):
            yield from differences(*pair, rel, abs_, f"{where}[{i}]")
    elif isinstance(found, float) and isinstance(golden, (int, float)):
        if not abs(found - golden) <= max(rel * abs(golden), abs_):
            yield f"{where}: {found!r}, was {golden!r}"
    elif found != golden or type(found) is not type(golden):
        yield f"{where}: {json.dumps(found)[:200]}, was {json.dumps(golden)[:200]}"


def load(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def save(name: str, content: Mapping[str, Any], depth: int) -> None:
    """Mappings down to ``depth`` have a line for each entry, what is inside them is one line."""

    def text(value: Any, level: int) -> str:
        if level > depth or not value or not isinstance(value, (Mapping, list)):
            return json.dumps(value, ensure_ascii=False)
        margin = " " * level
        if isinstance(value, list):
            return "[\n" + ",\n".join(margin + text(x, level + 1) for x in value) + f"\n{margin[1:]}]"
        lines = (f"{margin}{json.dumps(k, ensure_ascii=False)}: {text(x, level + 1)}" for k, x in value.items())
        return "{\n" + ",\n".join(lines) + f"\n{margin[1:]}}}"

    (HERE / f"{name}.json").write_text(text(content, 1) + "\n", encoding="utf-8")


def in_folder(make: Callable[..., Any], *arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder), *arguments)


def main(names: list[str]) -> None:
    made: dict[str, tuple[str, int, Callable[[], Any]]] = {
        "keys": ("verb_keys", 2, keys),
        "networks": (
            "state_dict_keys",
            2,
            lambda: {"fanet_timm": load("state_dict_keys")["fanet_timm"]} | network_keys(),
        ),
        "losses": ("losses", 1, losses),
        "scores": ("scores", 3, lambda: in_folder(small_scores)),
        "run": ("run", 2, lambda: in_folder(run)),
        "shared": ("shared_scores", 3, all_shared),
    }
    for name in names or made:
        file, depth, make = made[name]
        save(file, make(), depth)
        print(f"written: {name}")


def all_shared() -> dict[str, Any]:
    if not (SHARED / "wider_face").is_dir():
        return dict(load("shared_scores"))
    content = {name: in_folder(shared_scores, SHARED, name) for name in SHARED_SCORES}
    return content | {name: in_folder(shipped, SHARED, name) for name in SHIPPED}


if __name__ == "__main__":
    main(sys.argv[1:])
