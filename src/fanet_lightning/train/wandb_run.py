"""A Weights & Biases run beside a training: it asks nothing, it waits for nothing long, and it never ends the training.

A dashboard is worth less than what it shows. Where the server, the key or W&B's own process fails, one line says so and
the training goes on, offline where that is possible.
"""

import contextlib
import netrc
import os
import secrets
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import WandbLogger

from fanet_lightning.cli.errors import InputError, first_line

if TYPE_CHECKING:
    from wandb import Run


MODES = ("auto", "online", "offline", "disabled")
# Older words that W&B still takes in WANDB_MODE.
SYNONYMS = {"run": "online", "dryrun": "offline"}

# A service that has not ended after so long will not.
TEARDOWN_SECONDS = 20.0


class GuardedRun:
    """A W&B run of the first rank. What fails inside W&B is said once, and the run is given up; nothing is raised.

    Args:
        run: as ``wandb.init`` made it.
    """

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.is_lost = False
        self._record = {
            "id": run.id,
            "project": run.project,
            "mode": "offline" if run.settings._offline else "online",
            "folder": str(Path(run.settings.sync_dir).resolve()),
        }

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps, so that a later start goes on with this run: id, project, mode, folder."""
        return dict(self._record)

    def log(self, values: Mapping[str, Any]) -> None:
        """One row of history: numbers, images, charts."""
        self._attempt(lambda: self.run.log(dict(values)))

    def describe(self, values: Mapping[str, Any]) -> None:
        """Add to the run's summary."""
        self._attempt(lambda: self.run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        """Send what is left, for as long as ``finish_timeout`` allows, and mark the run as failed where not 0.

        The next run of this process is a new one. An offline run's command for sending it is printed.
        """
        import wandb

        if not self.is_lost:
            self._attempt(lambda: self.run.finish(exit_code=exit_code), "what it has kept can be sent later")
        if self.is_lost:
            # Whatever is left of it, and the dead connection, would get into the next run's way.
            for end in (self.run.finish, wandb.teardown):
                with contextlib.suppress(Exception):
                    end()
        if self.record["mode"] == "offline" or self.is_lost:
            print(f"W&B: send this run with: {self.sync_command}", flush=True)

    @property
    def sync_command(self) -> str:
        """``wandb sync`` with every start of this run that lies beside it, in their order."""
        folder = Path(self._record["folder"])
        starts = sorted(folder.parent.glob(f"*run-*-{self._record['id']}"), key=lambda path: path.name.split("run-")[1])
        return shlex.join(["wandb", "sync", *(str(path) for path in starts)])

    def _attempt(self, action: Callable[[], Any], consequence: str = "the run goes on without it") -> None:
        if self.is_lost:
            return
        try:
            action()
        except Exception as error:  # several unrelated classes, OSError among them when W&B's process has died
            self.is_lost = True
            _warn(f"W&B has failed ({first_line(error)}); {consequence}")


class GuardedWandbLogger(WandbLogger):
    """Lightning's logger around a run that has begun already; on the first rank alone.

    Args:
        run: takes the metrics.
        out: the training run's folder.
    """

    def __init__(self, run: GuardedRun, out: Path) -> None:
        super().__init__(experiment=run.run, save_dir=out, project=run.record["project"])
        self._run = run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """``step`` is Lightning's; it travels as a metric of its own, because W&B's counts the calls."""
        self._run.log(metrics if step is None else {**metrics, "trainer/global_step": step})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration is in the run's config from the start."""


def check_wandb(settings: Mapping[str, Any]) -> None:
    """
    Args:
        settings: ``logger.wandb``.

    Raises:
        InputError: an unknown mode, here or in ``WANDB_MODE``.
    """
    if settings["mode"] not in MODES:
        raise InputError(f"logger.wandb.mode={settings['mode']} is unknown; take {', '.join(MODES)}")
    told = os.environ.get("WANDB_MODE") or "online"
    if settings["mode"] == "auto" and SYNONYMS.get(told, told) not in MODES[1:]:
        raise InputError(f"WANDB_MODE={told} is unknown here; take {', '.join(MODES[1:])}")


def start_run(
    settings: Mapping[str, Any], options: Mapping[str, Any], out: Path, earlier: Mapping[str, Any] | None = None
) -> GuardedRun | None:
    """A W&B run: sweep = group, cell = name, the whole configuration in its config. Never asks on the terminal.

    Args:
        settings: ``logger.wandb``.
        options: the whole configuration, plain.
        out: the training run's folder; W&B's files go to ``out/wandb``.
        earlier: the :attr:`GuardedRun.record` of an earlier start, which is then gone on with.

    Returns:
        The run; None where W&B is switched off or cannot start at all.
    """
    import wandb

    mode = resolve_mode(str(settings["mode"]))
    if mode == "disabled":
        return None
    _known_settings()
    identifier = str(earlier["id"]) if earlier else secrets.token_hex(6)
    arguments: dict[str, Any] = {
        "project": settings["project"],
        "entity": settings["entity"],
        "group": options["group"],
        "name": f"{options['name']}_seed{options['seed']}",
        "job_type": "train",
        "tags": list(settings["tags"]),
        "config": dict(options),
        "dir": out,
        "id": identifier,
        "resume": "allow",
        "settings": wandb.Settings(**_limits(settings)),
    }
    # Where huggingface_hub is loaded, as for a model of the hub, W&B would advertise its tool for language models.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    # W&B writes to the system's temporary folder when this one is not there.
    out.mkdir(parents=True, exist_ok=True)
    run: Run | None = None
    if mode == "online":
        run = _start_online(arguments, out / "wandb")
    try:
        run = run or wandb.init(mode="offline", **arguments)
        # Without this the panels' x axis would count log calls.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    except Exception as error:
        _warn(f"W&B cannot start ({first_line(error)}); this run goes on without it")
        return None
    if not run.settings._offline:
        print(f"W&B: {run.url}", flush=True)
    return GuardedRun(run)


def _start_online(arguments: Mapping[str, Any], folder: Path) -> "Run | None":
    """The run, or None, with one line on stderr, where it could not be had in time."""
    import wandb

    before = set(folder.glob("run-*"))
    try:
        with _no_terminal():
            return wandb.init(mode="online", **arguments)
    except Exception as error:
        _warn(
            f"W&B cannot go online ({first_line(error)}); this run goes on offline. Check WANDB_API_KEY and the "
            "network, or give logger.wandb.mode=offline"
        )
    # W&B's process holds the id of the run that has failed; its next one does not.
    _end_service(TEARDOWN_SECONDS)
    for left_over in set(folder.glob("run-*")) - before:
        shutil.rmtree(left_over, ignore_errors=True)
    return None


def _end_service(seconds: float) -> None:
    """``wandb.teardown``, but no longer than so many seconds: it waits for W&B's process, which at times never ends."""
    import wandb
    from wandb.sdk import wandb_setup

    service: Any = None
    with contextlib.suppress(AttributeError):  # no public name leads to it
        service = wandb_setup._singleton._connection._proc._process  # type: ignore[union-attr]

    def teardown() -> None:
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()

    thread = threading.Thread(target=teardown, name="W&B teardown", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive() and service is not None:
        service.kill()
        thread.join(seconds)


def _limits(settings: Mapping[str, Any]) -> dict[str, Any]:
    """W&B's settings: quiet, and bounded at both ends."""
    import wandb

    limits = {
        "silent": True,
        "init_timeout": settings["init_timeout"],
        "finish_timeout": settings["finish_timeout"],
        "finish_timeout_raises": True,
    }
    # Older releases wait without an end for the last data.
    return {name: value for name, value in limits.items() if name in wandb.Settings.model_fields}


def resolve_mode(mode: str) -> str:
    """``auto`` → ``WANDB_MODE`` where it is set, else ``online`` where a key is set up, else ``offline``."""
    if mode != "auto":
        return mode
    settings = _known_settings()
    told = os.environ.get("WANDB_MODE") or (settings.mode if settings.mode != "online" else None)
    if told:
        return SYNONYMS.get(told, told)
    return "online" if has_key() else "offline"


def has_key() -> bool:
    """Whether a key is set up: ``WANDB_API_KEY``, ``WANDB_IDENTITY_TOKEN_FILE``, W&B's settings, or its host in netrc.

    Nothing is asked of the server.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = _known_settings()
    return bool(settings.api_key) or _netrc_has_key(os.environ.get("WANDB_BASE_URL") or settings.base_url)


def _known_settings() -> Any:
    """What W&B's settings files and environment say; also tells it to keep its remarks to itself."""
    import wandb

    return wandb.setup(wandb.Settings(silent=True)).settings


def _netrc_has_key(base_url: str) -> bool:
    hosts = {urlparse(base_url).netloc}
    if "WANDB_BASE_URL" not in os.environ:
        hosts.add("api.wandb.ai")  # newer releases call it by another name and still read its entry
    path = os.environ.get("NETRC") or next(
        (str(p) for p in (Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()) if p.is_file()), None
    )
    if path is None:
        return False
    try:
        entries = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return False
    found = [entries.authenticators(host) for host in hosts]
    return any(entry is not None and entry[2] for entry in found)


@contextlib.contextmanager
def _no_terminal() -> Iterator[None]:
    """Standard input that is no terminal, so that nothing can ask for a key and wait."""
    with Path(os.devnull).open() as nothing:
        stdin, sys.stdin = sys.stdin, nothing
        try:
            yield
        finally:
            sys.stdin = stdin


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
