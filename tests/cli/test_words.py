"""What a person types, through the real command line: odd paths, keys that nothing reads, lost output."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fanet_lightning.cli.config import read_words
from fanet_lightning.cli.main import MODULES
from tests.score.helpers import refused
from tests.train.helpers import TINY, command

VERBS = ("app", "convert", "detect", "doctor", "evaluate", "export", "package", "plot", "report", "score", "train",
         "workspace")  # fmt: skip
FLAT = ("convert", "plot")
ODD_PATHS = (
    "été 中文", "x#y", "epoch=3-step=100.ckpt", "a (1)", "a,b", "[a]", "a]", "{a: b}", "it's", '"', "$HOME/x", "a&b",
    "100%", "-x", "C:\\new dir\\", "2024_01_02", "1e3", "true", "a\\'b", "range(3)", "'a' and 'b'", "~no_such_user",
)  # fmt: skip


def refusal(verb: str, *words: str) -> str:
    name = MODULES.get(verb, verb if verb in FLAT else f"{verb}.__main__")
    return refused(".", importlib.import_module(f"fanet_lightning.{name}").main, list(words))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train"])
    return tmp_path


@pytest.mark.parametrize("path", ODD_PATHS)
@pytest.mark.parametrize(
    ("verb", "words", "key"),
    [("report", [], "runs"), ("train", [], "resume"), ("convert", ["data=folder", "to=coco", "out=o"], "data.root")],
)
def test_a_path_is_taken_as_it_is_typed(verb: str, words: list[str], key: str, path: str) -> None:
    if key == "data.root":
        words = [*words, "data.format=coco"]
    assert path in refusal(verb, *words, f"{key}={path}")


@pytest.mark.parametrize("path", ODD_PATHS)
def test_hydra_reads_the_words_that_it_is_given_as_they_were_typed(path: str) -> None:
    """So do ranks, launchers and the variants of a sweep, which are started with them."""
    line = read_words("train", [f"out={path}", f"also_protocols=[{path}]"], with_hydra=True)
    out, protocols = OverridesParser.create().parse_overrides(line.for_hydra)
    assert (out.value(), line.config().out) == (path, path)
    if "," not in path and path[0] not in "'\"":
        assert protocols.value() == [path]
    again = read_words("train", line.for_hydra, with_hydra=True)
    assert again.for_hydra == line.for_hydra


def test_home_and_quotes_and_lists_of_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"runs={tmp_path}/wider " in refusal("report", "runs=~/wider")
    assert "runs=a,b " in refusal("report", "runs='a,b'")
    assert f"{tmp_path}/c 1" in refusal("plot", "scores=[~/c 1,b#2]", "out=o")
    (tmp_path / "a,b").mkdir()  # one folder that is there, for a key that takes several
    assert read_words("package", [f"scores={tmp_path}/a,b"]).config().scores == [f"{tmp_path}/a,b"]
    assert re.search(r"out=\$\{nope\}: .*nope", refusal("report", "runs=.", "out=${nope}"))


@pytest.mark.parametrize("verb", VERBS)
def test_what_nothing_reads_is_refused_by_every_verb(verb: str) -> None:
    for word, message in (
        ("banana=3", r"unknown key 'banana'"),
        ("++banana.x=3", r"unknown key 'banana\.x'"),
        ("~out", r"~out: no key can be left out"),
        ("--banana", r"'--banana' is not key=value"),
        ("level", r"source=level: " if verb == "detect" else r"'level' is not key=value"),
        ("out=", r"out=: nothing stands behind the ="),
    ):
        assert re.match(message, refusal(verb, word)), word


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+optim.banana=1", r"unknown key 'optim\.banana'"),
        ("++optim.weight_dekay=1", r"unknown key 'optim\.weight_dekay': did you mean 'optim\.weight_decay'\?"),
        ("+trainer.banana=1", r"unknown key 'trainer\.banana'"),
        ("+hydra.banana=1", r"unknown key 'hydra\.banana'"),
        ("~optim.lr", r"~optim\.lr: no key can be left out"),
        ("hydra.sweeper=optuna", r"hydra\.sweeper=optuna: .* write hydra/sweeper=optuna"),
        ("hydra/launcher=slurm", r"hydra/launcher=slurm: there is no such option; .*submitit_slurm"),
        ("logger=true", r"logger=true: there is no such option; choose one of .*csv, "),
        ("model=null", r"model=null: something must be chosen; one of fanet, "),
        ("data=/mnt/my faces", r"data=/mnt/my faces: there is no such option; .* data\.root=DIR"),
        ("data.image_width=3", r"data\.image_width=3 is of another kind"),
        ("data.image_width=[1,x]", r"data\.image_width="),
        ("optim.lr=fast", r"optim\.lr=fast is .*0\.0015"),
        ("model.level=1.5", r"model\.level=1\.5 is of another kind"),
        ("model.name=null", r"model=None: choose fanet"),
        ("optim.lr=nan", r"optim\.lr=nan is "),
        ("optim.lr=null", r"optim\.lr=(null|None) is "),
        ("seed=-1", r"seed=-1: give from 0 to 4294967295"),
        ("level=1,2", r"level=1,2 stands for several values; add -m"),
    ],
)  # fmt: skip
def test_a_plausible_mistake_of_train_is_one_line(word: str, message: str, tmp_path: Path) -> None:
    assert re.match(message, refusal("train", word))
    assert list(tmp_path.iterdir()) == []


def test_a_group_may_be_switched_off_and_a_key_given_twice() -> None:
    def composed(*words: str) -> dict[str, object]:
        return read_words("train", words).config()  # type: ignore[return-value]

    assert all(composed(word)["logger"] == {} for word in ("logger=null", "logger=false", "logger=none"))
    assert composed("augment=false")["augment"] == composed("augment=none")["augment"]
    assert composed("experiment=null")["level"] == 3
    assert composed("level=1", "level=2")["level"] == composed("+level=2")["level"] == 2
    assert composed("+trainer.max_time=00:00:01:00")["trainer"]["max_time"] == "00:00:01:00"  # type: ignore[index]


def test_several_values_are_refused_where_no_grid_can_be() -> None:
    for verb, word in (("detect", "threshold=0,5"), ("evaluate", "protocol=original,vga640")):
        message = refusal(verb, word)
        assert message.startswith(f"{word} stands for several values") and "-m" not in message


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    for device in ("mps", "cuda:99", "meta", "0"):
        for verb, word in (("evaluate", "checkpoint=fanet_light"), ("detect", "source=x.jpg"), ("app", "port=0")):
            assert re.match(rf"device={device}: .*here are cpu", refusal(verb, word, f"device={device}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["level=range(0)"], r"level=range\(0\) stands for no value"),
        (["hl=maybe,true"], r"hl=maybe"),
        (["optim.lr=0.1,fast"], r"optim\.lr=fast is "),
        (["levle=1,2"], r"unknown key 'levle': did you mean 'level'\?"),
        (["protocol=short640,short641"], r"protocol=short641: there is no such option"),
        (["model=fanet,s3fd_fpn", "model.own_blocks=true"], r"model\.own_blocks=.* not in struct"),
        (["data=folder", "data.format=coco", "data.root=A/x,B/x"], r".*A/x"),
        (["seed=-1,-2"], "seed=-1: "),
    ],
)
def test_a_mistake_in_what_is_swept_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    assert re.match(message, refusal("train", "-m", *words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(name, marks=pytest.mark.slow) for name in ("joblib", "submitit_local"))]
)
def test_every_path_that_is_swept_has_a_folder_of_its_own(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from fanet_lightning.train import __main__ as train

    if launcher == "basic":
        monkeypatch.setattr(sys, "executable", "/bin/false")
    roots = ["A/x", "B/x", "A-x", f"{'long' * 60}/x", f"{'long' * 60}/y", "it's, (1)"]
    for root in roots:
        (tmp_path / root).mkdir(parents=True)
    fails = []
    if launcher != "basic":  # in processes of their own, which an optimizer that cannot be made ends
        roots, fails = roots[:3], ["optim.optimizer._target_=torch.optim.NAdam", "+optim.optimizer.betas=3"]
    swept = ",".join('"it\'s, (1)"' if "," in root else root for root in roots)
    assert train.main(["-m", f"data.root={swept}", f"hydra/launcher={launcher}", "sweep=grid", *fails]) == 1
    folders = [path.name for path in (tmp_path / "grid").iterdir() if path.is_dir() and path.name[0] != "."]
    assert len(folders) == len(roots) and all(len(name) < 200 for name in folders)
    printed = capfd.readouterr().out
    assert all(f"failed: {name}: " in printed for name in folders)
    summary = [path.parent for path in (tmp_path / "grid").glob("*/run.json")]
    found = {json.loads((path / "run.json").read_text())["settings"]["data"]["root"] for path in summary}
    assert found == set(roots)


@pytest.mark.slow
def test_ranks_and_joblib_train_in_folders_with_odd_names(tmp_path: Path) -> None:
    words = [*TINY, "level=1", "epochs=1", "evaluate_at_end=false"]
    ranks = ["trainer=ddp", "trainer.devices=2"]
    out = 'a "b", (é) #1'
    done = command("train", *words, *ranks, f"out={out}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / out / "run.json").read_text())["train"]["devices"] == 2
    grid = ["data.root=A/x,it's (1)", "sweep=grid #1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = command("train", "-m", *words, *grid, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(list((tmp_path / "grid #1").glob("*/checkpoints/last.ckpt"))) == 2


def test_a_reader_that_leaves_ends_the_command_without_a_word() -> None:
    script = "from fanet_lightning.cli import main as cli\ncli.run(lambda words: print('x' * 1_000_000, flush=True))"
    shell = '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", shell, sys.executable, script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_console_script_lists_verbs_and_runs_them(tmp_path: Path) -> None:
    def fanet(*words: str) -> "subprocess.CompletedProcess[str]":
        return command("__main__", *words, cwd=tmp_path)

    shown = fanet().stdout
    assert sorted(line.split()[0] for line in shown.splitlines()[2:]) == sorted(
        [*VERBS, "download", "reproduce", "show"]
    )
    assert fanet("--version").stdout.startswith("fanet_lightning ")
    assert fanet("train", "level=2", "--cfg", "job").stdout.startswith("level: 2\n")  # Hydra's own answer
    for words, message in ((["trian"], "did you mean train"), (["score", "banana=1"], "banana")):
        done = fanet(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and message in done.stderr


@pytest.mark.slow
def test_too_little_shared_memory_is_named_with_the_way_out(tmp_path: Path) -> None:
    mounted = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no other /dev/shm can be mounted here")
    train = [*mounted, sys.executable, "-m", "fanet_lightning.train", *TINY, "workers=2", "out=run"]
    done = subprocess.run(train, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "workers=0" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_completion_of_bash(elsewhere: Path) -> None:
    script = f"""
    fanet() {{ {shlex.quote(sys.executable)} -W ignore -m fanet_lightning "$@"; }}
    eval "$(fanet --completion bash)"
    for line in "fanet det" "fanet detect protocol=short6" "fanet detect thresh" "fanet nothing x"; do
      COMP_WORDS=($line); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _fanet; echo "[${{COMPREPLY[*]}}]"
    done
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=elsewhere)
    assert done.stdout.splitlines() == ["[detect]", "[protocol=short640]", "[threshold=]", "[]"], done.stderr
