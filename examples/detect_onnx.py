"""Find faces with an exported file and nothing but onnxruntime, NumPy and OpenCV.

    python -m fanet_lightning.export format=onnx out=faces.onnx       # once, where fanet-lightning is installed
    python detect_onnx.py faces.onnx photo.jpg [more.jpg …] [--threshold 0.5] [--save FOLDER]

Prints one line of JSON per image: {"image": …, "width": …, "height": …, "faces": [{"box_xyxy": [x1, y1, x2, y2],
"score": …}, …]}, boxes in pixels, best first. Leaves with 1 if an image could not be read, with 2 if the
model could not. Copy it and change it.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

# As protocol=auto, the default of fanet_lightning: a first size for small faces, a second one for large ones.
MAX_PIXELS, MIN_SHORT, SECOND_SHORT = 1024 * 768, 480, 384
SMALLER_UNDER, LARGER_OVER = 150, 48  # boxes that each is trusted with, pixels of the first size


def find_faces(session: onnxruntime.InferenceSession, image_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 as OpenCV reads it → boxes (D, 4) in its pixels, clipped to it, and scores (D,), descending."""
    height, width = image_bgr.shape[:2]
    scale = min(4, max(1, MIN_SHORT / min(height, width)), (MAX_PIXELS / (height * width)) ** 0.5)
    first = resized(image_bgr, scale, cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    second = resized(first, min(0.6, SECOND_SHORT / min(first.shape[:2])), cv2.INTER_AREA)
    found = []
    for image, small in ((first, True), (second, False)):
        images = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))[None]  # (1, 3, h, w) uint8 RGB
        boxes_xyxy, scores, _ = session.run(["boxes_xyxy", "scores", "image_index"], {"images": images})
        boxes_xyxy *= np.float32([first.shape[1] / image.shape[1], first.shape[0] / image.shape[0]] * 2)
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        kept = sides.min(axis=1) < SMALLER_UNDER if small else sides.max(axis=1) > LARGER_OVER
        found.append((boxes_xyxy[kept], scores[kept]))
    boxes_xyxy, scores = (np.concatenate(x) for x in zip(*found, strict=True))
    kept = cv2.dnn.NMSBoxes(np.hstack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]]), scores, 0.0, 0.3)
    kept = np.asarray(kept, dtype=int).reshape(-1)
    boxes_xyxy = boxes_xyxy[kept] * np.float32([width / first.shape[1], height / first.shape[0]] * 2)
    return np.clip(boxes_xyxy, 0, [width, height, width, height]), scores[kept]


def resized(image: np.ndarray, scale: float, interpolation: int) -> np.ndarray:
    """(H, W, 3) with both sides multiplied."""
    height, width = image.shape[:2]
    return cv2.resize(
        image, (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))), None, 0, 0, interpolation
    )


def read_bgr(path: Path) -> np.ndarray | None:
    """(H, W, 3) uint8, or None; from bytes, since imread adds lines of its own to the error."""
    try:
        return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None


def draw(image_bgr: np.ndarray, boxes_xyxy: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A copy with the boxes on it, from red (score 0) to green (1)."""
    drawn, thickness = image_bgr.copy(), max(1, round(min(image_bgr.shape[:2]) / 300))
    for box, score in zip(boxes_xyxy.round().astype(int).tolist(), scores.tolist(), strict=True):
        color = (0, int(255 * score), int(255 * (1 - score)))
        cv2.rectangle(drawn, box[:2], box[2:], color, thickness)
        cv2.putText(drawn, f"{score:.2f}", (box[0], box[1] - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thickness, color)
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="of python -m fanet_lightning.export format=onnx")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="where images with boxes go")
    args = parser.parse_args()
    try:
        session = onnxruntime.InferenceSession(str(args.model), providers=["CPUExecutionProvider"])
        if [x.name for x in session.get_inputs()] != ["images"] or session.get_outputs()[0].name != "boxes_xyxy":
            raise ValueError("its inputs or outputs have other names")
    except Exception as error:  # onnxruntime's have no base of their own
        print(f"error: {args.model} is no file of fanet_lightning.export: {error}", file=sys.stderr)
        return 2
    failed = 0
    for path in args.images:
        image_bgr = read_bgr(path)
        if image_bgr is None:
            print(f"error: {path} cannot be read as an image", file=sys.stderr)
            failed = 1
            continue
        boxes_xyxy, scores = find_faces(session, image_bgr)
        boxes_xyxy, scores = boxes_xyxy[scores >= args.threshold], scores[scores >= args.threshold]
        faces = [
            {"box_xyxy": [round(x, 2) for x in box], "score": round(score, 4)}
            for box, score in zip(boxes_xyxy.tolist(), scores.tolist(), strict=True)
        ]
        height, width = image_bgr.shape[:2]
        print(json.dumps({"image": str(path), "width": width, "height": height, "faces": faces}))
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(args.save / f"{path.stem}.png"), draw(image_bgr, boxes_xyxy, scores))
    return failed


if __name__ == "__main__":
    sys.exit(main())
