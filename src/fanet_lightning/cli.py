"""What every verb's ``main`` shares: exit codes, one-line errors, ``--help``."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf

from fanet_lightning.config import compose_config
from fanet_lightning.errors import InputError
from fanet_lightning.help_text import choices_text, keys_text

# 2 is what argparse leaves with on bad input; 130 is the shell's code for Ctrl-C.
BAD_INPUT, INTERRUPTED = 2, 130


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call ``main`` with the command line; print an :class:`InputError` as one line on stderr and leave with 2."""
    try:
        code = main(sys.argv[1:]) or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has left; writing the traceback to it would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.stdout.flush()
    sys.exit(code)


def verb_config(config_name: str, argv: Sequence[str], usage: str, required: Sequence[str] = ()) -> DictConfig | None:
    """The configuration of a verb, or None when ``--help`` was asked for and has been printed.

    Raises:
        InputError: a word that is not ``key=value``, an unknown key, or a required key without a value.
    """
    if any(word in ("-h", "--help") for word in argv):
        print_help(config_name, [word for word in argv if "=" in word], usage)
        return None
    for word in argv:
        if "=" not in word:
            raise InputError(f"'{word}' is not key=value; --help lists the keys")
    config = compose_config(config_name, argv)
    missing = [key for key in required if OmegaConf.is_missing(config, key) or config[key] is None]
    if missing:
        raise InputError(f"{' and '.join(f'{key}=…' for key in missing)} must be given; {usage.splitlines()[0]}")
    return config


def print_help(config_name: str, words: Sequence[str], usage: str) -> None:
    """Usage, the choices of the configuration's groups, and every key with its value under ``words`` and its meaning.

    Raises:
        InputError: see :func:`fanet_lightning.config.compose_config`.
    """
    keys = keys_text(config_name, OmegaConf.to_yaml(compose_config(config_name, words)))
    print(
        "\n\n".join(text for text in (usage, choices_text(config_name), f"Keys and their defaults:\n\n{keys}") if text)
    )


def check_report_keys(config: DictConfig) -> None:
    """The keys ``attributes``, ``errors`` and ``worst`` of the verbs that score.

    Raises:
        InputError: a value of another type, or ``worst`` below 1.
    """
    for key in ("attributes", "errors"):
        if not isinstance(config[key], bool):
            raise InputError(f"{key}={config[key]} is neither true nor false")
    if not isinstance(config.worst, int) or isinstance(config.worst, bool):
        raise InputError(f"worst={config.worst} is not a whole number; it counts images")
    if config.worst < 1:
        raise InputError(f"worst={config.worst} leaves nothing to show; give 1 or more")
