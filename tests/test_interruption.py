"""Signals: an interrupted command, given again, ends where an undisturbed one ends."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lit_xai.cluster.interruption import Interrupted, Interruption, WholeCheckpoints, begins_at, environment, requeue
from lit_xai.errors import UsageError

from ranks import Ranks, run_ranks
from test_commands import run, shards

OPTIONS = ["fold=0", "logger=csv", "data.batch_size=20", "explainer=[saliency,random]"]
OPTIONS += ["+data.augment=[{_target_:torchvision.transforms.RandomHorizontalFlip}]"]
OPTIONS += ["hide=uniform_noise", "name=digits-resnet18"]
SMALL = ["data.train_subset=300", "data.folds=2", "data.probes_per_fold=9", "data.size=16", "model.network.width=4"]
SMALL += ["checks=0"]
SMALL += ["trainer.max_epochs=3", "score=[mufidelity]", "score.mufidelity.subsets=12", "shard_size=8", "progress=false"]
FOLD = Path("digits-resnet18") / "fold=0"


@contextlib.contextmanager
def signalled(hook: str, call: int, number: int) -> Iterator[None]:
    """This process is sent a signal where an `Interruption`'s hook is called for the n-th time, from 0."""
    original, calls = getattr(Interruption, hook), []

    def send(self: Interruption, *arguments: object) -> None:
        if len(calls) == call:
            os.kill(os.getpid(), number)
        calls.append(0)
        original(self, *arguments)

    setattr(Interruption, hook, send)
    try:
        yield
    finally:
        setattr(Interruption, hook, original)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    run("train", root, *OPTIONS, small=SMALL)
    return root


def steps(root: Path) -> list[str]:
    """The steps at which a training's loss is on record."""
    (file,) = root.rglob("metrics.csv")
    header, *rows = (line.split(",") for line in file.read_text().splitlines())
    return [r[header.index("step")] for r in rows if r[header.index("train/loss")]]


def test_a_training_interrupted_within_epochs_ends_with_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    with signalled("on_train_batch_start", 10, signal.SIGTERM):
        first = run("train", tmp_path, *OPTIONS, check=False, small=SMALL)
    assert first.returncode == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM: " in first.stdout
    assert "run the same command to go on" in first.stdout
    assert "epoch 1, batch 3 is saved" in first.stdout
    with signalled("on_train_batch_start", 2, signal.SIGUSR1):
        second = run("train", tmp_path, *OPTIONS, check=False, small=SMALL)
    assert "epoch 1, batch 5 is saved" in second.stdout
    run("train", tmp_path, *OPTIONS, small=SMALL)
    assert shards(tmp_path) == shards(undisturbed)
    a, b = (torch.load(r / FOLD / "model.ckpt", weights_only=True)["state_dict"] for r in (tmp_path, undisturbed))
    assert all(torch.equal(a[k], v) for k, v in b.items())
    assert not (tmp_path / FOLD / "last.ckpt").exists()
    assert set(steps(tmp_path)) <= set(steps(undisturbed)), "steps are counted as if nothing had happened"


def test_where_an_epoch_begins_there_is_nothing_new_to_save(tmp_path: Path) -> None:
    with signalled("on_train_batch_start", 7, signal.SIGTERM):
        done = run("train", tmp_path, *OPTIONS, check=False, small=SMALL)
    assert done.returncode == 128 + signal.SIGTERM
    assert "epoch 1, batch 0; run the same command to go on" in done.stdout
    assert begins_at(torch.load(tmp_path / FOLD / "last.ckpt", weights_only=True), 1) == (1, 0)


def test_explaining_ends_between_two_shards_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    with signalled("pause", 2, signal.SIGINT):
        done = run("train", tmp_path, *OPTIONS, check=False, small=SMALL)
    assert done.returncode == 128 + signal.SIGINT
    assert "finished shards are kept" in done.stdout
    left = shards(tmp_path)
    assert len([name for name in left if "/maps/" in name]) == 2
    run("train", tmp_path, *OPTIONS, small=SMALL)
    assert shards(tmp_path) == shards(undisturbed)
    assert all(shards(tmp_path)[name] == content for name, content in left.items())


def listen(tmp_path: Path, number: int, work: Callable[[], object]) -> None:
    """Some work, in the beginning of which a signal comes (none if the number is 0)."""
    with Interruption(tmp_path / "last.ckpt").listening():
        if number:
            os.kill(os.getpid(), number)
        work()


def test_a_shard_that_takes_too_long_is_left(tmp_path: Path) -> None:
    left: list[float] = []

    def slow() -> None:
        left.extend(signal.getitimer(signal.ITIMER_REAL))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(5)

    with pytest.raises(Interrupted, match="SIGTERM"):
        listen(tmp_path, signal.SIGTERM, slow)
    assert 0 < left[0] <= 20
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_who_presses_ctrl_c_again_does_not_wait(tmp_path: Path) -> None:
    def impatient() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one ends it at once")

    with pytest.raises(Interrupted, match="SIGINT: finished work is kept"):
        listen(tmp_path, signal.SIGINT, impatient)


@pytest.mark.parametrize("cmd", ["train", "explain", "evaluate", "degradation"])
def test_ctrl_c_before_or_after_the_work_says_the_same(
    tmp_path: Path, cmd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_xai.cli.loader.application", pressed)
    done = run(cmd, tmp_path, check=False, small=[])
    assert done.returncode == 128 + signal.SIGINT
    assert done.stdout == "interrupted by SIGINT: finished work is kept; run the same command to go on\n"
    assert done.stderr == ""


def test_ctrl_c_while_a_table_is_made(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr("lit_xai.report.summarise.summarise", pressed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process of a shell ignores it
    try:
        done = run("evaluate", undisturbed, "name=digits-resnet18", "logger=none", check=False, small=[])
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.returncode == 128 + signal.SIGINT
    assert "interrupted by SIGINT" in done.stdout
    assert done.stderr == ""


def test_a_thread_that_can_set_no_handlers_works_all_the_same(tmp_path: Path) -> None:
    done: list[int] = []
    thread = threading.Thread(target=listen, args=(tmp_path, 0, lambda: done.append(1)))
    thread.start()
    thread.join()
    assert done == [1]


def test_what_a_signal_breaks_counts_as_the_signal(tmp_path: Path) -> None:
    def broken() -> None:
        raise RuntimeError("connection closed by peer")

    with pytest.raises(Interrupted, match="RuntimeError"):
        listen(tmp_path, signal.SIGTERM, broken)
    with pytest.raises(RuntimeError, match="closed by peer"):
        listen(tmp_path, 0, broken)


TWO = ["fold=0", "logger=csv", "explainer=[saliency,random]", "data.batch_size=3", "score.mufidelity.subsets=300"]


@pytest.fixture(scope="module")
def undisturbed_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair") / "undisturbed"
    run_ranks("train", root, *TWO, small=SMALL)
    return root


@pytest.mark.slow
def test_two_processes_stop_at_the_same_batch_whichever_is_signalled(undisturbed_pair: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        ranks = Ranks("train", tmp_path / "disturbed", *TWO, small=SMALL)
        ranks.until(lambda: len(list((tmp_path / "disturbed").rglob("running/*.json"))) == 2)
        ranks.send(signal.SIGTERM, rank)
        assert ranks.wait() == [128 + signal.SIGTERM] * 2, ranks.text()
    (last,) = tmp_path.rglob("last.ckpt")
    saved = torch.load(last, weights_only=True)
    assert begins_at(saved, 2)[1] > 0
    with pytest.raises(UsageError, match="of 2 processes"):
        begins_at(saved, 1)
    assert "resuming from" in run_ranks("train", tmp_path / "disturbed", *TWO, small=SMALL).stdout
    assert shards(tmp_path / "disturbed") == shards(undisturbed_pair)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_ends_the_others_and_the_same_command_completes(
    undisturbed_pair: Path, tmp_path: Path, rank: int
) -> None:
    """kill -9: one in training, the other one in explaining."""
    for killed, ready in ((rank, "last.ckpt"), (1 - rank, "maps/*/*.safetensors")):
        ranks = Ranks("train", tmp_path / "disturbed", *TWO, small=SMALL)
        ranks.until(lambda ready=ready: list((tmp_path / "disturbed").rglob(ready)))
        ranks.send(signal.SIGKILL, killed)
        codes = ranks.wait()
        assert codes[killed] == -signal.SIGKILL, ranks.text()
        assert codes[1 - killed] > 0, ranks.text()
    assert len(list(tmp_path.rglob("disturbed/**/maps/*/*.safetensors"))) < 6, "it was killed in the middle"
    run_ranks("train", tmp_path / "disturbed", *TWO, small=SMALL)
    assert shards(tmp_path / "disturbed") == shards(undisturbed_pair)
    assert list((tmp_path / "disturbed").rglob("metrics.csv"))
    assert not list((tmp_path / "disturbed").rglob("*.tmp"))


@pytest.mark.slow
def test_twins_that_explain_the_same_shards_do_no_harm(undisturbed: Path, tmp_path: Path) -> None:
    """A requeued job and its twin; a third one was killed while it wrote."""
    root = tmp_path / "twins"
    shutil.copytree(undisturbed, root)
    shutil.rmtree(root / FOLD / "maps")
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    left = root / FOLD / "maps" / "saliency" / f".000000000-000000007.safetensors.{platform.node()}.{dead}.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    twins = [Ranks("explain", root, *OPTIONS, small=SMALL, world=1) for _ in range(2)]
    assert [t.wait() for t in twins] == [[0], [0]], "".join(t.text() for t in twins)
    assert shards(root) == shards(undisturbed)
    assert not list(root.rglob(".*.tmp"))
    assert not list(root.rglob("running"))


@pytest.mark.slow
def test_surplus_tasks_of_an_array_have_nothing_to_do(undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    shutil.copytree(undisturbed, root)
    shutil.rmtree(root / FOLD / "maps")
    for part in range(4):  # three shards of each explainer
        done = run("explain", root, *OPTIONS, f"part={part}/4", small=SMALL)
        assert ("nothing to do" in done.stdout) == (part > 2)
    assert shards(root) == shards(undisturbed)


# ---------------------------------------------------------------------------------------------------------------- SLURM


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A command of that name which writes down what it is given."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ntest "$2" != 99 || {{ echo Invalid job >&2; exit 1; }}\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return tmp_path / "asked"


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({"SLURM_JOB_ID": "12"}, "requeue 12\n"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, "requeue 12_0\n"),
    ],
)
def test_near_the_time_limit_the_job_goes_back_into_the_queue(scontrol, monkeypatch, variables, asked):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert "is requeued" in requeue()
    assert scontrol.read_text() == asked


def test_a_job_that_cannot_be_requeued_says_so(scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert "could not be requeued (Invalid job)" in requeue()


def test_outside_of_slurm_nothing_is_requeued(scontrol, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue() == "run the same command to go on"
    assert not scontrol.exists()


def test_only_srun_gives_the_ranks_to_slurm(monkeypatch):
    """A command typed within an allocation is one process, and starts its own."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert type(environment()[-1]).__name__ == "LightningEnvironment"
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    slurm = environment()[-1]
    assert type(slurm).__name__ == "SLURMEnvironment"
    assert not slurm.auto_requeue, "Lightning would save in the middle of a batch"


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    file, state = tmp_path / "last.ckpt", {"weights": torch.arange(1000.0)}
    WholeCheckpoints().save_checkpoint(state, file)
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UsageError, match="make room"):
            WholeCheckpoints().save_checkpoint({"weights": torch.ones(5000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]
