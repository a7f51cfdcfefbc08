"""Profiles: the parts of a step add up to the step, and each second goes to the part that spent it."""

import csv
import json
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers.logger import DummyLogger
from torch.utils.data import DataLoader, Dataset

from fanet_lightning.ops.structures import Batch, Targets
from fanet_lightning.train.callbacks import ema_callback
from fanet_lightning.train.module import FaceDetectionModule
from fanet_lightning.train.profiling import (  # fmt: skip
    AVERAGING,
    BACKWARD,
    CLIPPING,
    DATA,
    DECODING,
    GATHERING,
    LOGGING,
    LOSS,
    NETWORK,
    OPTIMISER,
    REST,
    SAVING,
    SCORING,
    STEP_PARTS,
    TRANSFER,
    VALIDATION_PARTS,
    WARM_UP_STEPS,
    WATCHED_STEPS,
    OperatorTime,
    Spent,
    StepProfiler,
    StepTrace,
    build_profiler,
    marked,
    operators_markdown,
    part_of,
    rows_of,
    steps_markdown,
)

# A pause that no other work of these tests comes near.
PAUSE = 0.03


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def quiet_profiler(folder: Path, clock: FakeClock) -> StepProfiler:
    """On a clock of ours, without torch.profiler."""
    profiler = StepProfiler(folder, clock)
    profiler.trace.step = lambda wanted: False  # type: ignore[method-assign]
    return profiler


# Names as Lightning 2.6 gives them, each with the part it stands for.
STRATEGY, MODULE = "[Strategy]SingleDeviceStrategy", "[LightningModule]FaceDetectionModule"
NAMED = {
    "[_TrainingEpochLoop].train_dataloader_next": DATA,
    "[_EvaluationLoop].val_next": DATA,
    f"{MODULE}.on_before_batch_transfer": TRANSFER,
    f"{STRATEGY}.batch_to_device": TRANSFER,
    "[Strategy]DDPStrategy.backward": BACKWARD,
    f"{MODULE}.configure_gradient_clipping": CLIPPING,
    f"{MODULE}.optimizer_step": OPTIMISER,
    f"{MODULE}.optimizer_zero_grad": OPTIMISER,
    f"{MODULE}.lr_scheduler_step": OPTIMISER,
    "[Callback]WeightAveraging.on_train_batch_end": AVERAGING,
    "[Callback]ModelCheckpoint{'monitor': 'val/ap.x', 'mode': 'max'}.on_train_batch_end": LOGGING,
    f"{MODULE}.on_train_batch_start": LOGGING,
    f"{STRATEGY}.training_step": REST,
    f"{STRATEGY}.validation_step": REST,
    "save_checkpoint": SAVING,
    **{name: name for name in (NETWORK, LOSS, LOGGING, DECODING, GATHERING, SCORING)},
}


@pytest.mark.parametrize(("action", "part"), NAMED.items())
def test_a_range_belongs_to_its_part(action: str, part: str) -> None:
    assert part_of(action, "surrounding", frozenset({"WeightAveraging"})) == part


def test_a_range_without_a_part_belongs_to_the_one_around_it() -> None:
    assert part_of("run_training_batch", REST) == REST
    assert part_of("[LightningDataModule]FaceDataModule.transfer_batch_to_device", TRANSFER) == TRANSFER
    assert part_of(f"{MODULE}.on_after_batch_transfer", TRANSFER) == TRANSFER


def test_a_step_by_hand(tmp_path: Path) -> None:
    """wait 1, move 2, (network 3, loss 4) with 0.5 around, clip 5 inside the optimiser's 6, callback 7, loggers 8."""
    clock = FakeClock()
    profiler = quiet_profiler(tmp_path, clock)

    def during(action: str, seconds: float, *inner: tuple[str, float]) -> None:
        profiler.start(action)
        for name, inside in inner:
            during(name, inside)
        clock.now += seconds
        profiler.stop(action)

    profiler.start("run_training_epoch")
    for _ in range(WARM_UP_STEPS + 1):
        during("[_TrainingEpochLoop].train_dataloader_next", 1)
        during(f"{STRATEGY}.batch_to_device", 2)
        profiler.start("run_training_batch")
        profiler.start(f"{MODULE}.optimizer_step")
        during(f"{STRATEGY}.training_step", 0.5, (NETWORK, 3), (LOSS, 4))
        during(f"{MODULE}.configure_gradient_clipping", 5)
        clock.now += 6
        profiler.stop(f"{MODULE}.optimizer_step")
        profiler.stop("run_training_batch")
        during("[Callback]EpochReport.on_train_batch_end", 7)
        during(f"{MODULE}.on_train_batch_end", 0)
        clock.now += 8
    profiler.stop("run_training_epoch")
    assert [step.seconds for step in profiler.steps] == [36.5]
    spent = {part: seconds for part, seconds in profiler.steps[0].parts.items() if seconds}
    assert spent == {DATA: 1, TRANSFER: 2, REST: 0.5, NETWORK: 3, LOSS: 4, CLIPPING: 5, OPTIMISER: 6, LOGGING: 15}


INSIDE = [
    "run_training_batch", f"{STRATEGY}.training_step", NETWORK, LOSS, "[Strategy]DDPStrategy.backward",
    f"{MODULE}.optimizer_step", f"{MODULE}.configure_gradient_clipping", "[Callback]EpochReport.on_train_batch_end",
    f"{MODULE}.optimizer_zero_grad", "save_checkpoint",
]  # fmt: skip
# A tree of ranges: seconds before, the range's name, what lies inside, seconds after.
trees = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(INSIDE), inner, st.integers(0, 9)), min_size=1, max_size=4
    ),
    max_leaves=12,
)


def slow_parts(tree: list[Any], surrounding: str, total: dict[str, float]) -> None:
    """Every second of a range belongs to the innermost range around it."""
    for before, name, inner, after in tree:
        total[surrounding] += before
        part = part_of(name, surrounding)
        slow_parts(inner, part, total)
        total[part] += after


@settings(max_examples=200, deadline=None)
@given(st.lists(trees, min_size=1, max_size=4))
def test_any_nesting_is_shared_out_as_the_slow_way_does_and_adds_up(steps: list[list[Any]]) -> None:
    clock = FakeClock()
    profiler = quiet_profiler(Path("unused"), clock)

    def play(tree: list[Any]) -> None:
        for before, name, inner, after in tree:
            clock.now += before
            profiler.start(name)
            play(inner)
            clock.now += after
            profiler.stop(name)

    expected = []
    profiler.start("run_training_epoch")
    for tree in [*[[]] * WARM_UP_STEPS, *steps]:
        profiler.start("[_TrainingEpochLoop].train_dataloader_next")
        clock.now += 1
        profiler.stop("[_TrainingEpochLoop].train_dataloader_next")
        profiler.start("run_training_batch")
        profiler.stop("run_training_batch")
        play(tree)
        total: dict[str, float] = defaultdict(float, {DATA: 1.0})
        slow_parts(tree, REST, total)
        expected.append({part: seconds for part, seconds in total.items() if seconds})
    profiler.stop("run_training_epoch")
    found = [{part: seconds for part, seconds in step.parts.items() if seconds} for step in profiler.steps]
    assert found == expected[WARM_UP_STEPS:]
    assert [step.seconds for step in profiler.steps] == [sum(parts.values()) for parts in expected[WARM_UP_STEPS:]]
    shares = [row.share for row in rows_of(profiler.steps, STEP_PARTS)]
    assert sum(shares[:-1]) == pytest.approx(1) and shares[-1] == pytest.approx(1)


def test_an_exception_inside_leaves_no_range_open(tmp_path: Path) -> None:
    clock = FakeClock()
    profiler = quiet_profiler(tmp_path, clock)
    profiler.start("run_training_batch")
    profiler.start(NETWORK)
    profiler.stop("run_training_batch")
    assert profiler._open == []
    profiler.stop(NETWORK)
    assert profiler._open == []


def test_a_fetch_that_finds_no_batch_is_no_step(tmp_path: Path) -> None:
    profiler = quiet_profiler(tmp_path, FakeClock())
    for _ in range(WARM_UP_STEPS + 3):
        profiler.start("[_TrainingEpochLoop].train_dataloader_next")
        profiler.stop("[_TrainingEpochLoop].train_dataloader_next")
    assert profiler.steps == []


def test_rows_by_hand() -> None:
    """Ten steps of 1 … 10 ms of network and 10 ms of data: medians 5.5 and 10, 90th percentile 9.1, shares 55 : 100."""
    spent = [Spent((i + 10) / 1e3, {NETWORK: i / 1e3, DATA: 10 / 1e3}) for i in range(1, 11)]
    data, network, loss, whole = rows_of(spent, (DATA, NETWORK, LOSS))
    assert (data.median_ms, data.p90_ms, data.share) == (pytest.approx(10), pytest.approx(10), pytest.approx(100 / 155))
    assert (network.median_ms, network.p90_ms) == (pytest.approx(5.5), pytest.approx(9.1))
    assert network.share == pytest.approx(55 / 155)
    assert (loss.median_ms, loss.share) == (0, 0)
    assert (whole.part, whole.median_ms, whole.share) == ("all", pytest.approx(15.5), pytest.approx(1))


def test_operators_are_sorted_by_self_time_on_each_side_and_cut_at_twenty() -> None:
    operators = [OperatorTime(f"aten::op{i}", 6, 1000.0 * (i + 1), 3000.0 * (i == 4)) for i in range(25)]
    page = operators_markdown(operators, steps=3)
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows[0] == "| `aten::op24` | 2.0 | 8.33 | 7.7% |"  # 25 ms over 3 steps, of 325 ms
    assert rows[20] == "| `aten::op4` | 2.0 | 1.00 | 100.0% |"
    assert len(rows) == 40 and "aten::op5`" in rows[19] and "## device: 1.00 ms a step" in page
    on_cpu_alone = operators_markdown([OperatorTime("aten::a", 3, 3000.0, 0.0)], steps=3)
    assert "device" not in on_cpu_alone


# The real thing: Lightning with a module whose parts take a known time.


class Slow(Dataset[torch.Tensor]):
    def __init__(self, items: int, seconds: float) -> None:
        self.items, self.seconds = items, seconds

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.full((3,), float(index))


class Module(LightningModule):
    """``pauses``: seconds to sleep in a part."""

    def __init__(self, pauses: dict[str, float] | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.pauses = pauses or {}

    def pause(self, part: str) -> None:
        time.sleep(self.pauses.get(part, 0.0))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        with marked(self, NETWORK):
            out = self.layer(batch)
            self.pause(NETWORK)
        with marked(self, LOSS):
            self.pause(LOSS)
            loss = out.square().mean() * 1e-4
        self.log("loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.pause(LOGGING)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.pause(OPTIMISER)
        scheduler.step()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        with marked(self, NETWORK):
            self.layer(batch)
        with marked(self, DECODING):
            self.pause(DECODING)

    def on_validation_epoch_end(self) -> None:
        with marked(self, SCORING):
            self.pause(SCORING)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(
    out: Path, pauses: dict[str, float] | None = None, *, profiler: Any, epochs: int = 3, steps: int = 6,
    data_seconds: float = 0.0, callbacks: tuple[Callback, ...] = (),
) -> Module:  # fmt: skip
    torch.manual_seed(0)
    module = Module(pauses)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=2, profiler=profiler,
        callbacks=[ema_callback(0.9), ModelCheckpoint(out / "checkpoints"), *callbacks], default_root_dir=out,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Slow(steps, data_seconds)), DataLoader(Slow(2, 0.0)))
    return module


PAUSES = {NETWORK: 2 * PAUSE, LOSS: PAUSE, OPTIMISER: PAUSE, LOGGING: PAUSE, DECODING: PAUSE, SCORING: 2 * PAUSE}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StepProfiler]:
    """A real training with pauses in known places: its folder, and the profiler."""
    out = tmp_path_factory.mktemp("profiled")
    profiler = build_profiler(out)
    fit(out, PAUSES, profiler=profiler, data_seconds=PAUSE)
    return out / "profile", profiler


def test_each_pause_is_found_in_its_part(profiled: tuple[Path, StepProfiler]) -> None:
    # The shortest, because another program may take the processor away for longer than any pause.
    rows = {part: min(step.parts.get(part, 0.0) for step in profiled[1].steps) for part in STEP_PARTS}
    for part, seconds in {**PAUSES, DATA: PAUSE}.items():
        if part in rows:
            assert seconds <= rows[part] < seconds + PAUSE, part
    for part in (TRANSFER, BACKWARD, CLIPPING, AVERAGING, SAVING, REST):
        assert rows[part] < PAUSE, part
    (validation,) = profiled[1].validations  # after the second of three epochs
    assert validation.parts[DECODING] >= 2 * PAUSE  # two images
    assert validation.parts[SCORING] >= 2 * PAUSE
    assert validation.parts[NETWORK] < validation.parts[DECODING]


def test_the_parts_add_up_to_the_wall_time_and_are_all_named(profiled: tuple[Path, StepProfiler]) -> None:
    profiler = profiled[1]
    for spent, parts in ((profiler.steps, STEP_PARTS), (profiler.validations, VALIDATION_PARTS)):
        for item in spent:
            assert sum(item.parts.values()) == pytest.approx(item.seconds, abs=1e-9)
            assert set(item.parts) <= set(parts)


def test_first_and_watched_steps_are_left_out(profiled: tuple[Path, StepProfiler]) -> None:
    folder, profiler = profiled
    # Steps 0 … 2 are warm-up. Watching takes 3 as its own warm-up and 4, 5; there the first epoch of six ends.
    assert profiler.trace.steps == 2
    assert len(profiler.steps) == 18 - WARM_UP_STEPS - 3
    assert "12 steps of 18." in (folder / "steps.md").read_text(encoding="utf-8")


def test_the_trace_opens_and_has_steps_and_ranges(profiled: tuple[Path, StepProfiler]) -> None:
    events = json.loads((profiled[0] / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    names = [event.get("name", "") for event in events if event.get("ph") == "X"]
    assert sum(name.startswith("ProfilerStep#") for name in names) == 2
    assert names.count(NETWORK) == names.count(LOSS) == 2
    assert "aten::linear" in names
    page = (profiled[0] / "operators.md").read_text(encoding="utf-8")
    assert "of 2 training steps" in page and "`aten::" in page and NETWORK not in page and "ProfilerStep" not in page


def test_table_and_csv_say_the_same(profiled: tuple[Path, StepProfiler]) -> None:
    folder, profiler = profiled
    with (folder / "steps.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["of"] == "training step"]
    assert [row["part"] for row in steps] == [*STEP_PARTS, "all"]
    assert sum(float(row["share"]) for row in steps[:-1]) == pytest.approx(1, abs=1e-5)
    assert {row["count"] for row in steps} == {str(len(profiler.steps))}
    page = (folder / "steps.md").read_text(encoding="utf-8")
    for row in steps[:-1]:
        line = f"| {row['part']} | {float(row['median_ms']):.2f} | {float(row['p90_ms']):.2f} |"
        assert line in page
    assert [row["part"] for row in rows[len(steps) :]] == [*VALIDATION_PARTS, "all"]
    assert not list(folder.glob(".*"))


def test_one_line_at_the_end_names_the_largest_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, {NETWORK: PAUSE}, profiler=build_profiler(tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("profile: ")]
    assert len(lines) == 1
    assert "ms a step: network " in lines[0] and lines[0].endswith(f"; {tmp_path / 'profile' / 'steps.md'}")


def test_a_longer_epoch_is_watched_for_three_steps(tmp_path: Path) -> None:
    profiler = build_profiler(tmp_path)
    fit(tmp_path, profiler=profiler, epochs=1, steps=10)
    assert profiler.trace.steps == WATCHED_STEPS == 3
    assert len(profiler.steps) == 10 - WARM_UP_STEPS - 1 - WATCHED_STEPS


def test_a_run_too_short_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiler = build_profiler(tmp_path)
    fit(tmp_path, profiler=profiler, epochs=1, steps=2)
    assert profiler.steps == [] and "no step was measured" in capsys.readouterr().out
    page = (tmp_path / "profile/steps.md").read_text(encoding="utf-8")
    assert "there were 2, too few" in page
    assert not (tmp_path / "profile/trace.json").exists()


def test_profiling_does_not_change_the_training(tmp_path: Path) -> None:
    with_profile = fit(tmp_path / "a", profiler=build_profiler(tmp_path / "a")).state_dict()
    without = fit(tmp_path / "b", profiler=None).state_dict()
    for name, value in without.items():
        assert torch.equal(with_profile[name], value), name
    assert not (tmp_path / "b/profile").exists()


class Kept(DummyLogger):
    """Remembers what Lightning hands over."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.rows.append((step, dict(metrics)))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_metrics_that_are_not_logged_would_not_have_been_written(every: int, accumulate: int, tmp_path: Path) -> None:
    """The module logs on steps whose metrics reach the loggers; they get the same as if it logged on every step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (7, 2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    targets = Targets(torch.tensor([[8.0, 8.0, 40.0, 44.0]]), torch.tensor([0]))
    batches = [Batch(image, targets, ["a", "b"]) for image in images]

    class LogsAlways(FaceDetectionModule):
        def _is_written(self) -> bool:
            return True

    kept, calls = [], []
    for kind in (FaceDetectionModule, LogsAlways):
        torch.manual_seed(0)
        module = kind({"level": 2, "context": False, "hl": True, "width": 0.0625, "batch_norm": True}, batch_size=2)
        logger = Kept()
        trainer = Trainer(
            accelerator="cpu", max_epochs=2, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, log_every_n_steps=every, gradient_clip_val=10.0,
            accumulate_grad_batches=accumulate,
        )  # fmt: skip
        with patch.object(kind, "log", autospec=True, side_effect=kind.log) as log:
            trainer.fit(module, DataLoader(batches, batch_size=None))
        kept.append(logger.rows)
        calls.append(log.call_count)
    assert kept[0] == kept[1]
    steps = 14 if accumulate == 1 else 8  # the last batch of an odd epoch makes a step of its own
    assert len([row for row in kept[0] if "train/grad_norm" in row[1]]) == steps // every
    assert all("train/h1/cls" in row and "train/skipped_steps" in row for _, row in kept[0] if "train/loss" in row)
    assert calls[0] == calls[1] if every == 1 else calls[0] < calls[1] / 2


def test_a_module_without_a_trainer_can_be_marked() -> None:
    with marked(Module(), NETWORK):
        pass


def trainer_like(rank: int, device: str = "cpu") -> Any:
    return SimpleNamespace(
        is_global_zero=rank == 0, world_size=2, callbacks=[ema_callback(0.9)],
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )  # fmt: skip


def played(profiler: StepProfiler, trainer: Any) -> None:
    """Steps as a trainer would report them."""
    profiler._lightning_module = SimpleNamespace(trainer=trainer)  # type: ignore[attr-defined]
    profiler.setup("fit")
    for _ in range(12):
        for name in (
            "[_TrainingEpochLoop].train_dataloader_next",
            "run_training_batch",
            "[Strategy]DDPStrategy.backward",
        ):
            profiler.start(name)
            profiler.stop(name)
    profiler.describe()


def test_of_several_ranks_the_first_one_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played(build_profiler(tmp_path / "second"), trainer_like(rank=1))
    assert not (tmp_path / "second").exists() and capsys.readouterr().out == ""
    played(build_profiler(tmp_path / "first"), trainer_like(rank=0))
    assert "Of 2 ranks the first." in (tmp_path / "first/profile/steps.md").read_text(encoding="utf-8")


def test_on_cuda_every_border_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    profiler = quiet_profiler(tmp_path, FakeClock())
    profiler._look_at(trainer_like(rank=0, device="cuda:1"))
    profiler.start(NETWORK)
    profiler.stop(NETWORK)
    assert waited == [torch.device("cuda:1")] * 2
    waited.clear()
    profiler = quiet_profiler(tmp_path, FakeClock())
    profiler._look_at(trainer_like(rank=0))
    profiler.start(NETWORK)
    assert waited == []


def test_a_folder_that_cannot_be_written_costs_the_profile_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("in the way", encoding="utf-8")
    fit(tmp_path, profiler=build_profiler(tmp_path), epochs=1)
    captured = capsys.readouterr()
    assert captured.err.count("warning: no profile in") == 1 and "profile: " not in captured.out


def test_an_interrupted_warm_up_is_begun_again() -> None:
    trace = StepTrace()
    assert trace.step(wanted=True)
    trace.stop()  # the epoch ends in the step before the first one to be watched
    assert trace.steps == 0 and trace.operators() == []
    assert [trace.step(wanted=True) for _ in range(6)] == [True, True, True, True, False, False]
    assert trace.steps == WATCHED_STEPS


def test_the_page_of_a_training_on_one_process_speaks_of_no_ranks() -> None:
    step = Spent(0.1, {BACKWARD: 0.1})
    page = steps_markdown([step], [], watched=0, fit_seconds=2.0, train_seconds=1.0, started=5, ranks=1)
    assert "ranks" not in page and "## A validation" not in page
    assert "| backward | 100.00 | 100.00 | 100.0% |" in page
    assert "| training steps | 1.0 | 50.0% |" in page and "| start, ends of epochs, checkpoints | 1.0 | 50.0% |" in page
