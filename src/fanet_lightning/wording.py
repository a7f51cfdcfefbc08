"""Words of messages that several verbs share."""


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2,018 files``: for nouns that take an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
