"""Commands of several processes, forked from the test's own: nobody waits for imports again."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from test_commands import ENVIRONMENT, Done, command

SECONDS = 120.0


class Ranks:
    """The processes of one command, side by side; rank 0 is the first.

    Args:
        cmd: which command.
        root: its folder; what the processes print goes beside it.
        world: how many.
    """

    def __init__(self, cmd: str, root: Path, *options: str, small: list[str], world: int = 2) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.root, self.files = root, []
        self.codes: dict[int, int] = {}
        self.pids = []
        for rank in range(world):
            places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            places.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="test")
            arguments = [*options, *(["trainer=ddp_cpu"] if world > 1 else [])]
            self.files.append(root.parent / f"{root.name}-{port}-{rank}.log")
            pid = os.fork()
            if not pid:
                self.become(cmd, command(cmd, root, *arguments, small=small)[3:], places)
            self.pids.append(pid)

    def become(self, cmd: str, options: list[str], places: dict[str, object]) -> None:
        """What a forked process does, to its end."""
        code = 1
        try:
            os.setsid()
            out = os.open(self.files[-1], os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(out, stream)
            sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
            os.environ.update(ENVIRONMENT)
            os.environ.update({k: str(v) for k, v in places.items()})
            sys.argv = [f"lit_xai/{cmd}.py", *options]
            __import__(f"lit_xai.{cmd}")
            sys.modules[f"lit_xai.{cmd}"].main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def until(self, ready: Callable[[], object]) -> None:
        """Wait until something is the case while all processes live."""
        end = time.time() + SECONDS
        while not ready():
            assert time.time() < end, f"waited for {SECONDS} s: {self.text()}"
            assert not self.ended(), f"ended too early ({self.codes}): {self.text()}"
            time.sleep(0.005)

    def ended(self) -> bool:
        """Whether any process has."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return bool(self.codes)

    def send(self, number: int, rank: int) -> None:
        """A signal to one process."""
        os.kill(self.pids[rank], number)

    def wait(self) -> list[int]:
        """The exit codes of all, by rank; who has not ended by then is killed, and the test fails."""
        end = time.time() + SECONDS
        while time.time() < end and len(self.codes) < len(self.pids):
            self.ended()
            time.sleep(0.005)
        left = [pid for rank, pid in enumerate(self.pids) if rank not in self.codes]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert not left, f"did not end within {SECONDS} s: {self.text()}"
        return [self.codes[rank] for rank in range(len(self.pids))]

    def text(self) -> str:
        """What all printed, rank by rank."""
        return "\n".join(f.read_text()[-3000:] for f in self.files if f.exists())


def run_ranks(cmd: str, root: Path, *options: str, small: list[str], world: int = 2) -> Done:
    """A command of several processes, to its end."""
    ranks = Ranks(cmd, root, *options, small=small, world=world)
    codes = ranks.wait()
    assert codes == [0] * world, ranks.text()
    return Done(0, ranks.text(), "")
