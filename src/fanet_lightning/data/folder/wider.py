"""WIDER FACE's text list for any folder, and the inventory of its official layout.

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
from fanet_lightning.cli.files import find_listed
from fanet_lightning.data.folder.files import ImageFiles, matching
from fanet_lightning.data.folder.labels import PART_NAMES, PartLabels, Place, finish, place_of, placed, read_text
from fanet_lightning.data.records import Inventory, LabelledImage, LabelProblem
from fanet_lightning.data.wider_face import Split, parse_list, read_annotations

LISTS = ("wider_face_split/wider_face_{}_bbx_gt.txt", "wider_face_{}_bbx_gt.txt", "{}_bbx_gt.txt", "annotations/{}.txt",
         "labels/{}.txt", "{}/labels.txt", "{}.txt")  # fmt: skip
PILE_LISTS = ("labels.txt", "annotations.txt", "bbx_gt.txt", "annotations/labels.txt")


def wider_place(root: Path, part: str) -> Place | None:
    """The list of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none."""
    names = PILE_LISTS if part == "all" else [form.format(name) for name in PART_NAMES[part] for form in LISTS]
    path = next((path for name in names for path in sorted(matching(root, name)) if path.is_file()), None)
    return None if path is None else place_of(root, path, part)


def read_wider(place: Place) -> PartLabels:
    """One list.

    Raises:
        InputError: it cannot be read, or names no image.
    """
    table, problems = parse_list(read_text(place.labels), str(place.labels))
    if not table.image_ids:
        first = f"line {problems[0].line}: {problems[0].value!r} {problems[0].reason}" if problems else "it is empty"
        raise InputError(f"{place.labels}, {first}; data.format=wider reads lists of a name, a count and rows x y w h")
    files = place.image_files(table.image_ids)
    labels = PartLabels(files.folder, problems=problems)
    for index, name in enumerate(table.image_ids):
        boxes, invalid, lines, attributes = table.faces(index)
        placed(
            labels, files, name, boxes, invalid, label_path=place.labels, line=table.name_lines[index],
            box_lines=lines, attributes=attributes,
        )  # fmt: skip
    return finish(labels, files, place.labels)


def split_inventory(
    part: str, root: Path, split: Split, source: Path, images: Path | None = None, with_unlabelled: bool = True
) -> Inventory:
    """Everything that the labels of a split say, or of a list of images within it.

    An image that is not on disk is in the inventory all the same. A split without a folder of images has none at all.

    Args:
        part: ``train`` or ``val``.
        root, split, source: as :func:`~fanet_lightning.data.wider_face.load_wider_face` takes them.
        images: list of image names; its order is kept.
        with_unlabelled: also look for images that no label speaks of.

    Raises:
        InputError: the labels or the list are not there.
    """
    folder = root / f"WIDER_{split}" / "images"
    if not folder.is_dir():
        reason = f"is not a directory, so nothing is known of the {part} part (expected <event>/<name>.jpg in it)"
        return Inventory(part, folder, [], [], [LabelProblem(folder, None, str(folder), reason)])
    problems: list[LabelProblem] = []
    table, files = read_annotations(source, split, problems=problems), ImageFiles(folder)
    by_id: dict[str, list[LabelledImage]] = {}
    for index, image_id in enumerate(table.image_ids):
        boxes, invalid, lines, attributes = table.faces(index)
        name = files.find(f"{image_id}.jpg").name or f"{image_id}.jpg"
        line = lines[0] if lines else table.name_lines[index] if table.name_lines else None
        image = LabelledImage(
            image_id, folder / name, boxes, invalid, label_path=Path(table.source), label_line=line, box_lines=lines,
            attributes=attributes,
        )  # fmt: skip
        by_id.setdefault(image_id, []).append(image)
    ids = list(dict.fromkeys(table.image_ids))
    if images is not None:
        ids = []
        for line, written, own_id in find_listed(images, by_id, folder=folder, root=root):
            if own_id is None:
                reason = f"is not among the {len(by_id)} images of the {split} split"
                problems.append(LabelProblem(images, line, written, reason))
            else:
                ids.append(own_id)
    known = {image.path for own in by_id.values() for image in own}
    unlabelled = [folder / name for name in files.names if with_unlabelled and folder / name not in known]
    return Inventory(part, folder, [image for image_id in ids for image in by_id[image_id]], unlabelled, problems)
