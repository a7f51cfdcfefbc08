"""The figures as pictures (nothing hides anything, fonts a publisher takes) and what they say beside the curves."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fanet_lightning.cli.errors import InputError
from fanet_lightning.report.figures import (
    COLORS,
    Layout,
    RocCurve,
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
    note_of,
    read_scored_folder,
    title_of,
)
from fanet_lightning.score.curves import THRESHOLDS, Curve
from fanet_lightning.score.wider_face.published import SETTINGS


def a_curve(end: float, ap: float | None = None) -> Curve:
    recall = np.linspace(0, end, 1000)
    return Curve(1 - recall**4 / 2, recall, THRESHOLDS, 0.9 * end if ap is None else ap, 10)


def folder(path: Path, **scores: object) -> ScoredFolder:
    """``scores.json`` as score writes it, with what a test changes; None leaves a key out."""
    content: dict[str, object] = {
        "benchmark": "wider_face",
        "protocol": "original",
        "rules": {},
        "images": 3226,
        "images_of_benchmark": 3226,
        "faces": WIDER_VAL_FACES,
        **scores,
    }
    path.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in content.items() if value is not ...}
    (path / "scores.json").write_text(json.dumps(kept))
    return read_scored_folder(path)


def write_roc(path: Path, prefix: str = "") -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{prefix}DiscROC.txt").write_text("0.9 40 0.1\n0.8 10 0.5\n0.5 0 1.79769e+308\n")
    (path / f"{prefix}ContROC.txt").write_text("0.7 4e1\n0.6 10\n0.4 0\n")


def a_figure(kind: str, layout: Layout) -> Figure:
    names = ["short", "level3_context_hl of a long name that wraps, seed 0", *"cdefghijk"]
    curves = {name: dict.fromkeys(SETTINGS, a_curve(0.3 + 0.05 * i)) for i, name in enumerate(names)}
    title = "WIDER FACE val sample, 320 of 3,226 images, protocol multiscale, and something more that is long"
    roc = dict.fromkeys(("discrete", "continuous"), RocCurve(np.array([0.9, 0.1]), np.array([2500.0, 0])))
    if kind == "settings":
        published = ["FANet", "SFD", "FAN"]
        return precision_recall_figure(curves, title, published=published, sample=True, note="A note", layout=layout)
    if kind == "all":
        runs = {"a": {"all": a_curve(0.9)}}
        return precision_recall_figure(runs, "PASCAL face, 851 images", label=pascal_label, layout=layout)
    return roc_figure(dict.fromkeys(names[:4], roc), "FDDB, 2,845 images", note="A note", layout=layout)


@pytest.mark.parametrize("layout", ["page", "column"])
@pytest.mark.parametrize("kind", ["settings", "all", "roc"])
def test_nothing_hides_anything_and_nothing_is_cut_off(kind: str, layout: Layout) -> None:
    figure = a_figure(kind, layout)
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


def test_fonts_of_the_pdf_are_truetype(tmp_path: Path) -> None:
    pdf, png = save_figure(precision_recall_figure({"a": {"all": a_curve(0.9)}}, "T"), tmp_path / "of v1.5")
    # A dot in the name is no suffix.
    assert (pdf.name, png.name) == ("of v1.5.pdf", "of v1.5.png")
    data = pdf.read_bytes()
    assert re.search(rb"/Subtype\s*/(CIDFontType2|TrueType)", data)
    assert not re.search(rb"/Subtype\s*/Type3", data)


def test_the_legend_shows_names_as_they_are() -> None:
    names = ["_hidden", r"a$\frac$b", "x" * 90]
    figure = precision_recall_figure({name: {"all": a_curve(0.5)} for name in names}, r"of $\frac$")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.replace("\n", "") for text in texts] == [f"{name}-0.450" for name in names]
    # Where matplotlib took it for a formula, drawing would fail.
    figure.draw_without_rendering()


def test_more_runs_than_colours_still_differ() -> None:
    figure = precision_recall_figure({str(i): {"all": a_curve(0.5)} for i in range(3 * len(COLORS))})
    styles = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in figure.axes[0].get_lines()}  # type: ignore[attr-defined]
    assert len(styles) == 3 * len(COLORS)


def test_what_has_no_number_comes_last_and_what_has_no_point_is_left_out() -> None:
    empty = Curve(np.zeros(1000), np.zeros(1000), THRESHOLDS, float("nan"), 0)
    # face-eval: leading detections of ignored faces give 0 / 0.
    ignored = Curve(np.array([np.nan, 1, 0.5]), np.array([0, 0.5, 0.5]), THRESHOLDS[:3], 0.5, 2)
    runs = {"none": {"all": empty}, "some": {"all": ignored}}
    figure = precision_recall_figure(runs, label=pascal_label)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "some (AP 50.00)",
        "none (no face)",
    ]
    none, some = figure.axes[0].get_lines()
    assert len(none.get_xdata()) == 0
    np.testing.assert_array_equal(some.get_ydata(), [1, 0.5])
    assert (wider_label("FANet", 0.9562), wider_label("x", float("nan"))) == ("FANet-0.956", "x: no face")
    assert pascal_label("FANet", 0.98784) == "FANet (AP 98.78)"


def test_published_methods_alone_by_split() -> None:
    figure = precision_recall_figure({}, published=["faceness", "FAN"], split="test")
    assert [axis.get_title() for axis in figure.axes] == list(SETTINGS)
    assert len(figure.axes[0].get_lines()) == 41
    assert "FAN is Face Attention Network" in figure.get_supxlabel().replace("\n", " ")
    with pytest.raises(InputError, match="'faceness' has no published curve on WIDER FACE val"):
        precision_recall_figure({}, published=["faceness"])
    with pytest.raises(InputError, match="setting 'all'"):
        precision_recall_figure({"a": {"all": a_curve(0.5)}}, published=["FAN"])


def test_a_run_of_the_same_name_as_a_published_method() -> None:
    figure = precision_recall_figure({"FANet": {"hard": a_curve(0.5)}}, published=["FANet"])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts[:2] == ["FANet (published)-0.895", "FANet-0.450"]


def test_titles(tmp_path: Path) -> None:
    whole = folder(tmp_path / "a")
    assert title_of({"a": whole}) == "WIDER FACE val, 3,226 images, protocol original"
    part = folder(tmp_path / "b", images=320, protocol=None, faces={"easy": 1})
    assert title_of({"b": part}) == "WIDER FACE sample, 320 of 3,226 images, protocol not stated"
    other = folder(tmp_path / "c", protocol="short640")
    assert title_of({"x": whole, "y": other}) == ("WIDER FACE val, 3,226 images, protocols: x original, y short640")
    labels = folder(
        tmp_path / "d", benchmark="pascal_face", images=851, images_of_benchmark=851, faces={"all": 1331},
        rules={"labels": "original", "alignment": False, "transform": None},
    )  # fmt: skip
    assert title_of({"d": labels}) == "PASCAL face, 851 images, original labels, not aligned, protocol original"
    # Written before the size of the benchmark was.
    assert "320 of 3,226" in title_of({"e": folder(tmp_path / "e", images=320, images_of_benchmark=...)})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"images": 320}, False),
        # A ground truth of one's own: all of its images are there, but it is not that of the published curves.
        ({"images": 320, "images_of_benchmark": 320}, False),
        ({"faces": {**WIDER_VAL_FACES, "hard": 31957}}, False),
        ({"benchmark": "synthetic"}, False),
    ],
)
def test_which_runs_published_curves_compare_with(changed: dict[str, object], expected: bool, tmp_path: Path) -> None:
    assert folder(tmp_path, **changed).is_wider_val == expected


def test_as_many_other_images_do_not_compare(tmp_path: Path) -> None:
    pair = [folder(tmp_path / name, images=2) for name in "ab"]
    check_comparable(pair)
    for own, ids in zip(pair, (b"x/1\nx/2", b"x/1\nx/3"), strict=True):
        np.savez(own.path / "per_image.npz", image_ids=np.frombuffer(ids, np.uint8))
    with pytest.raises(InputError, match="as many images, but not the same ones; plot them apart"):
        check_comparable(pair)


def test_curve_files_of_somebody_else(tmp_path: Path) -> None:
    write_roc(tmp_path / "theirs", "MTCNN-")
    ours = folder(tmp_path / "ours", benchmark="fddb", images=2845, images_of_benchmark=2845, faces={"all": 5171})
    # The benchmark's own prefix, too.
    write_roc(ours.path, "fanet")
    theirs = read_scored_folder(tmp_path / "theirs")
    check_comparable([ours, theirs])
    assert names_of([theirs, ours], None) == ["MTCNN", "ours"]
    assert title_of({"MTCNN": theirs, "ours": ours}) == "FDDB, 2,845 images, protocol original"
    assert title_of({"MTCNN": theirs}) == "FDDB, from curve files"
    assert note_of({"MTCNN": theirs, "ours": ours}) == "From curve files, images and protocol not stated: MTCNN"
    assert note_of({"ours": ours}) == ""
    assert main([f"scores=[{ours.path},{theirs.path}]", f"out={tmp_path / 'out'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["roc.pdf", "roc.png"]
    with pytest.raises(InputError, match=r"do not compare: benchmark .*wider_face.*fddb"):
        main([f"scores=[{folder(tmp_path / 'wider').path},{theirs.path}]", f"out={tmp_path / 'out'}"])
    write_roc(tmp_path / "theirs", "another")
    with pytest.raises(InputError, match=r"holds MTCNN-DiscROC\.txt, anotherDiscROC\.txt"):
        main([f"scores=[{theirs.path}]", "names=[x]", f"out={tmp_path / 'out'}"])


def test_half_of_a_pair_of_curve_files(tmp_path: Path) -> None:
    write_roc(tmp_path)
    (tmp_path / "ContROC.txt").unlink()
    with pytest.raises(InputError, match=r"holds no ContROC\.txt"):
        main([f"scores={tmp_path}", "out=out"])


@pytest.mark.parametrize("changed", [{"images": None}, {"images": "7"}, {"images": ...}, {"benchmark": ["fddb"]}])
def test_a_scores_file_that_is_none(changed: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="scores"):
        folder(tmp_path, **changed)


def test_an_empty_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one for each"):
        names_of([folder(tmp_path)], [" "])


def test_saving_a_figure_says_nothing_of_its_fonts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figure = precision_recall_figure({"a": {"hard": a_curve(0.5)}}, "T")
    with caplog.at_level("INFO"):
        save_figure(figure, tmp_path / "f")
    assert not caplog.records
