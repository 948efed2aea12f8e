"""What `jobs/submit.sh` says and would submit."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]


def submit(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"VENV": sys.prefix, "GPUS": "2", "CPUS": "3", "MEMORY": "5G", "TIME_LIMIT": "7", **environment}
    return subprocess.run(
        [ROOT / "jobs" / "submit.sh", *options],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        timeout=180,
    )


def planned(*options: str, **environment: str) -> dict[str, list[str]]:
    """The sbatch lines of a dry run, by what they are."""
    done = submit("--dry-run", *options, **environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("sbatch --parsable --kill-on-invalid-dep=yes") for line in lines[1::2])
    names = [line.removeprefix("# ").partition(":")[0] for line in lines[::2]]
    return dict(zip(names, map(shlex.split, lines[1::2]), strict=True))


@pytest.mark.parametrize("options", [[], ["--help"], ["folds=3", "-h"]])
def test_usage(options: list[str]) -> None:
    done = submit(*options)
    assert done.returncode == 0
    assert "jobs/submit.sh [--dry-run] [folds=5]" in done.stdout
    assert "set -euo" not in done.stdout


BAD = {
    "folds=x": "whole number",
    "folds=1": "at least 2",
    "parts=0": "whole number",
    "parts=4,y": "whole number",
    "concurrent=": "whole number",
    "fold=3": "leave it out",
    "name": "key=value",
    "--foo": "key=value",
    "naem=mine": "did you mean name",
    "samplers=patchsampler": "patch_sampler",
    "data=digit": "choose one of",
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options_get_one_line(option: str) -> None:
    done = submit(option)
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert BAD[option] in done.stderr


def test_one_job_a_fold_trains_and_explains() -> None:
    jobs = planned(
        "folds=2", "name=mine", "explainer=[rise]", "explainer.rise.masks=9", "distance=ssim", "concurrent=1"
    )
    assert list(jobs) == ["TRAIN", "DISAGREEMENTS0", "DISAGREEMENTS1", "EVALUATE"]
    assert {"--array=0-1%1", "--gres=gpu:2", "--cpus-per-task=3", "--mem=5G", "--time=7"} <= set(jobs["TRAIN"])
    assert {"data.folds=2", "explainer=[rise]", "explainer.rise.masks=9"} <= set(jobs["TRAIN"])
    assert "distance=ssim" in jobs["EVALUATE"]
    assert not any("distance" in o for name in jobs if name != "EVALUATE" for o in jobs[name])
    assert not any("gres" in o for o in jobs["EVALUATE"]), "the evaluation needs no GPU"
    assert "--dependency=afterok:TRAIN:DISAGREEMENTS0:DISAGREEMENTS1" in jobs["EVALUATE"]


def test_parts_follow_their_own_fold_and_its_samplers() -> None:
    given = ["parts=8,2", "explainer=[rise]", "explainer.rise.masks=9", "seed=4", "logger=csv", "model.lr=0.1"]
    jobs = planned("folds=2", *given, "samplers=patch_sampler,ddim", "ddim.trainer.max_epochs=3")
    assert list(jobs)[:3] == ["patch_sampler", "ddim", "TRAIN"]
    assert "explain=false" in jobs["TRAIN"]
    assert "explainer=[rise]" in jobs["TRAIN"], "so that the status knows what is to come"
    assert {"--array=0-7", "--dependency=afterok:TRAIN_1:patch_sampler_1:ddim_1", "fold=1"} <= set(jobs["EXPLAIN1"])
    assert {"explainer=[rise]", "explainer.rise.masks=9"} <= set(jobs["EXPLAIN1"])
    assert "logger=csv" not in jobs["EXPLAIN1"]
    second = {"--array=0-1", "--dependency=afterok:TRAIN:patch_sampler:ddim", "probes=disagreements", "fold=0"}
    assert second <= set(jobs["DISAGREEMENTS0"])
    assert {"model=ddim", "seed=4", "logger=csv", "trainer.max_epochs=3"} <= set(jobs["ddim"])
    assert not any("rise" in o or o == "model.lr=0.1" for o in jobs["ddim"])
    assert "trainer.max_epochs=3" not in jobs["patch_sampler"]


def test_several_nodes_train_one_fold() -> None:
    train = planned("folds=2", "nodes=2", "tasks=4")["TRAIN"]
    assert {"--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4", "jobs/multi_gpu.sbatch"} <= set(train)


def test_settings_come_from_the_environment() -> None:
    given = {"PARTITION": "long", "ACCOUNT": "me", "GPU_TYPE": "a100", "SBATCH_MORE": "--qos=low --nice"}
    assert {"--partition=long", "--account=me", "--gres=gpu:a100:2", "--qos=low", "--nice"} <= set(
        planned("folds=2", **given)["TRAIN"]
    )
    assert not any("gres" in o for o in planned("folds=2", GPUS="0")["TRAIN"])
