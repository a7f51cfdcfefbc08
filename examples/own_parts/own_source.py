"""A data source: images whose faces are in CSV files, ``image,x1,y1,x2,y2`` in pixels."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from fanet_lightning.cli.errors import InputError
from fanet_lightning.data.records import ImageRecord, clean_record
from fanet_lightning.data.sources import SyntheticSource
from fanet_lightning.data.wider_face import all_usable_faces
from fanet_lightning.score.wider_face.benchmark import WiderFaceBenchmark
from fanet_lightning.score.wider_face.ground_truth import GroundTruth


class CsvFaces:
    """``root/train.csv`` and ``root/val.csv``; images are relative to ``root``.

    Where ``root`` is not there, ``drawn`` synthetic images, to train and to validate on, stand in.
    """

    name = "csv_faces"

    def __init__(self, root: str, drawn: tuple[int, int] = (64, 16)) -> None:
        self.root, self.drawn = Path(root), drawn

    def prepare(self) -> None:
        """Write or fetch what is needed; may be called again."""
        if self.root.exists():
            return
        drawn = SyntheticSource(self.root / "images", *self.drawn)
        for part, records in (("train", drawn.train()), ("val", drawn.val())):
            rows = [[one.path.relative_to(self.root), *box] for one in records for box in one.boxes_xyxy.tolist()]
            with (self.root / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)

    def check(self, train: bool = True) -> None:
        """Say what is wrong before any work starts, without writing: an InputError is one line at the command line."""
        for part in ("train", "val") if train else ("val",):
            if self.root.exists() and not (self.root / f"{part}.csv").is_file():
                raise InputError(f"data.root={self.root}: there is no {part}.csv; give the folder that holds it")

    def train(self) -> list[ImageRecord]:
        return self._records("train")

    def val(self) -> list[ImageRecord]:
        return self._records("val")

    def _records(self, part: str) -> list[ImageRecord]:
        self.prepare()
        boxes: dict[str, list[list[float]]] = defaultdict(list)
        with (self.root / f"{part}.csv").open(newline="", encoding="utf-8") as file:
            for name, *box in csv.reader(file):
                boxes[name].append([float(x) for x in box])
        return [
            clean_record(str(Path(name).with_suffix("")), self.root / name, np.array(own))
            for name, own in sorted(boxes.items())
        ]

    def ground_truth(self) -> GroundTruth:
        """Of the images of :meth:`val`, in their order, as the benchmark takes it."""
        return all_usable_faces(self.val())

    def benchmark(self) -> WiderFaceBenchmark:
        """What scores detections; ``fanet_lightning.score.results.Benchmark`` says what one of your own has."""
        return WiderFaceBenchmark(name=self.name, title="faces in CSV files")
