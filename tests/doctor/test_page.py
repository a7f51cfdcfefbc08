"""The doctor's page: what it says, what it draws, and that it works in a browser."""

import html
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.transforms import TrainAugment
from fanet_lightning.doctor import figures, page
from fanet_lightning.doctor.checks import Facts, Finding, Kind, Report
from fanet_lightning.doctor.coverage import SizedImage, coverage, range_label, whole_images
from fanet_lightning.doctor.page import SIDE, write_page, write_tile
from fanet_lightning.ops.anchors import STRIDES, AnchorGrid
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, pairwise_iou
from tests.report.browser import dom_of, needs_chromium

KINDS = [
    Kind("truncated", "error", "The file was cut off.", "Fetch it <again>.", fixable=True),
    Kind("near_leak", "warning", "Nearly the same.", "Look at both."),
    Kind("label_tiny", "note", "A small face.", "Nothing to do."),
]
HOSTILE = '0--x/"><script>alert(1)</script>&amp;'


def write_image(path: Path, height: int, width: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """One unreadable image with a hostile name, two pairs, 30 small faces on three images, a label file's line."""
    images = [write_image(tmp_path / "data" / f"{n}.jpg", 600, 900) for n in range(3)]
    findings = [
        Finding("truncated", "train", HOSTILE, tmp_path / f"{HOSTILE}.jpg", "</script> ends", ((1, 1, 9, 9),)),
        Finding("truncated", "val", "", tmp_path / "labels.txt", "line 7: 'abc'"),
    ]
    for n in range(2):
        other = {"other_part": "val", "other_path": images[2], "badness": n}
        findings.append(Finding("near_leak", "train", f"e/{n}", images[n], f"distance {n}", **other))  # type: ignore[arg-type]
    for n in range(30):
        box = (10.0 * n, 50.0, 10.0 * n + 5, 56.0)
        findings.append(Finding("label_tiny", "val", f"e/{n % 3}", images[n % 3], f"face {n}", (box,), badness=n))
    facts = [Facts("train", 5, 1234, 6, 2, 3_000_000), Facts("val", 3, 30, 0, 0, 1_000)]
    return Report("A <set>", KINDS, findings, facts, 1.25)


@pytest.fixture
def parts() -> dict[str, list[SizedImage | None]]:
    random = np.random.default_rng(1)
    images: list[SizedImage | None] = [None]
    for _ in range(12):
        corner, sides = random.uniform(0, 150, (5, 2)), 90 ** random.uniform(0, 1, (5, 2))
        images.append(SizedImage(240, 200, np.concatenate([corner, corner + sides], axis=1).astype(np.float32)))
    return {"train": images, "val": images[:4]}


def written(folder: Path, report: Report, **options: Any) -> str:
    return write_page(folder, report, **options).read_text(encoding="utf-8")


def rows_of(text: str) -> list[list[Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    rows: list[list[Any]] = json.loads(found[1])
    return rows


def test_what_the_page_says(report: Report, tmp_path: Path) -> None:
    text = written(tmp_path / "page", report)
    assert "<title>Doctor: A &lt;set&gt;</title>" in text and "Fetch it &lt;again&gt;." in text
    tiles = dict(re.findall(r'data-severity="(\w+)"><b>([\d,]+)</b>', text))
    assert tiles == {"error": "2", "warning": "2", "note": "30"}
    # Kind, number in all, in train, in val.
    table = re.findall(r'<tr data-kind="(\w+)">.*?<td><b>(\d+)</b></td><td>(\d+)</td><td>(\d+)</td>', text)
    assert table == [("truncated", "2", "1", "1"), ("near_leak", "2", "2", "0"), ("label_tiny", "30", "0", "30")]
    assert "<td>1,234</td><td>6</td><td>2</td><td>3.0 MB</td>" in text
    assert text.count("<code>fix=true</code>") == 1 and 'id="looked-for"' not in text
    # The most severe first, then the worst; kind, part, image or file, detail, second image, badness.
    rows = rows_of(text)
    assert [row[0] for row in rows] == [0, 0, 1, 1] + [2] * 30
    assert rows[0] == [0, "train", HOSTILE, "</script> ends", "", 0.0]
    assert rows[1][2:4] == [str(tmp_path / "labels.txt"), "line 7: 'abc'"]
    assert rows[2][3:] == ["distance 1", f"val: {tmp_path / 'data' / '2.jpg'}", 1.0]
    assert [row[5] for row in rows[4:]] == list(range(29, -1, -1))


def test_names_are_text_and_nothing_comes_from_elsewhere(report: Report, tmp_path: Path) -> None:
    text = written(tmp_path / "page", report)
    assert "<script>alert" not in text and text.count("</script>") == text.count("<script")
    assert html.escape(HOSTILE) in text.replace("&#34;", "&quot;")
    links = re.findall(r'\b(?:src|href)="([^"]*)"', text)
    assert links and "http" not in text
    assert all(link.startswith("#") or (tmp_path / "page" / link).is_file() for link in links)
    # Every drawing is XML: an unescaped name or a number that is none would break it.
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 1 + 4 + 3
    assert all(len(ET.fromstring(drawing).attrib["viewBox"].split()) == 4 for drawing in drawings)
    # Names of files are bytes; Python hands those that are no UTF-8 out as lone surrogates, which no page may hold.
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    finding = Finding("truncated", "train", f"e/{name}", Path(f"/nowhere/{name}.jpg"), f"bad {name}")
    assert "bad caf?" in written(tmp_path / "bytes", Report(name, KINDS, [finding]))


def test_worst_offenders(report: Report, tmp_path: Path) -> None:
    text = written(tmp_path / "page", report, worst=2)
    broken, pairs, tiny = re.findall(r'<section class="kind".*?</section>', text, re.DOTALL)
    assert "30 found, 2 shown" in tiny
    # The worst of each image: 29 is on image 2, 28 on image 1.
    shown = re.findall(r'class="detail">(face \d+) <span class="soft">and (\d+) more', tiny)
    assert shown == [("face 29", "9"), ("face 28", "9")]
    assert pairs.count("card pair") == 2 and pairs.count("<image ") == 4
    assert pairs.index("distance 1") < pairs.index("distance 0")
    assert broken.count("<article") == 2 and broken.count("No such file or directory") == 1
    assert broken.count("<image ") == 0
    assert {path.name for path in (tmp_path / "page" / "thumbnails").iterdir()} == {
        "label_tiny-001.jpg", "label_tiny-002.jpg", "near_leak-001.jpg", "near_leak-001-other.jpg",
        "near_leak-002.jpg", "near_leak-002-other.jpg",
    }  # fmt: skip
    assert "<article" not in written(tmp_path / "none", report, worst=0)


def test_tiles_without_an_image_say_so(tmp_path: Path) -> None:
    """In the tile, with boxes and without, and of a pair on the side that is broken; unlabelled images are shown."""
    sound = write_image(tmp_path / "sound.jpg", 60, 90)
    empty, cut = tmp_path / "empty.jpg", tmp_path / "cut.jpg"
    empty.write_bytes(b"")
    cut.write_bytes(sound.read_bytes()[:-40])
    unlabelled = Kind("unlabelled_image", "note", "No label.", "Label it.")
    findings = [
        Finding("truncated", "train", "empty", empty, "0 bytes"),
        Finding("truncated", "train", "cut", cut, "cut", ((1, 1, 9, 9),)),
        Finding("near_leak", "train", "sound", sound, "pair", other_part="val", other_path=cut),
        Finding("unlabelled_image", "train", "", sound, "no label speaks of it"),
        Finding("unlabelled_image", "train", "", cut, "no label speaks of it"),
    ]
    text = written(tmp_path / "page", Report("T", [*KINDS, unlabelled], findings))
    tiles = re.findall(r'<figure class="drawing( blank)?">(.*?)</figure>', text, re.DOTALL)
    # The image in every tile that is not blank, the reason in every one that is, and a drawn area for both.
    assert [bool(blank) for blank, _ in tiles] == [True, True, False, True, False, True]
    for blank, tile in tiles:
        expected = (1, 0, 1) if blank else (1, 1, 0)
        assert (tile.count("<svg"), tile.count("<image "), tile.count("no image:")) == expected
    assert "the file is empty" in tiles[0][1] and "cut short" in tiles[1][1]


def test_nothing_found(tmp_path: Path) -> None:
    empty = Report("Clean", KINDS, [], [Facts("train", 0, 0, 0, 0, 0)], 0.1)
    text = written(tmp_path / "page", empty)
    assert "<b>Nothing found.</b>" in text and "Looked for and not found (3)" in text
    assert 'id="looked-for" open' in text and 'id="worst"' not in text and 'id="data"' not in text
    # No image at all, and not one readable.
    for images in ([], [None]):
        found = [coverage(images, TrainAugment(64)), whole_images(images)]
        text = written(tmp_path / "page", empty, parts={"train": images}, coverages=found)
        assert text.count("No face was seen.") == 2
        assert sorted(path.name for path in (tmp_path / "page" / "figures").iterdir()) == ["anchors.pdf", "anchors.png"]


@pytest.mark.slow
def test_coverage_on_the_page(tmp_path: Path, parts: dict[str, list[SizedImage | None]]) -> None:
    own = whole_images(parts["train"])
    found = [coverage(parts["train"], TrainAugment(128), passes=2), own]
    text = written(tmp_path / "page", Report("T", KINDS, [], [], 0.1), parts=parts, coverages=found)
    table = text[text.index("Whole images at their own size") :]
    assert "12 samples, 0 of them without a face; 60 of 60 labelled faces" in table
    cells = (re.findall(r"<t[hd][^>]*>([^<]*)", line) for line in table.splitlines() if line.startswith("<tr"))
    lines = {line[0]: line for line in ([html.unescape(cell) for cell in row] for row in cells)}
    overall = own.overall()
    expected = [f"{mean:.1f}" for mean in overall.anchors_per_face[:, 0]]
    expected += [f"{100 * share:.1f}" for shares in (overall.without, overall.few) for share in shares[:, 0]]
    assert lines["all"][1:8] == ["60", *expected]
    labels = {range_label(own.by_size().edges, k) for k in range(16)}
    assert sum(int(line[1]) for label, line in lines.items() if label in labels) == 60
    for name in ("face_sizes", "coverage_1", "coverage_2", "faces_per_image", "aspect_ratios", "positions", "anchors"):
        assert f'src="figures/{name}.png"' in text and f'href="figures/{name}.pdf"' in text


def test_an_earlier_page_is_replaced_and_nothing_else(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    write_page(folder, report)
    assert "Second" in written(folder, Report("Second", KINDS)) and not list((folder / "thumbnails").iterdir())
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="thesis"):
        write_page(folder, report)
    assert (folder / "thesis.txt").exists() and "Second" in (folder / "index.html").read_text()


def test_more_findings_than_the_list_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_ROWS", 5)
    findings = [
        Finding(kind, "train", f"e/{n}", tmp_path / "x.jpg", f"{kind} {n}", badness=float("nan") if n == 3 else n)
        for kind in ("label_tiny", "truncated")
        for n in range(4)
    ]
    text = written(tmp_path / "page", Report("T", KINDS, findings), worst=0)
    rows = rows_of(text)
    assert [row[0] for row in rows] == [0, 0, 0, 0, 2] and None in [row[5] for row in rows]
    assert "The 5 most severe are listed; 3 more are" in text


@pytest.mark.parametrize("case", range(60))
def test_the_boxes_are_on_the_tile(case: int, tmp_path: Path) -> None:
    """Any boxes: the JPEG is a part of the image, and what is drawn is in view unless it is far outside."""
    random = np.random.default_rng(case)
    width, height = random.integers(1, 1400, 2).tolist()
    path = write_image(tmp_path / "a.png", height, width)
    corners = random.uniform(-0.3, 1.2, (int(random.integers(0, 4)), 2)) * [width, height]
    sides = random.choice([0.001, 0.05, 0.4]) * random.uniform(-0.2, 1, corners.shape) * max(width, height)
    boxes = [tuple(row) for row in np.concatenate([corners, corners + sides], axis=1).tolist()]
    broken = [(float("nan"), 0.0, 1.0, 1.0), (0.0, 0.0, float("inf"), 9.0)]
    tile = write_tile(path, tmp_path / "a.jpg", (*boxes, *broken))
    assert tile.reason is None and tile.image_wh == (width, height) and len(tile.boxes_xywh) == len(boxes)
    x, y, w, h = tile.cut_xywh
    assert x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= width and y + h <= height
    shown = cv2.imread(str(tmp_path / "a.jpg"))
    assert max(shown.shape) == max(min(SIDE, max(w, h)), 3)
    assert shown.shape[1] / shown.shape[0] == pytest.approx(w / h, rel=max(0.02, 1 / min(shown.shape[:2])))
    vx, vy, vw, vh = tile.view_xywh
    # Never less than the JPEG, and never more than half its side beyond it.
    assert vx <= x and vy <= y and vx + vw >= x + w - 1e-6 and vy + vh >= y + h - 1e-6
    assert vw <= 2 * w + 1e-6 and vh <= 2 * h + 1e-6
    assert not tile.is_cut or max(max(bw, bh) for _, _, bw, bh in tile.boxes_xywh) < max(width, height) / 6
    for bx, by, bw, bh in tile.boxes_xywh:
        within = bx >= 0 and by >= 0 and bx + bw <= width and by + bh <= height
        near = bx >= -0.4 * w and by >= -0.4 * h and bx + bw <= x + 1.4 * w and by + bh <= y + 1.4 * h
        if within if tile.is_cut else near:
            assert vx <= bx and vy <= by and bx + bw <= vx + vw + 1e-6 and by + bh <= vy + vh + 1e-6


@pytest.mark.parametrize(
    ("box", "cut", "view", "shape"),
    [
        ((100, 100, 300, 300), (0, 0, 960, 600), (0, 0, 960, 600), (300, 480, 3)),
        # 30 pixels: a square of 6 × 30 around (415, 315), never enlarged.
        ((400, 300, 430, 330), (325, 225, 180, 180), (325, 225, 180, 180), (180, 180, 3)),
        # At the corner it stays within the image; inverted corners are drawn between them.
        ((10, 10, 2, 4), (0, 0, 96, 96), (0, 0, 96, 96), (96, 96, 3)),
        # 200 pixels to the left of the image, and 2 % of 960 more.
        ((-200, 100, 100, 300), (0, 0, 960, 600), (-219.2, 0, 1179.2, 600), (300, 480, 3)),
        ((-20000, 100, -10000, 300), (0, 0, 960, 600), (-480, 0, 1440, 600), (300, 480, 3)),
    ],
)
def test_hand_computed_tiles(box: Any, cut: Any, view: Any, shape: Any, tmp_path: Path) -> None:
    tile = write_tile(write_image(tmp_path / "a.png", 600, 960), tmp_path / "a.jpg", [box])
    assert tile.cut_xywh == cut and tile.view_xywh == pytest.approx(view)
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == shape
    missing = write_tile(tmp_path / "no.jpg", tmp_path / "no-copy.jpg", [(0, 0, 100, 50)])
    assert not (tmp_path / "no-copy.jpg").exists()
    assert (missing.file, missing.view_xywh) == (None, (-10, -10, 120, 70))


def test_largest_overlaps_against_all_anchors() -> None:
    """Every position once more, with the anchors of a real grid and the pairwise IoU."""
    sizes, positions, side = [2.0, 7.5, 16.0, 23.0, 90.0, 300.0], 7, 1280
    found = figures.best_overlaps(sizes, positions)
    grid = AnchorGrid(tuple((side // stride, side // stride) for stride in STRIDES))
    anchors = cxcywh_to_xyxy(grid.boxes_cxcywh())
    axis = [640 + (i + 0.5) * 128 / positions for i in range(positions)]
    for row, size in enumerate(sizes):
        boxes = torch.tensor([[x - size / 2, y - size / 2, x + size / 2, y + size / 2] for x in axis for y in axis])
        assert np.allclose(found[row], pairwise_iou(boxes, anchors).amax(dim=1).numpy(), atol=1e-5)


def test_figures_are_the_same_each_time(tmp_path: Path, parts: dict[str, list[SizedImage | None]]) -> None:
    for folder in ("a", "b"):
        saved = figures.write_figures(tmp_path / folder, {"val": parts["val"]})
    assert [own.name for own in saved] == ["face_sizes", "faces_per_image", "aspect_ratios", "positions", "anchors"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_what_the_histograms_draw() -> None:
    """Three faces, 4, 4 and 64 pixels, on one image; another has none."""
    image = SizedImage(100, 100, np.array([[0, 0, 2, 8], [50, 50, 54, 54], [10, 10, 74, 74]], np.float32))
    faces = figures.faces_of([image, SizedImage(100, 100, np.zeros((0, 4), np.float32)), None])
    (curve,) = figures.face_size_figure({"train": faces}).axes[0].patches
    values, edges, _ = curve.get_data()  # type: ignore[attr-defined]
    drawn = {float(edges[k]): float(values[k]) for k in np.flatnonzero(values)}
    assert drawn == {4.0: pytest.approx(200 / 3), 64.0: pytest.approx(100 / 3)}
    bars = figures.faces_per_image_figure({"train": faces}).axes[0].patches
    assert [bar.get_height() for bar in bars] == [50, 0, 0, 50, 0, 0, 0, 0, 0, 0]  # type: ignore[attr-defined]
    # So few are points: the centres of the faces, where a map of 24 × 24 cells would look empty.
    (axis,) = figures.position_figure({"train": faces}).axes
    assert not axis.images and axis.get_title() == "train: 3 faces"
    assert np.allclose(axis.collections[0].get_offsets(), [[0.01, 0.04], [0.52, 0.52], [0.42, 0.42]])
    assert axis.get_ylim() == (1, 0)  # as in the image, from the top
    figure = figures.position_figure({"train": figures.faces_of([image] * 80), "val": faces})
    assert [axis.get_title() for axis in figure.axes[:2]] == ["train: 240 faces", "val: 3 faces"]
    assert len(figure.axes) == 3 and not figure.axes[1].images  # the third is the bar of the first's colors
    heat = figure.axes[0].images[0].get_array()
    assert heat is not None and heat.sum() == pytest.approx(heat.size) and np.count_nonzero(heat) == 3


def in_browser(index: Path, script: str, width: int = 1280) -> Any:
    """What a script at the end of the page leaves in the title; nothing may be logged."""
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace("</body>", f"<script>\n{script}\n</script></body>"), encoding="utf-8")
    found = re.search(r"<title>(.*?)</title>", dom_of(index, width=width))
    assert found
    return json.loads(html.unescape(found[1]))


@needs_chromium
@pytest.mark.slow
def test_in_a_browser(report: Report, tmp_path: Path) -> None:
    """Filters and order of the list of findings."""
    script = """
const $ = (id) => document.getElementById(id);
const lines = () => [...document.querySelectorAll("#list tbody tr")].map((line) => line.children[3].textContent);
const choose = (id, value) => {
  $(id).value = value;
  $(id).dispatchEvent(new Event(id === "filter-text" ? "input" : "change"));
};
const seen = { kinds: [...$("filter-kind").options].map((own) => own.text), start: lines().length, first: lines()[0] };
choose("filter-kind", "2"); seen.tiny = lines().length;
document.querySelector('th[data-column="5"] button').click(); seen.worst = lines()[0];
document.querySelector('th[data-column="5"] button').click(); seen.least = lines()[0];
choose("filter-text", "FACE 2 e/1"); seen.words = lines().length; seen.text = $("matching").textContent;
choose("filter-text", ""); choose("filter-kind", ""); choose("filter-part", "train"); seen.train = lines().length;
choose("filter-severity", "error"); seen.error = lines().length; seen.more = $("more").hidden;
document.querySelector('#worst-filter button[data-severity="note"]').click();
seen.sections = [...document.querySelectorAll("section.kind")].filter((own) => !own.hidden).map((own) => own.id);
document.title = JSON.stringify(seen);"""
    seen = in_browser(write_page(tmp_path / "page", report), script)
    assert seen["kinds"] == ["all", "truncated (2)", "near leak (2)", "label tiny (30)"]
    assert (seen["start"], seen["first"]) == (34, "</script> ends")
    assert (seen["tiny"], seen["worst"], seen["least"]) == (30, "face 29", "face 0")
    # Every word occurs in the row: of the faces 1, 4 … 28 on the image e/1 those with a 2.
    assert (seen["words"], seen["text"]) == (3, "3 of 34")
    assert (seen["train"], seen["error"], seen["more"]) == (3, 1, True)
    assert seen["sections"] == ["kind-label_tiny"]


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 640])
def test_long_names_stay_within_the_page(width: int, tmp_path: Path) -> None:
    """Nothing reaches beyond the window but what has a scroll bar of its own; no tile's reason leaves its tile."""
    name = "IMG_2024_a_name_without_a_space_" * 6
    image = write_image(tmp_path / f"{name}.jpg", 60, 90)
    empty = tmp_path / f"{name}-empty.jpg"
    empty.write_bytes(b"")
    findings = [
        Finding("truncated", "train", f"0--A/{name}", empty, f"{name} ends", ((1, 1, 9, 9),)),
        Finding("near_leak", "train", f"0--A/{name}", image, "pair", other_part="val", other_path=empty),
        Finding("label_tiny", "val", "", image, f"line 7: '{name}'"),
    ]
    script = """
const wide = document.documentElement.clientWidth;
const outside = [...document.querySelectorAll("main *")].filter(
  (own) => !own.closest(".scroll, svg") && own.getBoundingClientRect().right > wide + 1);
const leaving = [...document.querySelectorAll(".reason")].filter((own) => {
  const tile = own.closest("figure").querySelector("svg").getBoundingClientRect(), text = own.getBoundingClientRect();
  return text.bottom > tile.bottom + 1 || text.top < tile.top - 1 || text.right > tile.right + 1;
});
const scrolls = document.documentElement.scrollWidth > wide;
const reasons = document.querySelectorAll(".reason").length;
document.title = JSON.stringify([outside.map((own) => own.outerHTML), leaving.length, scrolls, reasons]);"""
    index = write_page(tmp_path / "page", Report(name, KINDS, findings, [Facts("train", 2, 2, 0, 0, 9)]))
    assert in_browser(index, script, width) == [[], 0, False, 2]
