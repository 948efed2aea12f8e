"""How long a user waits before anything happens: `--help`, and `import lit_xai`."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable

from benchmarks.harness import Report, Target, alternate

ROUNDS = 7
HELP_SECONDS, IMPORT_SECONDS = 3.0, 0.2


def process(*arguments: str) -> Callable[[], object]:
    """A Python process with these arguments, its output thrown away."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def startup() -> Report:
    """Medians of whole processes, in turn with a Python that does nothing."""
    times = alternate(
        {
            "python -c pass": process("-c", "pass"),
            "python -c 'import lit_xai'": process("-c", "import lit_xai"),
            "python -m lit_xai.train --help": process("-m", "lit_xai.train", "--help"),
        },
        ROUNDS,
    )
    bare, imported, helped = times.values()
    added = [b - a for a, b in zip(bare, imported, strict=True)]
    report = Report("startup", ["command", "median s", "smallest", "largest"])
    report.rows = [[name, statistics.median(t), min(t), max(t)] for name, t in times.items()]
    report.targets = [
        Target("import lit_xai over bare python, s", statistics.median(added), IMPORT_SECONDS),
        Target("python -m lit_xai.train --help, s", statistics.median(helped), HELP_SECONDS),
    ]
    return report
