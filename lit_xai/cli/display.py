"""How steps on several folds get on: one live table where there is a terminal, else a line for every end and every minute."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lit_xai.cli.side_by_side import DONE, RUNNING, WAITING, Share, Step
from lit_xai.cluster.heartbeat import LINE, Beat, alive

GUESS = 30.0  # seconds that a step is taken to last where nothing is known of it


def clock(at: float) -> str:
    """A time of day, with the day where it is another one."""
    there, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if there[:3] == now[:3] else "%Y-%m-%d %H:%M", there)


def span(seconds: float) -> str:
    """A duration, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def expected_end(steps: Sequence[Step], jobs: int, now: float) -> float:
    """When all steps will have ended, by those of the same kind that have, else by what each is expected to take.

    Where steps take longer than expected, those that nothing else is known of are taken to do so, too.
    """
    took: dict[tuple[Path, str], list[float]] = defaultdict(list)
    slower = 1.0
    for s in steps:
        if s.state == DONE and s.began:
            took[s.fold.parent, s.title].append(s.ended - s.began)
        if s.began and s.seconds:
            slower = max(slower, ((s.ended or now) - s.began) / s.seconds)

    def length(s: Step) -> float:
        known = took.get((s.fold.parent, s.title))
        return sum(known) / len(known) if known else slower * (s.seconds or GUESS)

    left = [max(length(s) - (now - s.began), 1.0) for s in steps if s.state == RUNNING]
    left += [length(s) for s in steps if s.state == WAITING]
    return now + max(sum(left) / jobs, max(left, default=0.0))


class Display:
    """What people see while steps run; call it now and then.

    Args:
        steps: all of them.
        shared: how the machine is shared out.
        live: a table that is drawn anew; else plain lines. None = as the output is a terminal.
    """

    def __init__(self, steps: Sequence[Step], shared: Share, live: bool | None = None) -> None:
        self.steps, self.jobs, self.console = steps, shared.jobs, Console()
        on_terminal = self.console.is_terminal if live is None else live
        self.live = Live(console=self.console, auto_refresh=False) if on_terminal else None
        self.told = {id(s) for s in steps if s.over}
        self.warned: set[str] = set()
        self.last = time.time()

    def __enter__(self) -> Display:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def __call__(self) -> None:
        """Show how it is now."""
        now = time.time()
        for step in [s for s in self.steps if s.over and id(s) not in self.told]:
            self.told.add(id(step))
            self.say(ended(step) if self.live is None or step.state != DONE else "", *self.warnings(step))
        if self.live is not None:
            self.live.update(self.table(now), refresh=True)
        elif now - self.last > LINE:
            self.last = now
            doing = [f"{s.name}: {', '.join(filter(None, doing_now(s)[:2]))}" for s in self.steps if s.state == RUNNING]
            self.say("; ".join([self.summary(now), *doing]))

    def say(self, *texts: str) -> None:
        """Lines that stay; a warning once."""
        for line in "\n".join(filter(None, texts)).splitlines():
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def warnings(self, step: Step) -> Iterator[str]:
        """What a step has warned of since it began, and no other fold of its ensemble before."""
        text = step.log.read_text(errors="replace") if step.log.exists() else ""
        for line in text.rpartition(f" lit_xai.{step.command} ")[2].splitlines():
            kind = f"{step.fold.parent} {re.sub('[^a-z ]', '', line)}"
            if line.startswith("warning: ") and kind not in self.warned:
                self.warned.add(kind)
                yield f"warning: {step.name}: {line.removeprefix('warning: ')}"

    def summary(self, now: float) -> str:
        """How far all of it is."""
        done = sum(s.state == DONE for s in self.steps)
        ends = expected_end(self.steps, self.jobs, now)
        return f"{done} of {len(self.steps)} steps done, ends about {clock(ends)} (in {span(ends - now)})"

    def table(self, now: float) -> Table:
        """One row a fold."""
        out = Table(box=None, padding=(0, 1), caption=self.summary(now), caption_justify="left")
        for head in ("fold", "steps", "now", "done", "rate", "ends"):
            out.add_column(head, no_wrap=True)
        rows: dict[str, list[Step]] = defaultdict(list)
        for s in self.steps:
            rows[s.name].append(s)
        for name, mine in rows.items():
            current = next((s for s in mine if s.state == RUNNING), None)
            last = next((s for s in reversed(mine) if s.over), None)
            waits = "waiting" if any(s.state == WAITING for s in mine) else (last.state if last else "")
            cells = doing_now(current) if current is not None else (waits, "", "", "")
            bad = next((s for s in mine if s.over and s.state != DONE), None)
            cells = (bad.state, bad.reason[:60], "", "") if bad is not None and current is None else cells
            out.add_row(name, f"{sum(s.state == DONE for s in mine)}/{len(mine)}", *cells)
        return out


def doing_now(step: Step) -> tuple[str, str, str, str]:
    """What a running step does, how much of it is done, its rate and its end."""
    beats = [b for b in alive(step.fold) if b.total]
    if not beats:
        return step.title, "", "", ""
    beat: Beat = beats[0]
    ends = clock(beat.ends) if beat.ends else ""
    return beat.task, f"{beat.done:g}/{beat.total:g} {beat.unit}", f"{beat.samples:.3g} samples/s", ends


def ended(step: Step) -> str:
    """What became of a step."""
    if step.state == DONE:
        return f"{clock(step.ended)} {step.name}: {step.title}, done in {span(step.ended - step.began)}"
    more = f" (all that it said: {step.log})" if step.began else ""
    return f"{step.name}: {step.title}, {step.state}: {step.reason}{more}"
