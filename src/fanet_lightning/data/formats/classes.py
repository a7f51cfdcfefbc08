"""Which classes of a label file are faces."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fanet_lightning.data.inventory import LabelProblem

# Taken as faces without being asked, in any letter case.
FACE_NAMES = frozenset(("face", "faces"))


class FaceClasses:
    """Counts boxes by class and says which are faces: those in ``wanted``, or by default those called "face".

    Args:
        wanted: names of the classes that are faces (in YOLO files without names, their numbers), or None.
        declared: names that the files declare, with boxes or without.
    """

    def __init__(self, wanted: Sequence[str] | None, declared: Iterable[str] = ()) -> None:
        self._wanted = None if wanted is None else frozenset(wanted)
        self._declared = list(dict.fromkeys(declared))
        self.counts: Counter[str] = Counter()

    def is_face(self, name: str) -> bool:
        """Count a box of this class; whether it is a face."""
        self.counts[name] += 1
        return name in self._wanted if self._wanted is not None else name.casefold() in FACE_NAMES

    def problem(self, path: Path) -> LabelProblem | None:
        """Other classes that nobody has said anything about, with counts."""
        if self._wanted is not None or all(name.casefold() in FACE_NAMES for name in self.counts):
            return None
        faces = [name for name in self.counts if name.casefold() in FACE_NAMES]
        example = ",".join(faces or [name for name, _ in self.counts.most_common(1)])
        reason = f"are its classes, not all of them faces; say which are, for example data.classes=[{example}]"
        return LabelProblem(path, None, _listed(self.counts), reason)

    def remark(self) -> str | None:
        """What was left out on request, and which of the wanted classes nobody knows."""
        if self._wanted is None:
            return None
        others = {name: count for name, count in self.counts.items() if name not in self._wanted}
        known = {*self._declared, *self.counts}
        unknown = sorted(self._wanted - known) if known else []
        parts = [f"left out, as data.classes has them not: {_listed(others)}"] if others else []
        if unknown:
            parts.append(f"no such class: {', '.join(unknown)}; the labels have {', '.join(sorted(known))}")
        return "; ".join(parts) or None


def _listed(counts: Mapping[str, int]) -> str:
    listed = Counter(counts).most_common(20)
    return ", ".join(f"{name} ({count} {'box' if count == 1 else 'boxes'})" for name, count in listed)
