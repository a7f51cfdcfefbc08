"""The doctor's checks of files, and its search for copies."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fanet_lightning.doctor.checks import examine_file
from fanet_lightning.doctor.examine import detail_correlation, hamming_pairs, near_pairs, perceptual_hashes
from tests.doctor.doctor_files import save, scene


def thumbnail(path: Path) -> np.ndarray:
    facts = examine_file(path, decode=True)
    assert facts.thumbnail is not None
    return facts.thumbnail


def test_a_sound_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", scene(1))
    facts = examine_file(path, decode=True)
    assert facts.frame == (320, 240, 1)
    assert (facts.trouble, facts.blank, facts.length) == ("", False, path.stat().st_size)
    assert facts.thumbnail is not None and facts.thumbnail.shape == (32, 32)
    quick = examine_file(path, decode=False)
    assert quick.thumbnail is None and (quick.frame, quick.digest) == (facts.frame, facts.digest)


@pytest.mark.parametrize("decode", [False, True])
def test_broken_files_are_told_apart(tmp_path: Path, decode: bool) -> None:
    whole = save(tmp_path / "a.jpg", scene(1)).read_bytes()
    path = tmp_path / "b.jpg"
    for content, reason in (
        (whole, ""), (b"", "empty"), (b"<html>Please log in</html>", "begins with"),
        (whole[: len(whole) * 2 // 3], "end marker"), (whole[:12], "Truncated"),
    ):  # fmt: skip
        path.write_bytes(content)
        facts = examine_file(path, decode)
        assert reason in facts.reason and facts.trouble == ("unreadable" if reason else "")
    assert examine_file(tmp_path, decode).trouble == "unreadable"
    assert {examine_file(own / "c.jpg", decode).trouble for own in (tmp_path, path)} == {"missing_image"}


def test_what_only_decoding_finds(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(scene(1)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert [examine_file(path, decode=own).trouble for own in (False, True)] == ["", "unreadable"]
    for deviation, blank in ((1, True), (6, False)):
        noise = np.random.default_rng(0).normal(120, deviation, (90, 90, 3))
        path = save(tmp_path / "a.jpg", noise.clip(0, 255).astype(np.uint8), quality=95)
        assert examine_file(path, decode=True).blank is blank


def test_hash_is_the_slow_one() -> None:
    rng = np.random.default_rng(4)
    thumbnails = rng.integers(0, 256, (60, 32, 32)).astype(np.uint8)
    k, n = np.arange(32)[:, None], np.arange(32)[None, :]
    basis = np.cos(np.pi * k * (2 * n + 1) / 64) * np.where(k == 0, np.sqrt(1 / 32), np.sqrt(2 / 32))
    for value, image in zip(perceptual_hashes(thumbnails), thumbnails, strict=True):
        low = (basis @ image.astype(float) @ basis.T)[:8, :8].ravel()
        middle = sorted(low[1:])[31]
        expected = int("".join("1" if i and term > middle else "0" for i, term in enumerate(low)), 2)
        assert bin(int(value) ^ expected).count("1") <= 2  # float32 at the median itself


HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=30)


@settings(max_examples=150)
@given(HASHES, HASHES, st.integers(0, 64), st.randoms(use_true_random=False))
def test_hamming_search_finds_all_pairs(first, second, most, random) -> None:
    # Unrelated numbers differ by some 32 bits: copies with a few bits turned make near ones.
    for value in first[:10]:
        second = [*second, value ^ sum({1 << random.randrange(64) for _ in range(random.randrange(20))})]
    second = [*first, *second]
    found = hamming_pairs(np.array(first, dtype=np.uint64), np.array(second, dtype=np.uint64), most)
    assert [tuple(pair) for pair in found.tolist()] == [
        (i, j) for i, a in enumerate(first) for j, b in enumerate(second) if i < j and bin(a ^ b).count("1") <= most
    ]


EDITS = {
    "quality 30": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "squeezed": lambda image: cv2.resize(image, (300, 300), interpolation=cv2.INTER_AREA),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.1, beta=15),
    "grey": lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR),
    "two per cent cut off": lambda image: image[5:-5, 6:-6],
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_near_and_others_are_not(tmp_path: Path, edit: str) -> None:
    originals = [scene(seed) for seed in range(12)]
    paths = [save(tmp_path / f"{i}.jpg", image) for i, image in enumerate(originals)]
    paths += [save(tmp_path / f"{i}_copy.jpg", EDITS[edit](image)) for i, image in enumerate(originals)]
    pairs = near_pairs(np.stack([thumbnail(path) for path in paths]))
    assert [(i, j) for i, j, *_ in pairs] == [(i, i + 12) for i in range(12)]
    assert {mirrored for *_, mirrored in pairs} == {edit == "mirrored"}


def test_strangers_with_the_same_light_are_no_copies() -> None:
    # The same fall of light, other detail: the images correlate, their details do not.
    rng = np.random.default_rng(0)
    light = 128 + 60 * np.cos(np.pi * np.arange(32) / 32) * np.ones((32, 1))
    pair = np.stack([light + cv2.GaussianBlur(rng.normal(0, 40, (32, 32)), (0, 0), 1) for _ in range(2)])
    pair = pair.clip(0, 255).astype(np.uint8)
    assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.85
    assert detail_correlation(pair[0], pair[1]) < 0.35
    assert detail_correlation(pair[0], pair[0]) == pytest.approx(1, abs=1e-5)
    assert near_pairs(pair, most_bits=63) == []
    # Nor are images of one color.
    assert near_pairs(np.stack([np.full((32, 32), grey, dtype=np.uint8) for grey in (0, 0, 128, 255)])) == []
    assert near_pairs([]) == []
