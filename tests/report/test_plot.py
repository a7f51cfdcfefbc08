"""``python -m fanet_lightning.plot``: figures of scored folders, what they say, and what does not compare."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fanet_lightning.report.figures import (
    COLORS,
    NOT_COMPARABLE,
    Layout,
    pascal_label,
    precision_recall_figure,
    roc_figure,
    save_figure,
    wider_label,
)
from fanet_lightning.report.plot import (
    WIDER_VAL_FACES,
    ScoredFolder,
    check_comparable,
    main,
    names_of,
    read_scored_folder,
    title_of,
)
from fanet_lightning.score.curves import THRESHOLDS, Curve, RocCurve
from fanet_lightning.score.wider_face.benchmark import write_curves
from fanet_lightning.score.wider_face.ground_truth import SETTINGS
from tests.score.helpers import refused


def a_curve(end: float) -> Curve:
    recall = np.linspace(0, end, 1000)
    return Curve(1 - recall**4 / 2, recall, THRESHOLDS, 0.9 * end, 10)


def scored(path: Path, end: float = 0.9, **scores: Any) -> Path:
    """A folder as ``score`` leaves it, with what a test changes; ``...`` leaves a key out."""
    content: dict[str, Any] = {
        "benchmark": "wider_face", "protocol": "original", "rules": {}, "images": 3226, "images_of_benchmark": 3226,
        "faces": WIDER_VAL_FACES, **scores,
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "scores.json").write_text(json.dumps({key: own for key, own in content.items() if own is not ...}))
    write_curves(path / "pr_curves.npz", {setting: a_curve(end) for setting in content["faces"] or SETTINGS})
    return path


def folder(path: Path, **scores: Any) -> ScoredFolder:
    return read_scored_folder(scored(path, **scores))


def pascal(path: Path, **rules: Any) -> Path:
    return scored(path, benchmark="pascal_face", images=851, images_of_benchmark=851, faces={"all": 1331}, rules=rules)


def labels(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes]


@pytest.mark.parametrize("layout", ["page", "column"])
@pytest.mark.parametrize("kind", ["settings", "roc"])
def test_nothing_hides_anything_and_nothing_is_cut_off(kind: str, layout: Layout) -> None:
    names = ["short", "level3_context_hl of a long name that wraps, seed 0", *"cdefghijk"]
    title = "WIDER FACE val sample, 320 of 3,226 images, protocol multiscale, and something more that is long"
    curves = {name: dict.fromkeys(SETTINGS, a_curve(0.3 + 0.05 * i)) for i, name in enumerate(names)}
    roc = dict.fromkeys(("discrete", "continuous"), RocCurve(np.array([0.9, 0.1]), np.array([2500.0, 0])))
    if kind == "settings":
        published = ["FANet", "SFD", "FAN"]
        figure = precision_recall_figure(curves, title, published=published, sample=True, layout=layout)
    else:
        figure = roc_figure(dict.fromkeys(names[:4], roc), "FDDB, 2,845 images", layout=layout)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {}
    for number, axis in enumerate(figure.axes):
        boxes[f"panel {number}"] = axis.get_window_extent()
        boxes[f"legend {number}"] = axis.get_legend().get_window_extent(renderer)
        boxes[f"x label {number}"] = axis.xaxis.label.get_window_extent(renderer)
        boxes[f"heading {number}"] = axis.title.get_window_extent(renderer)
    for label, text in (("title", figure._suptitle), ("note", figure._supxlabel)):  # type: ignore[attr-defined]
        if text is not None:
            boxes[label] = text.get_window_extent(renderer)
    whole = figure.bbox
    for one, box in boxes.items():
        assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1, one
        assert box.y0 >= whole.y0 - 1 and box.y1 <= whole.y1 + 1, one
        for other, second in boxes.items():
            if one < other and box.width and second.width:
                apart = min(box.x1, second.x1) - max(box.x0, second.x0) <= 1
                assert apart or min(box.y1, second.y1) - max(box.y0, second.y0) <= 1, (one, other)


def test_files_of_a_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        pdf, png = save_figure(precision_recall_figure({"a": {"all": a_curve(0.9)}}, "T"), tmp_path / "of v1.5")
    assert not caplog.records
    # A dot in the name is no suffix; fonts are TrueType, not Type 3.
    assert (pdf.name, png.name) == ("of v1.5.pdf", "of v1.5.png")
    assert b"/Type3" not in pdf.read_bytes()
    assert b"CIDFontType2" in pdf.read_bytes() or b"TrueType" in pdf.read_bytes()


def test_the_legend_shows_names_as_they_are() -> None:
    names = ["_hidden", r"a$\frac$b", "x" * 90]
    figure = precision_recall_figure({name: {"all": a_curve(0.5)} for name in names}, r"of $\frac$")
    assert [text.replace("\n", "") for text in labels(figure)[0]] == [f"{name}-0.450" for name in names]
    # Where matplotlib took it for a formula, drawing would fail.
    figure.draw_without_rendering()
    many = precision_recall_figure({str(i): {"all": a_curve(0.5)} for i in range(3 * len(COLORS))})
    styles = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in many.axes[0].get_lines()}  # type: ignore[attr-defined]
    assert len(styles) == 3 * len(COLORS)


def test_curves_are_drawn_where_they_are_and_named_by_descending_ap() -> None:
    runs = {"low": {"hard": a_curve(0.3)}, "high": {"hard": a_curve(0.99)}, "FANet": {"hard": a_curve(0.5)}}
    figure = precision_recall_figure(runs, "T", published=["SFD", "FANet"])
    shown = ["FANet (published)-0.895", "high-0.891", "SFD-0.859", "FANet-0.450", "low-0.270"]
    assert labels(figure) == [[*shown, "38 other published methods"]]
    assert figure.get_suptitle() == "T"
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "low-0.270"]
    np.testing.assert_allclose(line.get_xdata(), a_curve(0.3).recall)
    np.testing.assert_allclose(line.get_ydata(), a_curve(0.3).precision)
    # What has no number comes last; leading detections of ignored faces give 0 / 0 and are left out.
    empty = Curve(np.zeros(1000), np.zeros(1000), THRESHOLDS, float("nan"), 0)
    ignored = Curve(np.array([np.nan, 1, 0.5]), np.array([0, 0.5, 0.5]), THRESHOLDS[:3], 0.5, 2)
    figure = precision_recall_figure({"none": {"all": empty}, "some": {"all": ignored}}, label=pascal_label)
    assert labels(figure) == [["some (AP 50.00)", "none (no face)"]]
    assert [np.atleast_1d(line.get_ydata()).tolist() for line in figure.axes[0].get_lines()] == [[], [1, 0.5]]
    assert (wider_label("FANet", 0.9562), wider_label("x", float("nan"))) == ("FANet-0.956", "x: no face")


def test_published_methods_and_what_they_do_not_compare_with() -> None:
    figure = precision_recall_figure({}, published=["FAN"])
    assert [axis.get_title() for axis in figure.axes] == list(SETTINGS)
    assert len(figure.axes[0].get_lines()) == 40
    note = figure.get_supxlabel().replace("\n", " ")
    assert "FAN is Face Attention Network" in note and NOT_COMPARABLE not in note
    sample = precision_recall_figure({"a": {"hard": a_curve(0.3)}}, published=[], sample=True).get_supxlabel()
    assert NOT_COMPARABLE in sample.replace("\n", " ")


def test_rates_in_the_legend_of_a_roc() -> None:
    curve = RocCurve(np.array([0.9, 0.8, 0.5]), np.array([40.0, 10, 0]))
    figure = roc_figure({"a": {"discrete": curve, "continuous": curve}}, max_false_positives=20)
    assert labels(figure) == [["a 0.8000"], ["a 0.8000"]] and figure.axes[0].get_xlim() == (0, 20)
    whole = roc_figure({"a": {"discrete": curve}}, max_false_positives=None, scale="log").axes[0]
    assert (whole.get_xlim(), whole.get_xscale()) == ((0, 40), "symlog")


def test_titles_and_names(tmp_path: Path) -> None:
    first, second = (folder(tmp_path / a / "evaluation", protocol=b) for a, b in (("one", "original"), ("two", "p")))
    assert names_of([first, second], None) == ["one/evaluation, original", "two/evaluation, p"]
    refused("one for each", names_of, [first, second], ["a", "a"])
    part = folder(tmp_path / "b", images=320, protocol=None, faces={"easy": 1})
    assert title_of({"b": part}) == "WIDER FACE sample, 320 of 3,226 images, protocol not stated"
    whole, other = folder(tmp_path / "a"), folder(tmp_path / "c", protocol="short640")
    assert title_of({"x": whole, "y": other}) == "WIDER FACE val, 3,226 images, protocols: x original, y short640"
    own = read_scored_folder(pascal(tmp_path / "d", labels="original", alignment=False, transform=None))
    assert title_of({"d": own}) == "PASCAL face, 851 images, original labels, not aligned, protocol original"


def test_the_same_images_in_any_order_compare(tmp_path: Path) -> None:
    folders = [folder(tmp_path / name, images=3) for name in ("one", "turned", "another")]
    check_comparable(folders)
    for own, ids in zip(folders, (b"e/a\ne/b\ne/c", b"e/c\ne/a\ne/b", b"e/a\ne/b\ne/d"), strict=True):
        np.savez(own.path / "per_image.npz", image_ids=np.frombuffer(ids, np.uint8))
    check_comparable(folders[:2])
    refused("do not compare: the images", check_comparable, folders[::2])
    for damaged in (b"PK\x03\x04 cut short", b""):
        (folders[1].path / "per_image.npz").write_bytes(damaged)
        refused(r"turned/per_image\.npz", check_comparable, folders[:2])


def test_curves_of_fddb(tmp_path: Path) -> None:
    options = {"benchmark": "fddb", "images": 2845, "images_of_benchmark": 2845, "faces": {"all": 5171}}
    run = scored(tmp_path / "a", **options)
    (run / "DiscROC.txt").write_text("0.9 40 0.1\n0.8 10 0.5\n0.5 0 1.79769e+308\n")
    (run / "ContROC.txt").write_text("0.7 4e1\n0.6 10\n0.4 0\n")
    words = [f"scores={run}", f"out={tmp_path / 'out'}", "max_false_positives=null"]
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["roc.pdf", "roc.png"]
    (run / "ContROC.txt").write_text("0,5 2\n")
    refused("ContROC", main, words)


def test_two_runs_with_published_curves_and_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from fanet_lightning.report.plot import main; main(sys.argv[1:]);"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    words = [f"scores=[{scored(tmp_path / 'one')},{scored(tmp_path / 'two', 0.8)}]", "published=[FANet,S3FD]"]
    command = [sys.executable, "-c", program, *words, f"out={tmp_path / 'a'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert main([*words, f"out={tmp_path / 'b'}"]) == 0
    assert (tmp_path / "a" / "pr_curves.png").read_bytes().startswith(b"\x89PNG")
    # The same again, byte for byte: nothing of the time of day is in it.
    pdf = (tmp_path / "a" / "pr_curves.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and pdf == (tmp_path / "b" / "pr_curves.pdf").read_bytes()


def test_mistakes(tmp_path: Path) -> None:
    good, other = scored(tmp_path / "good"), scored(tmp_path / "other", images=8)
    corrected, original = pascal(tmp_path / "c", labels="corrected"), pascal(tmp_path / "o", labels="original")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "scores.json").write_text("{")
    bare = shutil.copytree(good, tmp_path / "bare")
    (bare / "pr_curves.npz").unlink()
    cases = [
        ([f"scores={tmp_path / 'nowhere'}"], "nowhere/scores.json cannot be read (No such file or directory)"),
        ([f"scores={tmp_path / 'broken'}"], "broken/scores.json"),
        ([f"scores={bare}"], "pr_curves.npz cannot be read"),
        (["scores=[]"], "for 0 folders in scores="),
        ([f"scores=[{good},{other}]"], "do not compare: images 3226 and 8"),
        ([f"scores=[{corrected},{original}]"], 'do not compare: labels "corrected" and "original"'),
        ([f"scores={good}", "published=[FANett]"], "did you mean 'FANet'?"),
        ([f"scores={corrected}", "published=[FANet]"], "published="),
        ([f"scores={good}", "layout=poster"], "layout=poster: give page or column"),
        ([f"scores={good}", "layout=null"], "layout=None is of another kind than its default, page"),
        ([f"scores={good}", "max_false_positives=-1"], "max_false_positives=-1"),
        ([f"scores={good}", f"out={good / 'scores.json' / 'x'}"], "(Not a directory); choose another out"),
        ([f"scores={scored(tmp_path / 'odd', images=...)}"], "odd/scores.json"),
    ]
    for words, expected in cases:
        refused(re.escape(expected), main, [f"out={tmp_path / 'out'}", *words])
