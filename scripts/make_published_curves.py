"""The published WIDER FACE curves → the compact copy in the package, ``published_curves/wider_face.npz``.

``python scripts/make_published_curves.py CURVES.npz PUBLISHED_AP.json [OUT.npz]``

The input holds, per ``split/method/setting``, (T, 2) precision and recall as the organisers plot them, and per
``split/method`` the published AP of each setting, four decimals. Without OUT the copy in the package is replaced.
The same input gives the same arrays.

Points that make no difference are left out (:func:`thinned`), the rest become multiples of 1/65535 (:func:`quantised`).
The copy is written only if the AP step on it gives every published AP to all four decimals.
"""

import heapq
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.files import replaced
from fanet_lightning.score.curves import average_precision
from fanet_lightning.score.wider_face.published import FILE, HOMEPAGE, STEPS

# Area that the left-out points of a curve may hold together; choosing the rounding makes up for as much.
AREA = 5e-6
# Greatest distance of a left-out point from the line through those that stay, in units of precision and recall.
DISTANCE = 1e-3

Array = npt.NDArray[np.float64]


def thinned(points: Array) -> npt.NDArray[np.int64]:
    """Indices of the points that stay, ascending: first and last among them.

    A point that is left out costs the area between its own step and the next one's. The cheapest go first
    (as Visvalingam and Whyatt, 1993, thin lines), until they hold :data:`AREA` together. Then points farther than
    :data:`DISTANCE` from the line come back, the farthest of each gap first.

    Args:
        points: (T, 2) precision and recall in [0, 1]; recall does not fall.
    """
    envelope, recall = np.maximum.accumulate(points[::-1, 0])[::-1], points[:, 1]
    last = len(points) - 1
    before, after = list(range(-1, last)), list(range(1, last + 2))

    def cost(i: int) -> float:
        return float((recall[i] - recall[before[i]]) * (envelope[i] - envelope[after[i]]))

    current = {i: cost(i) for i in range(1, last)}
    heap = [(own, i) for i, own in current.items()]
    heapq.heapify(heap)
    spent = 0.0
    while heap:
        own, i = heapq.heappop(heap)
        if current.get(i) != own:
            continue  # left out already, or its neighbours have changed since
        if spent + own > AREA:
            break
        spent += own
        del current[i]
        after[before[i]], before[after[i]] = after[i], before[i]
        for j in (before[i], after[i]):
            if j in current:
                current[j] = cost(j)
                heapq.heappush(heap, (current[j], j))
    kept = [0, *sorted(current), last]
    while True:
        far = [worst for a, b in itertools.pairwise(kept) if (worst := _farthest(points, a, b)) is not None]
        if not far:
            return np.array(kept)
        kept = sorted([*kept, *far])


def _farthest(points: Array, start: int, stop: int) -> int | None:
    """The point between two that is farthest from the line between them, None where all are near."""
    if stop - start < 2:
        return None
    line, offsets = points[stop] - points[start], points[start + 1 : stop] - points[start]
    length = float(line @ line)
    along = np.clip(offsets @ line / length, 0, 1) if length > 0 else np.zeros(len(offsets))
    distance = np.linalg.norm(offsets - along[:, None] * line, axis=1)
    return start + 1 + int(distance.argmax()) if distance.max() > DISTANCE else None


def quantised(points: Array, area: float) -> npt.NDArray[np.uint16]:
    """(K, 2) precision and recall in steps of 1/65535; no value moves by a whole step.

    Each goes to the nearest step. Then precisions go to the step on the other side wherever that brings the area
    nearer to ``area``, those of the widest steps first.
    """
    exact = points * STEPS
    steps = np.rint(exact)
    error = average_precision(steps[:, 0] / STEPS, steps[:, 1] / STEPS) - area
    for i in np.argsort(-np.diff(points[:, 1], prepend=0.0), kind="stable"):
        other = np.floor(exact[i, 0]) + np.ceil(exact[i, 0]) - steps[i, 0]
        here, steps[i, 0] = steps[i, 0], other
        changed = average_precision(steps[:, 0] / STEPS, steps[:, 1] / STEPS) - area
        if abs(changed) < abs(error):
            error = changed
        else:
            steps[i, 0] = here
    return steps.astype(np.uint16)


def make(curves: Path, published_ap: Path, out: Path) -> None:
    """Write ``out`` and print how far it is from ``curves``."""
    ap = json.loads(published_ap.read_text(encoding="utf-8"))
    stored, counts, all_points, largest = [], [], 0, 0.0
    with np.load(curves) as arrays:
        for method, settings in ap.items():
            for setting, value in settings.items():
                points = arrays[f"{method}/{setting}"].astype(np.float64)
                area = average_precision(points[:, 0], points[:, 1])
                own = quantised(points[thinned(points)], area)
                here = average_precision(own[:, 0] / STEPS, own[:, 1] / STEPS)
                largest = max(largest, abs(here - area))
                if round(here, 4) != value:
                    raise SystemExit(f"{method}/{setting}: AP {here:.7f} instead of the published {value}")
                stored.append(np.diff(own, axis=0, prepend=np.zeros((1, 2), np.uint16)))
                counts.append(len(own))
                all_points += len(points)
    columns = np.concatenate(stored)
    header = {
        "source": HOMEPAGE,
        "what": "WIDER FACE precision-recall curves of published methods, as the organisers of the benchmark plot them",
        "format": "differences of steps of 1/65535, modulo 65536, from point to point; curves one after another",
        "ap": ap,
    }
    with replaced(out) as temporary:
        np.savez_compressed(
            temporary,
            header=np.array(json.dumps(header, ensure_ascii=False, separators=(",", ":"))),
            points=np.array(counts, np.uint16),
            precision=columns[:, 0],
            recall=columns[:, 1],
        )
    size = out.stat().st_size
    print(f"{out}: {len(counts)} curves, {sum(counts):,} of {all_points:,} points, {size:,} bytes")
    print(f"largest error of AP {largest:.1e}; every published AP is met to four decimals")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit("usage: python scripts/make_published_curves.py CURVES.npz PUBLISHED_AP.json [OUT.npz]")
    make(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) == 4 else FILE)
