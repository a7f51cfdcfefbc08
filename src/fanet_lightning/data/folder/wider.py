"""WIDER FACE's text list for any folder.

::

    0--Parade/a.jpg
    2
    449 330 122 149 0 0 0 0 0 0
    10 20 30 40

Columns 5 … 10 are ``blur expression illumination invalid occlusion pose``; ``invalid`` 1 is an ignored box. An image
without a face has the count 0, or the official row of zeros.
"""

from pathlib import Path

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.folder.files import matching
from fanet_lightning.data.folder.labels import PART_NAMES, Place, finish, place_of, placed, read_text
from fanet_lightning.data.records import Inventory
from fanet_lightning.data.wider_face import parse_list

LISTS = ("wider_face_split/wider_face_{}_bbx_gt.txt", "wider_face_{}_bbx_gt.txt", "{}_bbx_gt.txt", "{}.txt")


def wider_place(root: Path, part: str) -> Place | None:
    """The list of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none."""
    names = ["labels.txt"] if part == "all" else [form.format(name) for name in PART_NAMES[part] for form in LISTS]
    path = next((path for name in names for path in matching(root, name)), None)
    return None if path is None else place_of(root, path, part)


def read_wider(place: Place) -> Inventory:
    """One list.

    Raises:
        InputError: it cannot be read, or names no image.
    """
    images, problems = parse_list(read_text(place.labels), place.labels)
    if not images:
        raise InputError(
            f"{place.labels} names no image; data.format=wider reads lists of a name, a count and rows x y w h"
        )
    files = place.image_files([own.image_id for own in images])
    inventory = Inventory(place.part, files.folder, problems=problems)
    for own in images:
        placed(
            inventory, files, own.image_id, own.boxes_xyxy, own.ignored, label_path=place.labels,
            box_lines=own.box_lines, attributes=own.attributes,
        )  # fmt: skip
    return finish(inventory, files, place.labels)
