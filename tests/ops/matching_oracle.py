"""The rule of ``fanet_lightning.ops.matching`` once more: dense IoU, plain Python, one face and one anchor at a
time."""

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.boxes import cxcywh_to_xyxy, pairwise_iou
from fanet_lightning.ops.structures import Targets


def nearest(center: float, cells: int, stride: int, side: int) -> list[int]:
    """The ``side`` cells along an axis whose centers are nearest; of two at the same distance the later one."""
    return sorted(range(cells), key=lambda i: (abs((i + 0.5) * stride - center), -i))[:side]


def seen_anchors(grid: AnchorGrid, box: list[float], side: int) -> list[int]:
    """Numbers of the anchors that a face may have, ascending."""
    seen = []
    for (height, width), stride, start in zip(grid.map_shapes, grid.strides, grid.starts, strict=True):
        columns = nearest((box[0] + box[2]) / 2, width, stride, side)
        rows = nearest((box[1] + box[3]) / 2, height, stride, side)
        seen += [start + y * width + x for y in rows for x in columns]
    return sorted(seen)


def match_slowly(
    grid: AnchorGrid, targets: Targets, batch_size: int, side: int, threshold: float, rounds: int, second_stage: bool
) -> tuple[list[list[int]], int]:
    """→ face number per image and anchor, -1 for none, and the number of faces without an anchor."""
    dense = pairwise_iou(targets.boxes_xyxy, cxcywh_to_xyxy(grid.boxes_cxcywh()))
    # Compared as tensors: in double precision 0.35 is another number.
    above, above_second = (dense > threshold).tolist(), (dense > 0.1).tolist()
    iou = dense.tolist()
    images = targets.image_index.tolist()
    seen = [seen_anchors(grid, box, side) for box in targets.boxes_xyxy.tolist()]

    def grant(wishes: dict[int, list[int]], owner: dict[int, int]) -> None:
        """wishes: anchor → the faces that want it."""
        for anchor, rivals in wishes.items():
            if rivals:
                owner[anchor] = min(rivals, key=lambda face: (-iou[face][anchor], face))

    def first_choices(faces: list[int], forced: dict[int, int]) -> dict[int, list[int]]:
        wishes: dict[int, list[int]] = {}
        for face in faces:
            free = [anchor for anchor in seen[face] if anchor not in forced and iou[face][anchor] > 0]
            if free:
                wishes.setdefault(max(free, key=lambda anchor: (iou[face][anchor], -anchor)), []).append(face)
        return wishes

    result, unmatched = [], 0
    for image in range(batch_size):
        faces = [face for face, of in enumerate(images) if of == image]
        owner: dict[int, int] = {}
        forced: dict[int, int] = {}
        grant({anchor: [face for face in faces if above[face][anchor]] for anchor in range(grid.count)}, owner)
        grant(first_choices(faces, forced), forced)
        owner.update(forced)
        for _ in range(rounds):
            grant(first_choices([face for face in faces if face not in owner.values()], forced), forced)
            owner.update(forced)
        if second_stage:
            wishes: dict[int, list[int]] = {}
            for face in faces:
                if list(owner.values()).count(face) < 6:
                    free = [a for a in seen[face] if a not in owner and above_second[face][a]]
                    for anchor in sorted(free, key=lambda a: (-iou[face][a], a))[:6]:
                        wishes.setdefault(anchor, []).append(face)
            grant(wishes, owner)
        result.append([owner.get(anchor, -1) for anchor in range(grid.count)])
        unmatched += sum(face not in owner.values() for face in faces)
    return result, unmatched
