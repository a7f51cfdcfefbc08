"""The doctor's page: what it says, what it draws, and that it fits a window."""

import html
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fanet_lightning.data.transforms import TrainAugment
from fanet_lightning.doctor.checks import Finding
from fanet_lightning.doctor.coverage import SizedImage, coverage, whole_images
from fanet_lightning.doctor.examine import Report
from fanet_lightning.doctor.page import SIDE, view_of, write_page, write_tile
from tests.doctor.doctor_files import save, scene

HOSTILE = '0--x/"><script>alert(1)</script>&amp;'
FACTS = {"images": 5, "faces": 1234, "ignored_faces": 6, "images_without_faces": 2, "bytes": 3_000_000}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """One unreadable image with a hostile name, two pairs, 30 small faces on three images, a label file's line."""
    images = [save(tmp_path / "data" / f"{n}.jpg", scene(n, (600, 900))) for n in range(3)]
    findings = [
        Finding("unreadable", "train", HOSTILE, tmp_path / f"{HOSTILE}.jpg", "</script> ends", ((1, 1, 9, 9),)),
        Finding("unreadable", "val", "", tmp_path / "labels.txt", "line 7: 'abc'"),
    ]
    for n in range(2):
        own = ("near_leak", "train", f"e/{n}", images[n], f"distance {n}")
        findings.append(Finding(*own, other_part="val", other_path=images[2], badness=n))
    for n in range(30):
        box = (10.0 * n, 50.0, 10.0 * n + 5, 56.0)
        findings.append(Finding("label_tiny", "val", f"e/{n % 3}", images[n % 3], f"face {n}", (box,), badness=n))
    return Report("A <set>", findings=findings, facts={"train": FACTS, "val": FACTS | {"images": 3}})


def written(folder: Path, report: Report, **options: Any) -> str:
    return write_page(folder, report, **options).read_text(encoding="utf-8")


def test_what_the_page_says(report: Report, tmp_path: Path) -> None:
    text = written(tmp_path / "page", report, worst=2)
    assert "<title>Doctor: A &lt;set&gt;</title>" in text
    assert dict(re.findall(r'<li class="(\w+)"><b>([\d,]+)</b>', text)) == {"error": "2", "warning": "32", "zero": "0"}
    # Kind, number in all, in train, in val.
    table = re.findall(r'<tr data-kind="(\w+)">.*?<td><b>(\d+)</b></td><td>(\d+)</td><td>(\d+)</td>', text)
    assert table == [("unreadable", "2", "1", "1"), ("near_leak", "2", "2", "0"), ("label_tiny", "30", "0", "30")]
    assert "<td>1,234</td><td>6</td><td>2</td><td>3.0 MB</td>" in text
    # Names are text, and nothing comes from elsewhere.
    assert "<script" not in text and html.escape(HOSTILE) in text.replace("&#34;", "&quot;")
    links = re.findall(r'\b(?:src|href)="([^"]*)"', text)
    assert links and "http" not in text
    assert all(link.startswith("#") or (tmp_path / "page" / link).is_file() for link in links)
    # The worst of each image: 29 is on image 2, 28 on image 1.
    broken, pairs, tiny = re.findall(r'<section class="kind".*?</section>', text, re.DOTALL)
    assert "30 found, 2 shown" in tiny
    shown = re.findall(r'class="detail">(face \d+) <span class="soft">and (\d+) more', tiny)
    assert shown == [("face 29", "9"), ("face 28", "9")]
    assert pairs.count("card pair") == 2 and pairs.count("<img ") == 4
    assert pairs.index("distance 1") < pairs.index("distance 0")
    assert broken.count("<article") == 2 and broken.count("no image:") == 1 and broken.count("<img ") == 0
    assert {path.name for path in (tmp_path / "page" / "thumbnails").iterdir()} == {
        "label_tiny-001.jpg", "label_tiny-002.jpg", "near_leak-001.jpg", "near_leak-001-other.jpg",
        "near_leak-002.jpg", "near_leak-002-other.jpg",
    }  # fmt: skip
    # An earlier page is replaced. Python hands names that are no UTF-8 out as lone surrogates, which no page may hold.
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    finding = Finding("unreadable", "train", f"e/{name}", Path(f"/nowhere/{name}.jpg"), f"bad {name}")
    assert "bad caf?" in written(tmp_path / "page", Report(name, findings=[finding]), worst=1)
    assert not list((tmp_path / "page" / "thumbnails").iterdir())


def test_nothing_found(tmp_path: Path) -> None:
    empty = Report("Clean", facts={"train": FACTS})
    for images in ([], [None]):  # no image at all, and not one readable
        found = [coverage(images, TrainAugment(64)), whole_images(images)]
        text = written(tmp_path / "page", empty, parts={"train": images}, coverages=found)
        assert "<b>Nothing found.</b>" in text and 'id="looked-for" open' in text and 'id="worst"' not in text
        assert text.count("No face was seen.") == 2 and "<img" not in text
    boxes = [[0, 0, 2, 8], [50, 50, 54, 54], [10, 10, 74, 74]]
    images = [SizedImage(100, 100, np.array(boxes, np.float32))]
    text = written(tmp_path / "page", empty, parts={"train": images}, coverages=[whole_images(images)])
    assert "1 sample, 0 of them without a face; 3 of 3 labelled faces" in text
    assert text.count('src="data:image/svg+xml;base64,') == 3


@pytest.mark.parametrize(
    ("box", "view", "shape", "caption"),
    [
        ((100, 100, 300, 300), (0, 0, 960, 600), (300, 480, 3), "960 × 600 px"),
        # 30 pixels: a square of 6 × 30 around (415, 315), never enlarged.
        ((400, 300, 430, 330), (325, 225, 505, 405), (180, 180, 3), "a part of 960 × 600 px"),
        # At the corner it stays within the image; inverted corners are drawn between them.
        ((10, 10, 2, 4), (0, 0, 96, 96), (96, 96, 3), "a part of 960 × 600 px"),
        # 200 pixels to the left of the image, and 2 % of 960 more.
        ((-200, 100, 100, 300), (-220, 0, 960, 600), (244, 480, 3), "960 × 600 px"),
        ((-20000, 100, -10000, 300), (-480, 0, 960, 600), (200, 480, 3), "960 × 600 px"),
        ((float("nan"), 0, 1, 1), (0, 0, 960, 600), (300, 480, 3), "960 × 600 px"),
    ],
)
def test_hand_computed_tiles(box: Any, view: Any, shape: Any, caption: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert cv2.imwrite(str(path), np.full((600, 960, 3), 90, np.uint8))
    tile = write_tile(path, tmp_path / "a.jpg", [box])
    assert (tile["file"], tile["caption"]) == ("a.jpg", caption)
    shown = cv2.imread(str(tmp_path / "a.jpg"))
    assert shown is not None and shown.shape == shape and max(shown.shape) <= SIDE
    corners = np.sort(np.array(box, float).reshape(1, 2, 2), axis=1).reshape(1, 4)
    finite = bool(np.isfinite(corners).all())
    assert view_of(corners[: int(finite)], 960, 600) == view
    is_marked = bool((shown[..., 2].astype(int) - shown[..., 0] > 120).any())
    assert is_marked == (finite and box[0] > -1000)
