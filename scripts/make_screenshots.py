"""The images of docs/images: walls of two public-domain photographs, detected, scored, examined and trained on.

    uv run --with scikit-image python scripts/make_screenshots.py

Minutes on two cores. Needs the extra app, playwright and the Chromium of the system. The photographs
are Grace Hopper (U.S. Navy; in matplotlib) and Eileen Collins (NASA; in scikit-image).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageFilter, ImageOps
from playwright.sync_api import Page, sync_playwright

from fanet_lightning import FaceDetector
from fanet_lightning.app import serving
from fanet_lightning.app.settings import Settings
from fanet_lightning.cli.config import compose_config, plain
from fanet_lightning.score.wider_face.ground_truth import GroundTruth, write_ground_truth

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE_WH, EVENT = (1024, 680), "0--Wall"
LEAST_HEIGHT = {"easy": 50, "medium": 30, "hard": 10}  # pixels, as WIDER FACE's settings roughly are


def photographs() -> list[tuple[Image.Image, np.ndarray]]:
    """Each with its face's box x1 y1 x2 y2, drawn by hand."""
    from skimage.data import astronaut

    hopper = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    return [(hopper, np.array([182, 128, 352, 330])), (Image.fromarray(astronaut()), np.array([176, 68, 274, 190]))]


def wall(rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Rows of the photographs at random heights, some mirrored or blurred, and the faces' boxes (F, 4) x y w h."""
    photos, canvas, boxes, top = photographs(), Image.new("RGB", SIZE_WH, (214, 208, 198)), [], 6
    while top < SIZE_WH[1] - 40:
        height, left = int(min(rng.choice([40, 60, 90, 140, 220, 330]), SIZE_WH[1] - top - 6)), 6
        while True:
            photo, (x1, y1, x2, y2) = photos[rng.integers(2)]
            factor = height / photo.height
            copy = photo.resize((round(photo.width * factor), height), Image.Resampling.LANCZOS)
            if left + copy.width > SIZE_WH[0] - 6:
                break
            if rng.random() < 0.5:
                copy, x1, x2 = ImageOps.mirror(copy), photo.width - x2, photo.width - x1
            if rng.random() < 0.2:
                copy = copy.filter(ImageFilter.GaussianBlur(height / 60))
            canvas.paste(copy, (left, top))
            boxes.append([left + x1 * factor, top + y1 * factor, (x2 - x1) * factor, (y2 - y1) * factor])
            left += copy.width + 6
        top += height + 6
    return canvas, np.array(boxes).round().astype(int)


def make_walls(root: Path, train: int = 24, val: int = 12) -> None:
    """A data set of walls in the layout of WIDER FACE."""
    rng = np.random.default_rng(0)
    (root / "wider_face_split").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        folder, walls, lines = root / f"WIDER_{split}" / "images" / EVENT, {}, []
        folder.mkdir(parents=True)
        for number in range(count):
            name = f"{EVENT}/0_Wall_{split}_{number:02d}"
            image, walls[name] = wall(rng)
            image.save(root / f"WIDER_{split}" / "images" / f"{name}.jpg", quality=90)
            rows = (f"{x} {y} {w} {h} 0 0 0 0 0 0" for x, y, w, h in walls[name])
            lines += [f"{name}.jpg", str(len(walls[name])), *rows]
        (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    boxes = [own.astype(np.float64) for own in walls.values()]
    counted = {setting: [own[:, 3] >= least for own in boxes] for setting, least in LEAST_HEIGHT.items()}
    write_ground_truth(root / "eval_gt", GroundTruth(tuple(walls), boxes, counted))


def spoil(root: Path) -> None:
    """What the doctor is to find: a copy in both parts, boxes outside, doubled and without area."""
    train, val = (root / f"WIDER_{split}" / "images" / EVENT for split in ("train", "val"))
    shutil.copy(val / "0_Wall_val_02.jpg", train / "0_Wall_train_05.jpg")
    labels = root / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    lines = labels.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.endswith("train_08.jpg")) + 2
    lines[first] = "980 20 90 110 0 0 0 0 0 0"
    lines[first + 1] = lines[first + 2]
    lines[first + 3] = "500 300 0 12 0 0 0 0 0 0"
    labels.write_text("\n".join(lines) + "\n")


def fanet(work: Path, verb: str, *words: str, codes: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run([sys.executable, "-m", "fanet_lightning", verb, *words], cwd=work, check=False)
    if done.returncode not in codes:
        sys.exit(f"fanet {verb} {' '.join(words)} ended with {done.returncode}")


def shoot(page: Page, name: str, height: int, quality: int = 65) -> None:
    """The upper part of what the page shows, as JPEG."""
    clip = {"x": 0, "y": 0, "width": 1280, "height": height}
    page.screenshot(path=IMAGES / name, type="jpeg", quality=quality, clip=clip, full_page=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))


def make(work: Path) -> None:
    make_walls(work / "walls")
    shutil.copytree(work / "walls", work / "spoiled")
    spoil(work / "spoiled")
    photo = work / "walls" / "WIDER_val" / "images" / EVENT / "0_Wall_val_00.jpg"
    fanet(work, "detect", f"source={photo}", "out=detect", "save=images")
    Image.open(work / "detect" / "images" / photo.name).save(IMAGES / "detections.jpg", quality=75)
    walls = ("data=wider_face", "data.root=walls", "protocol=original")
    fanet(work, "evaluate", "checkpoint=fanet_light", *walls, "out=scores", "errors=true")
    fanet(
        work, "doctor", "data=folder", "data.format=wider", "data.root=spoiled", "out=doctor", "passes=20", codes=(1,)
    )
    walls = ("data=folder", "data.format=wider", "data.root=walls")
    settings = ("optim.lr=0.0001,0.001", "seed=0,1", "epochs=2", "input_size=256", "sweep=runs")
    fanet(work, "train", "-m", "experiment=finetune", *walls, *settings)
    fanet(work, "report", "runs=runs")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto((work / "scores/errors/index.html").as_uri())
        shoot(page, "errors.jpg", 900)
        page.goto((work / "doctor/page/index.html").as_uri())
        shoot(page, "doctor.jpg", 1100)
        page.goto((work / "runs/report/report.html").as_uri())
        shoot(page, "report.jpg", 1100)
        with serving.serving(
            FaceDetector.from_pretrained(), Settings(plain(compose_config("app", ["port=null"])))
        ) as url:
            page.goto(url)
            page.set_input_files("#image-in input[type=file]", str(photo))
            page.wait_for_selector("#image-summary .main")
            page.wait_for_selector("#image-out img")
            shoot(page, "app.jpg", 1040)
        browser.close()


if __name__ == "__main__":
    main()
