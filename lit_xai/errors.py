"""What goes wrong and can be mended, without importing anything heavy."""

from __future__ import annotations


class UsageError(ValueError):
    """Something the user can mend. The message is one line: what was wrong, what was found, how to mend it."""


class DamagedFile(UsageError):
    """A file that is cut, altered or of another kind: explaining writes it again, evaluating refuses it."""
