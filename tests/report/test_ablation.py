"""The report: from run folders through the real command line to the numbers on the page."""

import html
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.provenance import locked
from fanet_lightning.models.fanet import build_network, inference_parameters
from fanet_lightning.report import __main__ as report
from fanet_lightning.report import ablation
from fanet_lightning.report import figures as plots
from fanet_lightning.report.ablation import Bounds, Estimate, Resampler, network_costs, verdict
from fanet_lightning.report.html import duration, points
from fanet_lightning.report.runs import ROWS, STEPS, VARIANTS, Evaluation, find_runs, group_runs, sweep_command
from fanet_lightning.score.bootstrap import bootstrap_ap, bootstrap_mean_difference, count_images
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions
from tests.report import make_runs

SETTINGS = ("easy", "medium", "hard")


class Row(NamedTuple):
    """A table row of the page: the attributes of its <tr>, and (class, text) of its cells."""

    attributes: dict[str, str]
    cells: list[tuple[str, str]]

    def texts(self, kind: str) -> list[str]:
        return [text for name, text in self.cells if kind in name.split()]


class Page:
    """The report's page: its text, every src and href, and the rows of a table by its class."""

    def __init__(self, source: str) -> None:
        self.source = re.sub(r"<(style|script).*?</\1>", "", source, flags=re.DOTALL)
        self.text = text_of(self.source)
        self.links = re.findall(r'\b(?:src|href)="([^"]*)"', self.source)

    def rows(self, table: str) -> list[Row]:
        inside = "".join(re.findall(rf'<table class="{table}\b.*?</table>', self.source, re.DOTALL))
        found = re.findall(r"<tr([^>]*)>(.*?)</tr>", inside, re.DOTALL)
        return [
            Row(attributes(head), [(attributes(own).get("class", ""), text_of(text)) for own, text in
                                   re.findall(r"<t[dh]\b([^>]*)>(.*?)</t[dh]>", cells, re.DOTALL)])
            for head, cells in found
        ]  # fmt: skip


def attributes(tag: str) -> dict[str, str]:
    return dict(re.findall(r'([\w-]+)="([^"]*)"', tag))


def text_of(source: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", source))


def cell_rows(read: Page) -> dict[tuple[str, str], Row]:
    rows = [row for row in read.rows("ablation") if "data-variant" in row.attributes]
    return {(row.attributes["data-variant"], row.attributes["data-protocol"]): row for row in rows}


def step_row(read: Page, after: str, before: str, setting: str) -> list[str]:
    """Ours, over images, over seeds, paper, verdict."""
    wanted = {"data-step": f"{after}-{before}", "data-setting": setting}
    (found,) = [row for row in read.rows("steps") if wanted.items() <= row.attributes.items()]
    return [" ".join(text.split()) for _, text in found.cells[-5:]]


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


def write(runs: Path, out: Path | None = None, **options: Any) -> Page:
    options = {"bootstrap": 50, "speed_passes": 0} | options
    return Page(report.write_report(runs, out, **options).page.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not written; the command line's own test writes them."""

    def touch(figure: object, stem: Path) -> None:
        stem.with_suffix(".png").touch()

    monkeypatch.setattr("matplotlib.figure.Figure.draw_without_rendering", lambda figure: None)
    monkeypatch.setattr(plots, "save_figure", touch)
    monkeypatch.setattr(ablation, "data_uri", lambda figure: "data:,")


def test_the_papers_table_and_steps() -> None:
    assert [(row.variant, row.protocols[:1], *row.percent) for row in ROWS] == [
        ("level1", (), 94.5, 92.9, 82.8),
        ("s3fd_fpn", (), 94.3, 93.1, 83.8),
        ("level2", (), 94.8, 93.6, 84.4),
        ("level2_hl", (), 94.8, 93.6, 85.3),
        ("level3", (), 94.7, 93.3, 84.8),
        ("level3_hl", (), 94.8, 93.6, 85.7),
        ("level3_context_hl", (), 95.0, 93.9, 86.7),
        ("level3_context_hl", ("short768",), 94.8, 93.6, 88.4),
        ("level3_context_hl", ("multiscale",), 95.6, 94.7, 89.5),
    ]
    assert len(VARIANTS) == 7
    assert {(step.after, step.before): step.difference_percent("hard") for step in STEPS} == {
        ("level2", "level1"): 1.6, ("level3", "level2"): 0.4, ("level3_hl", "level2_hl"): 0.4,
        ("level2_hl", "level2"): 0.9, ("level3_hl", "level3"): 0.9, ("level3_context_hl", "level3_hl"): 1.0,
        ("s3fd_fpn", "level1"): 1.0, ("level2_hl", "s3fd_fpn"): 1.5, ("level3_context_hl", "s3fd_fpn"): 2.9,
        ("level3_context_hl", "level1"): 3.9,
    }  # fmt: skip


# From folders to the page -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_writes_page_table_and_figures(tmp_path: Path) -> None:
    runs = tmp_path / "sweep"
    make_runs.make_sweep(runs, images=20)
    words = [f"runs={runs}", "bootstrap=40", "speed_passes=1"]
    done = subprocess.run(
        [sys.executable, "-m", "fanet_lightning.report", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    out = runs / "report"
    assert done.stdout.strip() == (out / "table.md").read_text().strip()
    assert sum(line.startswith(("| 1-level (S3FD) |", "| … multi-scale")) for line in done.stdout.splitlines()) == 2
    for name in ("pr_curves", "steps", "trade_off", "learning"):
        assert (out / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (out / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    page_read = Page((out / "report.html").read_text(encoding="utf-8"))
    rows = cell_rows(page_read)
    assert list(rows) == [
        *((cell, "original") for cell in VARIANTS),
        ("level3_context_hl", "short768"),
        ("level3_context_hl", "multiscale_quick"),
    ]
    # Every value on the page is the one that scoring has written.
    for (cell, protocol), row in rows.items():
        folder = runs / f"{cell}_seed0" / ("evaluation" if protocol == "original" else f"evaluation_{protocol}")
        ap = json.loads((folder / "scores.json").read_text())["ap"]
        assert [text.split("[")[0] for text in row.texts("ours")] == [f"{100 * ap[s]:.1f}" for s in SETTINGS]
    speeds = [row for row in page_read.rows("speed") if "data-variant" in row.attributes]
    assert all(float(row.cells[3][1]) > 0 for row in speeds) and len(speeds) == 7
    # Nothing is fetched: figures are inside, links lead to places on the page.
    assert len(page_read.links) == 4
    assert all(link.startswith("data:image/svg+xml;base64,") for link in page_read.links)
    assert not re.search(r"@import|url\(|<link|src=\"http", (out / "report.html").read_text())


def test_numbers_that_a_hand_can_compute(tmp_path: Path) -> None:
    truth = one_face_each(40)
    for cell, found in {"level1": range(20), "level2": range(32), "level3": range(32), "s3fd_fpn": range(10)}.items():
        make_runs.make_run(tmp_path, cell, truth=truth, predictions=finds(truth, found))
    read = write(tmp_path, bootstrap=1000)
    rows = cell_rows(read)
    easy, medium, hard = rows[("level1", "original")].texts("ours")
    # 20 of 40 images: the resampled AP is binomial(40, 1/2) / 40, whose 2.5 % and 97.5 % points are 14/40 and 26/40.
    assert re.fullmatch(r"50\.0\[3[57]\.[05], 6[25]\.[05]\]", easy.strip()) and easy == medium == hard
    assert rows[("level1", "original")].texts("paper") == ["94.5", "92.9", "82.8"]
    assert rows[("level1", "original")].texts("delta") == ["−44.5", "−42.9", "−32.8"]
    assert rows[("level2", "original")].texts("delta") == ["−14.8", "−13.6", "−4.4"]
    assert "best" in rows[("level2", "original")].cells[1][0]
    assert "best" not in rows[("level1", "original")].cells[1][0]
    # 12 of 40 images are found by the second alone: binomial(40, 0.3), from 6 or 7 to 17 or 18 of 40.
    ours, images, seeds, paper, word = step_row(read, "level2", "level1", "hard")
    assert (ours, seeds, paper, word) == ("+30.0", "one seed", "+1.6", "shows (one seed)")
    low, high = (float(text) for text in images.split(" … "))
    assert low in (15.0, 17.5) and high in (42.5, 45.0)
    assert step_row(read, "level3", "level2", "hard")[::4] == ["0.0", "not distinguishable"]
    assert step_row(read, "s3fd_fpn", "level1", "hard")[::4] == ["−25.0", "reversed (one seed)"]
    assert step_row(read, "s3fd_fpn", "level1", "easy")[::4] == ["−25.0", "shows (one seed)"]  # the paper's falls, too
    assert step_row(read, "level3_hl", "level3", "hard")[::4] == ["–", "needs 3-level + HL"]
    assert "Of 30 comparisons so far" not in read.text and "Of 9 comparisons so far" in read.text


def test_several_seeds_have_a_mean_a_spread_and_a_paired_difference(tmp_path: Path) -> None:
    truth = one_face_each(40)
    # AP 0.5, 0.6, 0.7 and 0.8, 0.8, 0.9: differences 0.3, 0.2, 0.2.
    for seed, (before, after) in enumerate(((20, 32), (24, 32), (28, 36))):
        make_runs.make_run(tmp_path, "level1", seed, truth=truth, predictions=finds(truth, range(before)))
        make_runs.make_run(tmp_path, "level2", seed, truth=truth, predictions=finds(truth, range(after)))
    make_runs.make_run(tmp_path, "level3", 0, truth=truth, predictions=finds(truth, range(40)))
    make_runs.make_run(tmp_path, "level3", 1, state="failed", error="ValueError: no luck", epoch=2)
    read = write(tmp_path)
    rows = cell_rows(read)
    assert rows[("level1", "original")].texts("ours")[0] == "60.0± 10.0"
    assert rows[("level3", "original")].texts("ours")[0] == "100.0[100.0, 100.0]"
    assert rows[("level3", "original")].texts("state") == ["seed 1 failed: ValueError: no luck"]
    ours, _, seeds, _, word = step_row(read, "level2", "level1", "hard")
    # Standard deviation of 0.3, 0.2, 0.2: sqrt(((2/30)² + 2 (1/30)²) / 2) = 0.0577.
    assert (ours, seeds, word) == ("+23.3", "± 5.8 (3 seeds)", "shows")
    # Seed 0 is the only one that both sides have: 1.0 − 0.8.
    assert step_row(read, "level3", "level2", "hard")[:3:2] == ["+20.0", "one seed"]
    found = ablation.build_parts(find_runs(tmp_path), bootstrap=0, speed_passes=0, device="cpu")[0]
    assert found.trainings == {"finished": 7, "running": 0, "interrupted": 0, "stopped": 0, "failed": 1, "missing": 13}


def test_a_half_finished_sweep_says_what_is_missing(tmp_path: Path) -> None:
    for cell in ("level1", "s3fd_fpn", "level2_hl"):
        make_runs.make_run(tmp_path, cell, images=12)
    make_runs.make_run(tmp_path, "level2", state="failed", error="RuntimeError: <b>out</b> of memory", epoch=3)
    make_runs.make_run(tmp_path, "level3", state="running", epoch=3)
    make_runs.make_run(tmp_path, "level3_hl", state="stopped", epoch=5)
    (tmp_path / "level1_seed0/csv/metrics.csv").unlink()
    (tmp_path / "level1_seed0/evaluation/pr_curves.npz").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "s3fd_fpn_seed0/evaluation/per_image.npz").unlink()
    counts = (tmp_path / "level1_seed0/evaluation/per_image.npz").read_bytes()
    (tmp_path / "level2_hl_seed0/evaluation/per_image.npz").write_bytes(counts)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text('{"version": 1, "name": "lev')
    with locked(tmp_path / "level3_seed0"):  # what a training does while it runs
        read = write(tmp_path)
    rows = cell_rows(read)
    state = {cell: row.texts("state") for (cell, protocol), row in rows.items() if protocol == "original"}
    assert state == {
        "level1": [""],
        "s3fd_fpn": [""],
        "level2": ["failed: RuntimeError: <b>out</b> of memory"],
        "level2_hl": [""],
        "level3": ["running, epoch 3/20"],
        "level3_hl": ["stopped, epoch 5/20"],
        "level3_context_hl": ["not run"],
    }
    assert rows[("level3_context_hl", "multiscale")].texts("state") == ["not run"]
    assert rows[("level2", "original")].texts("ours") == ["", "", ""]
    assert "[" in rows[("level1", "original")].texts("ours")[0]
    assert "[" not in rows[("s3fd_fpn", "original")].texts("ours")[0]
    assert step_row(read, "s3fd_fpn", "level1", "hard")[4] == "no interval: no counts per image"
    assert f"log: {tmp_path}/level2_seed0/train.log" in " ".join(read.text.split())
    for line in (
        f"{tmp_path}/level1_seed0/csv/metrics.csv is missing: no learning curve",
        f"{tmp_path}/level1_seed0/evaluation/pr_curves.npz cannot be read",
        f"{tmp_path}/s3fd_fpn_seed0/evaluation/per_image.npz is missing: no interval over images",
        f"{tmp_path}/level2_hl_seed0/evaluation/per_image.npz is about other predictions than run.json",
        f"{tmp_path}/broken/run.json is no run record",
    ):
        assert line in read.text


def test_runs_of_different_settings_stand_in_different_tables(tmp_path: Path) -> None:
    for cell in ("level1", "level2", "s3fd_fpn"):
        make_runs.make_run(tmp_path, cell, images=12)
    make_runs.make_run(tmp_path, "level2_hl", words=("epochs=40",), images=12)
    read = write(tmp_path, out=tmp_path / "page")
    assert "2 groups of settings: their numbers do not compare." in read.text
    assert "Unlike A: epochs=40 (A: 20)." in read.text
    first = [row for row in read.rows("ablation") if row.attributes.get("data-variant") == "level2_hl"]
    assert [bool(row.texts("ours")[0]) for row in first] == [False, True]
    steps = [row for row in read.rows("steps") if row.attributes.get("data-step") == "level2_hl-level2"]
    assert {row.cells[-5][1].strip() for row in steps} == {"–"}  # never across groups
    assert {path.stem.split("_")[0] for path in (tmp_path / "page/figures").iterdir()} == {"a", "b"}
    # What tells where a run was carried out splits nothing.
    again = group_runs(find_runs(tmp_path).runs)
    assert [sorted(group.variants) for group in again] == [["level1", "level2", "s3fd_fpn"], ["level2_hl"]]


def test_killed_runs_runs_that_are_there_twice_and_variants_of_ours(tmp_path: Path) -> None:
    truth = one_face_each(10)
    make_runs.make_run(tmp_path, "level1", truth=truth, predictions=finds(truth, range(5)), folder="a")
    make_runs.make_run(tmp_path, "level1", state="failed", error="early", epoch=1, folder="b")
    make_runs.make_run(tmp_path, "level3", state="running", epoch=2)  # and no process holds its folder
    ours = make_runs.make_run(tmp_path, "level2", images=12, protocols=["short1600"], folder="ours")
    failed = make_runs.make_run(tmp_path, "level2_hl", state="failed", error="no luck", epoch=3)
    for out, name in ((ours, "level2_context"), (failed, "level2_context_hl")):
        record = json.loads((out / "run.json").read_text())
        record["name"], record["settings"]["context"] = name, True
        record["settings"]["model"]["context"] = True
        (out / "run.json").write_text(json.dumps(record))
    read = write(tmp_path)
    rows = cell_rows(read)
    assert rows[("level1", "original")].texts("delta")[0] == "−44.5"
    assert f"level1, seed 0 is there twice; the table reads {tmp_path}/a" in read.text
    assert rows[("level3", "original")].texts("state") == ["interrupted, epoch 2/20"]
    assert "Besides, 2 of other variants, 1 of which failed." in " ".join(read.text.split())
    # Below the paper's nine.
    assert list(rows)[9:] == [
        ("level2_context", "original"), ("level2_context", "short1600"), ("level2_context_hl", "original"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "images", "label"),
    [
        ([], 12, "Synthetic faces: this says nothing about the paper's numbers"),
        (["data=wider_face"], 12, "A sample of 12 images, not WIDER FACE val in full"),
        (["data=wider_face"], 3226, None),
    ],
)
def test_the_label_of_what_the_numbers_are_about(
    words: list[str], images: int, label: str | None, tmp_path: Path
) -> None:
    truth = one_face_each(images)
    make_runs.make_run(tmp_path, "level1", words=words, truth=truth, predictions=finds(truth, range(9)))
    (group,) = group_runs(find_runs(tmp_path).runs)
    assert group.warning is None if label is None else str(group.warning).startswith(label)
    assert group.is_the_papers_data == (label is None)


def test_the_sweeps_own_command_is_on_the_page(tmp_path: Path) -> None:
    assert sweep_command(tmp_path) is None
    overrides = {"task": ["experiment=ablation", "seeds=2"], "hydra": ["hydra/launcher=joblib", "hydra.job.config.x=1"]}
    (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": {"overrides": overrides}}))
    wanted = "python -m fanet_lightning.train experiment=ablation seeds=2 hydra/launcher=joblib"
    assert sweep_command(tmp_path) == wanted
    make_runs.make_run(tmp_path, "level1", images=12)
    read = write(tmp_path)
    assert wanted in read.text
    assert "python -m fanet_lightning.train experiment=ablation cell=level1" in read.text  # of the run


# Bad input ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    empty, runs = tmp_path / "empty", tmp_path / "runs"
    empty.mkdir()
    (tmp_path / "file").touch()
    make_runs.make_run(runs, "level1", images=12)
    for words, expected in (
        ([f"runs={empty}"], f"runs={empty} holds no run.json"),
        ([f"runs={tmp_path / 'nowhere'}"], "nowhere is not a folder"),
        ([f"out={tmp_path / 'file' / 'page'}"], "file is not a folder"),
        # Replaced as a whole, so what is not a report must not be there.
        ([f"out={runs}"], "runs holds something else than a report (level1_seed0"),
        (["bootstrap=-1"], "bootstrap=-1"),
        (["device=quantum"], "device=quantum"),
        (["speed=maybe"], "speed=maybe"),
        (["bootstrap=many"], "bootstrap=many"),
    ):
        with pytest.raises(InputError) as error:
            report.main([f"runs={runs}", *words] if not words[0].startswith("runs=") else words)
        assert expected in str(error.value)
    assert sorted(path.name for path in runs.iterdir()) == ["level1_seed0"]


def test_no_damage_to_a_record_stops_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any value of run.json replaced by anything: the run is reported or named as unreadable, the others stand."""
    whole = make_runs.make_run(tmp_path, "level1", images=12)
    content = json.loads((whole / "run.json").read_text())
    content["settings"] = {key: content["settings"][key] for key in
        ("level", "epochs", "batch_size", "also_protocols", "model", "data", "protocol", "trainer")}  # fmt: skip
    paths = [path for path in all_paths(content) if path]
    rng = random.Random(0)
    changes = [(path, value) for path in paths for value in rng.sample([None, "x", -3, 1e300, [], ["y"], {}, True], 1)]
    for number, (path, value) in enumerate(changes):
        damaged = json.loads(json.dumps(content))
        node = damaged
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        folder = tmp_path / f"damaged{number:03d}"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(damaged))
    found = find_runs(tmp_path)
    assert len(found.runs) + len(found.broken) == len(changes) + 1 > 40
    monkeypatch.setattr(ablation, "network_costs", lambda *args: ({}, network_costs({}, 0)[1]))
    built = ablation.build_parts(found, bootstrap=2, speed_passes=0, device="cpu")
    text = ablation.page(found, built)
    assert ablation.markdown(found, built)
    assert "level1" in text and all(line in Page(text).text for _, line in found.broken)


def all_paths(node: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = node.items() if isinstance(node, dict) else []
    return [prefix, *(path for key, child in below for path in all_paths(child, (*prefix, key)))]


# The parts ----------------------------------------------------------------------------------------------------------


def evaluation(quality: float, seed: int) -> Evaluation:
    truth = make_runs.synthetic_ground_truth(25)
    counts = count_images(truth, make_runs.synthetic_predictions(truth, quality, seed))
    intervals = bootstrap_ap(counts, 1)
    return Evaluation("original", {setting: own.value for setting, own in intervals.items()}, 25, {}, counts)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_those_of_the_bootstrap(seeds: int) -> None:
    """Each run is resampled once here and combined afterwards; the bootstrap resamples both sides again."""
    after = {seed: evaluation(0.8, seed) for seed in range(seeds)}
    before = {seed: evaluation(0.7, seed) for seed in range(seeds)}
    resampler = Resampler(60)
    wanted = bootstrap_mean_difference(
        [own.counts for own in after.values()], [own.counts for own in before.values()], 60
    )
    for setting in SETTINGS:
        found = resampler.difference(after, before, setting)
        assert found is not None and found.over_images is not None
        expected = [wanted[setting].value, wanted[setting].low, wanted[setting].high]
        assert [found.value, *found.over_images] == pytest.approx(expected, abs=1e-12)
        own = resampler.ap({0: after[0]}, setting)
        single = bootstrap_ap(after[0].counts, 60)[setting]
        assert own is not None and own.over_images == Bounds(single.low, single.high)


def test_the_interval_over_seeds_is_students() -> None:
    values = {seed: Evaluation("original", {"hard": ap}, None, {}, {}) for seed, ap in enumerate((0.1, 0.2, 0.3))}
    found = Resampler(10).ap(values, "hard")
    assert found is not None and found.seed_sd == pytest.approx(0.1) and found.value == pytest.approx(0.2)
    # t(0.975, 2) = 4.3027 from the table; 4.3027 × 0.1 / √3 = 0.24841.
    assert found.over_seeds == pytest.approx((0.2 - 0.24841, 0.2 + 0.24841), abs=1e-5)
    assert (found.over_images, found.missing) == (None, "no counts per image")


def test_runs_on_different_images_have_no_paired_interval() -> None:
    truth = one_face_each(4)
    other = GroundTruth(tuple(f"else/{i}" for i in range(4)), truth.boxes_xywh, truth.counted)
    sides = []
    for own in (truth, other):
        counts = count_images(own, finds(own, range(2)))
        sides.append({0: Evaluation("original", dict.fromkeys(SETTINGS, 0.5), 4, {}, counts)})
    found = Resampler(10).difference(sides[0], sides[1], "hard")
    assert found is not None and (found.value, found.over_images) == (0.0, None)
    assert found.missing == "scored on different images"


def estimate(images: tuple[float, float] | None, seeds: tuple[float, float] | None = None) -> Estimate:
    per_seed = {0: 0.0} if seeds is None else {0: 0.0, 1: 0.0}
    bounds = Bounds(*images) if images else None
    return Estimate(0.0, per_seed, bounds, None, Bounds(*seeds) if seeds else None, None if images else "switched off")


@pytest.mark.parametrize(
    ("difference", "paper", "word", "kind"),
    [
        (estimate((0.01, 0.02)), 1.0, "shows (one seed)", "shows"),
        (estimate((-0.02, -0.01)), -1.0, "shows (one seed)", "shows"),
        (estimate((0.01, 0.02)), -1.0, "reversed (one seed)", "reversed"),
        (estimate((-0.02, -0.01)), 1.0, "reversed (one seed)", "reversed"),
        (estimate((-0.01, 0.02)), 1.0, "not distinguishable", "unclear"),
        (estimate((0.0, 0.02)), 1.0, "not distinguishable", "unclear"),
        (estimate((0.01, 0.02), (0.005, 0.03)), 1.0, "shows", "shows"),
        (estimate((0.01, 0.02), (-0.005, 0.03)), 1.0, "not distinguishable: seeds differ", "unclear"),
        (estimate((0.01, 0.02)), 0.0, "gain, paper none (one seed)", "unclear"),
        (estimate((-0.02, -0.01), (-0.03, -0.01)), 0.0, "loss, paper none", "unclear"),
        (estimate(None), 1.0, "no interval: switched off", "none"),
        (None, 1.0, "", "none"),
    ],
)
def test_verdicts(difference: Estimate | None, paper: float, word: str, kind: str) -> None:
    assert verdict(difference, paper) == (word, kind)


def test_numbers_as_text() -> None:
    assert [points(value) for value in (1.04, -0.26, 0.04, -0.04)] == ["+1.0", "−0.3", "0.0", "0.0"]
    texts = ["12 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"]
    assert [duration(seconds) for seconds in (12.4, 61, 3599.6, 7260)] == texts
    assert duration(math.nan) == duration("soon") == "–"


def test_networks_that_detect_alike_are_measured_once() -> None:
    model = {"name": "fanet", "level": 2, "context": False, "hl": False, "width": 0.0625}
    costs, timing = network_costs({"level2": model, "level2_hl": dict(model), "level9": model | {"level": 9}}, 2, "cpu")
    assert costs["level2"] is costs["level2_hl"]
    assert costs["level2"].seconds is not None and costs["level2"].quartiles is not None
    assert costs["level2"].quartiles[0] <= costs["level2"].seconds <= costs["level2"].quartiles[1]
    assert timing.refused == {"level9": "level=9: agglomeration from conv_fc7 allows level=1 … 4"}
    assert timing.device.startswith("cpu")
    # The hierarchical loss adds heads that detection does not run.
    hl = build_network(**{**model, "hl": True})
    assert costs["level2"].parameters == inference_parameters(hl)
    assert network_costs({"level2": model}, 0)[0]["level2"].seconds is None
