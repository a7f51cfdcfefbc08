"""What ``--help`` says beside the keys: the choices of each group of the configuration, in the files' own words."""

import re
import textwrap
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fanet_lightning.config import config_dir

WIDTH = 120
# A full stop before a number ends no sentence: "Tang et al. 2018".
_SENTENCE = re.compile(r"(.+?\.)\s+\D.*")


def choices_text(config_name: str) -> str:
    """Every group of ``conf/<config_name>.yaml`` with its choices, the default first; "" where there is none.

    A choice is explained by the first sentence of the comment that its file begins with.
    """
    content: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{config_name}.yaml"))
    groups: list[dict[str, str | None]] = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    lines: list[str] = []
    for group, default in (item for entry in groups for item in entry.items()):
        paths = sorted((config_dir() / group).glob("*.yaml"), key=lambda path: (path.stem != default, path.stem))
        if not paths:
            continue
        lines += ["", f"{group}=…" + ("" if default is None else f"  (default: {default})")]
        column = max(len(path.stem) for path in paths) + 4
        for path in paths:
            lines += textwrap.wrap(
                f"  {path.stem}".ljust(column) + description(path), WIDTH, subsequent_indent=" " * column,
                break_on_hyphens=False,
            ) or [f"  {path.stem}"]  # fmt: skip
    return "\n".join(["Choices:", *lines]) if lines else ""


def description(path: Path) -> str:
    """The first sentence of the comment that a file begins with, without ``@package`` and commands; may be empty."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        # Commands are indented.
        if not line.startswith("# ") or line.startswith("#  "):
            break
        words.append(line[2:].strip())
    text = re.sub(r":? python -m .*", "", " ".join(words))
    whole = _SENTENCE.fullmatch(text)
    return (whole[1] if whole else text).rstrip(":")
