"""The benchmarks as ``torchmetrics.Metric`` classes: fed batch by batch, gathered over ranks, any detector.

``compute`` scores with the functions of :mod:`fanet_lightning.score`, so its numbers are those of ``fanet score``,
whatever the number of ranks. Of an image that was shown twice, as samplers do, the first showing counts, in the order
of ranks.

    metric = WiderFaceAP(ground_truth)
    for batch in loader:
        metric.update(batch.image_ids, boxes_xyxy, scores)   # one tensor per image
    metric.compute()                                         # {"easy": …, "medium": …, "hard": …}
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from fanet_lightning.score.coco import MAX_DETECTIONS, CocoBenchmark, CocoDetections, CocoGroundTruth
from fanet_lightning.score.curves import Bools, Floats
from fanet_lightning.score.fddb.benchmark import Ellipses, FddbBenchmark, FddbPredictions
from fanet_lightning.score.fddb.ground_truth import FddbGroundTruth
from fanet_lightning.score.inputs import DetectionsByImage, as_xywh
from fanet_lightning.score.pascal_face.benchmark import PascalFaceBenchmark
from fanet_lightning.score.pascal_face.ground_truth import PascalFaceGroundTruth
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

# image id → faces_xyxy (F, 4), ignored (F,).
Faces = Mapping[str, tuple[Floats, Bools]]


class DetectionMetric(Metric):
    """Base of the classes in :mod:`fanet_lightning.evaluate.metrics`.

    The one state is ``shown``, a float64 tensor on the CPU per image: the number N of bytes of its id, D detections and
    F faces; the id in UTF-8 (N,); ``x1 y1 x2 y2 score`` (5 D,); ``x1 y1 x2 y2 ignored`` (5 F,).
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    shown: list[Tensor] | Tensor

    def __init__(self, ground_truth: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.ground_truth = ground_truth
        self._known = None if ground_truth is None else frozenset(ground_truth.image_ids)
        self._only_shown = False
        self.add_state("shown", [], dist_reduce_fx="cat")

    def update(
        self,
        image_ids: Sequence[str],
        boxes_xyxy: Sequence[Tensor],
        scores: Sequence[Tensor],
        faces_xyxy: Sequence[Tensor] | None = None,
        ignored: Sequence[Tensor] | None = None,
    ) -> None:
        """Take the detections of some images.

        Args:
            image_ids: n names, as in the ground truth.
            boxes_xyxy: n tensors (D_i, 4), pixels of the original image, on any device.
            scores: n tensors (D_i,), any scale, in any order.
            faces_xyxy: n tensors (F_i, 4), the annotated faces; where no ground truth was given to the constructor.
            ignored: n tensors (F_i,) bool, faces that count neither way; by default none.

        ValueError, and nothing is taken: lengths or shapes that do not fit, numbers that are not finite, a negative
        side, an unknown image, faces where there is a ground truth or none where there is not.
        """
        given = [part for part in (boxes_xyxy, scores, faces_xyxy, ignored) if part is not None]
        problem = None
        if isinstance(image_ids, str) or any(len(part) != len(image_ids) for part in given):
            problem = f"{len(image_ids)} image ids, but tensors of {[len(part) for part in given]} images"
        elif (faces_xyxy is None) != (self.ground_truth is not None) or (ignored is not None and faces_xyxy is None):
            problem = "faces_xyxy and ignored are for metrics without a ground truth, which need faces_xyxy"
        elif self._known is not None and (unknown := [own for own in image_ids if own not in self._known]):
            problem = f"image '{unknown[0]}' is not in the ground truth"
        if problem:
            raise ValueError(problem)
        shown = []
        for i, image_id in enumerate(image_ids):
            rows = _packed(image_id, "scores", boxes_xyxy[i], scores[i])
            faces = torch.empty(0, 5, dtype=torch.float64)
            if faces_xyxy is not None:
                flags = torch.zeros(len(faces_xyxy[i])) if ignored is None else ignored[i]
                faces = _packed(image_id, "ignored", faces_xyxy[i], flags)
            name = image_id.encode()
            head = torch.tensor([len(name), len(rows), len(faces), *name], dtype=torch.float64)
            shown.append(torch.cat([head, rows.flatten(), faces.flatten()]))
        self.shown = [*self.shown, *shown]

    def compute(self) -> dict[str, Tensor]:
        """Setting → value, float64 scalars on the metric's device (float32 on MPS); NaN where no face counts.

        With a ground truth all of its images count, those that were not shown as images without a detection.
        """
        found, faces = self._shown()
        truth = self.ground_truth
        if truth is None:
            truth = self._from_faces(faces)
        elif self._only_shown:
            truth = truth.select([image_id for image_id in truth.image_ids if image_id in found])
        dtype, values = torch.float32 if self.device.type == "mps" else torch.float64, self._values(truth, found)
        return {name: torch.tensor(value, dtype=dtype, device=self.device) for name, value in values.items()}

    def forward(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        """As ``update``; hands back the value over the images of this batch alone."""
        self._only_shown = True
        try:
            return super().forward(*arguments, **keywords)  # type: ignore[no-any-return]
        finally:
            self._only_shown = False

    def _from_faces(self, faces: Faces) -> Any:
        """The ground truth of the images that were shown, their ids sorted."""

    @abstractmethod
    def _values(self, ground_truth: Any, found: DetectionsByImage) -> Mapping[str, float]: ...

    def _joined(self) -> Tensor:
        """The state in one piece on the CPU: a list before it was gathered, a tensor afterwards."""
        parts = [self.shown] if isinstance(self.shown, Tensor) else self.shown
        return torch.cat([torch.empty(0, dtype=torch.float64), *(part.cpu() for part in parts)])

    def _shown(self) -> tuple[dict[str, tuple[Floats, Floats]], dict[str, tuple[Floats, Bools]]]:
        """Detections and faces per image, the first showing of each."""
        found: dict[str, tuple[Floats, Floats]] = {}
        annotated: dict[str, tuple[Floats, Bools]] = {}
        left = self._joined().numpy()
        while len(left):
            characters, rows, faces = left[:3].astype(int).tolist()
            parts = np.split(left[3:], np.cumsum([characters, 5 * rows, 5 * faces]))
            image_id, left = parts[0].astype(np.uint8).tobytes().decode(), parts[3]
            if image_id not in found:
                own, own_faces = parts[1].reshape(-1, 5), parts[2].reshape(-1, 5)
                found[image_id] = own[:, :4], own[:, 4]
                annotated[image_id] = own_faces[:, :4], own_faces[:, 4] > 0
        return dict(sorted(found.items())), dict(sorted(annotated.items()))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # One tensor: for a rank without images torchmetrics would send another shape. NCCL moves what is on the GPU.
        device = torch.device("cpu")
        group = process_group or self.process_group
        if torch.distributed.is_initialized() and "nccl" in torch.distributed.get_backend(group):
            device = self.device if self.device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())
        self.shown = [self._joined().to(device)]
        super()._sync_dist(dist_sync_fn, process_group)


def _packed(image_id: str, what: str, boxes_xyxy: Tensor, column: Tensor) -> Tensor:
    """(n, 4) and (n,) of any type and device → (n, 5) float64 on the CPU."""
    boxes, values = (torch.as_tensor(own).detach().cpu().double() for own in (boxes_xyxy, column))
    if boxes.numel() == 0 and values.numel() == 0:
        return torch.empty(0, 5, dtype=torch.float64)
    fits = boxes.ndim == 2 and boxes.shape[1] == 4 and values.shape == boxes.shape[:1]
    if not (fits and boxes.isfinite().all() and values.isfinite().all() and (boxes[:, 2:] >= boxes[:, :2]).all()):
        shapes = f"boxes {tuple(boxes.shape)} and {what} {tuple(values.shape)}"
        raise ValueError(f"{image_id}: {shapes}, need (n, 4) and (n,), finite and no side negative")
    return torch.cat([boxes, values[:, None]], dim=1)


class WiderFaceAP(DetectionMetric):
    """Average precision by the official WIDER FACE evaluation.

    With its ground truth (:func:`fanet_lightning.score.wider_face.ground_truth.read_ground_truth`) the values are
    ``easy``, ``medium`` and ``hard``; with None ``update`` gets the faces, and the one value is ``all``. Scores are
    normalised over all images: a value over some of the images is not a part of the value over all.
    """

    def _from_faces(self, faces: Faces) -> GroundTruth:
        boxes_xywh = [as_xywh(boxes) for boxes, _ in faces.values()]
        return GroundTruth(tuple(faces), boxes_xywh, {"all": [~ignored for _, ignored in faces.values()]})

    def _values(self, ground_truth: GroundTruth, found: DetectionsByImage) -> Mapping[str, float]:
        curves = score(ground_truth, Predictions.from_detections(found, ground_truth.image_ids))
        return {setting: curve.ap for setting, curve in curves.items()}


class CocoAP(DetectionMetric):
    """COCO's average precision of one category (:mod:`fanet_lightning.score.coco`).

    Values: ``all`` (IoU 0.50 … 0.95), ``50``, ``75``, ``small``, ``medium``, ``large``. Ignored faces are crowds. The
    ground truth is :meth:`CocoBenchmark.read_ground_truth`'s; None: ``update`` gets the faces. ``max_detections`` rows
    are looked at per image; ``backend``: ``auto``, ``pycocotools`` or ``faster_coco_eval``, with the same numbers.
    """

    def __init__(
        self,
        ground_truth: CocoGroundTruth | None = None,
        max_detections: int = MAX_DETECTIONS,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(ground_truth, **options)
        if ground_truth is not None and len(ground_truth.categories) != 1:
            raise ValueError(f"ground truth of {len(ground_truth.categories)} categories, need one")
        self.benchmark = CocoBenchmark(max_detections=max_detections, backend=backend)

    def _from_faces(self, faces: Faces) -> CocoGroundTruth:
        return CocoGroundTruth.from_faces(faces)

    def _values(self, ground_truth: CocoGroundTruth, found: DetectionsByImage) -> Mapping[str, float]:
        detections = CocoDetections.from_detections(found, ground_truth)
        return self.benchmark.score_detections(ground_truth, detections).values["ap"]


class PascalFaceAP(DetectionMetric):
    """Average precision by face-eval, for PASCAL face and AFW.

    The one value is ``all``. Faces with a side below 30 pixels count neither way, as ignored ones. The ground truth is
    of :class:`PascalFaceBenchmark` or :class:`AfwBenchmark`; None: ``update`` gets the faces. ``alignment``: fit
    position and size of all boxes to the labels first, as the protocol does; of some images the fit is another.
    """

    def __init__(
        self, ground_truth: PascalFaceGroundTruth | None = None, alignment: bool = True, **options: Any
    ) -> None:
        super().__init__(ground_truth, **options)
        self.benchmark = PascalFaceBenchmark(alignment=alignment)

    def _from_faces(self, faces: Faces) -> PascalFaceGroundTruth:
        boxes, ignored = zip(*faces.values(), strict=True) if faces else ((), ())
        return PascalFaceGroundTruth(tuple(faces), boxes, ignored, tuple(faces))

    def _values(self, ground_truth: PascalFaceGroundTruth, found: DetectionsByImage) -> Mapping[str, float]:
        return self.benchmark.score_detections(ground_truth, found).values["ap"]


class FddbRoc(DetectionMetric):
    """FDDB's true-positive rates (:class:`fanet_lightning.score.fddb.benchmark.FddbBenchmark`, which reads the ground
    truth and has the choices of ``ellipses``), rectangles as detections.

    Values: ``discrete_1000``, ``discrete_2000``, ``discrete_max`` and ``continuous_…``, the rate at so many false
    positives.
    """

    def __init__(self, ground_truth: FddbGroundTruth, ellipses: Ellipses = "as_given", **options: Any) -> None:
        super().__init__(ground_truth, **options)
        self.benchmark = FddbBenchmark(ellipses=ellipses)

    def _values(self, ground_truth: FddbGroundTruth, found: DetectionsByImage) -> Mapping[str, float]:
        predictions = FddbPredictions.from_detections(found, ground_truth.image_ids)
        scores = self.benchmark.score_predictions(ground_truth, predictions)
        return {f"{measure}_{key}": value for measure, own in scores.values.items() for key, value in own.items()}
