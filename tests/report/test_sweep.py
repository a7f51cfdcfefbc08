"""The report: from run folders through the real command line to the numbers on the page."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fanet_lightning.cli.provenance import locked
from fanet_lightning.report import __main__ as report
from fanet_lightning.report import sweep
from fanet_lightning.report.ablation import Bounds, Estimate, Resampler, verdict
from fanet_lightning.report.runs import Evaluation, find_runs, group_runs
from fanet_lightning.score.bootstrap import bootstrap_ap, count_images, interval_of
from fanet_lightning.score.wider_face.ground_truth import SETTINGS, GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from tests.report import make_runs
from tests.score.helpers import refused


def one_face_each(images: int = 40) -> GroundTruth:
    """Each image has one face, which counts everywhere."""
    boxes = [np.array([[0.0, 0, 40, 40]])] * images
    return GroundTruth(
        tuple(f"event/{i}" for i in range(images)), boxes, {s: [np.ones(1, np.bool_)] * images for s in SETTINGS}
    )


def finds(truth: GroundTruth, images: range) -> Predictions:
    """A detector without a false alarm that finds the faces of these images: its AP is len(images) / N."""
    found = {
        image_id: (np.array([[0.0, 0, 40, 40]])[: int(i in images)], np.full(int(i in images), 0.9))
        for i, image_id in enumerate(truth.image_ids)
    }
    return Predictions.from_detections(found, truth.image_ids)


def make_grid(runs: Path, words: Sequence[str], **options: Any) -> Path:
    return make_runs.make_run(runs, "level3_context_hl", words=words, **{"images": 12} | options)


def built(runs: Path, **options: Any) -> list[sweep.Part]:
    return sweep.build_parts(find_runs(runs), **{"bootstrap": 50} | options)


def cells(table: sweep.Table, head: str = "") -> dict[str, list[str]]:
    """Of each row the texts, of a column or of all."""
    return {key: [own.text for own in row if head in ("", own.head)] for key, row in table.rows}


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not laid out; the command line's own test writes them."""
    monkeypatch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda figure: None)


@pytest.mark.slow
def test_a_sweep_by_the_command_line_and_its_report(tmp_path: Path) -> None:
    """Hydra's multirun folder as `train -m` leaves it: tables, figures, values of scores.json."""
    runs = tmp_path / "sweep"
    words = ["-m", "optim.lr=0.0003,0.003", "epochs=1", "validate_every=1", "workers=0", "input_size=96",
             "batch_size=4", "data.train_images=16", "data.val_images=8", "data.image_width=[160,200]",
             "data.image_height=[140,160]", "trainer.log_every_n_steps=1", f"data.root={tmp_path / 'data'}",
             f"sweep={runs}"]  # fmt: skip
    for verb, own in (("train", words), ("report", [f"runs={runs}", "bootstrap=40", "baseline=lr=0.0003"])):
        command = [sys.executable, "-m", f"fanet_lightning.{verb}", *own]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    out = runs / "report"
    text, source = ((out / name).read_text(encoding="utf-8") for name in ("table.md", "report.html"))
    assert done.stdout.strip() == text.strip()
    for name in ("optim.lr_hard", "learning_easy", "loss", "pr_curves_medium"):
        assert (out / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    (folder,) = runs.glob("*lr_0.003_seed0")
    ap = json.loads((folder / "evaluation/scores.json").read_text())["ap"]
    (line,) = [line for line in text.split("###")[1].splitlines() if line.startswith("| 0.003 ")]
    assert [cell.split("[")[0].strip() for cell in line.split("|")[2:5]] == [f"{100 * ap[s]:.1f}" for s in SETTINGS]
    assert f"fanet train {' '.join(words[1:3])}" in source.replace("-m ", "")
    # Nothing is fetched: figures are inside.
    links = re.findall(r'<[^>]*\b(?:src|href)="([^"]*)"', source)
    assert links and all(link.startswith("data:image/svg+xml;base64,") for link in links)


def test_what_varied_is_found(tmp_path: Path) -> None:
    """Nested keys, one column for what changes in step; seeds and threads are no settings; repeats are said."""
    for number, (lr, name) in enumerate((lr, name) for lr in (0.02, 0.001) for name in ("adamw", "sgd")):
        for seed in (0, 1):
            words = [f"optim.lr={lr}", f"optim.name={name}", f"workers={number}", "input_size=128"]
            make_grid(tmp_path, words, seed=seed, folder=f"{lr}_{name}_{seed}")
    words = ["optim.lr=0.001", "optim.name=sgd", "input_size=256"]
    make_grid(tmp_path, words, folder="large")
    make_grid(tmp_path, [*words, "threads=2"], folder="again", state="failed", error="early", epoch=1)
    (group,) = group_runs(find_runs(tmp_path).runs)
    assert group.left_out == [f"{tmp_path}/again repeats settings and seed of {tmp_path}/large, which the tables read"]
    assert {one.key: one.values for one in group.varied} == {
        "optim.lr": [0.001, 0.02], "optim.name": ["adamw", "sgd"], "input_size": [128, 256],
    }  # fmt: skip
    assert [one.also for one in group.varied if one.key == "input_size"] == [["augment.size"]]
    assert [one.is_log for one in group.varied if one.key == "optim.lr"] == [True]
    assert sorted(len(variant.runs) for variant in group.variants) == [1, 2, 2, 2, 2]
    assert "input_size=128 optim=sgd lr=0.001" in {variant.label for variant in group.variants}
    (single,) = group_runs(find_runs(tmp_path / "large").runs)
    assert (single.varied, single.variants[0].label) == ([], "3-level + HL + context")


def test_numbers_that_a_hand_can_compute(tmp_path: Path) -> None:
    truth = one_face_each(40)
    for lr, found in {0.1: range(20), 0.01: range(32), 0.001: range(32), 0.0001: range(10)}.items():
        make_grid(tmp_path, [f"optim.lr={lr}"], folder=f"r{lr}", truth=truth, predictions=finds(truth, found))
    (part,) = built(tmp_path, bootstrap=1000, baseline="r0.1")
    rows = dict(part.tables[0].rows)
    easy, medium, hard = (own for own in rows["lr=0.1"] if own.head in SETTINGS)
    # 20 of 40 images: the resampled AP is binomial(40, 1/2) / 40, whose 2.5 % and 97.5 % points are 14/40 and 26/40.
    assert easy.text == "50.0" and re.fullmatch(r"\[3[57]\.[05], 6[25]\.[05]\]", easy.spread)
    assert easy[1:] == medium[1:] == hard[1:]
    assert ["best" in own.css for own in rows["lr=0.01"]].count(True) == 3
    assert list(rows)[-1] == "lr=0.0001"  # the lowest is last
    against = cells(part.tables[1])
    assert [own[1:3] for own in against.values()] == [["+30.0", "higher (one seed)"]] * 2 + [
        ["−25.0", "lower (one seed)"]
    ]
    assert list(part.figures["AP against what was varied"]) == [f"optim.lr_{setting}" for setting in SETTINGS]


def test_several_seeds_have_a_mean_and_a_spread_of_their_own(tmp_path: Path) -> None:
    truth = one_face_each(40)
    # AP 0.5, 0.6, 0.7 and 0.8, 0.8, 0.9: differences 0.3, 0.2, 0.2.
    for seed, counts in enumerate(((20, 32), (24, 32), (28, 36))):
        for lr, count in zip((0.1, 0.01), counts, strict=True):
            own = finds(truth, range(count))
            make_grid(tmp_path, [f"optim.lr={lr}"], seed=seed, folder=f"{lr}_{seed}", truth=truth, predictions=own)
    make_grid(tmp_path, ["optim.lr=1"], folder="c0", truth=truth, predictions=finds(truth, range(40)))
    make_grid(tmp_path, ["optim.lr=1"], seed=1, folder="c1", state="failed", error="ValueError: no luck", epoch=2)
    (part,) = built(tmp_path, baseline="lr=0.1")
    table, against = part.tables
    assert cells(table, "easy") == {"lr=1": ["100.0"], "lr=0.01": ["83.3"], "lr=0.1": ["60.0"]}
    assert cells(table, "± seeds") == {"lr=1": [""] * 3, "lr=0.01": ["± 5.8"] * 3, "lr=0.1": ["± 10.0"] * 3}
    assert cells(table, "state")["lr=1"] == [f"seed 1 failed: ValueError: no luck (log: {tmp_path}/c1/train.log)"]
    # Standard deviation of 0.3, 0.2, 0.2: sqrt(((2/30)² + 2 (1/30)²) / 2) = 0.0577.
    assert cells(against)["lr=0.01"][1:4] == ["+23.3", "± 5.8", "higher"]
    # Seed 0 is the only one that both sides have: 1.0 − 0.5.
    assert cells(against)["lr=1"][1] == "+50.0"


def test_what_is_unfinished_or_broken_is_said(tmp_path: Path) -> None:
    lrs = {"done": 0.1, "uncounted": 0.2, "failed": 0.3, "running": 0.4, "killed": 0.5, "stopped": 0.6, "mixed": 0.7}
    states = {"failed": ("failed", 3), "running": ("running", 3), "killed": ("running", 2), "stopped": ("stopped", 5)}
    folders = {}
    for name, lr in lrs.items():
        state, epoch = states.get(name, ("finished", None))
        error = "RuntimeError: <b>out</b> of memory" if state == "failed" else None
        options = {"folder": name, "state": state, "epoch": epoch, "error": error}
        folders[name] = make_grid(tmp_path, [f"optim.lr={lr}"], **options)
    (folders["done"] / "csv/metrics.csv").unlink()
    (folders["failed"] / "csv/metrics.csv").write_text("epoch\n1,2\n")
    (tmp_path / "multirun.yaml").touch()
    (folders["uncounted"] / "evaluation/per_image.npz").write_bytes(b"PK\x03\x04 cut short")
    other = make_grid(tmp_path / "else", [], quality=0.3, folder="other")
    (other / "evaluation/per_image.npz").replace(folders["mixed"] / "evaluation/per_image.npz")
    (other / "run.json").unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text('{"version": 1, "name": "lev')
    with locked(folders["running"]):  # what a training does while it runs
        found = find_runs(tmp_path)
    (part,) = sweep.build_parts(found, bootstrap=50)
    assert {label: own for label, [own] in cells(part.tables[0], "state").items()} == {
        "lr=0.1": "", "lr=0.2": "", "lr=0.7": "",
        "lr=0.3": f"failed: RuntimeError: <b>out</b> of memory (log: {tmp_path}/failed/train.log)",
        "lr=0.4": "running, epoch 3/20", "lr=0.5": "interrupted, epoch 2/20", "lr=0.6": "stopped, epoch 5/20",
    }  # fmt: skip
    spreads = {label: [own.spread != "" for own in row if own.head == "easy"] for label, row in part.tables[0].rows}
    assert [label for label, given in spreads.items() if given == [True]] == ["lr=0.1"]
    text = sweep.page(found, [part])
    assert "&lt;b&gt;out&lt;/b&gt;" in text and "<b>out" not in text
    for name, reason in (
        ("done/csv/metrics.csv", ""), ("failed/csv/metrics.csv", " cannot be read"),
        ("uncounted/evaluation/per_image.npz", ""),
        ("mixed/evaluation/per_image.npz", " is about other predictions than run.json"), ("broken/run.json", ""),
    ):  # fmt: skip
        assert f"{tmp_path}/{name}{reason}" in text


def test_without_a_score_the_validation_counts(tmp_path: Path) -> None:
    for lr in (0.1, 0.01):
        out = make_grid(tmp_path, [f"optim.lr={lr}"], quality=0.5 + lr, folder=f"{lr}")
        record = json.loads((out / "run.json").read_text())
        (out / "run.json").write_text(json.dumps(record | {"scores": {}}))
    (part,) = built(tmp_path)
    assert "validation images, of each run's best epoch" in part.legend
    best = [0.6 * (1 - 0.7**20) + more for more in (0.1, 0.05, 0.0)]
    assert cells(part.tables[0])["lr=0.1"][1:4] == [f"{100 * value:.1f}" for value in best]


def test_other_data_protocols_and_images_are_parts_of_their_own(tmp_path: Path) -> None:
    for lr in (0.1, 0.01):
        make_grid(tmp_path, [f"optim.lr={lr}"], folder=f"a{lr}")
    make_grid(tmp_path, ["data.val_images=7"], folder="data")
    make_grid(tmp_path, ["protocol=short640"], folder="protocol")
    make_grid(tmp_path, ["data.train_images=7"], folder="train")  # a setting like others: it is scored on the same
    make_grid(tmp_path, [], folder="images", truth=one_face_each(12), predictions=finds(one_face_each(12), range(6)))
    make_grid(tmp_path, ["optim.lr=3"], folder="unscored", state="failed", epoch=1)
    parts = built(tmp_path)
    names = [{run.folder.name for run in part.group.runs} for part in parts]
    assert names[0] == {"a0.1", "a0.01", "train", "unscored"}
    assert sorted(names[1:], key=min) == [{"data"}, {"images"}, {"protocol"}]
    unlike = [key for part in parts for key, *_ in part.group.apart]
    assert {"data.val_images", "protocol.name", "scored images"} <= {*unlike}
    assert "4 parts, because AP on other data" in sweep.page(find_runs(tmp_path), parts)


def test_the_papers_rows_are_next_to_ours(tmp_path: Path) -> None:
    truth = one_face_each(40)
    for cell, found in {"level1": range(20), "level2": range(32), "level3": range(32), "s3fd_fpn": range(10)}.items():
        make_runs.make_run(tmp_path, cell, truth=truth, predictions=finds(truth, found))
    make_runs.make_run(tmp_path, "level3_context_hl", protocols=["multiscale_quick"], truth=truth)
    overrides = {"task": ["experiment=ablation", "seeds=2"], "hydra": ["hydra/launcher=joblib", "hydra.job.config.x=1"]}
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": {"overrides": overrides}}))
    (part,) = built(tmp_path, bootstrap=1000)
    rows, steps = part.paper
    # Those that were run, in the paper's order.
    assert list(cells(rows)) == [
        *(f"{cell} original" for cell in ("level1", "s3fd_fpn", "level2", "level3", "level3_context_hl")),
        "level3_context_hl multiscale_quick",
    ]
    assert cells(rows, "paper")["level1 original"] == ["94.5", "92.9", "82.8"]
    assert cells(rows, "Δ")["level1 original"] == ["−44.5", "−42.9", "−32.8"]
    assert list(cells(part.tables[1])) == ["3-level + HL + context"]
    for step, ours, paper, word in (
        ("level3-level2 hard", "0.0", "+0.4", "not distinguishable"),
        ("s3fd_fpn-level1 hard", "−25.0", "+1.0", "reversed (one seed)"),
        ("s3fd_fpn-level1 easy", "−25.0", "−0.2", "shows (one seed)"),  # the paper's falls, too
    ):
        assert [cells(steps, head)[step] for head in ("ours", "paper", "verdict")] == [[ours], [paper], [word]]
    text = sweep.page(find_runs(tmp_path), [part])
    assert "<pre>fanet train experiment=ablation seeds=2 hydra/launcher=joblib</pre>" in text
    assert "fanet train experiment=ablation cell=level1" in text  # of the run
    assert "2-level − 1-level (S3FD) | hard | +30.0" in sweep.markdown(find_runs(tmp_path), [part])


@pytest.mark.parametrize(
    ("words", "images", "label"),
    [
        ([], 1, "Scored on synthetic faces, 1 image,"),
        (["data=wider_face"], 3226, "Scored at original, the paper at short640"),
        (["data=wider_face", "protocol=short640"], 3226, ""),
    ],
)
def test_what_does_not_compare_with_the_paper_is_said(
    words: list[str], images: int, label: str, tmp_path: Path
) -> None:
    truth = one_face_each(images)
    make_runs.make_run(tmp_path, "level1", words=words, truth=truth, predictions=finds(truth, range(1)))
    (part,) = built(tmp_path, bootstrap=0)
    assert part.group.warning.startswith(label) and bool(part.group.warning) == bool(label)
    # One network alone is next to the paper's numbers where the data is.
    assert bool(part.paper) == bool(words)


def test_figures_of_a_sweep_of_three_settings(tmp_path: Path) -> None:
    for lr, decay, epochs in ((0.1, 0.0, 20), (0.001, 0.0, 20), (0.1, 0.5, 20), (0.1, 0.0, 5)):
        words = [f"optim.lr={lr}", f"optim.weight_decay={decay}", f"epochs={epochs}"]
        make_grid(tmp_path, words, folder=f"{lr}{decay}{epochs}")
    (part,) = built(tmp_path, bootstrap=0)
    figures = {name: figure for made in part.figures.values() for name, figure in made.items()}
    assert "parallel" in figures and part.paper == []
    (axis,) = figures["optim.lr_hard"].axes
    lines = [line for line in axis.lines if line.get_marker() == "o"]
    # Two values of one decay are joined, the others are markers without a line to anything.
    assert axis.get_xscale() == "log" and sorted(len(line.get_xdata()) for line in lines) == [1, 1, 2]
    assert figures["optim.weight_decay_hard"].axes[0].get_xscale() == "linear"


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    empty, runs = tmp_path / "empty", tmp_path / "runs"
    empty.mkdir()
    (tmp_path / "file").touch()
    for lr in (0.1, 0.2):
        make_grid(runs, [f"optim.lr={lr}"], folder=f"run{lr}")
    for word, expected in (
        (f"runs={empty}", f"runs={empty} holds no run.json"),
        (f"out={tmp_path / 'file' / 'page'}", "Not a directory"),
        # Replaced as a whole, so what is not a report must not be there.
        (f"out={runs}", "runs holds something else than a report (run0.1"),
        ("bootstrap=-1", "bootstrap=-1"),
        ("baseline=banana", "give one of 'lr=0.1', 'lr=0.2'"),
        ("baseline=level3_context_hl", "give one of 'lr=0.1', 'lr=0.2'"),
    ):
        refused(re.escape(expected), report.main, [f"runs={runs}", word])
    assert sorted(path.name for path in runs.iterdir()) == ["run0.1", "run0.2"]


def evaluation(quality: float, seed: int) -> Evaluation:
    truth = make_runs.synthetic_ground_truth(25)
    counts = count_images(truth, make_runs.synthetic_predictions(truth, quality, seed))
    intervals = bootstrap_ap(counts, 1)
    return Evaluation("original", {setting: own.value for setting, own in intervals.items()}, 25, counts)


def test_intervals_are_those_of_the_bootstrap() -> None:
    """Each run is resampled once here and combined afterwards; the bootstrap resamples both sides again."""
    after, before = ({seed: evaluation(quality, seed) for seed in range(3)} for quality in (0.8, 0.7))
    resampler = Resampler(60)
    for setting in SETTINGS:
        sides = [[bootstrap_ap(own.counts, 60)[setting] for own in side.values()] for side in (after, before)]
        value, samples = (
            np.subtract(*(np.mean([getattr(own, name) for own in side], axis=0) for side in sides))
            for name in ("value", "samples")
        )
        wanted = interval_of(float(value), samples)
        found = resampler.estimate(setting, after, before)
        assert found is not None and found.over_images is not None
        assert [found.value, *found.over_images] == pytest.approx(wanted[:3], abs=1e-12)


def test_the_interval_over_seeds_is_students() -> None:
    values = {seed: Evaluation("original", {"hard": ap}, None, {}) for seed, ap in enumerate((0.1, 0.2, 0.3))}
    found = Resampler(10).estimate("hard", values)
    assert found is not None and found.seed_sd == pytest.approx(0.1) and found.value == pytest.approx(0.2)
    # t(0.975, 2) = 4.3027 from the table; 4.3027 × 0.1 / √3 = 0.24841.
    assert found.over_seeds == pytest.approx((0.2 - 0.24841, 0.2 + 0.24841), abs=1e-5)
    assert (found.over_images, found.missing) == (None, "no counts per image")


def test_runs_on_different_images_have_no_paired_interval() -> None:
    truth = one_face_each(4)
    other = GroundTruth(tuple(f"else/{i}" for i in range(4)), truth.boxes_xywh, truth.counted)
    counts = [count_images(own, finds(own, range(2))) for own in (truth, other)]
    sides = [{0: Evaluation("original", dict.fromkeys(SETTINGS, 0.5), 4, own)} for own in counts]
    found = Resampler(10).estimate("hard", *sides)
    assert found is not None and (found.value, found.over_images) == (0.0, None)
    assert found.missing == "scored on different images"


@pytest.mark.parametrize(
    ("images", "seeds", "paper", "word", "kind"),
    [
        ((-0.02, -0.01), None, -1.0, "shows (one seed)", "shows"),
        ((0.01, 0.02), None, -1.0, "reversed (one seed)", "reversed"),
        ((0.0, 0.02), None, 1.0, "not distinguishable", "unclear"),
        ((0.01, 0.02), (0.005, 0.03), 1.0, "shows", "shows"),
        ((0.01, 0.02), (-0.005, 0.03), 1.0, "not distinguishable: seeds differ", "unclear"),
        ((0.01, 0.02), None, 0.0, "gain, paper none (one seed)", "unclear"),
        (None, None, 1.0, "no interval: switched off", "none"),
        ((-0.02, -0.01), (-0.03, -0.01), None, "lower", "reversed"),
    ],
)
def test_verdicts(images: Bounds | None, seeds: Bounds | None, paper: float | None, word: str, kind: str) -> None:
    assert verdict(Estimate(0.0, {}, images, None, seeds, "switched off"), paper) == (word, kind)
