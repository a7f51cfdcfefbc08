"""Identity over frames: what is filled and covered, by hand; and ``detect track=true`` on videos."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fanet_lightning.cli.errors import InputError
from fanet_lightning.detect import tracking
from fanet_lightning.detect.__main__ import main
from fanet_lightning.detect.stream import StreamSettings
from fanet_lightning.detect.tracking import FrameFaces, tracked
from fanet_lightning.detect.video import Frame
from fanet_lightning.ops.structures import Detections
from tests.detect.video_files import frames_of, lines_of, make_video, packets

pytest.importorskip("trackers", reason="identities need trackers: pip install 'fanet-lightning[track]'")
IMAGE = np.zeros((100, 200, 3), np.uint8)
NOBODY: list[tuple[list[float], float]] = []


def faces(*boxes_and_scores: tuple[list[float], float]) -> Detections:
    boxes, scores = [box for box, _ in boxes_and_scores], [score for _, score in boxes_and_scores]
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores))


def followed(found: Sequence[Detections | None], every: int = 1) -> list[FrameFaces]:
    frames = ((Frame(IMAGE, index / 25, index), item) for index, item in enumerate(found))
    out = list(tracked(frames, 0.5, every))
    assert [frame.index for frame, _ in out] == list(range(len(found)))
    return [item for _, item in out]


def walker(index: float) -> list[float]:
    """A face of 30 × 30 pixels that moves by 4 and 1 a frame."""
    return [10.0 + 4 * index, 20.0 + index, 40.0 + 4 * index, 50.0 + index]


def assert_boxes(found: FrameFaces, *expected: list[float]) -> None:
    np.testing.assert_allclose(found.detections.boxes_xyxy, np.array(expected).reshape(-1, 4), atol=1e-4)


def seen(count: int, boxes: dict[int, list[float]], scores: dict[int, float] | None = None) -> list[Detections]:
    """What is found in so many frames: a box where there is one."""
    return [faces(*([(boxes[k], (scores or {}).get(k, 0.9))] if k in boxes else NOBODY)) for k in range(count)]


@pytest.mark.parametrize("again", [30, 31])
def test_a_gap_of_25_frames_is_filled_in_a_straight_line_and_a_longer_one_at_its_ends(again: int) -> None:
    boxes = {k: walker(k) for k in (*range(5), *range(again, 35))}
    found = followed(seen(35, boxes, {4: 0.8, 30: 0.54}))
    for k, item in enumerate(found):
        # Ten frames on and ten back from a sighting, at the speed that the face had.
        if again == 31 and 15 <= k < 21:
            assert len(item.detections) == 0 and item.track_id == [] == item.filled
        else:
            assert_boxes(item, walker(k))
            assert (item.track_id, item.filled) == ([1], [k not in boxes])
    if again == 30:
        assert found[6].detections.scores.tolist() == pytest.approx([0.78])  # two of 26 steps from 0.8 to 0.54


def test_a_face_at_the_border_is_covered_before_it_is_seen_and_inside_the_image() -> None:
    # It comes in over the left border at 6 pixels a frame, and is seen once it is whole.
    found = followed(seen(16, {k: [6.0 * k - 60, 10, 6.0 * k - 20, 50] for k in range(10, 16)}))
    assert [len(item.detections) for item in found] == [0] * 4 + [1] * 12
    assert_boxes(found[9], [0, 10, 34, 50])
    assert_boxes(found[5], [0, 10, 10, 50])
    # A single sighting stays where it is.
    once = followed(seen(30, {12: walker(0)}))
    assert [k for k in range(30) if len(once[k].detections)] == list(range(2, 23))
    assert_boxes(once[22], walker(0))


def test_low_scores_continue_an_identity_and_begin_none() -> None:
    elsewhere = ([150.0, 10, 180, 40], 0.4)
    found = followed([faces((walker(k), 0.9 if k < 3 else 0.25), elsewhere) for k in range(12)])
    for k, item in enumerate(found):
        assert_boxes(item, walker(k))
        assert (item.track_id, item.filled) == ([1], [False])


def test_two_faces_keep_their_identities_and_come_best_first() -> None:
    other = [[160.0 - 4 * k, 60, 190.0 - 4 * k, 90] for k in range(10)]
    found = followed([faces((walker(k), 0.9), (other[k], 0.8 if k < 5 else 0.95)) for k in range(10)])
    assert [item.track_id for item in found] == [[1, 2]] * 5 + [[2, 1]] * 5
    assert_boxes(found[9], other[9], walker(9))


@pytest.mark.parametrize("every", [2, 4, 8])
def test_frames_that_were_not_looked_at_are_filled(every: int) -> None:
    # One look fails as well; the face is slow enough to overlap itself from look to look.
    missed = 2 * every
    found: list[Detections | None] = [None] * (4 * every + 1)
    for k in range(0, len(found), every):
        found[k] = faces(*([(walker(k / 2), 0.9)] if k != missed else NOBODY))
    for k, item in enumerate(followed(found, every)):
        assert_boxes(item, walker(k / 2))
        assert (item.track_id, item.filled) == ([1], [k % every > 0 or k == missed])


def test_few_frames_wait() -> None:
    waiting = [0]

    def frames() -> Iterator[tuple[Frame, Detections | None]]:
        for k in range(60):
            waiting.append(waiting[-1] + 1)
            yield Frame(IMAGE, k / 25, k), faces((walker(k % 40), 0.9))

    for _ in tracked(frames(), 0.5):
        waiting.append(waiting[-1] - 1)
    assert max(waiting) == tracking.LONGEST_GAP + 1 and waiting[-1] == 0


# The command line


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 frames with a bar of 12 × 64 pixels, which ``found`` takes for a face; sound."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4", frames=24)
    return tmp_path / "clip.mp4"


def bar_xyxy(index: int) -> list[float]:
    return [2.0 * index, 0, 2.0 * index + 12, 64]


def detect(words: list[str], monkeypatch: pytest.MonkeyPatch, found: list[Any]) -> int:
    """``main``, with ``found`` in place of what the network would find in the frames that it is asked about."""
    with monkeypatch.context() as patched:
        boxes = [item if item is KeyboardInterrupt else [item] for item in found]
        patched.setattr(StreamSettings, "boxes", Mock(side_effect=boxes))
        return main(["source=clip.mp4", "out=o", *words])


def lines() -> list[dict[str, Any]]:
    return lines_of("o/frames/clip.jsonl")


def test_a_face_stays_redacted_through_a_gap(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = frames_of(clip)
    found = [faces(*([(bar_xyxy(k), 0.9)] if not 6 <= k < 12 else NOBODY)) for k in range(24)]
    found[3] = faces((bar_xyxy(3), 0.9), ([80, 0, 90, 10], 0.2))
    assert detect(["track=true", "redact=pixelate"], monkeypatch, found) == 0
    assert "that were left: 1;" in capsys.readouterr().out
    for k, (line, old, new) in enumerate(zip(lines(), before, frames_of(Path("o/videos/clip.mp4")), strict=True)):
        assert line["frame"] == k and line["track_id"] == [1] and line["filled"] == [6 <= k < 12]
        np.testing.assert_allclose(line["boxes_xyxy"], [bar_xyxy(k)], atol=1e-4)
        # Pixelated with a margin of gray, the bar has lost its color; the rest is as it was.
        middle = np.s_[:, 2 * k + 2 : 2 * k + 10]
        assert np.abs(new[middle].astype(int) - old[middle]).mean() > 8
        assert np.abs(new[:, 70:].astype(int) - old[:, 70:]).mean() < 3
    (video,) = json.loads(Path("o/detections.json").read_text())["videos"]
    assert (video["frames"], video["faces"], video["tracks"]) == (24, 24, 1)
    assert packets("o/videos/clip.mp4") == packets(clip)


def test_identities_are_drawn_and_every_other_frame_is_looked_at(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [faces((bar_xyxy(2 * k), 0.9)) for k in range(12)]
    assert detect(["track=true", "every=2"], monkeypatch, found) == 0
    written = lines()
    assert [line["frame"] for line in written] == list(range(24))
    assert [line["filled"] for line in written] == [[k % 2 == 1] for k in range(24)]
    np.testing.assert_allclose([line["boxes_xyxy"][0] for line in written[:23]], [bar_xyxy(k) for k in range(23)])
    with_ids = frames_of(Path("o/videos/clip.mp4"))
    assert detect(["every=2", "resume=false"], monkeypatch, found) == 0
    assert [set(line) for line in lines()] == [{"frame", "time_seconds", "boxes_xyxy", "scores"}] * 12
    without = frames_of(Path("o/videos/clip.mp4"))
    # The number is at the box's upper edge.
    difference = np.abs(with_ids[20].astype(int) - without[10])
    assert difference[:14, 36:60].max() > 100 and difference[20:].mean() < 5


def test_ctrl_c_keeps_the_frames_that_wait_and_the_next_run_starts_over(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [faces((bar_xyxy(k), 0.9)) for k in range(24)]
    for words in ([], ["track=true"]):
        assert detect(words, monkeypatch, [*found[:9], KeyboardInterrupt]) == 130
        assert len(frames_of(Path("o/videos/clip.mp4"))) == 9 == len(lines())
        content = json.loads(Path("o/detections.json").read_text())
        assert content["complete"] is False and content["videos"][0]["interrupted"] is True
        assert detect(words, monkeypatch, found) == 0
        assert len(lines()) == 24
    assert [line["track_id"] for line in lines()] == [[1]] * 24
    # Done is done, with these words alone.
    assert detect(["track=true"], monkeypatch, []) == 0
    assert detect(["max_frames=4"], monkeypatch, found) == 0
    assert len(lines()) == 4 and "track_id" not in lines()[0]


def test_what_is_told_before_anything_is_written(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("track=maybe", "threshold={0: 0.5, 64: 0.3}"):
        with pytest.raises(InputError, match=word.partition("=")[0]):
            main(["source=clip.mp4", "out=o", "track=true", word])
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(InputError, match=r"needs the package trackers; pip install 'fanet-lightning\[track\]'"):
        main(["source=clip.mp4", "out=o", "track=true"])
    assert not Path("o").exists()
