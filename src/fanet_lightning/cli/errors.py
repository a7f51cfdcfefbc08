"""InputError, and the words that messages share."""


class InputError(ValueError):
    """Something that the person at the command line can mend.

    The message is a single line that names the file, line and value at fault and says what to do.
    The verbs print it after ``error:`` and leave with exit code 2; nothing else is ever caught so.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, else its class: for messages of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2,018 files``: for nouns that take an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
