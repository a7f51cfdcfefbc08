"""README and the pages: every command is accepted, and the examples of docs/own-parts.md run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from fanet_lightning.cli.config import read_words
from tests.train.helpers import TINY, command

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples/own_parts"
PARTS = (ROOT / "docs/own-parts.md").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """Words of every line ``fanet VERB …`` or ``python -m fanet_lightning.VERB …`` in the text's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.replace("python -m fanet_lightning.", "fanet ", 1) for line in "".join(blocks).splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fanet ")]


def test_every_command_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    measured = {"experiments.md", "gpu-runs.md"}  # as it was typed then
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name not in measured)]
    found = [words for page in pages for words in commands(page.read_text(encoding="utf-8"))]
    assert len(found) > 60
    for verb, *words in found:
        if "--help" not in words and verb != "download":  # which takes options, not keys
            swept = [word for word in words if word != "-m"]
            if verb == "detect":  # bare words are its sources
                swept = [word for word in swept if "=" in word]
            if verb == "reproduce":
                swept[0] = f"run={swept[0]}"
            read_words(verb, swept, multirun=swept != words, with_hydra=verb == "train")


@pytest.mark.slow
def test_parts_of_ones_own_train(tmp_path: Path) -> None:
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    for number, (verb, *words) in enumerate(commands(PARTS)):
        if {"model=fanet_timm", "weights=imagenet"} & {*words}:  # tests/models: neither timm nor a network is here
            continue
        if verb == "train":
            own_data = "data=folder" in words or "data._target_=own_source.CsvFaces" in words
            own = ("data.",) * own_data + ("model.",) * ("model._target_=own_network.ResNetFpn" in words)
            tiny = [word for word in TINY if not word.startswith(own)]
            tiny += ["data.drawn=[4,2]"] if "data.root=faces" in words else []
            words += [*tiny, "epochs=1", f"out=run{number}", "evaluate_at_end=false"]
        done = command(verb, *words, cwd=tmp_path)
        assert done.returncode == 0, (verb, words, done.stderr)
        assert "callbacks.hardest._target_=own_callback.Hardest" not in words or "hardest: " in done.stdout
