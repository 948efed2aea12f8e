"""The jobs as a user submits them, on a real SLURM: whole chains equal local runs, interrupted ones undisturbed ones."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import ENDED, SCRIPT, Cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    "data.train_subset=300",
    "data.probes_per_fold=8",
    "data.size=16",
    "model.network.width=4",
    "trainer.max_epochs=2",
    "score.mufidelity.subsets=12",
    "batch_size=4",
    "shard_size=4",
    "progress=false",
]
EXPLAINERS = ["explainer=[saliency,rise,random]", "explainer.rise.masks=20"]
EPOCHS = 60
LONG = [
    *SMALL,
    *EXPLAINERS[:1],
    "data.folds=2",
    "shard_size=2",
    "explainer.rise.masks=2000",
    f"trainer.max_epochs={EPOCHS}",
]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of four CPUs each (as they believe), stopped in the end whatever happens."""
    base = tmp_path_factory.mktemp("slurm")
    folder, project = base / "cluster", base / "project"
    project.mkdir()
    shutil.copytree(ROOT / "jobs", project / "jobs", ignore=shutil.ignore_patterns("*.out"))
    for part in ("lit_xai", "configs"):
        (project / part).symlink_to(ROOT / part)
    begun = subprocess.run([str(SCRIPT), "start", str(folder), "2"], capture_output=True, text=True, timeout=400)
    try:
        assert begun.returncode == 0, begun.stderr
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "PYTEST_"))}
        mine = {"VENV": sys.prefix, "GPUS": "0", "CPUS": "1", "MEMORY": "2G", "TIME_LIMIT": "10"}
        quiet = {"WANDB_MODE": "offline", "PYTHONWARNINGS": "ignore"}
        yield Cluster(folder, project, {**clean, **mine, **quiet, "SLURM_CONF": str(folder / "slurm.conf")})
    finally:
        subprocess.run([str(SCRIPT), "stop", str(folder)], check=True, timeout=120)
        assert not folder.exists()


def local(cmd: str, root: Path, *options: str) -> str:
    """A command in this process, without SLURM; what it printed."""
    out, argv, code = io.StringIO(), sys.argv, None
    main = importlib.import_module(f"lit_xai.{cmd}").main
    try:
        sys.argv = [f"lit_xai/{cmd}.py", f"root={root}", *SMALL, "logger=none", *options]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as e:
        code = e.code
    finally:
        sys.argv = argv
    assert not code, out.getvalue()
    return out.getvalue()


def shards(root: Path) -> dict[str, bytes]:
    """Every file of maps and predictions below a folder, by relative name."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*.safetensors"))}


def trained_alone(root: Path, to: Path) -> Path:
    """A copy of an experiment that holds nothing but its checkpoints."""
    for file in root.rglob("fold=*/*"):
        if file.name in ("model.ckpt", "config.yaml"):
            (to / file.parent.relative_to(root)).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to / file.relative_to(root))
    return to


def summary(root: Path) -> Any:
    """The numbers of an evaluation; its root is not one."""
    (file,) = root.glob("*/summary.json")
    return json.loads(file.read_text().replace(str(root), "ROOT"))


def weights(root: Path, fold: int = 0) -> dict[str, bytes]:
    """The trained weights of one fold, bit for bit."""
    (file,) = root.glob(f"*/fold={fold}/model.ckpt")
    state = torch.load(file, weights_only=True)["state_dict"]
    return {k: v.numpy().tobytes() for k, v in state.items()}


def maps(root: Path) -> int:
    """How many shards of maps are there."""
    return len(list(root.rglob("maps/*/*.safetensors")))


def test_a_submitted_chain_equals_a_local_run(cluster: Cluster, tmp_path: Path) -> None:
    root, again = tmp_path / "slurm", tmp_path / "local"
    options = [f"root={root}", *SMALL, *EXPLAINERS, "logger=none"]
    printed = cluster.run("jobs/submit.sh", "folds=5", "parts=4,1", "concurrent=2", *options)
    jobs = [line.split()[0] for line in printed.splitlines() if line.split()[0].isdigit()]
    assert len(jobs) == 1 + 5 + 5 + 1
    assert all(job in printed.splitlines()[-4] for job in jobs), "the line that shows the state names every job"
    cluster.wait(*jobs, timeout=480)
    trained_alone(root, again)
    folds = ["-m", "fold=range(5)", "data.folds=5", *EXPLAINERS]
    local("explain", again, *folds)
    local("explain", again, *folds, "probes=disagreements")
    local("evaluate", again, *folds[2:])
    assert shards(root) == shards(again)
    assert summary(root) == summary(again)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fold trained and explained in one go, long enough for others of its kind to be interrupted."""
    root = tmp_path_factory.mktemp("undisturbed")
    local("train", root, *LONG, "fold=0")
    assert maps(root) == 24
    return root


def interrupted(cluster: Cluster, job: str, ready: Callable[[], object], interrupt: Callable[[], object]) -> None:
    """Interrupt a running job as soon as `ready`, and return when it has left its node and waits in the queue again."""
    before = cluster.restarts(job)
    cluster.until(lambda: cluster.state(job) == "RUNNING" and ready(), "the moment to interrupt", job)
    interrupt()
    cluster.until(lambda: cluster.state(job) != "RUNNING" or cluster.restarts(job) > before, "the requeue")


def resumed_after(root: Path) -> int:
    """The last epoch that an interrupted training left."""
    (file,) = root.glob("*/fold=0/last.ckpt")
    assert not file.with_name("model.ckpt").exists(), "the training had ended before it was interrupted"
    return int(torch.load(file, weights_only=True)["epoch"])


def some_maps(root: Path, least: int = 0) -> Callable[[], bool]:
    return lambda: maps(root) > least


def interrupted_twice(cluster: Cluster, root: Path, command: tuple[str, ...], *options: str) -> str:
    """A fold that this command of SLURM interrupts in training and in explaining, and that completes; its job."""
    job = cluster.sbatch("--array=0", "jobs/folds.sbatch", f"root={root}", *LONG, *options)
    task = f"{job}_0"
    stop = lambda: cluster.run(*command, task)  # noqa: E731
    interrupted(cluster, task, lambda: list(root.rglob("last.ckpt")), stop)
    assert 0 <= resumed_after(root) < EPOCHS - 1
    interrupted(cluster, task, some_maps(root), stop)
    assert 0 < maps(root) < 24
    cluster.wait(job)
    assert cluster.restarts(task) == 2
    return job


def test_requeued_in_training_and_in_explaining(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    job = interrupted_twice(cluster, tmp_path, ("scontrol", "requeue"))
    assert "resuming from" in cluster.logs(job)
    assert weights(tmp_path) == weights(undisturbed)
    assert shards(tmp_path) == shards(undisturbed)
    pieces = list(tmp_path.glob("*/wandb/offline-run-*"))
    assert len(pieces) == 3
    assert len({p.name.rpartition("-")[2] for p in pieces}) == 1, "all pieces belong to one W&B run"


def test_a_signal_before_the_time_limit_requeues(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """To the steps, as --signal=USR1@90 sends it."""
    interrupted_twice(cluster, tmp_path, ("scancel", "--signal=USR1"), "logger=none")
    assert weights(tmp_path) == weights(undisturbed)
    assert shards(tmp_path) == shards(undisturbed)


def test_a_cancelled_array_is_completed_by_the_same_submission(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    trained_alone(undisturbed, tmp_path)
    submission = ["--array=0-1", "jobs/explain.sbatch", f"root={tmp_path}", *LONG, "fold=0"]
    job = cluster.sbatch(*submission)
    cluster.until(some_maps(tmp_path), "the first shard", job)
    cluster.cancelled(job)
    assert 0 < maps(tmp_path) < 24
    cluster.wait(cluster.sbatch(*submission))
    assert shards(tmp_path) == shards(undisturbed)


def test_a_job_goes_on_elsewhere_when_its_node_disappears(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    trained_alone(undisturbed, tmp_path)
    job = cluster.sbatch("--array=0", "jobs/explain.sbatch", f"root={tmp_path}", *LONG, "fold=0")
    cluster.until(some_maps(tmp_path), "the first shard", job)
    node = cluster.records(job)[0]["BatchHost"]
    try:
        cluster.crash(node)
        left = maps(tmp_path)
        assert 0 < left < 24
        cluster.until(lambda: cluster.restarts(job) == 1, "SLURM to notice that the node is gone")
        assert maps(tmp_path) == left, "nothing ran on"
        cluster.wait(job)
        assert cluster.records(job)[0]["BatchHost"] != node
    finally:
        cluster.revive(node)
    assert shards(tmp_path) == shards(undisturbed)


def test_surplus_tasks_end_well_and_write_nothing(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    trained_alone(undisturbed, tmp_path)
    options = [f"root={tmp_path}", *SMALL, "data.folds=2", "explainer=[random]", "shard_size=8", "fold=0", "checks=0"]
    job = cluster.sbatch("--array=0-2", "jobs/explain.sbatch", *options)
    cluster.wait(job)
    assert maps(tmp_path) == 2
    assert sorted(re.findall(r"done: (\d+) shards", cluster.logs(job))) in (["0", "1", "1"], ["1", "1"])


def multirun(cluster: Cluster, root: Path, *options: str) -> subprocess.Popen[str]:
    """`launcher=slurm`, which submits an array and waits for it."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra lit_xai[slurm]")
    launcher = [f"hydra.launcher.{o}" for o in ("gpus_per_node=null", "mem_gb=2", "cpus_per_task=1", "timeout_min=10")]
    command = [sys.executable, "-m", "lit_xai.train", "-m", "launcher=slurm", f"root={root}", "logger=none", *launcher]
    environment = {**cluster.environment, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], cwd=cluster.project, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT
    )


def finished(process: subprocess.Popen[str]) -> None:
    out = process.communicate(timeout=240)[0]
    assert process.returncode == 0, out[-3000:]


def test_hydras_launcher_equals_a_local_multirun(cluster: Cluster, tmp_path: Path) -> None:
    options = [*SMALL, "data.folds=2", *EXPLAINERS, "fold=range(2)"]
    process = multirun(cluster, tmp_path / "slurm", *options)
    local("train", tmp_path / "local", "-m", *options)
    finished(process)
    for fold in (0, 1):
        assert weights(tmp_path / "slurm", fold) == weights(tmp_path / "local", fold)
    assert shards(tmp_path / "slurm") == shards(tmp_path / "local")


def test_hydras_launcher_goes_on_after_a_preemption(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    queue = lambda: set(cluster.run("squeue", "--noheader", "--format=%A").split())  # noqa: E731
    others = queue()
    process = multirun(cluster, tmp_path, *LONG, "fold=0")
    cluster.until(lambda: queue() - others, "the launcher's submission")
    (job,) = queue() - others
    interrupted(
        cluster,
        job,
        lambda: list(tmp_path.rglob("last.ckpt")),
        lambda: cluster.run("scancel", "--signal=USR2", job),  # what submitit asks for
    )
    assert 0 <= resumed_after(tmp_path) < EPOCHS - 1
    finished(process)
    assert cluster.restarts(job) == 1
    assert weights(tmp_path) == weights(undisturbed)
    assert shards(tmp_path) == shards(undisturbed)


DISTRIBUTED = [*SMALL, "data.folds=2", "explainer=[saliency]", "logger=none", "fold=0", "trainer.max_epochs=30"]


@pytest.fixture(scope="module")
def two_processes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fold trained and explained by two processes, without SLURM."""
    root = tmp_path_factory.mktemp("two_processes")
    command = [sys.executable, "-m", "lit_xai.train", "trainer=ddp_cpu", f"root={root}", *DISTRIBUTED]
    environment = {k: v for k, v in cluster.environment.items() if k != "SLURM_CONF"}
    subprocess.run(command, check=True, cwd=cluster.project, env={**environment, "OMP_NUM_THREADS": "1"}, timeout=240)
    return root


@pytest.mark.parametrize("disturbed", [False, True])
def test_two_nodes_train_the_weights_of_two_processes(
    disturbed: bool, cluster: Cluster, two_processes: Path, tmp_path: Path
) -> None:
    nodes = ["--nodes=2", "--ntasks-per-node=1", "jobs/multi_gpu.sbatch"]
    job = cluster.sbatch(*nodes, f"root={tmp_path}", *DISTRIBUTED, MASTER_ADDR="127.0.0.1")  # n1 does not resolve
    if disturbed:
        signal = lambda: cluster.run("scancel", "--signal=USR1", job)  # noqa: E731
        interrupted(cluster, job, lambda: list(tmp_path.rglob("last.ckpt")), signal)
        assert 0 <= resumed_after(tmp_path) < 29
    cluster.wait(job)
    assert cluster.records(job)[0]["NumNodes"] == "2"
    assert cluster.restarts(job) == disturbed
    assert weights(tmp_path) == weights(two_processes)
    assert shards(tmp_path) == shards(two_processes)


def test_samplers_are_trained_first_and_a_failure_cancels_what_waits_for_it(cluster: Cluster, tmp_path: Path) -> None:
    few = ["data.train_subset=300", "data.probes_per_fold=4", "data.size=16", "logger=none", f"root={tmp_path}"]
    mine = ["model.network.width=4", "trainer.max_epochs=1", "explainer=[information/pmi]", "score=[deletion]"]
    sampler = ["samplers=patch_sampler", "patch_sampler.trainer.max_epochs=1", "patch_sampler.model.width=8"]
    submitted = cluster.run("jobs/submit.sh", "folds=2", *few, *mine, *sampler)
    jobs = re.findall(r"^ *(\d+)  ", submitted, re.M)
    broken = cluster.run(
        "jobs/submit.sh", "folds=2", "parts=2", "name=broken", "data=folder", "data.root=/nowhere", *few[2:]
    )
    doomed = re.findall(r"^ *(\d+)  ", broken, re.M)
    cluster.wait(*jobs)
    assert summary(tmp_path)["rows"].keys() == {"pmi", "random"}
    assert len(list(tmp_path.glob("digits-patch_sampler/fold=*/model.ckpt"))) == 2
    ended = lambda: all(r["JobState"] in ENDED for job in doomed for r in cluster.records(job))  # noqa: E731
    cluster.until(ended, "the end of a chain that cannot run")
    states = [cluster.state(job) for job in doomed]
    assert states[0] == "FAILED"
    assert set(states[1:]) == {"CANCELLED"}
