"""What the doctor finds: kinds, and one finding each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# ``error``: training or a score is wrong or fails with it. ``warning``: worth a look. ``note``: good to know.
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: ``name`` as in tables (``label_outside``), its meaning and what to do, a sentence each."""

    name: str
    severity: Severity
    meaning: str
    remedy: str
    mended_by_fix: bool = False


@dataclass(frozen=True)
class Finding:
    """One finding.

    ``kind``        the name of a :class:`Kind`.
    ``part``        ``train`` or ``val``.
    ``image_id``    the image concerned, or "" where a label file is.
    ``path``        of the image, or of the label file.
    ``detail``      what was found, with numbers, in a few words.
    ``boxes_xyxy``  the boxes concerned, pixels of the image.
    ``other_part``, ``other_path``  the second image of a pair (duplicates, leaks).
    ``badness``     larger is worse, within a kind: what "worst offenders" are sorted by.
    """

    kind: str
    part: str
    image_id: str
    path: Path
    detail: str
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    other_part: str | None = None
    other_path: Path | None = None
    badness: float = 0.0


@dataclass(frozen=True)
class Facts:
    """Numbers of one part: ``images``, ``faces``, ``ignored_faces``, ``images_without_faces``, ``bytes``."""

    part: str
    images: int
    faces: int
    ignored_faces: int
    images_without_faces: int
    bytes: int


@dataclass
class Report:
    """All of one examination: ``findings`` in the order of ``kinds``, most severe first."""

    title: str
    kinds: list[Kind]
    findings: list[Finding] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    seconds: float = 0.0

    def of_kind(self, name: str) -> list[Finding]:
        """The findings of a kind, worst first."""
        return sorted((finding for finding in self.findings if finding.kind == name), key=lambda f: -f.badness)
