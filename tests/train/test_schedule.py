import pytest

from fanet_lightning.train.module import lr_factor


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 4e-3), (79, 4e-3), (80, 4e-4), (99, 4e-4), (100, 4e-5), (119, 4e-5)]
)
def test_paper_schedule_falls_after_80_and_100_of_120_epochs(epoch: int, expected: float) -> None:
    steps_per_epoch = 1073  # 12,880 images in batches of 12
    assert 4e-3 * lr_factor(epoch * steps_per_epoch, 120 * steps_per_epoch) == pytest.approx(expected)


def test_warmup_rises_linearly_and_ends_at_one() -> None:
    factors = [lr_factor(step, 1000, kind="constant", warmup_steps=4) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_cosine_falls_from_one_to_final_after_the_warmup() -> None:
    factors = [lr_factor(step, 110, kind="cosine", warmup_steps=10, final=0.1) for step in (9, 10, 60, 110, 500)]
    assert factors == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])
