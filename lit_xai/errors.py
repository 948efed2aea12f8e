"""What goes wrong and can be mended, without importing anything heavy."""

from __future__ import annotations

from typing import Any


class UsageError(ValueError):
    """Something the user can mend. The message is one line: what was wrong, what was found, how to mend it."""


def at_least(least: float, prefix: str = "", **values: Any) -> None:
    """Refuse numbers below `least`; their names are said with the prefix, as in `model.width`."""
    for name, value in values.items():
        if not value >= least:
            raise UsageError(f"{prefix}{name} must be at least {least}, found {value}")


def share(prefix: str = "", **values: Any) -> None:
    """Refuse numbers outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{prefix}{name} must lie in [0, 1], found {value}")


def counted(name: str, value: Any, cap: int) -> int:
    """A number of at least 1, or `auto`, which is at most `cap`.

    Raises:
        UsageError: it is neither.
    """
    if value == "auto":
        return cap
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} must be a positive number or auto, found {value!r}")
    return value


class DamagedFile(UsageError):
    """A file that is cut, altered or of another kind: explaining writes it again, evaluating refuses it."""
