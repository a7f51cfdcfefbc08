"""Models on the Hugging Face hub. ``huggingface_hub`` is an extra, imported only when a model is asked for there."""

from collections.abc import Sequence
from pathlib import Path

from fanet_lightning.errors import InputError, first_line


def fetch_model(name: str, files: Sequence[str]) -> Path:
    """The folder of a model, fetched once and kept in the hub's own cache.

    Args:
        name: ``organisation/name``, or ``organisation/name@revision``.
        files: patterns of the files that are fetched.

    Raises:
        InputError: the package is not installed, no connection and nothing in the cache, no such model or revision, or
            a repository that holds no model of this kind.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise InputError(
            f"{name} is neither a file, a folder nor a shipped model; to fetch it from the Hugging Face hub install "
            "huggingface_hub (pip install 'fanet-lightning[hub]')"
        ) from error
    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except RevisionNotFoundError as error:
        raise InputError(f"{repository} on the hub has no revision {revision}; leave it out for the newest") from error
    # The hub answers alike for a name that nobody has and for a private one.
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no file or folder {name}, and no model of that name on the hub, or only a private one; check "
            "the name, or log in with `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise InputError(f"{name} is no name of a model on the hub; give organisation/name") from error
    # It is an OSError too, whatever kept the hub from answering: no network, offline mode, a proxy.
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{name} is neither a file nor a folder here, and cannot be fetched from the Hugging Face hub "
            f"({first_line(error)[:120]}); check the connection, or give a folder"
        ) from error
    if not (folder / "config.json").is_file():
        raise InputError(f"{name} on the hub holds no config.json; give a model of fanet_lightning")
    return folder
