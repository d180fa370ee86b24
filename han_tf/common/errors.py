"""Exceptions that end a command with one line instead of a traceback, and the category of its notes."""

import re

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters and separators of lines, which names of files may hold, and terminals obey."""


def printable(text: str) -> str:
    """Returns a file's name or another text from outside with escapes, such as \\x1b, for control characters."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class UserError(Exception):
    """Something about the input is wrong; the message is one line.

    It names the file or value, what was found and what was expected. Command lines print it
    without a traceback and exit with status 1 (see :mod:`han_tf.common.cli`).
    """

    def __str__(self) -> str:
        """Returns the message; line breaks, of a file's name or of a system error that it quotes, become spaces."""
        return printable(" ".join(super().__str__().splitlines()))


def one_line(error: BaseException) -> str:
    """Returns an exception's message without line breaks; the name of its class if there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message; the name of its class if there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Note(UserWarning):
    """Something that the user should know; the message is one line. Commands print it as ``note: …``."""


class Stopped(Exception):
    """A signal stopped the work, and its state is saved.

    Attributes:
      signal: number of the signal; command lines exit with status 128 + ``signal``.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number
