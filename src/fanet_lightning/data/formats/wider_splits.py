"""The inventory of WIDER FACE in its official layout."""

from pathlib import Path

import numpy as np

from fanet_lightning.data.formats.image_files import ImageFiles
from fanet_lightning.data.formats.labels import PlacedImage
from fanet_lightning.data.formats.wider import WiderEntry, parse_wider
from fanet_lightning.data.inventory import Inventory, LabelledImage, LabelProblem
from fanet_lightning.data.records import ATTRIBUTES
from fanet_lightning.data.wider_annotations import COLUMNS, AnnotationTable, Split, find_annotations, parse_mat
from fanet_lightning.errors import InputError
from fanet_lightning.image_lists import find_listed


def official_entries(source: Path, split: Split) -> tuple[list[WiderEntry], list[LabelProblem], Path]:
    """The rows of a split, tolerantly, and the file that they stand in.

    Raises:
        InputError: neither the text list nor the ``.mat`` file is there, or the latter is damaged.
    """
    found = find_annotations(source, f"wider_face_{split}_bbx_gt.txt")
    if found is not None:
        content, name = found
        return *parse_wider(content.decode("utf-8-sig", errors="replace"), Path(name), (COLUMNS,)), Path(name)
    found = find_annotations(source, f"wider_face_{split}.mat")
    if found is None:
        raise InputError(
            f"no wider_face_{split}_bbx_gt.txt or wider_face_{split}.mat in {source}; give the folder "
            "wider_face_split or the official wider_face_split.zip: data.annotations=PATH"
        )
    table = parse_mat(*found)
    return [_of_table(table, index) for index in range(len(table.image_ids))], [], Path(table.source)


def _of_table(table: AnnotationTable, index: int) -> WiderEntry:
    rows = table.of_image(index)
    if len(rows) == 1 and not rows.any():
        rows = rows[:0]
    invalid = rows[:, 4 + ATTRIBUTES.index("invalid")] != 0
    return WiderEntry(f"{table.image_ids[index]}.jpg", 0, rows[:, :4].tolist(), invalid.tolist())


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
        reason = f"is no folder, so there is nothing to say of the {part} part (expected <event>/<name>.jpg in it)"
        return Inventory(part, folder, [], [], [LabelProblem(folder, None, str(folder), reason)])
    entries, problems, path = official_entries(source, split)
    files = ImageFiles(folder)
    labelled = [_labelled(entry, files, path) for entry in entries]
    chosen: list[LabelledImage] = list(labelled)
    if images is not None:
        by_id: dict[str, list[PlacedImage]] = {}
        for image in labelled:
            by_id.setdefault(image.image_id, []).append(image)
        chosen = []
        for line, written, image_id in find_listed(images, by_id, folder=folder, root=root):
            if image_id is None:
                reason = f"is not among the {len(by_id)} images of the {split} split"
                problems.append(LabelProblem(images, line, written, reason))
            else:
                chosen += by_id[image_id]
    unlabelled: list[Path] = []
    if with_unlabelled:
        known = {image.path for image in labelled}
        unlabelled = [folder / name for name in files.names if folder / name not in known]
    return Inventory(part, folder, chosen, unlabelled, problems)


def _labelled(entry: WiderEntry, files: ImageFiles, path: Path) -> PlacedImage:
    # Ids as data/wider_face.py makes them; it finds files in another letter case too.
    image_id = entry.name.removesuffix(".jpg")
    name = files.find(f"{image_id}.jpg").name or f"{image_id}.jpg"
    first = entry.box_lines[0] if entry.box_lines else entry.line or None
    return PlacedImage(
        image_id, files.folder / name, entry.boxes_xyxy, np.array(entry.invalid, dtype=np.bool_),
        label_path=path, label_line=first, box_lines=tuple(entry.box_lines),
    )  # fmt: skip
