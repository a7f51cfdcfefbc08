"""The frame of every command: exit codes, one-line errors, --help."""

import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import NoReturn

import hydra
from omegaconf import DictConfig, OmegaConf

from fanet_lightning.cli.config import choices_text, compose_config, config_dir, keys_text, read_words
from fanet_lightning.cli.errors import InputError, check_values, is_whole

# 2 is what argparse leaves with on bad input; 130 is the shell's code for Ctrl-C, 141 for a reader that has left.
BAD_INPUT, INTERRUPTED, NO_READER = 2, 130, 141
# What PyTorch says of processes that share tensors and find no room for them.
SHARED_MEMORY_ERRORS = ("Bus error", "memory(shm)", "out of shared memory", "object </torch_", "file </torch_")
# What Hydra itself answers, once the words are checked.
HYDRA_FLAGS = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"}
# The verbs, and what each does.
VERBS = {
    "detect": "faces in photos, folders, videos and cameras",
    "train": "one network, or a grid of them",
    "evaluate": "a model on a data set, scored",
    "score": "prediction files of any detector",
    "reproduce": "a finished run again, compared to the last bit",
    "report": "table and figures of trained runs",
    "plot": "curves of scored folders in one figure",
    "export": "a model to ONNX, OpenVINO, TorchScript or torch.export",
    "package": "a checkpoint to a model's folder that can be given away",
    "doctor": "what is wrong with a data set",
    "convert": "labels and images to another format",
    "app": "a page in the browser",
    "workspace": "the Weights & Biases workspace of an ablation",
    "download": "WIDER FACE or VGG16's weights, resumed and checked",
    "show": "grids of augmented or synthetic images",
}

# Modules of the verbs that are no package or file of their name in the root.
MODULES = {
    "download": "data.download", "package": "models.packaging", "reproduce": "train.reproduce", "show": "data.show",
    "workspace": "train.workspace",
}  # fmt: skip

# Verbs from here, keys and their options from Hydra; where neither fits, bash offers files.
BASH = """_fanet() {{
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{verbs}" -- "${{COMP_WORDS[1]}}"))
  else
    local line="fanet ${{COMP_WORDS[*]:2}}"
    COMPREPLY=($(COMP_LINE="$line" COMP_POINT=${{#line}} fanet "${{COMP_WORDS[1]}}" -sc query=bash 2>/dev/null))
  fi
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _fanet fanet"""


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call ``main`` with the command line; print an :class:`InputError` as one line on stderr and leave with 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one could only tear what is being written
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # e.g. by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = NO_READER
    except Exception as error:
        code = report_error(error)
    sys.exit(code)


def fanet() -> NoReturn:
    """The console script: ``fanet VERB …`` becomes ``python -m`` with the verb's module."""
    run(_verb)


def _verb(argv: list[str]) -> int:
    verb, *words = argv or ["--help"]
    if verb == "--version":
        print(f"fanet_lightning {version('fanet-lightning')}")
    elif verb in VERBS:
        # Another process, because Lightning starts further ranks with the words of this one.
        os.execv(sys.executable, [sys.executable, "-m", f"fanet_lightning.{MODULES.get(verb, verb)}", *words])
    elif verb == "--completion" and words in ([], ["bash"]):
        print(BASH.format(verbs=" ".join(VERBS)))
    elif verb in ("-h", "--help"):
        print("fanet VERB [key=value …], or python -m fanet_lightning VERB …; fanet VERB --help has the keys.\n")
        print("\n".join(f"  {name:<11}{what}" for name, what in VERBS.items()))
    else:
        near = difflib.get_close_matches(verb, VERBS, n=1) or VERBS
        raise InputError(f"{verb}: no such verb; did you mean {' or '.join(near)}?")
    return 0


def report_error(error: Exception) -> int:
    """Print what a person can fix as one line on stderr, and return the exit code; anything else is raised again."""
    text = str(error)
    if not isinstance(error, InputError) and any(sign in text for sign in SHARED_MEMORY_ERRORS):
        text = "the worker processes ran out of shared memory (/dev/shm); give workers=0, or docker run --shm-size=2g"
    elif isinstance(error, OSError) and error.strerror:  # a file that cannot be read, a full disk
        text = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    elif not isinstance(error, InputError):
        raise error
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return BAD_INPUT


def verb_config(config_name: str, argv: Sequence[str], usage: str, required: Sequence[str] = ()) -> DictConfig | None:
    """The configuration of a verb (:func:`read_words`), or None when ``--help`` was asked for and has been printed."""
    if answered(config_name, argv, usage):
        return None
    config = compose_config(config_name, argv)
    if missing := [f"{key}=…" for key in required if OmegaConf.is_missing(config, key) or config[key] is None]:
        raise InputError(f"{' and '.join(missing)} must be given; {usage.splitlines()[0]}")
    return config


def answered(config_name: str, argv: Sequence[str], usage: str, *, with_hydra: bool = False) -> bool:
    """Whether ``--help`` was asked for, or what Hydra answers itself (:data:`HYDRA_FLAGS`); it is then answered."""
    words = [word for word in argv if "=" in word and not word.startswith("-")]
    if {"-h", "--help"} & {*argv}:
        keys = keys_text(config_name, OmegaConf.to_yaml(compose_config(config_name, words)))
        texts = (usage, choices_text(config_name), f"Keys and their defaults:\n\n{keys}")
        print("\n\n".join(text for text in texts if text))
        return True
    if not HYDRA_FLAGS & {*argv}:
        return False
    for_hydra = list(argv)
    if not {"--shell-completion", "-sc"} & {*argv}:
        multirun = bool({"-m", "--multirun"} & {*argv})
        line = read_words(config_name, words, multirun=multirun, with_hydra=with_hydra)
        for_hydra = [*(word for word in argv if word not in words), *line.for_hydra]
    sys.argv = [sys.argv[0], *for_hydra]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(lambda _: None)()
    return True


def check_whole(config: DictConfig, **least: int) -> None:
    """InputError: a key is not null and no whole number of at least so much."""
    for key, number in least.items():
        check_values(config, (f"a whole number of at least {number}", partial(is_whole, least=number), key))
