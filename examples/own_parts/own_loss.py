"""A loss: the paper's, with a penalty on overconfident scores."""

from typing import Any

from fanet_lightning.ops.anchors import AnchorGrid
from fanet_lightning.ops.hierarchical_loss import HierarchicalLoss, LossParts
from fanet_lightning.ops.structures import NetworkOutput, Targets


class ConfidencePenalty(HierarchicalLoss):
    """Minus ``beta`` times the mean entropy of the detector's scores, in nats (Pereyra et al. 2017, section 3).

    ``options``: the paper's loss's own, so that ``loss.assignment``, ``loss.box`` … stay what they are.
    """

    def __init__(self, beta: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta

    def forward(self, output: NetworkOutput, grid: AnchorGrid, targets: Targets) -> LossParts:
        loss = super().forward(output, grid, targets)
        log_p = output.hierarchies[-1].logits.float().log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum(dim=-1).mean()
        # Each part is logged as train/NAME.
        return loss._replace(total=loss.total - self.beta * entropy, parts={**loss.parts, "entropy": entropy.detach()})
