"""What all formats share: names of images, selections, rows of numbers, MATLAB files, packed detections."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import find_listed, without_extension
from fanet_lightning.score.curves import Floats, Ints

# image id → boxes_xyxy (D, 4) pixels of the original image and scores (D,).
DetectionsByImage = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]


@contextmanager
def reading(path: Path | str, remedy: str) -> Iterator[None]:
    """Whatever goes wrong in the block is the fault of the file: one line with its path, the reason and the remedy."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # NumPy, SciPy and zipfile raise a dozen kinds for a damaged file
        reason = getattr(error, "strerror", None) or first_line(error)[:200]
        if isinstance(error, KeyError):
            reason = f"KeyError: {reason} is missing or unknown"
        raise InputError(f"{path} cannot be read ({reason}); {remedy}") from error


def check_choice(key: str, value: object, choices: Iterable[str]) -> None:
    """InputError: ``value`` is none of ``choices``."""
    if value not in (known := list(choices)):
        raise InputError(f"{key}={value} is not known; choose one of {', '.join(known)}")


def places_of(wanted: Sequence[str], image_ids: Iterable[str]) -> list[int]:
    """The place of each wanted image among ``image_ids``, in the order of ``wanted``."""
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    unknown = [image_id for image_id in wanted if image_id not in place]
    if unknown:
        raise ValueError(f"{len(unknown)} image ids are not in the ground truth, the first is '{unknown[0]}'")
    return [place[image_id] for image_id in wanted]


class SelectableImages:
    """A ground truth, a frozen dataclass, whose parts can be taken: ``per_image`` names its fields of N images.

    ``whole_ids``: images of the whole that this was selected from; None: it is the whole. Predictions of those others
    are no mistake, and the number is labelled as one on a sample.
    """

    per_image: ClassVar[tuple[str, ...]]
    image_ids: tuple[str, ...]
    whole_ids: tuple[str, ...] | None

    @property
    def known_ids(self) -> tuple[str, ...]:
        """All images of the whole, in its order."""
        return self.image_ids if self.whole_ids is None else self.whole_ids

    def select(self, image_ids: Iterable[str]) -> Self:
        """The ground truth of these images alone, in the order given; ValueError: an image that is not there."""
        wanted = tuple(image_ids)
        places = places_of(wanted, self.image_ids)

        def taken(values: Any) -> Any:
            if isinstance(values, Mapping):
                return {key: taken(own) for key, own in values.items()}
            return values[places] if isinstance(values, np.ndarray) else tuple(values[i] for i in places)

        own: Any = self
        parts = {name: taken(getattr(self, name)) for name in self.per_image}
        selected: Self = replace(own, image_ids=wanted, whole_ids=self.known_ids, **parts)
        return selected


def name_parts(name: str) -> tuple[str, ...]:
    """``.\\event\\name.JPG`` → ``("event", "name")``: folders and name, whatever the separator and the extension."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return (*(part for part in path.parts[:-1] if part != "/"), without_extension(path.name))


def is_same_image(name: str, image_id: str) -> bool:
    """Whether the two agree from the end as far as both go: ``/x/event/name.jpg``, ``name`` and ``event/name`` do."""
    parts, own = name_parts(name), name_parts(image_id)
    shared = min(len(parts), len(own))
    return parts[-shared:] == own[-shared:] and bool(own[-1])


class ImageNames:
    """The images of a ground truth by any name that :func:`is_same_image` takes for theirs."""

    def __init__(self, image_ids: Iterable[str]) -> None:
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for image_id in image_ids:
            self._by_last[name_parts(image_id)[-1]].append(image_id)

    def find(self, name: str) -> list[str]:
        """The image with just this name; else all that it may mean, none where none."""
        parts = name_parts(name)
        meant = [image_id for image_id in self._by_last.get(parts[-1], ()) if is_same_image(name, image_id)]
        return [image_id for image_id in meant if name_parts(image_id) == parts] or meant


def read_selection(path: Path, known: Collection[str]) -> list[str]:
    """Image ids of a list (:func:`fanet_lightning.cli.files.find_listed`) that must all be ``known``."""
    chosen = []
    for number, written, image_id in find_listed(path, known):
        if image_id is None:
            raise InputError(f"{path}:{number}: '{written}' is not in the ground truth; write its name as there")
        chosen.append(image_id)
    return chosen


def number_rows(
    lines: Sequence[str],
    columns: Sequence[int],
    place: Callable[[int], str],
    layout: str,
    is_wrong: Callable[[Floats], Any],
) -> Floats:
    """R lines of finite numbers with blanks between them → (R, C), C one of ``columns``, the same for all.

    ``is_wrong`` tells rows (R, C) that are no good, (R,) bool. For the error ``place`` names a line by its number from
    0, ``layout`` says what the numbers are.
    """

    def first(count: int) -> Floats | None:
        try:
            values = np.loadtxt(lines[:count], ndmin=2, comments=None) if count else np.zeros((0, columns[0]))
        except ValueError:
            return None
        good = values.shape[1] in columns and np.isfinite(values).all() and not is_wrong(values).any()
        return values if good else None

    values = first(len(lines))
    if values is None:
        row = bisect_left(range(len(lines)), True, key=lambda i: first(i + 1) is None)
        raise InputError(
            f"{place(row)}: '{lines[row].strip()[:80]}' is no row of {' or '.join(map(str, columns))} finite numbers "
            f"with blanks between, {layout}, as many as in the rows before; correct or remove it"
        )
    return values


def load_mat(path: Path, remedy: str) -> dict[str, Any]:
    """The variables of a MATLAB file."""
    # Half of the start-up time of a score, and --help needs none of it.
    from scipy.io import loadmat

    with reading(path, remedy):
        content: dict[str, Any] = loadmat(str(path), appendmat=False)
    return content


def missing_warning(missing: Sequence[str], images: int, complete: Path | None = None) -> tuple[str, ...]:
    """One line about the images without predictions, where there are some; InputError where they must be ``complete``,
    which names their file."""
    if not missing:
        return ()
    some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
    line = f"{len(missing)} of {images} images have no predictions"
    if complete is not None:
        raise InputError(f"{complete}: {line}: {some}; add them, strict=true and split=test want all of them")
    return (f"{line} and count as empty: {some}",)


def packed_detections(detections: DetectionsByImage, image_ids: Sequence[str]) -> tuple[Ints, Floats, Floats]:
    """``image_id → (boxes_xyxy (D, 4), scores (D,))`` → starts (N + 1,), boxes_xyxy (R, 4), scores (R,), by image.

    An image that is not there has no detection. ValueError: a detection that is not finite, has a negative side, or is
    of an image outside ``image_ids``; boxes and scores that are not as many.
    """
    places_of(list(detections), image_ids)
    found = [detections.get(image_id, ((), ())) for image_id in image_ids]
    boxes = [np.asarray(own, np.float64).reshape(-1, 4) for own, _ in found]
    scores = [np.asarray(own, np.float64).reshape(-1) for _, own in found]
    counts = [len(own) for own in boxes]
    if counts != [len(own) for own in scores]:
        raise ValueError("an image with another number of boxes than scores")
    starts = np.cumsum([0, *counts], dtype=np.int64)
    rows = np.column_stack([np.concatenate([np.empty((0, 4)), *boxes]), np.concatenate([np.empty(0), *scores])])
    wrong = ~np.isfinite(rows).all(axis=1) | (rows[:, 2:4] < rows[:, :2]).any(axis=1)
    if wrong.any():
        image_id = image_ids[int(np.searchsorted(starts, wrong.argmax(), side="right")) - 1]
        raise ValueError(f"{image_id}: a detection that is not finite or has a negative side")
    return starts, rows[:, :4], rows[:, 4]


def as_xywh(boxes_xyxy: Floats) -> Floats:
    """(R, 4) → (R, 4) ``x y w h``."""
    return np.column_stack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]])
