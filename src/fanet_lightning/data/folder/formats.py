"""Readers of COCO, PASCAL VOC, YOLO and WIDER-style labels: where a part's files are, and what is in them.

docs/own-data.md has the layouts. COCO: 0-based pixels ``x y w h``; ``iscrowd`` 1 (and ``ignore`` 1) is an ignored box.

PASCAL VOC: an XML file per image, named as it. The first pixel is 1, so x1 and y1 lose 1; x2 and y2 are the end of the
last pixel as they stand (``origin=0``: as tools that count from 0 write them). ``difficult`` 1 is an ignored box.

YOLO: rows ``class x y w h``, x and y the box's center, normalized by the sides of the image as it is shown (EXIF
orientation applied). No file, or an empty one: no face. Rows of more than five numbers have landmarks after the box, or
a polygon instead of it; ``kpt_shape`` in data.yaml says so, else the caller does.

WIDER-style lists: a name, a count and so many rows ``x y w h``, or ten columns as the official files have.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import yaml

from fanet_lightning.cli.errors import InputError, first_line
from fanet_lightning.cli.files import has_image_extension, walk_files, without_extension
from fanet_lightning.data.folder.parts import PART_NAMES, PartReader, Place, boxes_of, label_files, matching, place_of
from fanet_lightning.data.images import UnreadableImage, read_image_size
from fanet_lightning.data.records import Inventory, label_numbers, read_text
from fanet_lightning.data.wider_face import is_list, parse_list

# By the name of a part, or of a set without parts.
COCO_FILES = ("annotations/instances_{}*.json", "annotations/{}.json", "{}/_annotations.coco.json", "{}.json")
COCO_ALONE = ("_annotations.coco.json", "annotations/*.json", "*.json")
LISTS = ("wider_face_split/wider_face_{}_bbx_gt.txt", "wider_face_{}_bbx_gt.txt", "{}_bbx_gt.txt", "{}.txt")

VOC_SIDES = ("xmin", "ymin", "xmax", "ymax")
YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
# A coordinate of 1 written with few digits may be a little above; a pixel never is.
MOST = 1.01
# Text files that tools leave with the labels.
NO_LABELS = frozenset(("classes", "README", "README.dataset", "README.roboflow"))


def wider_place(root: Path, part: str) -> Place | None:
    """The list of ``train``, ``val`` or, for a set without parts, ``all``; None if there are none."""
    names = ["labels.txt"] if part == "all" else [form.format(name) for name in PART_NAMES[part] for form in LISTS]
    path = next((path for name in names for path in matching(root, name)), None)
    return None if path is None else place_of(root, path, part)


def read_wider(place: Place, wanted: Sequence[str] | None) -> Inventory:
    """Of one list; ``wanted``: see :class:`PartReader`."""
    images, problems = parse_list(read_text(place.labels), place.labels)
    reader = PartReader(place, [own.image_id for own in images], wanted)
    reader.inventory.problems.extend(problems)
    for own in images:
        facts: dict[str, Any] = {"box_lines": own.box_lines, "attributes": own.attributes}
        reader.add(own.image_id, own.boxes_xyxy, own.ignored, place.labels, **facts)
    return reader.finish(place.labels)


def coco_place(root: Path, part: str) -> Place | None:
    """As :func:`wider_place`; an InputError where several files could be meant."""
    patterns = COCO_ALONE if part == "all" else [own.format(name) for name in PART_NAMES[part] for own in COCO_FILES]
    for pattern in patterns:
        found = [path for path in matching(root, pattern) if part != "train" or "val" not in path.stem]
        if len(found) > 1:
            key = "train" if part == "all" else part
            raise InputError(f"{found[0]} and {found[1]} may both hold the labels; choose with data.{key}.labels=FILE")
        if found:
            return place_of(root, found[0], part)
    return None


def read_coco(place: Place, wanted: Sequence[str] | None) -> Inventory:
    """Of one label file; ``wanted``: see :class:`PartReader`."""
    path, content = place.labels, _coco_content(place.labels)
    # Ids are numbers or texts, and some tools mix 7 and "7".
    categories = {str(item.get("id")): str(item.get("name")) for item in content["categories"]}
    images = {str(item.get("id")): item for item in content["images"] if str(item.get("file_name", "")).strip()}
    reader = PartReader(place, [str(item["file_name"]) for item in images.values()], wanted)
    problem = reader.inventory.problem
    for position, item in enumerate(content["images"]):
        if images.get(str(item.get("id"))) is not item:
            problem(path, None, json.dumps(item), f"images[{position}] has no file_name, or another's id")
    faces: dict[str, list[tuple[list[float], bool]]] = {key: [] for key in images}
    for position, item in enumerate(content["annotations"]):
        box, key, category = item.get("bbox"), str(item.get("image_id")), str(item.get("category_id"))
        reason = ""
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            reason = "has no bbox of four numbers x y w h"
        elif key not in images:
            reason = f"is of image_id {key}, which 'images' does not have"
        elif category not in categories:
            reason = f"is of category_id {category}, which 'categories' does not have"
        elif reader.is_face(categories[category]):
            x, y, width, height = map(float, box)
            faces[key].append(([x, y, x + width, y + height], bool(item.get("iscrowd") or item.get("ignore"))))
        if reason:
            problem(path, None, json.dumps(item), f"annotations[{position}] {reason}")
    for key, item in images.items():
        boxes_xyxy, ignored = boxes_of([box for box, _ in faces[key]]), [flag for _, flag in faces[key]]
        name, stated_wh = str(item["file_name"]).strip(), _stated([item.get("width"), item.get("height")])
        reader.add(name, boxes_xyxy, ignored, path, stated_wh)
    return reader.finish(path)


def _coco_content(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(read_text(path))
        lists: dict[str, list[Any]] = {key: list(content[key]) for key in ("images", "annotations", "categories")}
        if not all(isinstance(item, dict) for own in lists.values() for item in own):
            raise TypeError("an entry is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data.format=coco reads COCO's instances_*.json with 'images', 'annotations' and 'categories', not {path} "
            f"({type(error).__name__}: {error})"
        ) from error
    return lists


def _is_number(value: Any) -> bool:
    # JSON's whole numbers have no bounds, ours have.
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e15)


def _stated(sides: Sequence[Any]) -> tuple[int, int] | None:
    """Width and height of an image as labels state them; 0 or none says nothing."""
    known = [int(side) for side in sides if isinstance(side, int | float) and 0 < side < 1e9]
    return (known[0], known[1]) if len(known) == 2 else None


def voc_place(root: Path, part: str) -> Place | None:
    """As :func:`wider_place`."""
    own = next((root / name for name in ("Annotations", "annotations") if (root / name).is_dir()), root)
    for name in ("trainval",) if part == "all" else PART_NAMES[part]:
        for path in matching(root, f"ImageSets/Main/{name}.txt"):
            return place_of(root, own, part, path)
    folders = [own, root] if part == "all" else [base / name for name in PART_NAMES[part] for base in (own, root)]
    found = next((folder for folder in folders if label_files(folder, ".xml")), None)
    return None if found is None else place_of(root, found, part)


def read_voc(place: Place, wanted: Sequence[str] | None, origin: int = 1) -> Inventory:
    """Of a folder, or of the images that ``place.names`` lists; ``origin``: number of the first pixel, 1 or 0."""
    paths = label_files(place.labels, ".xml")
    stems, listed = list(paths), place.names or place.labels
    if place.names is not None:
        lines = [line.strip() for line in read_text(place.names).splitlines()]
        stems = [line if line in paths else without_extension(line) for line in lines if line]
    reader = PartReader(place, [f"{stem}.jpg" for stem in stems], wanted)
    for stem in stems:
        if stem in paths:
            _read_voc_file(paths[stem], stem, reader, origin)
        else:
            reason = f"has no {place.labels / stem}.xml; add it, or take the name out"
            reader.inventory.problem(listed, None, stem, reason)
    inventory = reader.finish(listed)
    # Lists leave images out, e.g. those to test on; an image with an XML file is not an unlabelled one.
    labelled = {inventory.folder / stem for stem in paths}
    inventory.unlabelled[:] = [path for path in inventory.unlabelled if path.with_suffix("") not in labelled]
    return inventory


def _read_voc_file(path: Path, stem: str, reader: PartReader, origin: int) -> None:
    problem = reader.inventory.problem
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        problem(path, None, path.name, f"is no XML ({error}); fix or remove the file")
        return
    if root.tag != "annotation":
        problem(path, None, f"<{root.tag}>", "stands where VOC has <annotation>")
        return
    rows, ignored = list[list[float]](), list[bool]()
    for item in root.findall("object"):
        name = (item.findtext("name") or "").strip()
        box = label_numbers(" ".join(item.findtext(f"bndbox/{side}") or "-" for side in VOC_SIDES))
        if not name or box is None or len(box) != len(VOC_SIDES):
            reason = f"is no object with a name and a bndbox with {', '.join(VOC_SIDES)}"
            problem(path, None, "".join(item.itertext()), reason)
        elif reader.is_face(name):
            rows.append(box)
            ignored.append((item.findtext("difficult") or "").strip() == "1")
    filename = (root.findtext("filename") or "").strip()
    written = stem + (PurePosixPath(filename).suffix if has_image_extension(filename) else ".jpg")
    sides = label_numbers(" ".join(root.findtext(f"size/{name}") or "" for name in ("width", "height"))) or []
    reader.add(written, boxes_of(rows) - [origin, origin, 0, 0], ignored, path, _stated(sides))


@dataclass(frozen=True)
class YoloNames:
    """What data.yaml or classes.txt says: ``names`` by class number; how many ``landmark_numbers`` are after each box
    (None: unknown); ``folders`` of images by ``train``, ``val`` … as they stand there.
    """

    names: dict[float, str] = field(default_factory=dict)
    landmark_numbers: int | None = None
    folders: dict[str, str] = field(default_factory=dict)

    def name_of(self, number: float) -> str | None:
        """The class's name. Where nothing is named, 0 is the face and the others have their number for a name."""
        if self.names:
            return self.names.get(number)
        return ("face" if number == 0 else f"{number:.0f}") if number >= 0 and number % 1 == 0 else None


def read_names(root: Path, *label_folders: Path) -> YoloNames:
    """Of data.yaml in ``root``, or of classes.txt there or among the labels, where LabelImg leaves it."""
    path = next((root / name for name in YAML_FILES if (root / name).is_file()), None)
    if path is None:
        texts = [text for folder in (root, *label_folders) if (text := folder / "classes.txt").is_file()]
        read = [[line.strip() for line in read_text(text).splitlines()] for text in texts] or [[]]
        if other := next((text for text, lines in zip(texts, read, strict=False) if lines != read[0]), None):
            raise InputError(f"{texts[0]} and {other} name the classes differently; keep what is true")
        return YoloNames({number: line for number, line in enumerate(read[0]) if line})
    try:
        content: dict[str, Any] = yaml.safe_load(read_text(path))
        names = content.get("names") or {}
        named = {float(k): str(name) for k, name in (enumerate(names) if isinstance(names, list) else names.items())}
        points, each = content.get("kpt_shape") or (None, 1)
        folders = {name: content[name] for own in PART_NAMES.values() for name in own if content.get(name)}
        for name, folder in folders.items():
            if not isinstance(folder, str):
                raise ValueError(f"{name}: {folder} is not a directory")
            folders[name] = str(Path(str(content.get("path") or "."), folder))
        return YoloNames(named, None if points is None else int(points) * int(each), folders)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: {first_line(error)}; write names (a list, or number: name), train, val (a folder each) and "
            "kpt_shape ([points, numbers of each]) as Ultralytics has them"
        ) from error


def yolo_place(root: Path, part: str, folder: Path | None = None, *, listed: bool = False) -> Place | None:
    """As :func:`wider_place`; the images are in ``folder`` if that is given. A list of images in data.yaml is an
    InputError unless the part is ``listed`` otherwise."""
    folders = read_names(root).folders
    candidates = [root / "images", root] if part == "all" else []
    # Roboflow writes ../train/images of what is in train/images.
    named = [folders[name] for name in PART_NAMES[part] if name in folders]
    for text in named if not listed else ():
        if text.endswith(".txt"):
            raise InputError(f"{root}: {text} of data.yaml is a list of images; give data.{part}.images=LIST as well")
    for steps in (Path(text).parts for text in named):
        candidates += [root.joinpath(*steps), root.joinpath(*(step for step in steps if step != ".."))]
    for name in PART_NAMES[part]:
        candidates += [root / "images" / name, root / name / "images", root / name]
    for own in candidates if folder is None else [folder]:
        if any(map(has_image_extension, walk_files(own))):
            # The text files are in the images' folder with "labels" for the last "images", or in the same.
            places = [index for index, step in enumerate(own.parts) if step == "images"]
            swapped = [Path(*own.parts[:last], "labels", *own.parts[last + 1 :]) for last in places[-1:]]
            return Place(part, next(filter(Path.is_dir, swapped), own), (own,))
    return None


def read_yolo(place: Place, names: YoloNames, wanted: Sequence[str] | None, points: str | None) -> Inventory:
    """Of a folder of images; ``points``, what the numbers after the fourth are: landmarks or a polygon."""
    reader, texts, used = PartReader(place, (), wanted), place.labels, set[str]()
    images, remarks = reader.files.names, reader.inventory.remarks
    written = label_files(texts, ".txt")
    # A file that fits an image to the letter is no other image's.
    stems = set(map(without_extension, images))
    folded = {stem.casefold(): stem for stem in written if stem not in stems}
    for name in images:
        stem = without_extension(name)
        own = stem if stem in written else folded.get(stem.casefold())
        if own is None:
            reader.add(name, boxes_of([]), [], reader.files.folder / name)
        else:
            used.add(own)
            _read_yolo_file(written[own], name, reader, names, points)
    if not used:
        raise InputError(
            f"{texts} holds no label file for the {len(images)} images of {reader.files.folder} ({len(written)} .txt "
            "files); labels have the images' names, data.train.labels and data.val.labels name their folder"
        )
    for own, path in written.items():
        if own not in used and path.stem not in NO_LABELS:
            reason = "is a label file without an image; remove it, or let the doctor make a cleaned copy (fix=true)"
            reader.inventory.problem(path, None, path.name, reason)
    if len(used) < len(images):
        without = f"{len(images) - len(used)} of {len(images)} images"
        remarks.append(f"{without} have no label file in {texts}: no face is in them")
    if not names.names and wanted is None:
        remarks.append("no data.yaml or classes.txt names the classes: class 0 is taken for the face")
    return reader.finish(texts)


def _read_yolo_file(path: Path, name: str, reader: PartReader, names: YoloNames, points: str | None) -> None:
    rows, lines, text = list[list[float]](), list[int](), ""
    try:
        text = read_text(path)
    except (InputError, OSError) as error:
        reader.inventory.problem(path, None, path.name, str(error))
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            row, reason = _yolo_row(label_numbers(content) or [], names, points)
            if reason:
                reader.inventory.problem(path, line, content, reason)
            elif reader.is_face(names.name_of(row[0]) or ""):
                rows.append(row[1:])
                lines.append(line)
    boxes = boxes_of(rows)
    if rows:
        try:
            height, width = read_image_size(reader.files.folder / name)
            boxes = boxes * [width, height, width, height]
        except UnreadableImage:  # training replaces such an image, and the doctor names it
            boxes, lines = boxes[:0], []
    reader.add(name, boxes, [False] * len(boxes), path, box_lines=tuple(lines))


def _yolo_row(row: list[float], names: YoloNames, points: str | None) -> tuple[list[float], str]:
    """The class and the normalized box x1 y1 x2 y2, and why it is no row."""
    number, values, declared = row[0] if row else -1, row[1:], names.landmark_numbers
    extra = len(values) - 4
    polygon = extra > 0 and declared is None and points == "polygon"
    if extra < 0:
        return [], "is no row of numbers 'class x y w h'; set data.format to what the labels are"
    if polygon and extra % 2:
        return [], "is no polygon 'class x y x y …'"
    if extra and declared not in (None, extra):
        return [], f"has {extra} numbers after the box, kpt_shape in data.yaml says {declared}"
    if extra and declared is None and not polygon and (points is None or extra == 1):
        return [], (
            f"has {len(values)} numbers after the class; say what they are: data.points=landmarks (after the box "
            "x y w h) or data.points=polygon (instead of it); a confidence is no label"
        )
    values = values if polygon else values[:4]
    wrong = next((value for value in values if not 0 <= value <= MOST), None)
    if wrong is not None:
        return [], f"has {wrong:g} where a normalized coordinate (0 … 1) is expected"
    if names.name_of(number) is None:
        return [], f"has the class {number:g}, which data.yaml or classes.txt does not name"
    if polygon:
        xs, ys = values[0::2], values[1::2]
        return [number, min(xs), min(ys), max(xs), max(ys)], ""
    x, y, width, height = values
    return [number, x - width / 2, y - height / 2, x + width / 2, y + height / 2], ""


def labels_of(format: str, place: Place) -> Path | None:
    """A file of labels of a format; None if there is none."""
    if format == "yolo":
        stems = set(map(without_extension, PartReader(place, ()).files.names))
        for stem, path in label_files(place.labels, ".txt").items():
            if stem in stems and (text := read_text(path).strip()):
                return path if len(label_numbers(text.partition("\n")[0]) or ()) >= 5 else None
        return None
    if format == "voc":
        return next(iter(label_files(place.labels, ".xml").values()), None)
    text = read_text(place.labels) if place.labels.is_file() else ""
    told = text.lstrip().startswith("{") and '"images"' in text if format == "coco" else is_list(text)
    return place.labels if told else None
