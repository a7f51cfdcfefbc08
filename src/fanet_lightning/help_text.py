"""What ``--help`` says: the choices of each group and the meaning of each key, in the files' own words."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from fanet_lightning.config import config_dir, groups_of

WIDTH = 120
COMMENT_COLUMN, LEAST_COMMENT_WIDTH = 32, 40
_KEY, _COMMENT = re.compile(r"( *)([\w.]+):(?: |$)"), re.compile(r"\s#\s+(.+?)\s*$")
# A full stop before a number ends no sentence: "Tang et al. 2018".
_SENTENCE = re.compile(r"(.+?\.)\s+\D.*")


def choices_text(config_name: str) -> str:
    """Every group of ``conf/<config_name>.yaml`` with its choices, the default first; "" where there is none.

    A choice is explained by the first sentence of the comment that its file begins with.
    """
    lines: list[str] = []
    for group, default in groups_of(config_name).items():
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


def keys_text(config_name: str, keys: str) -> str:
    """``keys`` with what ``conf/<config_name>.yaml`` says of each beside it; long comments go on below themselves.

    Args:
        config_name: of the verb.
        keys: the composed configuration as YAML, as OmegaConf writes it. Keys of groups stay as they are: the files of
            the group explain them.
    """
    comments = _comments((config_dir() / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines())
    lines: list[str] = []
    for line, path in _with_paths(keys.splitlines()):
        comment = comments.get(path)
        if comment is None:
            lines.append(line)
            continue
        # Long values, such as a folder's pattern, push their own comment to the right, not everybody's.
        column = max(COMMENT_COLUMN, len(line) + 2)
        if WIDTH - column < LEAST_COMMENT_WIDTH:
            lines.append(line)
            line, column = "", COMMENT_COLUMN
        margin = " " * column + "# "
        wrapped = textwrap.wrap(comment, WIDTH - len(margin), break_on_hyphens=False, break_long_words=False)
        lines.append(line.ljust(column) + "# " + wrapped[0])
        lines += [margin + part for part in wrapped[1:]]
    return "\n".join(lines)


def _comments(lines: Sequence[str]) -> dict[tuple[str, ...], str]:
    """The comment at the end of each key's line, by the key's path."""
    found = {}
    for line, path in _with_paths(lines):
        comment = _COMMENT.search(line)
        if path and comment is not None:
            found[path] = comment[1]
    return found


def _with_paths(lines: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every line of YAML in block style with the keys that lead to it; () for what is no key."""
    above: list[tuple[int, str]] = []
    for line in lines:
        key = _KEY.match(line)
        if key is None:
            yield line, ()
            continue
        indent = len(key[1])
        above = [*(entry for entry in above if entry[0] < indent), (indent, key[2])]
        yield line, tuple(name for _, name in above)


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
