"""Photos of 4,000 pixels with large faces: faces found, boxes on no face and time, by protocol.

    python benchmarks/large_photos.py --wider WIDER_FACE_ROOT --images test.txt
    python benchmarks/large_photos.py --wider ROOT --images test.txt --checkpoint light.onnx --time 16 --threads 2

The photos are made: the val images of the list with one to three faces, the larger side of each 200 pixels and more,
enlarged bicubically until their longer side has 4,000 pixels, JPEG of quality 92. A face is found where a box has an
IoU of 0.5 with it; a box with less with every face is on no face. With --time the first so many photos are read and
looked at instead, each by all protocols in turn, best of three; printed are the median and the ratio of the sums.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from fanet_lightning import FaceDetector
from fanet_lightning.data.wider_face import read_annotations
from fanet_lightning.ops.boxes import pairwise_iou

LONGER_SIDE, LEAST_FACE = 4000, 200


def make_photos(root: Path, names: set[str], folder: Path) -> list[tuple[Path, torch.Tensor]]:
    """The photos, and the boxes (F, 4) x1 y1 x2 y2 of their faces."""
    photos = []
    for image in read_annotations(root / "wider_face_split.zip", "val")[0]:
        boxes = torch.from_numpy(image.boxes_xyxy).float()
        if Path(image.image_id).stem not in names or not 1 <= len(boxes) <= 3:
            continue
        if (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).min() < LEAST_FACE:
            continue
        opened = Image.open(root / "WIDER_val/images" / f"{image.image_id.removesuffix('.jpg')}.jpg").convert("RGB")
        scale = LONGER_SIDE / max(opened.size)
        enlarged = opened.resize((round(opened.width * scale), round(opened.height * scale)), Image.Resampling.BICUBIC)
        photos.append((folder / f"{Path(image.image_id).stem}.jpg", boxes * scale))
        enlarged.save(photos[-1][0], quality=92)
    return photos


def seconds(detector: FaceDetector, photo: Path, protocol: str) -> float:
    start = time.perf_counter()
    detector.detect(photo, protocol=protocol)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wider", type=Path, required=True, help="WIDER FACE's folder")
    parser.add_argument("--images", type=Path, required=True, help="list of val images")
    parser.add_argument("--checkpoint", default="fanet_light", help="a model or an exported file")
    parser.add_argument("--protocols", nargs="+", default=["auto", "short640", "vga640"])
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--time", type=int, help="time so many photos instead of counting")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    exported = Path(args.checkpoint).suffix in (".onnx", ".xml")
    detector = (FaceDetector.from_onnx if exported else FaceDetector.from_pretrained)(args.checkpoint)
    names = {Path(line).stem for line in args.images.read_text().split()}
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(args.wider, names, Path(folder))
        if args.time:
            paths = [path for path, _ in photos[: args.time]]
            for protocol in args.protocols:
                seconds(detector, paths[0], protocol)
            best = [[min(seconds(detector, x, p) for _ in range(3)) for p in args.protocols] for x in paths]
            of_first = sum(times[0] for times in best)
            for protocol, own in zip(args.protocols, zip(*best, strict=True), strict=True):
                ratio = of_first / sum(own)
                print(
                    f"{protocol:10} {1000 * statistics.median(own):5.0f} ms, {args.protocols[0]} is {ratio:.2f} × that"
                )
            return
        print(f"{len(photos)} photos, {sum(len(boxes) for _, boxes in photos)} faces")
        for protocol in args.protocols:
            found = wrong = 0
            for path, boxes in photos:
                overlaps = pairwise_iou(
                    detector.detect(path, protocol=protocol, threshold=args.threshold).boxes_xyxy, boxes
                )
                found += int((overlaps >= 0.5).any(dim=0).sum())
                wrong += int((overlaps < 0.5).all(dim=1).sum())
            print(f"{protocol:10} {found} faces found, {wrong} boxes on no face")


if __name__ == "__main__":
    main()
