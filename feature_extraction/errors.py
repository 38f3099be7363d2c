"""The failures a user can meet, each a built-in exception with the exit code of the command line.

Every message says what is wrong with the value, where it came from, what would be right, and the next step.
"""

from __future__ import annotations


class UsageError(ValueError):
    """A wrong command line or setting."""

    exit_code = 2


class InputDataError(ValueError):
    """Data that cannot be used: missing, extra or duplicate ids, wrong types, unreadable files."""

    exit_code = 3


class IncompatibleError(ValueError):
    """Artefacts that do not belong together, such as an adapter and another backbone."""

    exit_code = 4


class DamagedError(ValueError):
    """A file whose bytes are not those that were written."""

    exit_code = 5


class DiskFullError(OSError):
    """No space to write; what was written before stays valid."""

    exit_code = 6


class NumericalError(ArithmeticError):
    """A loss or gradient that is not a finite number."""

    exit_code = 7


class Interrupted(RuntimeError):
    """Stopped by a signal after saving; the same command goes on from there."""

    exit_code = 75
