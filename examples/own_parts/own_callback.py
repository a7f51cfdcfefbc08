"""A callback of Lightning's: what the validation found, image by image."""

from pytorch_lightning import Callback, Trainer

from fanet_lightning.train.module import FaceDetectionModule


class Hardest(Callback):
    """After each validation, the images in which the network is least certain of its best face."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def on_validation_end(self, trainer: Trainer, module: FaceDetectionModule) -> None:  # type: ignore[override]
        best = {name: max(faces.scores.tolist(), default=0.0) for name, faces in module.detections.items()}
        if trainer.is_global_zero:
            for name in sorted(best, key=best.__getitem__)[: self.count]:
                print(f"hardest: {name}, best score {best[name]:.3f}")
