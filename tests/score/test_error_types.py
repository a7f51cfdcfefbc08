"""Error types: hand-computed cases, a slow oracle of TIDE's steps, and what must hold for any run."""

import json
import math
import random
from pathlib import Path

import pytest

from fanet_lightning.score.analysis.error_types import (
    TYPES,
    ErrorTypes,
    FaceState,
    Kind,
    ap_with,
    error_types,
    gain_per_image,
    print_errors,
    write_errors,
)
from tests.score import wider_oracle
from tests.score.helpers import FACE, Image, pack, random_run


def typed(images: list[Image]) -> ErrorTypes:
    return error_types(*pack(images))


def kinds_of(errors: ErrorTypes, setting: str = "hard") -> list[str]:
    return [Kind(kind).name.lower() for kind in errors.settings[setting].kinds]


def states_of(errors: ErrorTypes, setting: str = "hard") -> list[str]:
    return [FaceState(state).name.lower() for state in errors.settings[setting].states]


@pytest.mark.parametrize(
    ("height", "kind"), [(4, "hit"), (3.99, "localisation"), (0, "localisation"), (-0.01, "background")]
)
def test_edges_of_the_overlap(height: float, kind: str) -> None:
    # 10 x 5 of 10 x 10 pixels are a half, 10 x 1 a tenth; both edges belong to the better kind.
    assert kinds_of(typed([([FACE], {"hard": [True]}, [(0, 0, 9, height, 0.5)])])) == [kind]


def oracle(images: list[Image], setting: str, fixed: set[str], only: int | None = None) -> tuple[list, list, float]:
    """TIDE's steps one after the other: kinds, states, AP with the errors fixed (of image ``only`` alone)."""
    all_kinds, all_states, points, faces_left, faces_before = [], [], [], 0, 0
    scores = [row[4] for _, _, rows in images for row in rows]
    low, high = min([1.0, *scores]), max([0.0, *scores])
    for number, (faces, counted_by, rows) in enumerate(images):
        counted = counted_by[setting]
        fix = fixed if only in (None, number) else set()
        kinds = ["ignored"] * len(rows)
        states = ["missed" if counts else "uncounted" for counts in counted]
        nearest: list[int | None] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda k: -rows[k][4])
        if faces:
            for k in order:
                overlaps = [wider_oracle.overlap(rows[k], face) for face in faces]
                best = overlaps.index(max(overlaps))
                nearest[k] = best
                if overlaps[best] >= 0.5:
                    if not counted[best]:
                        kinds[k] = "ignored"
                    elif states[best] == "found":
                        kinds[k] = "duplicate"
                    else:
                        kinds[k], states[best] = "hit", "found"
                else:
                    kinds[k] = "localisation" if overlaps[best] >= 0.1 else "background"
        claimed = {}
        for k in order:
            if kinds[k] == "localisation" and states[nearest[k]] == "missed":
                claimed[nearest[k]] = k
                states[nearest[k]] = "near"
        for k, row in enumerate(rows):
            value = 1.0 if high == low else (row[4] - low) / (high - low)
            is_fixed = kinds[k] in fix or f"{kinds[k]}s" in fix
            if kinds[k] == "hit" or (is_fixed and k in claimed.values()):
                points.append((value, True))
            elif kinds[k] != "ignored" and not is_fixed:
                points.append((value, False))
        faces_before += sum(counted)
        faces_left += sum(state in ("found", "near") or (state == "missed" and "misses" not in fix) for state in states)
        all_kinds += kinds
        all_states += states
    if not faces_before:
        return all_kinds, all_states, math.nan
    if not faces_left:
        return all_kinds, all_states, 1.0
    precision, recall = [], []
    for i in range(1000):
        reached = [hit for value, hit in points if value >= 1 - (i + 1) / 1000]
        precision.append(sum(reached) / len(reached) if reached else 0.0)
        recall.append(sum(reached) / faces_left)
    return all_kinds, all_states, wider_oracle.area(precision, recall)


@pytest.mark.parametrize("block", range(4))
def test_equals_the_oracle(block: int) -> None:
    seen: set[str] = set()
    for case in range(60):
        images = random_run(random.Random(1000 * block + case))
        errors = typed(images)
        for setting in ("few", "most"):
            for fixed in [set(), *({name} for name in TYPES), {"localisation", "misses"}, set(TYPES)]:
                kinds, states, ap = oracle(images, setting, fixed)
                assert (kinds_of(errors, setting), states_of(errors, setting)) == (kinds, states), (case, setting)
                assert ap_with(errors, setting, fixed) == pytest.approx(ap, abs=1e-12, nan_ok=True), (case, fixed)
                seen |= {*kinds, *states}
            before = oracle(images, setting, set())[2]
            for number, gain in enumerate(gain_per_image(errors, setting)):
                after = oracle(images, setting, set(TYPES), only=number)[2]
                assert gain == pytest.approx(after - before, abs=1e-12, nan_ok=True), (case, number)
    assert seen == {"hit", "duplicate", "localisation", "background", "ignored", "found", "near", "missed", "uncounted"}


def test_file_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = [FACE, (100, 0, 9, 9), (200, 0, 9, 9), (300, 0, 9, 9)]  # found, near, missed, found
    rows = [
        (500, 500, 9, 9, 1.0),  # background
        (0, 0, 9, 9, 0.8),  # hit
        (0, 0, 9, 8, 0.6),  # duplicate
        (100, 0, 9, 3, 0.4),  # 40 of 100 pixels: localisation
        (300, 0, 9, 9, 0.2),  # hit
        (600, 500, 9, 9, 0.0),  # background
    ]
    errors = typed([(faces, {"hard": [True] * 4, "easy": [False] * 4}, rows)])
    write_errors(tmp_path / "out", errors)
    read = json.loads((tmp_path / "out" / "errors.json").read_text())["settings"]
    assert read["hard"]["rows"]["duplicate"] == 1
    # Rows by score: background, hit, duplicate, localisation, hit, background; AP = 1/4 · 1/2 + 1/4 · 2/5. Fixed:
    # misses, 3 faces; localisation, 3/4 · 3/5; duplicates, 2/4 · 1/2; background, 1/4 + 1/4 · 2/4.
    expected = {"misses": 0.3, "localisation": 0.45, "duplicates": 0.25, "background": 0.375}
    assert read["hard"]["dap"] == pytest.approx({name: ap - 0.225 for name, ap in expected.items()})
    assert read["hard"]["special"] == pytest.approx({"false_positives": 0.5 - 0.225, "false_negatives": 0.45 - 0.225})
    assert read["easy"]["ap"] is read["easy"]["dap"]["misses"] is None
    print_errors(errors.lost)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "setting       AP   misses  localisation  duplicates  background",
        "hard      0.2250  +0.0750       +0.2250     +0.0250     +0.1500",
        "easy     no face  no face       no face     no face     no face",
    ]
