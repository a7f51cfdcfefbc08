"""FaceDetectionModule: network, loss, optimizer with its schedule, validation."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, Literal

import torch
from hydra.utils import get_object
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from fanet_lightning.cli.config import made, own
from fanet_lightning.cli.errors import InputError
from fanet_lightning.models.fanet import network_of
from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss
from fanet_lightning.ops.postprocess import detect
from fanet_lightning.ops.structures import Batch, Detections, EvalBatch, NetworkOutput
from fanet_lightning.score.curves import Curve
from fanet_lightning.score.wider_face.average_precision import score
from fanet_lightning.score.wider_face.ground_truth import GroundTruth
from fanet_lightning.score.wider_face.predictions import Predictions

ScheduleKind = Literal["step", "cosine", "constant"]

# ``optim.name``
OPTIMIZERS = {"sgd": "torch.optim.SGD", "adamw": "torch.optim.AdamW"}
# Paper §3.5: 4e-3 for 80 of 120 epochs, then 4e-4 for 20 and 4e-5 for 20.
PAPER_MILESTONES = (80 / 120, 100 / 120)
# Paper §3.5: "a total batch size of 12"; learning rates are meant for it and scaled linearly.
REFERENCE_BATCH_SIZE = 12
# So many skipped steps in a row mean that the weights themselves are lost, not that one batch was bad.
MAX_SKIPPED_IN_A_ROW = 50
log = logging.getLogger(__name__)


def lr_factor(
    step: int, total_steps: int, *, kind: ScheduleKind = "step", warmup_steps: int = 0,
    milestones: Sequence[float] = PAPER_MILESTONES, gamma: float = 0.1, final: float = 0.0,
) -> float:  # fmt: skip
    """What the learning rate is multiplied with at optimizer step ``step`` (0-based).

    Warm-up rises linearly from 1 / ``warmup_steps`` to 1 and overlays the schedule. ``step`` multiplies by ``gamma`` at
    each milestone (fractions of the run); ``cosine`` falls from 1 to ``final`` after the warm-up.
    """
    progress = step / max(total_steps, 1)
    if kind == "step":
        factor = gamma ** sum(progress >= milestone for milestone in milestones)
    elif kind == "cosine":
        after_warmup = min(max(step - warmup_steps, 0) / max(total_steps - warmup_steps, 1), 1.0)
        factor = final + (1 - final) * (1 + math.cos(math.pi * after_warmup)) / 2
    else:
        factor = 1.0
    warmup = min((step + 1) / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return factor * warmup


def trained_layers(network: nn.Module, setting: str) -> dict[str, nn.Module]:
    """The backbone's layers that trained weights exist for, by name; InputError with ``setting``: it names none."""
    try:
        layers: dict[str, nn.Module] = network.trunk.trained_layers()  # type: ignore[union-attr, operator]
    except AttributeError as error:
        raise InputError(f"{setting}: {type(network).__name__} has no trunk.trained_layers() ({error})") from error
    return layers


def frozen_layers(network: nn.Module, until: str | None) -> list[nn.Module]:
    """The backbone's trained layers up to and with ``until``, a name or the first part of some; None: all of them."""
    layers = trained_layers(network, "freeze_epochs" if until is None else "freeze_until")
    if until is None:
        return list(layers.values())
    found = [number for number, name in enumerate(layers) if f"{name}.".startswith(f"{until}.")]
    if not found:
        raise InputError(f"freeze_until={until}: the backbone has no such layer; choose one of {', '.join(layers)}")
    return list(layers.values())[: found[-1] + 1]


class FaceDetectionModule(LightningModule):
    """Trains FANet or the S3FD + FPN baseline.

    All hyper-parameters are plain containers, so that a checkpoint loads with ``torch.load(weights_only=True)``.

    Args:
        network: keyword arguments of :func:`fanet_lightning.models.fanet.build_network`.
        loss: keyword arguments of :class:`fanet_lightning.ops.hierarchical_loss.HierarchicalLoss`; with ``_target_`` a
            module of that class, which gets those that it takes and is called as this one is.
        optim: ``name`` (sgd | adamw), ``lr`` at batch 12, ``momentum``, ``weight_decay``, ``decay_all`` (also biases,
            norms and L2Norm scales), ``schedule``, ``warmup_steps``, ``milestones``, ``gamma``, ``final``,
            ``backbone_factor`` on the learning rate of the backbone's trained layers.
        batch_size: total over all devices; the learning rate is scaled by it and the batches that a step accumulates.
        channels_last: memory format of weights and images.
        freeze_until: the backbone's layer up to which, itself included, weights and batch norm's statistics stay as
            they are: ``conv1_1`` … ``conv_fc7`` of VGG16, ``stem``, ``stride4`` … of the light one, ``stem``,
            ``stage1`` … of lite0, timm's names.
        freeze_epochs: for so many epochs; None: for the whole run. Alone: all of the backbone's trained layers.

    After a validation ``curves`` holds the curve per setting, ``detections`` every image's faces (original pixels).
    """

    def __init__(
        self, network: Mapping[str, Any], loss: Mapping[str, Any] | None = None, optim: Mapping[str, Any] | None = None,
        batch_size: int = 12, channels_last: bool = True, freeze_until: str | None = None,
        freeze_epochs: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.network = network_of(network)
        self._frozen = frozen_layers(self.network, freeze_until) if freeze_until or freeze_epochs else []
        if freeze_epochs is None:
            for layer in self._frozen:
                layer.requires_grad_(False)
        self._parameter_groups(0.0)  # a mistake shows before anything is written
        loss = dict(loss or {})
        if isinstance(loss.get("assignment"), Mapping):
            loss["assignment"] = made("loss.assignment", loss["assignment"])
        self.loss = own("loss", loss, nn.Module) if loss.get("_target_") else HierarchicalLoss(**loss)
        self.skipped_steps = 0
        self._skipped_in_a_row = 0
        self._clipped = self._steps = 0  # of this epoch
        self._last_ids: list[str] = []
        self._last_loss = torch.tensor(math.nan)
        self._finite_buffers: dict[str, Tensor] = {}
        self.detections: dict[str, Detections] = {}
        self.curves: dict[str, Curve] = {}
        if channels_last:
            self.network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, all_hierarchies: bool | None = None) -> tuple[NetworkOutput, AnchorGrid]:
        """``images`` (B, 3, H, W) uint8 RGB → the heads' output and the anchors that it refers to."""
        if self.hparams["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        output: NetworkOutput = self.network(images, all_hierarchies=all_hierarchies)
        return output, AnchorGrid(tuple((height, width) for height, width in output.map_shapes))

    def _profiled(self, part: str) -> AbstractContextManager[Any]:
        """A row of its own in the profile, where the trainer has a profiler."""
        return nullcontext() if self._trainer is None else self.trainer.profiler.profile(part)  # type: ignore[attr-defined]

    @property
    def clipped_share(self) -> float:
        """Of the epoch's steps so far, the share whose gradient was clipped, 0 … 1."""
        return self._clipped / max(self._steps, 1)

    # Training

    def on_train_epoch_start(self) -> None:
        self._clipped = self._steps = 0

    @property
    def is_frozen(self) -> bool:
        """Whether a part of the backbone is not trained in this epoch."""
        epochs = self.hparams["freeze_epochs"]
        return bool(self._frozen) and (epochs is None or self.current_epoch < epochs)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        for layer in self._frozen:  # batch norm's statistics move in training mode alone
            layer.train(not self.is_frozen)
        # A non-finite forward pass also poisons batch norm's running statistics: keep a copy to go back to.
        if not self._finite_buffers or (batch_idx % 100 == 0 and self._skipped_in_a_row == 0):
            self._finite_buffers = {n: b.clone() for n, b in self.network.named_buffers() if "running_" in n}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with self._profiled("network"):
            output, grid = self(batch.images)
        with self._profiled("matching and loss"):
            parts = self.loss(output, grid, batch.targets)
        size = len(batch.image_ids)
        total: Tensor = parts.total
        written = self._is_written()  # not at every step: the ranks wait for each other
        shown = self.trainer.strategy.reduce(total.detach().clone(), reduce_op="mean") if written else total
        self.log("train/loss", shown, prog_bar=True, batch_size=size)
        if written:  # of the whole batch: losses are means over the ranks, counts sums
            losses = {f"train/{name}": value for name, value in parts.parts.items()}
            counts = {f"train/{name}": getattr(parts, name).float() for name in ("positives", "unmatched_faces")}
            self.log_dict(losses, batch_size=size, sync_dist=True)
            self.log_dict(counts, batch_size=size, reduce_fx="sum", sync_dist=True)
        self._last_ids, self._last_loss = batch.image_ids, parts.total.detach()
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the total norm, and skip the step when that norm is not finite, on all ranks alike.

        A skipped step hands the optimizer no gradients: neither momentum nor weight decay then moves a weight.
        """
        if self.is_frozen:
            # Gradients are computed and dropped: DDP takes no weights that want one in some epochs only.
            for parameter in (p for layer in self._frozen for p in layer.parameters()):
                parameter.grad = None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        limit = gradient_clip_val if gradient_clip_val else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        self._steps += 1
        if math.isfinite(norm):
            self._skipped_in_a_row = 0
            self._clipped += norm > limit
        else:
            optimizer.zero_grad(set_to_none=True)
            self._skip(norm)
        if self._is_written():
            if self._skipped_in_a_row == 0:
                self.log("train/grad_norm", norm)
            self.log("train/skipped_steps", float(self.skipped_steps))

    def _is_written(self) -> bool:
        """Whether Lightning hands this step's metrics to the loggers.

        It drops those of every other step, after as much work: a dozen metrics cost some percent of a quick step.
        """
        trainer: Any = self.trainer
        every = int(trainer.log_every_n_steps)
        return bool(trainer.should_stop) or (every > 0 and (trainer.global_step + 1) % every == 0)

    def _skip(self, norm: float) -> None:
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        log.warning(
            "step %d skipped: gradient norm %s, loss %s on rank %d; images: %s",
            self.global_step, norm, float(self._last_loss), self.global_rank, ", ".join(self._last_ids),
        )  # fmt: skip
        for name, buffer in self.network.named_buffers():
            if name in self._finite_buffers and not bool(buffer.isfinite().all()):
                buffer.copy_(self._finite_buffers[name])
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise InputError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had no finite gradient (step {self.global_step}); "
                "lower optim.lr, lengthen optim.warmup_steps or set gradient_clip"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        options = dict(self.hparams["optim"] or {})
        node = options.get("optimizer") or {"_target_": OPTIMIZERS[options.get("name", "sgd")]}
        if node["_target_"] == OPTIMIZERS["sgd"]:
            node = {"momentum": options.get("momentum", 0.9), "nesterov": options.get("nesterov", False), **node}
        lr, total_steps = self.learning_rate, int(self.trainer.estimated_stepping_batches)
        optimizer: torch.optim.Optimizer = made("optim.optimizer", node, self._parameter_groups(lr), lr=lr)
        kind, warmup_steps = options.get("schedule", "step"), options.get("warmup_steps", 0)
        scheduler: Any
        if node := options.get("scheduler"):
            length = {"T_max", "total_steps"} & {*signature(get_object(node["_target_"])).parameters}
            scheduler = made("optim.scheduler", {**dict.fromkeys(length, total_steps), **node}, optimizer)
            kind, warmup_steps = node["_target_"].rpartition(".")[2], 0
        else:
            schedule = {k: options[k] for k in ("warmup_steps", "milestones", "gamma", "final") if k in options}
            scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: lr_factor(step, total_steps, kind=kind, **schedule)
            )
        batch_size = int(self.hparams["batch_size"]) * self.trainer.accumulate_grad_batches
        rank_zero_only(print)(
            f"learning rate {lr:g} (optim.lr {float(options.get('lr', 4e-3)):g} at batch 12, scaled to a total batch "
            f"of {batch_size}), {kind} schedule over {total_steps} steps, warm-up {warmup_steps} steps"
        )
        if warmup_steps >= total_steps:
            rank_zero_only(print)(
                f"warning: optim.warmup_steps={warmup_steps} is as long as the run of {total_steps} steps: the "
                f"learning rate never reaches its peak; train longer, or give optim.warmup_steps={total_steps // 10}"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def learning_rate(self) -> float:
        """The schedule's peak, of the optimizer as it is. Lightning's learning-rate finder sets it."""
        lr, batch_size = float((self.hparams["optim"] or {}).get("lr", 4e-3)), int(self.hparams["batch_size"])
        return lr * batch_size * self.trainer.accumulate_grad_batches / REFERENCE_BATCH_SIZE

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        factor = rate / self.learning_rate
        self.hparams["optim"] = {**self.hparams["optim"], "lr": self.hparams["optim"]["lr"] * factor}
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [base * factor for base in config.scheduler.base_lrs]
        rank_zero_only(print)(f"learning rate found: {rate:.3g} (optim.lr={self.hparams['optim']['lr']:.3g})")

    def _parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """By learning rate, the backbone's trained layers last, and in each by weight decay."""
        options = self.hparams["optim"] or {}
        factor, weight_decay = float(options.get("backbone_factor", 1)), float(options.get("weight_decay", 5e-4))
        decay_all = options.get("decay_all", True)
        layers = {} if factor == 1 else trained_layers(self.network, "optim.backbone_factor")
        slow = {id(p) for layer in layers.values() for p in layer.parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for p in self.network.parameters():
            if p.requires_grad:
                groups.setdefault((id(p) in slow, not decay_all and p.ndim <= 1), []).append(p)
        return [
            {"params": params, "lr": lr * (factor if slowed else 1), "weight_decay": 0.0 if spared else weight_decay}
            for (slowed, spared), params in sorted(groups.items())
        ]

    # Validation

    def on_validation_epoch_start(self) -> None:
        self.detections = {}

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> None:
        with self._profiled("network"):
            output, grid = self(batch.images, all_hierarchies=False)
        with self._profiled("decoding and NMS"):
            found = detect(output, grid)
        for image_id, scale_xy, faces in zip(batch.image_ids, batch.scale_xy, found, strict=True):
            self.detections[image_id] = Detections(faces.boxes_xyxy / scale_xy.repeat(2), faces.scores).cpu()

    def on_validation_epoch_end(self) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # All ranks' detections, each image once whatever the sampler did.
            parts: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self.detections)
            self.detections = {image_id: item for part in parts for image_id, item in sorted(part.items())}
        with self._profiled("scoring"):
            ground_truth: GroundTruth = self.trainer.datamodule.ground_truth  # type: ignore[attr-defined]
            found = {
                image_id: (item.boxes_xyxy.double().numpy(), item.scores.double().numpy())
                for image_id, item in self.detections.items()
            }
            predictions = Predictions.from_detections(found, ground_truth.image_ids)
            self.curves = score(ground_truth, predictions)
        if self.trainer.sanity_checking:  # of a model that a run starts from
            return
        for setting, curve in self.curves.items():
            # Every rank has gathered the same detections: nothing is left to reduce.
            self.log(f"val/ap_{setting}", curve.ap, prog_bar=True, rank_zero_only=False, sync_dist=False)
        # What checkpoints are chosen by: the last setting is the one with all faces that count (WIDER's hard).
        self.log("val/ap", list(self.curves.values())[-1].ap, rank_zero_only=False, sync_dist=False)
        self.log("val/images", float(len(self.detections)), rank_zero_only=False, sync_dist=False)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fanet_skipped_steps"] = self.skipped_steps
        checkpoint["fanet_clipped_steps"] = [self._clipped, self._steps]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_steps = int(checkpoint.get("fanet_skipped_steps", 0))
        self._clipped, self._steps = checkpoint.get("fanet_clipped_steps", (0, 0))
        # The normaliser came with the weights that the run started from.
        stored = checkpoint["hyper_parameters"]
        self.hparams["network"]["normaliser"] = stored["network"].get("normaliser", "imagenet")
        # A learning rate that was found, not configured.
        if self.hparams["optim"] and "lr" in (stored.get("optim") or {}):
            self.hparams["optim"] = {**self.hparams["optim"], "lr": stored["optim"]["lr"]}
