"""What speaks to users: the one exception, the kind of it that passes by itself, and counts."""

import operator
from typing import Any

LONGEST = 300  # characters of a message


class InputError(ValueError):
    """A mistake in what the user gave: one sentence that says what, where and what to do.

    The command line prints it without a traceback and exits with code 2. Whatever was quoted in it
    (a file's name, a cell's content), its text is one line of at most LONGEST characters without
    control characters: a longer one loses its middle, since the start says where and the end what
    to do.
    """

    def __init__(self, message: object) -> None:
        text = "".join(
            c if c.isprintable() else " " if c.isspace() else c.encode("unicode_escape").decode()
            for c in str(message)
        )
        text = " ".join(text.split())
        if len(text) > LONGEST:
            text = f"{text[: LONGEST * 3 // 5 - 3]} … {text[-LONGEST * 2 // 5 :]}"
        super().__init__(text)


class Busy(InputError):
    """Another process works there now: what was asked for can be had later."""


def counted(number: int, what: str) -> str:
    """How many of what: "1 run", "1,000 runs"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as an int; InputError for what is none, True and False too, or below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise InputError(f"{name} must be {least} or more, a whole number, not {value!r}.")
    return number
