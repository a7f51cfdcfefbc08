"""PASCAL VOC: an XML file per image, lists of the parts.

::

    ROOT/Annotations/000001.xml, ROOT/JPEGImages/000001.jpg, ROOT/ImageSets/Main/train.txt, val.txt
    ROOT/Annotations/train/a.xml, ROOT/images/train/a.jpg     sub-folders instead of lists
    ROOT/train/a.xml, ROOT/train/a.jpg                        side by side

The first pixel of VOC is 1, so x1 and y1 lose 1; x2 and y2 are the end of the last pixel as they stand. Tools that
count from 0 are read with ``origin=0``. ``difficult`` 1 is an ignored box. The image has the name of the XML file, and
the extension of its ``filename``.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from fanet_lightning.cli.errors import InputError
from fanet_lightning.cli.files import has_image_extension, without_extension
from fanet_lightning.data.folder.files import ImageFiles, label_files, matching
from fanet_lightning.data.folder.labels import (
    PART_NAMES,
    FaceClasses,
    Place,
    boxes_of,
    finish,
    place_of,
    placed,
    read_text,
)
from fanet_lightning.data.records import Inventory, label_numbers

SIDES = ("xmin", "ymin", "xmax", "ymax")
LABEL_FOLDERS = ("Annotations", "annotations")


def voc_place(root: Path, part: str) -> Place | None:
    """The labels of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none."""
    own = next((root / name for name in LABEL_FOLDERS if (root / name).is_dir()), root)
    for name in ("trainval",) if part == "all" else PART_NAMES[part]:
        for path in matching(root, f"ImageSets/Main/{name}.txt"):
            return place_of(root, own, part, path)
    folders = [own, root] if part == "all" else [base / name for name in PART_NAMES[part] for base in (own, root)]
    found = next((folder for folder in folders if label_files(folder, ".xml")), None)
    return None if found is None else place_of(root, found, part)


def read_voc(place: Place, wanted: Sequence[str] | None, origin: int = 1) -> Inventory:
    """The labels of a folder, or of the images that ``place.names`` lists.

    Args:
        place: the folder of XML files.
        wanted: classes that are faces, see :class:`FaceClasses`.
        origin: number of the first pixel, 1 as in VOC, or 0.

    Raises:
        InputError: the folder has no XML file, or the list cannot be read.
    """
    paths = label_files(place.labels, ".xml")
    stems = list(paths)
    if place.names is not None:
        lines = [line.strip() for line in read_text(place.names).splitlines()]
        stems = [line if line in paths else without_extension(line) for line in lines if line]
    if not stems:
        raise InputError(f"{place.labels} holds no XML file; data.format=voc reads a folder of XML files")
    files = place.image_files([f"{stem}.jpg" for stem in stems])
    inventory, classes = Inventory(place.part, files.folder), FaceClasses(wanted)
    zeros: list[Path] = []
    for stem in stems:
        if stem in paths:
            zeros += [paths[stem]] * _read_file(paths[stem], stem, files, inventory, classes, origin)
        else:
            reason = f"has no {place.labels / stem}.xml; add it, or take the name out"
            inventory.problem(place.names or place.labels, None, stem, reason)
    if zeros and origin == 1:
        inventory.remarks.append(
            f"{len(zeros)} boxes begin at pixel 0, the first in {zeros[0]}, though VOC's first pixel is 1; if the tool "
            "that wrote them counts from 0, set data.origin=0"
        )
    finish(inventory, files, place.names or place.labels, classes)
    # Lists leave images out, e.g. those to test on; an image with an XML file is not an unlabelled one.
    inventory.unlabelled[:] = [
        path for path in inventory.unlabelled
        if without_extension(path.relative_to(files.folder).as_posix()) not in paths
    ]  # fmt: skip
    return inventory


def _read_file(
    path: Path, stem: str, files: ImageFiles, inventory: Inventory, classes: FaceClasses, origin: int
) -> int:
    """Add one file's image to the inventory. Returns how many of its boxes begin at pixel 0."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        inventory.problem(path, None, path.name, f"is no XML ({error}); fix or remove the file")
        return 0
    if root.tag != "annotation":
        inventory.problem(path, None, f"<{root.tag}>", "stands where VOC has <annotation>")
        return 0
    rows: list[list[float]] = []
    ignored: list[bool] = []
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        box = label_numbers(" ".join(item.findtext(f"bndbox/{side}") or "-" for side in SIDES))
        if not name or box is None or len(box) != len(SIDES):
            reason = f"is no object with a name and a bndbox with {', '.join(SIDES)}"
            inventory.problem(path, None, "".join(item.itertext()), reason)
        elif classes.is_face(name):
            rows.append(box)
            ignored.append((item.findtext("difficult") or "").strip() == "1")
    filename = (root.findtext("filename") or "").strip()
    written = stem + (PurePosixPath(filename).suffix if has_image_extension(filename) else ".jpg")
    sides = label_numbers(" ".join(root.findtext(f"size/{name}") or "" for name in ("width", "height"))) or []
    stated_wh = (int(sides[0]), int(sides[1])) if len(sides) == 2 and all(0 < side < 1e9 for side in sides) else None
    boxes_xyxy = boxes_of(rows) - [origin, origin, 0, 0]
    placed(inventory, files, written, boxes_xyxy, ignored, label_path=path, stated_wh=stated_wh)
    return sum(min(row[:2]) == 0 for row in rows)
