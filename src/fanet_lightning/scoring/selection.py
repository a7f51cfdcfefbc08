"""Images of a ground truth: where they stand in the whole, and which of them a name in somebody's file means."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

# What the name of an image may end in; other dots are part of the name.
_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"))


def places_of(wanted: Sequence[str], image_ids: Iterable[str]) -> list[int]:
    """The place of each wanted image among ``image_ids``, in the order of ``wanted``.

    Raises:
        ValueError: an image id that is not there.
    """
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    unknown = [image_id for image_id in wanted if image_id not in place]
    if unknown:
        raise ValueError(f"{len(unknown)} image ids are not in the ground truth, the first is '{unknown[0]}'")
    return [place[image_id] for image_id in wanted]


def name_parts(name: str) -> tuple[str, ...]:
    """``.\\event\\name.JPG`` → ``("event", "name")``: folders and name, whatever the separator and the extension."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    last = path.stem if path.suffix.lower() in _SUFFIXES else path.name
    return (*(part for part in path.parts[:-1] if part != "/"), last)


def is_same_image(name: str, image_id: str) -> bool:
    """Whether the two agree from the end as far as both go: ``/x/event/name.jpg``, ``name`` and ``event/name`` do."""
    parts, own = name_parts(name), name_parts(image_id)
    shared = min(len(parts), len(own))
    return parts[-shared:] == own[-shared:] and bool(own[-1])


class ImageNames:
    """The images of a ground truth by any name that :func:`is_same_image` takes for theirs."""

    def __init__(self, image_ids: Iterable[str]) -> None:
        self._by_last: dict[str, list[str]] = defaultdict(list)
        for image_id in dict.fromkeys(image_ids):
            self._by_last[name_parts(image_id)[-1]].append(image_id)

    def find(self, name: str) -> list[str]:
        """The image that the name agrees with farthest; several where it may mean any of them, none where none."""
        parts = name_parts(name)
        agreeing = {
            image_id: (min(len(parts), len(own)), parts == own)
            for image_id in self._by_last.get(parts[-1], ())
            if is_same_image(name, image_id) and (own := name_parts(image_id))
        }
        farthest = max(agreeing.values(), default=None)
        return [image_id for image_id, how_far in agreeing.items() if how_far == farthest]
