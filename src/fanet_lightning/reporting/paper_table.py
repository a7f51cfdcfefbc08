"""What the paper reports for the ablation, and the steps it argues with: data, with the place each number stands at.

Zhang, Wu, Zhu, Hoi: Feature Agglomeration Networks for Single Stage Face Detection, arXiv 1712.00721 v2: Table 1 (S3FD,
S3FD + FPN, 2-level + HL), Table 2 (all others; it repeats 1-level and 2-level + HL).
"""

from typing import NamedTuple

from fanet_lightning.scoring.ground_truth import SETTINGS

PAPER_PROTOCOL = "short640"
PAPER_IMAGES = 3226
SOURCE = "arXiv 1712.00721 v2, Tables 1 and 2: WIDER FACE val, 3,226 images, single scale, shorter side 640"
# Appendix, section 7: GTX 1080 Ti, CuDNN v6, shorter side 640.
PAPER_SPEED = "2-level 45.4 images/s, S3FD + FPN 45.9 images/s on a GTX 1080 Ti, shorter side 640 (appendix, figure 7)"


class PaperRow(NamedTuple):
    """A row of the paper's ablation.

    ``cell``       the name of the run that it is, as :func:`fanet_lightning.config.run_name` makes it.
    ``protocols``  at which it may be scored, the first that is there counts; empty: the run's own.
    ``percent``    AP in per cent, easy / medium / hard.
    """

    label: str
    cell: str
    protocols: tuple[str, ...]
    percent: tuple[float, float, float]
    source: str

    def ap_percent(self, setting: str) -> float:
        return self.percent[SETTINGS.index(setting)]


FINAL = "level3_context_hl"
ROWS = (
    PaperRow("1-level (S3FD)", "level1", (), (94.5, 92.9, 82.8), "Tables 1, 2"),
    PaperRow("S3FD + FPN", "s3fd_fpn", (), (94.3, 93.1, 83.8), "Table 1"),
    PaperRow("2-level", "level2", (), (94.8, 93.6, 84.4), "Table 2"),
    PaperRow("2-level + HL", "level2_hl", (), (94.8, 93.6, 85.3), "Tables 1, 2"),
    PaperRow("3-level", "level3", (), (94.7, 93.3, 84.8), "Table 2"),
    PaperRow("3-level + HL", "level3_hl", (), (94.8, 93.6, 85.7), "Table 2"),
    PaperRow("3-level + HL + context", FINAL, (), (95.0, 93.9, 86.7), "Table 2"),
    PaperRow("… at short768", FINAL, ("short768",), (94.8, 93.6, 88.4), "Table 2"),
    PaperRow("… multi-scale", FINAL, ("multiscale", "multiscale_quick"), (95.6, 94.7, 89.5), "Tables 2, 3"),
)
# The trainings behind the rows, in the paper's order.
CELLS = tuple(dict.fromkeys(row.cell for row in ROWS))
LABELS = {row.cell: row.label for row in ROWS if not row.protocols}


class Step(NamedTuple):
    """One comparison that the paper makes: ``after`` against ``before``, both names of cells."""

    claim: str
    after: str
    before: str

    @property
    def label(self) -> str:
        return f"{LABELS[self.after]} − {LABELS[self.before]}"

    def difference_percent(self, setting: str) -> float:
        """The paper's difference in points of AP."""
        values = {row.cell: row.ap_percent(setting) for row in ROWS if not row.protocols}
        return round(values[self.after] - values[self.before], 1)


STEPS = (
    Step("Levels", "level2", "level1"),
    Step("Levels", "level3", "level2"),
    Step("Levels", "level3_hl", "level2_hl"),
    Step("Hierarchical loss", "level2_hl", "level2"),
    Step("Hierarchical loss", "level3_hl", "level3"),
    Step("Context", FINAL, "level3_hl"),
    Step("FPN against S3FD", "s3fd_fpn", "level1"),
    Step("FANet against FPN", "level2_hl", "s3fd_fpn"),
    Step("FANet against FPN", FINAL, "s3fd_fpn"),
    Step("FANet against S3FD", FINAL, "level1"),
)
