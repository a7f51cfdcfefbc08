"""Faces that a redacted video leaves uncovered, with ``track=true`` and without, and frames per second.

    python benchmarks/video_tracking.py --wider WIDER_FACE_ROOT                   # faces uncovered
    python benchmarks/video_tracking.py --wider ROOT --speed --checkpoint light.onnx --words protocol=original

The videos are made: 640 × 480, 300 frames, 25 a second, of real faces (WIDER FACE val: clear, frontal, unoccluded, 90
pixels and more) on a blurred photograph. Each face moves on its own, comes in over the border or out from behind one of
two pillars, leaves again, grows and shrinks between 14 and 90 pixels, is out of focus for 3 to 8 frames every second or
two; everything has sensor noise and went through H.264. A face counts in a frame where half of it is inside the image
and not behind a pillar. It is uncovered where less than half of that is inside the regions that ``redact`` changes.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fanet_lightning.data.images import read_image_rgb
from fanet_lightning.data.wider_face import read_annotations
from fanet_lightning.detect.redaction import redacted_regions

WIDTH, HEIGHT, FRAMES, RATE, FACES = 640, 480, 300, 25, 12
PILLARS = ((200, 236), (430, 466))
AROUND = 0.45  # of a face's sides that its cut-out has on each side, for hair and chin
Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Truth = list[list[tuple[int, Floats]]]


def clear_faces(root: Path, names: set[str] | None) -> tuple[list[tuple[Path, Floats]], list[Path]]:
    """Images of the val split and boxes x1 y1 x2 y2 of faces without any flag; images whose faces are all small."""
    labelled, _ = read_annotations(
        root if (root / "wider_face_split").is_dir() else root / "wider_face_split.zip", "val"
    )
    faces, grounds = [], []
    for image in labelled:
        path = root / "WIDER_val/images" / f"{image.image_id.removesuffix('.jpg')}.jpg"
        if (names is not None and path.name not in names) or not path.is_file() or image.attributes is None:
            continue
        sides = image.boxes_xyxy[:, 2:] - image.boxes_xyxy[:, :2]
        good = (image.attributes == 0).all(axis=1) & (sides.min(axis=1) >= 90) & ~image.ignored
        faces += [(path, box) for box in image.boxes_xyxy[good]]
        if sides.max(initial=0) < 40:
            grounds.append(path)
    return faces, grounds


def cut_out(path: Path, box: Floats) -> tuple[Images, Floats]:
    """The face with what is around it, at 100 pixels of face height, and its box in there."""
    image = read_image_rgb(path)
    around = AROUND * (box[2:] - box[:2])
    left, top = np.maximum(box[:2] - around, 0).astype(int)
    right, bottom = (box[2:] + around).astype(int)
    scale = 100 / (box[3] - box[1])
    part = cv2.resize(image[top:bottom, left:right], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return part, (box - (left, top, left, top)) * scale


class Walker:
    """One face and its way through the video."""

    def __init__(self, face: tuple[Path, Floats], number: int, random: np.random.Generator) -> None:
        self.part, self.box = cut_out(*face)
        self.begin = int(random.integers(-40, FRAMES - 60))
        self.frames = int(random.integers(90, 220))
        side = random.choice((-1.0, 1.0))
        lane = 50 + (HEIGHT - 100) * (number + random.random()) / FACES
        outside = WIDTH * 0.62
        self.start = np.array([WIDTH / 2 - side * outside, lane])
        # Two thirds cross the image, the others turn round in it.
        reach = outside if random.random() < 0.67 else random.uniform(-0.2, 0.3) * WIDTH
        self.end = np.array([WIDTH / 2 + side * reach, lane + random.uniform(-80, 80)])
        self.turns = reach != outside
        self.heights = random.uniform(14, 90, 3)
        self.wobble = random.uniform(1, 5), random.uniform(0.1, 0.3)
        self.blurred: dict[int, float] = {}
        frame = int(random.integers(5, 40))
        while frame < self.frames:
            length = int(random.integers(3, 9))
            strength = random.uniform(0.1, 0.3)
            self.blurred |= {frame + k: strength * np.sin(np.pi * (k + 1) / (length + 1)) for k in range(length)}
            frame += length + int(random.integers(25, 50))

    def at(self, frame: int) -> tuple[Images, Floats, Floats] | None:
        """Its pixels, their box in them, and where their upper left corner is in the image; None: not there."""
        age = frame - self.begin
        if not 0 <= age < self.frames:
            return None
        share = age / self.frames
        along = 1 - abs(2 * share - 1) if self.turns else share
        place = self.start + (self.end - self.start) * along
        place = place + np.array([0.0, self.wobble[0] * np.sin(self.wobble[1] * age)])
        height = float(np.interp(share, (0, 0.5, 1), self.heights))
        scale = height / 100
        part = cv2.resize(self.part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        sigma = self.blurred.get(age, 0.0) * height
        if sigma > 0.3:
            part = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        box = self.box * scale
        center = (box[:2] + box[2:]) / 2
        return part, box, place - center


def paste(image: Images, part: Images, box: Floats, corner: Floats) -> Floats:
    """Put a cut-out into the image, with a soft ellipse around its face as mask; the face's box in the image."""
    left, top = np.round(corner).astype(int)
    rows, columns = np.mgrid[: part.shape[0], : part.shape[1]]
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    away = np.hypot((columns - center[0]) / half[0], (rows - center[1]) / half[1])
    mask = np.clip((1.75 - away) / 0.35, 0, 1)[..., None]
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + part.shape[1], WIDTH), min(top + part.shape[0], HEIGHT)
    if x2 > x1 and y2 > y1:
        inside = np.s_[y1 - top : y2 - top, x1 - left : x2 - left]
        image[y1:y2, x1:x2] = mask[inside] * part[inside] + (1 - mask[inside]) * image[y1:y2, x1:x2]
    return box + np.array([left, top, left, top])


def make_video(path: Path, faces: list[tuple[Path, Floats]], grounds: list[Path], seed: int) -> Truth:
    """Write a video; the (number, box x1 y1 x2 y2) of the faces that count, of every frame."""
    import av

    random = np.random.default_rng(seed)
    chosen = [faces[k] for k in random.choice(len(faces), FACES, replace=False)]
    photograph = read_image_rgb(grounds[random.integers(len(grounds))])
    # Nothing of its own small faces is left.
    ground = cv2.GaussianBlur(cv2.resize(photograph, (WIDTH, HEIGHT)), (0, 0), 10)
    noise = random.normal(0, 4, ground.shape)
    walkers = [Walker(face, number, random) for number, face in enumerate(chosen)]
    truth: Truth = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in range(FRAMES):
            image, boxes = ground.copy(), []
            front = np.full((HEIGHT, WIDTH), -1, np.int8)  # whose face a pixel shows
            for number, walker in enumerate(walkers):
                there = walker.at(frame)
                if there is not None:
                    box = paste(image, *there)
                    boxes.append((number, box))
                    front[_rows(box), _columns(box)] = number
            for left, right in PILLARS:
                image[:, left:right] = (96, 92, 88)
                front[:, left:right] = -1
            noisy = image + np.roll(noise, random.integers(WIDTH, size=2), axis=(0, 1))
            encoded = av.VideoFrame.from_ndarray(np.clip(noisy, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(encoded))
            truth.append([
                (number, box) for number, box in boxes
                if (front[_rows(box), _columns(box)] == number).sum() >= 0.5 * np.prod(box[2:] - box[:2])
            ])  # fmt: skip
        container.mux(stream.encode(None))
    return truth


def _rows(box: Floats) -> slice:
    return slice(max(round(float(box[1])), 0), max(round(float(box[3])), 0))


def _columns(box: Floats) -> slice:
    return slice(max(round(float(box[0])), 0), max(round(float(box[2])), 0))


def uncovered(truth: Truth, found: dict[int, list[list[float]]]) -> tuple[int, float]:
    """Faces, over all frames, of which less than half is covered; and the mean share of the image that is covered."""
    missed, area = 0, 0.0
    for frame, faces in enumerate(truth):
        covered = np.zeros((HEIGHT, WIDTH), bool)
        for left, top, right, bottom in redacted_regions(found.get(frame, []), HEIGHT, WIDTH):
            covered[top:bottom, left:right] = True
        area += covered.mean() / len(truth)
        for left, right in PILLARS:
            covered[:, left:right] = True  # nothing of a face is to be seen there
        missed += sum(bool(covered[_rows(box), _columns(box)].mean() < 0.5) for _, box in faces)
    return missed, area


def run_detect(source: Path, out: Path, words: list[str]) -> tuple[dict[int, list[list[float]]], float]:
    """``detect`` on the command line: boxes by frame, and the frames per second that it says."""
    command = [sys.executable, "-m", "fanet_lightning.detect", f"source={source}", f"out={out}", "resume=false", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    lines = [json.loads(line) for line in (out / f"frames/{source.stem}.jsonl").read_text().splitlines()]
    speed = re.search(r"([\d.]+) frames/s; the results", done.stdout)
    return {line["frame"]: line["boxes_xyxy"] for line in lines}, float(speed[1]) if speed else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wider", type=Path, required=True, help="WIDER FACE's folder")
    parser.add_argument("--images", type=Path, help="list of val images that faces are taken from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one video each")
    parser.add_argument("--checkpoint", default="fanet_light")
    parser.add_argument("--words", nargs="*", default=[], help="further words of detect")
    parser.add_argument("--speed", action="store_true", help="time instead of counting")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    names = {Path(line).name for line in args.images.read_text().split()} if args.images else None
    faces, grounds = clear_faces(args.wider, names and {name.removesuffix(".jpg") + ".jpg" for name in names})
    words = [f"checkpoint={args.checkpoint}", *args.words]
    with tempfile.TemporaryDirectory() as folder:
        videos = {seed: Path(folder) / f"video{seed}.mp4" for seed in args.seeds}
        truths = {seed: make_video(video, faces, grounds, seed) for seed, video in videos.items()}
        if args.speed:
            for further in (["track=true"], ["track=true", "every=2"]):
                video = videos[args.seeds[0]]
                speeds = [run_detect(video, Path(folder) / "o", [*words, *further])[1] for _ in range(args.repeats)]
                print(f"{' '.join(further):22} {max(speeds):5.1f} frames/s, the best of {args.repeats}: {speeds}")
            return
        total = sum(len(frame) for truth in truths.values() for frame in truth)
        print(f"{total:,} faces in {FRAMES * len(videos):,} frames of {len(videos)} videos")
        for further in ([], ["track=true"], ["track=true", "every=2"], ["track=true", "every=3"]):
            results = [
                uncovered(truths[seed], run_detect(video, Path(folder) / "o", [*words, "redact=pixelate", *further])[0])
                for seed, video in videos.items()
            ]
            missed = [number for number, _ in results]
            share = sum(area for _, area in results) / len(results)
            print(f"{' '.join(further) or 'as before':22} {sum(missed):5,} uncovered {missed}, "
                  f"{sum(missed) / total:.2%}; {share:.1%} of the image covered")  # fmt: skip


if __name__ == "__main__":
    main()
