"""Identity over the frames of a video: ByteTrack, gaps filled, faces covered before and after they are seen."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fanet_lightning.cli.errors import import_extra
from fanet_lightning.detect.video import Frame
from fanet_lightning.ops.boxes import clip
from fanet_lightning.ops.structures import Detections

# ByteTrack's lower threshold: boxes of this score and more continue an identity, they begin none.
LOW_SCORE = 0.2
# Frames between two sightings of an identity that are filled; so many wait in memory until they are written.
LONGEST_GAP = 25
# Frames for which a face is covered before it is first seen and after it is last seen.
AROUND = 10
# Of a face's first or last sightings, for its speed there.
_SPEED_SIGHTINGS = 4


class FrameFaces(NamedTuple):
    """The faces of one frame. Where they were followed, of each its identity, 1, 2, …, and whether it was filled in."""

    detections: Detections
    track_id: list[int] | None = None
    filled: list[bool] | None = None


class _Sighting(NamedTuple):
    frame: int
    box_xyxy: npt.NDArray[np.float64]
    score: float


class ByteTrack:
    """Identities from frame to frame, by the package ``trackers``; InputError: it is missing.

    ``threshold``: boxes of this score and more begin an identity.
    """

    def __init__(self, threshold: float) -> None:
        self._tracker = import_extra("trackers", "track=true", "track").ByteTrackTracker(
            track_activation_threshold=threshold, high_conf_det_threshold=threshold, minimum_consecutive_frames=1
        )
        self._ids = itertools.count(1)

    def update(self, found: Detections) -> list[tuple[int, npt.NDArray[np.float64], float]]:
        """Identity, box and score of the next frame's faces; of ``found`` those of low score only with an identity."""
        tracked: Any = self._tracker.update(found.to_supervision())
        # ByteTrack names a face when it is seen for the second time; here it has its name from the first on.
        for begun in (track for track in self._tracker.tracks if track.tracker_id == -1):
            begun.tracker_id = next(self._ids)
            nearest = np.abs(tracked.xyxy - begun.get_state_bbox()).sum(axis=1).argmin()
            tracked.tracker_id[nearest] = begun.tracker_id
        rows = zip(tracked.tracker_id, tracked.xyxy.astype(np.float64), tracked.confidence, strict=True)
        return [(int(identity), box_xyxy, float(score)) for identity, box_xyxy, score in rows if identity != -1]


def tracked(
    frames: Iterable[tuple[Frame, Detections | None]], threshold: float, every: int = 1
) -> Iterator[tuple[Frame, FrameFaces]]:
    """Frames with what was found in them → the same frames, some later, with every face's identity.

    Between two sightings of an identity up to ``LONGEST_GAP`` frames (2 ``every`` - 1 where that is more) are filled by
    linear interpolation; for ``AROUND`` frames (``every`` - 1) before its first and after its last one the face is
    taken to move on as it did. So many frames, the gap's, wait in memory.

    Args:
        frames: None stands for a frame that was not looked at; else with the boxes of ``LOW_SCORE`` and more.
        threshold: boxes of this score and more begin an identity; those below only continue one.
        every: of so many frames one was looked at.
    """
    identities = ByteTrack(threshold)
    longest, around = max(LONGEST_GAP, 2 * every - 1), max(AROUND, every - 1)
    seen: dict[int, list[_Sighting]] = {}
    waiting: deque[Frame] = deque()

    def first() -> tuple[Frame, FrameFaces]:
        frame = waiting.popleft()
        for identity, sightings in list(seen.items()):
            seen[identity] = [sighting for sighting in sightings if sighting.frame >= frame.index - 2 * longest]
            if not seen[identity]:
                del seen[identity]
        return frame, _faces_at(frame, seen, longest, around)

    interrupted = None
    try:
        for frame, found in frames:
            waiting.append(frame)
            sightings = [] if found is None else identities.update(found.above(min(LOW_SCORE, threshold)))
            for identity, box_xyxy, score in sightings:
                seen.setdefault(identity, []).append(_Sighting(frame.index, box_xyxy, score))
            if len(waiting) > longest:
                yield first()
    except KeyboardInterrupt as error:  # the frames that wait still come out
        interrupted = error
    while waiting:
        yield first()
    if interrupted is not None:
        raise interrupted


def _faces_at(frame: Frame, seen: dict[int, list[_Sighting]], longest: int, around: int) -> FrameFaces:
    """The faces of a frame from all sightings before and after it."""
    faces: list[tuple[float, int, npt.NDArray[np.float64], bool]] = []
    for identity, sightings in seen.items():
        earlier = [sighting for sighting in sightings if sighting.frame <= frame.index]
        later = [sighting for sighting in sightings if sighting.frame > frame.index]
        since = frame.index - earlier[-1].frame if earlier else around + 1
        until = later[0].frame - frame.index if later else around + 1
        if since == 0:
            faces.append((earlier[-1].score, identity, earlier[-1].box_xyxy, False))
        elif earlier and later and since + until <= longest + 1:
            share = since / (since + until)
            box_xyxy = (1 - share) * earlier[-1].box_xyxy + share * later[0].box_xyxy
            score = (1 - share) * earlier[-1].score + share * later[0].score
            faces.append((score, identity, box_xyxy, True))
        elif since <= around:
            faces.append((earlier[-1].score, identity, _moved(earlier[: -_SPEED_SIGHTINGS - 1 : -1], since), True))
        elif until <= around:
            faces.append((later[0].score, identity, _moved(later[:_SPEED_SIGHTINGS], until), True))
    faces.sort(key=lambda face: (-face[0], face[1]))
    boxes_xyxy = torch.tensor(np.array([box for _, _, box, _ in faces]).reshape(-1, 4), dtype=torch.float32)
    boxes_xyxy = clip(boxes_xyxy, *frame.image_rgb.shape[:2])
    inside = ((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) > 0).all(dim=1)
    scores = torch.tensor([score for score, *_ in faces])
    kept = [face for face, is_inside in zip(faces, inside.tolist(), strict=True) if is_inside]
    return FrameFaces(Detections(boxes_xyxy, scores)[inside], [face[1] for face in kept], [face[3] for face in kept])


def _moved(sightings: list[_Sighting], frames: int) -> npt.NDArray[np.float64]:
    """The box of the first sighting, ``frames`` further away from the others, at their mean speed."""
    end, start = sightings[0], sightings[-1]
    apart = abs(end.frame - start.frame)
    if not apart:
        return end.box_xyxy
    shift_xyxy = (end.box_xyxy - start.box_xyxy) * frames / apart
    center_xy = (shift_xyxy[:2] + shift_xyxy[2:]) / 2
    return end.box_xyxy + np.tile(center_xy, 2)
