"""PASCAL VOC: an XML file per image, lists of the parts.

::

    ROOT/Annotations/000001.xml, ROOT/JPEGImages/000001.jpg, ROOT/ImageSets/Main/train.txt, val.txt
    ROOT/Annotations/train/a.xml, ROOT/images/train/a.jpg     sub-folders instead of lists
    ROOT/train/a.xml, ROOT/train/a.jpg                        side by side

The first pixel of VOC is 1, so x1 and y1 lose 1; x2 and y2 are the end of the last pixel as they stand. Tools that
count from 0 are read with ``origin=0``. ``difficult`` 1 is an ignored box. The image has the name of the XML file.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import without_extension
from fanet_lightning.data.folder.files import ImageFiles, label_files, matching
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    FaceClasses,
    PartLabels,
    Place,
    boxes_of,
    finish,
    place_of,
    placed,
    read_text,
)
from fanet_lightning.data.records import label_numbers, label_text

SIDES = ("xmin", "ymin", "xmax", "ymax")
LABEL_FOLDERS = ("Annotations", "annotations", "labels")
_DECLARATION = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")


def voc_place(root: Path, part: str) -> Place | None:
    """The labels of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none."""
    folders = [root / name for name in LABEL_FOLDERS]
    lists = ("trainval",) if part == "all" else PART_NAMES[part]
    own = next((folder for folder in folders if folder.is_dir()), None)
    for path in (path for name in lists for path in matching(root, f"ImageSets/Main/{name}.txt")):
        if own is not None:
            return place_of(root, own, part, path)
    if part == "all":
        own_folders = [*folders, root]
    else:
        own_folders = [
            folder for name in PART_NAMES[part]
            for folder in (*(own / name for own in folders), *(root / name / own for own in LABEL_FOLDERS), root / name)
        ]  # fmt: skip
    found = next((folder for folder in own_folders if next(matching(folder, "*.xml"), None) is not None), None)
    if found is None and part == "all":
        found = next((folder for folder in folders if label_files(folder, ".xml")), None)
    return None if found is None else place_of(root, found, part)


def read_voc(place: Place, wanted: Sequence[str] | None, origin: int = 1) -> PartLabels:
    """The labels of a folder, or of the images that ``place.names`` lists.

    Args:
        place: the folder of XML files.
        wanted: classes that are faces, see :class:`FaceClasses`.
        origin: number of the first pixel, 1 as in VOC, or 0.

    Raises:
        InputError: the folder has no XML file, or the list cannot be read.
    """
    paths = label_files(place.labels, ".xml")
    stems = list(_stems(place, paths))
    if not stems:
        raise InputError(f"{place.labels} holds no XML file; data.format=voc reads a folder of XML files")
    files = place.image_files([f"{stem}.jpg" for _, stem in stems])
    labels, classes = PartLabels(files.folder), FaceClasses(wanted)
    zeros: list[Path] = []
    for line, stem in stems:
        if stem in paths:
            zeros += [paths[stem]] * _read_file(paths[stem], stem, files, labels, classes, origin)
        else:
            reason = f"has no {place.labels / stem}.xml; add it, or take the name out"
            labels.problem(place.names or place.labels, line, stem, reason)
    if zeros and origin == 1:
        labels.remarks.append(
            f"{len(zeros)} boxes begin at pixel 0, the first in {zeros[0]}, though VOC's first pixel is 1; if the tool "
            "that wrote them counts from 0, set data.origin=0"
        )
    finish(labels, files, place.names or place.labels, classes)
    if place.names is not None:
        # Lists leave images out, e.g. those to test on; an image with an XML file is not an unlabelled one.
        labels.unlabelled = [
            path for path in labels.unlabelled
            if without_extension(path.relative_to(files.folder).as_posix()) not in paths
        ]  # fmt: skip
    return labels


def _stems(place: Place, paths: Mapping[str, Path]) -> Iterator[tuple[int | None, str]]:
    if place.names is None:
        yield from ((None, stem) for stem in paths)
        return
    for line, text in enumerate(read_text(place.names).splitlines(), start=1):
        name, fields = text.strip(), text.split()
        if name and name not in paths:  # the lists of one class have a 1, -1 or 0 after the name
            of_class = len(fields) == 2 and fields[1] in ("1", "-1", "0")
            name = fields[0] if of_class else without_extension(name)
        if name:
            yield line, name


def _xml_text(path: Path) -> str:
    """The text of a file that declares its encoding, or is in Unicode. Python's XML parser knows few encodings itself.

    Raises:
        InputError: it is not there, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    declared = _DECLARATION.match(content)
    # A declaration that can be read byte by byte is not in two or four bytes a letter, whatever it says.
    if declared is not None and not declared[1].lower().startswith((b"utf", b"ucs", b"iso-10646")):
        with suppress(LookupError, ValueError):
            return content.decode(declared[1].decode("ascii"))
    return label_text(content, path)


def _read_file(path: Path, stem: str, files: ImageFiles, labels: PartLabels, classes: FaceClasses, origin: int) -> int:
    """Add one file's image to the labels. Returns how many of its boxes begin at pixel 0."""
    text = ""
    try:
        text = _xml_text(path)
        root = ElementTree.fromstring(text)
    except (InputError, ElementTree.ParseError, ValueError) as error:
        line = getattr(error, "position", (None, 0))[0]
        value = text.splitlines()[line - 1] if line and line <= len(text.splitlines()) else ""
        labels.problem(path, line, value, f"is no XML ({error}); fix or remove the file")
        return 0
    if root.tag != "annotation":
        labels.problem(path, 1, f"<{root.tag}>", "stands where VOC has <annotation>")
        return 0
    places = [line for line, row in enumerate(text.splitlines(), start=1) for _ in range(row.count("<object>"))]
    rows: list[list[float]] = []
    ignored: list[bool] = []
    lines: list[int] = []
    for position, item in enumerate(root.findall("object")):
        line = places[position] if position < len(places) else 1
        name = (item.findtext("name") or "").strip()
        box = label_numbers(" ".join(item.findtext(f"bndbox/{side}") or "-" for side in SIDES))
        if not name or box is None or len(box) != len(SIDES):
            what = "a name" if not name else f"a bndbox with {', '.join(SIDES)}"
            labels.problem(path, line, "".join(item.itertext()).strip() or "<object>", f"is no object with {what}")
        elif classes.is_face(name):
            rows.append(box)
            ignored.append((item.findtext("difficult") or "").strip() == "1")
            lines.append(line)
    found = files.find_stem(stem)
    filename = (root.findtext("filename") or "").strip()
    if found.name is None and filename:
        by_name = files.find(filename)
        found = by_name if by_name.name is not None else found
    # The stem has no extension of its own, so an image's is taken as written.
    written = found.name if found.name is not None and without_extension(found.name) == stem else f"{stem}.jpg"
    sides = label_numbers(" ".join(root.findtext(f"size/{name}") or "" for name in ("width", "height"))) or []
    stated_wh = (int(sides[0]), int(sides[1])) if len(sides) == 2 and all(0 < side < 1e9 for side in sides) else None
    placed(
        labels, files, written, boxes_of(rows) - [origin, origin, 0, 0], ignored, label_path=path, line=1,
        stated_wh=stated_wh, box_lines=lines, found=found,
    )  # fmt: skip
    return sum(min(row[:2]) == 0 for row in rows)
