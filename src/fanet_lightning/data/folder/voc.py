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
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    FaceClasses,
    ImageFiles,
    PartLabels,
    Place,
    boxes_of,
    finish,
    label_files,
    matching,
    number,
    placed,
    read_text,
    shown,
)
from fanet_lightning.data.records import LabelProblem

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
            return voc_folders(root, own, part, path)
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
    return None if found is None else voc_folders(root, found, part)


def voc_folders(root: Path, labels: Path, part: str, names: Path | None = None) -> Place:
    """The folders where the images of these labels may lie."""
    parts = PART_NAMES.get(part, ())
    own = [
        folder for name in parts
        for folder in (root / "images" / name, root / "JPEGImages" / name, root / name / "images", root / name)
    ]  # fmt: skip
    return Place(labels, None, (root / "JPEGImages", *own, root / "images", labels, root), names)


def read_voc(place: Place, wanted: Sequence[str] | None, origin: int = 1) -> PartLabels:
    """The labels of a folder, or of the images that ``place.names`` lists.

    Args:
        place: the folder of XML files.
        wanted: classes that are faces, see :class:`FaceClasses`.
        origin: number of the first pixel, 1 as in VOC, or 0.

    Raises:
        InputError: the folder has no XML file, or the list cannot be read.
    """
    if not place.labels.is_dir():
        raise InputError(f"{place.labels} is no folder; data.format=voc reads a folder of XML files")
    paths = label_files(place.labels, ".xml")
    stems = list(_stems(place, paths))
    if not stems:
        raise InputError(f"{place.labels} holds no XML file; set data.format to what the labels are")
    files = place.image_files([f"{stem}.jpg" for _, stem in stems])
    labels = PartLabels(files.folder)
    classes = FaceClasses(wanted)
    zeros: list[Path] = []
    for line, stem in stems:
        path = paths.get(stem)
        if path is None:
            reason = f"has no {place.labels / stem}.xml; add it, or take the name out"
            labels.problems.append(LabelProblem(place.names or place.labels, line, stem, reason))
            continue
        _read_file(path, stem, files, labels, classes, origin, zeros)
    if zeros:
        labels.remarks.append(
            f"{len(zeros)} boxes begin at pixel 0, the first in {zeros[0]}, though VOC's first pixel is 1; if the tool "
            "that wrote them counts from 0, set data.origin=0"
        )
    labels = finish(labels, files, place.names or place.labels, classes)
    if place.names is not None:
        # Lists leave images out, e.g. those to test on; an image with an XML file is not one that nobody has labelled.
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
        if not name or name in paths:
            if name:
                yield line, name
        elif len(fields) == 2 and fields[1] in ("1", "-1", "0"):  # the lists of one class
            yield line, fields[0]
        else:
            yield line, without_extension(name)


def _xml_text(path: Path) -> str:
    """The text of a file that declares its encoding, or is in Unicode. Python's XML parser knows few encodings itself.

    Raises:
        InputError: it is not there, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a file of labels") from error
    declared = _DECLARATION.match(content)
    # A declaration that can be read byte by byte is not in two or four bytes a letter, whatever it says.
    if declared is not None and not declared[1].lower().startswith((b"utf", b"ucs", b"iso-10646")):
        with suppress(LookupError, ValueError):
            return content.decode(declared[1].decode("ascii"))
    return read_text(path)


def _read_file(
    path: Path,
    stem: str,
    files: ImageFiles,
    labels: PartLabels,
    classes: FaceClasses,
    origin: int,
    zeros: list[Path],
) -> None:
    rows: list[list[float]] = []
    ignored: list[bool] = []
    lines: list[int] = []
    try:
        text = _xml_text(path)
        root = ElementTree.fromstring(text)
    except InputError as error:
        labels.problems.append(LabelProblem(path, None, "", f"is no text ({error})"))
        return
    except (ElementTree.ParseError, ValueError) as error:
        line = getattr(error, "position", (1, 0))[0]
        value = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
        labels.problems.append(LabelProblem(path, line, shown(value), f"is no XML ({error}); mend or remove the file"))
        return
    if root.tag != "annotation":
        labels.problems.append(LabelProblem(path, 1, f"<{root.tag}>", "stands where VOC has <annotation>"))
        return
    places = _object_lines(text)
    for position, item in enumerate(root.findall("object")):
        line = places[position] if position < len(places) else 1
        name = (item.findtext("name") or "").strip()
        values = [_side(item, side) for side in SIDES]
        if not name or any(value is None for value in values):
            what = "a name" if not name else f"a bndbox with {', '.join(SIDES)}"
            value = shown("".join(item.itertext())) or "<object>"
            labels.problems.append(LabelProblem(path, line, value, f"is no object with {what}"))
            continue
        if not classes.is_face(name):
            continue
        box = [value for value in values if value is not None]
        zeros += [path] if origin == 1 and min(box[:2]) == 0 else []
        rows.append([box[0] - origin, box[1] - origin, box[2], box[3]])
        ignored.append((item.findtext("difficult") or "").strip() == "1")
        lines.append(line)
    found = files.find_stem(stem)
    name = (root.findtext("filename") or "").strip()
    if found.name is None and name:
        by_name = files.find(name)
        found = by_name if by_name.name is not None else found
    # The stem has no extension of its own, so an image's is taken as written.
    written = found.name if found.name is not None and without_extension(found.name) == stem else f"{stem}.jpg"
    placed(
        labels, files, written, boxes_of(rows), ignored, label_path=path, line=1, stated_wh=_size(root),
        box_lines=lines, found=found,
    )  # fmt: skip


def _side(item: ElementTree.Element, side: str) -> float | None:
    text = item.findtext(f"bndbox/{side}")
    return None if text is None else number(text.strip())


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    sides = [number((root.findtext(f"size/{name}") or "").strip()) for name in ("width", "height")]
    if any(side is None or not 0 < side < 1e9 for side in sides):
        return None
    return int(sides[0] or 0), int(sides[1] or 0)


def _object_lines(text: str) -> list[int]:
    return [line for line, content in enumerate(text.splitlines(), start=1) for _ in range(content.count("<object>"))]
