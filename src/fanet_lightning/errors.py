"""The one exception that a person's mistake raises."""


class InputError(ValueError):
    """Something that the person at the command line can mend.

    The message is a single line that names the file, line and value at fault and says what to do.
    The verbs print it after ``error:`` and leave with exit code 2; nothing else is ever caught so.
    """
