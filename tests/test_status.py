"""`lit_xai.evaluate --status`: what is done, running and missing, and commands that really complete it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lit_xai.cluster.heartbeat import DEAD, Heartbeat, alive
from lit_xai.cluster.status import status
from lit_xai.store.names import DECISIONS, DISAGREEMENTS, RANDOM, shard_paths
from lit_xai.store.plans import plan_text

from test_commands import ENVIRONMENT, ROOT, run, shards

SMALL = ["data.train_subset=100", "data.folds=2", "data.probes_per_fold=9", "data.size=16", "model.network.width=4"]
SMALL += ["trainer.max_epochs=1", "explainer=[saliency,random]", "score=[mufidelity]", "score.mufidelity.subsets=12"]
SMALL += ["shard_size=8", "progress=false", "logger=none"]
NAME = "digits-resnet18"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("status")
    run("train", root, "-m", "fold=range(2)", small=SMALL)
    run("explain", root, "-m", "fold=range(2)", "probes=disagreements", small=SMALL)
    return root


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / NAME


def obey(folder: Path) -> None:
    """Run the commands of the status, as a user would paste them."""
    for text in status(folder).commands:
        _, _, cmd, *options = shlex.split(text)
        run(cmd.removeprefix("lit_xai."), folder.parent, *options, small=[])


def files(folder: Path) -> dict[str, bytes]:
    return shards(folder)


def test_a_finished_experiment_wants_its_table(folder: Path) -> None:
    found = status(folder)
    assert found.complete
    assert found.folds == {0: "trained", 1: "trained"}
    assert {name: str(row[1]) for name, row in found.counts[RANDOM].items()} == {"random": "3/3", "saliency": "3/3"}
    assert found.commands == [f"python -m lit_xai.evaluate root={folder.parent} name={NAME}"]
    run("evaluate", folder.parent, "logger=none", small=[])
    assert status(folder).commands == []


def test_missing_and_damaged_shards_are_counted_and_come_back_the_same(folder: Path) -> None:
    before = files(folder)
    one, two, three = shard_paths(folder / "fold=1" / RANDOM / "saliency")
    one.unlink()
    two.write_bytes(two.read_bytes()[:-5])
    flipped = bytearray(three.read_bytes())
    flipped[-7] ^= 1  # by its head it is whole; the command that looks for work reads it
    three.write_bytes(flipped)
    shard_paths(folder / "fold=0" / DISAGREEMENTS / "random")[0].unlink()
    found = status(folder)
    assert str(found.counts[RANDOM]["saliency"][1]) == "1/3"
    assert found.counts[RANDOM]["saliency"][1].damaged == [two.name]
    assert found.counts[DISAGREEMENTS]["random"][0].missing == 1
    assert not found.complete
    assert len(found.commands) == 2
    obey(folder)
    assert files(folder) == before
    assert status(folder).complete


def head_of_the_table(folder: Path) -> tuple[dict, list[str]]:
    """The head of summary.json, and what `evaluate` printed."""
    out = run("evaluate", folder.parent, "logger=none", small=[]).stdout
    return json.loads((folder / "summary.json").read_text())["head"], out.splitlines()


@pytest.mark.slow
def test_a_table_of_an_unfinished_experiment_names_first_what_completes_it(folder: Path) -> None:
    shard_paths(folder / "fold=1" / RANDOM / "saliency")[0].unlink()
    head, lines = head_of_the_table(folder)
    assert lines[1] == head["unfinished"]["message"] == "10 of 18 probes (saliency): not a result"
    assert lines[2] == "what completes it:"
    assert [x.strip() for x in lines[3:4]] == head["unfinished"]["commands"] == status(folder).commands
    obey(folder)
    head, lines = head_of_the_table(folder)
    assert head["unfinished"] is None
    assert not any("not a result" in x for x in lines)


@pytest.mark.slow
def test_a_score_that_one_fold_got_later_is_missing_in_the_others_until_the_command_shown(folder: Path) -> None:
    later = [o for o in SMALL if not o.startswith("score")]
    run("explain", folder.parent, "fold=0", "score=[deletion]", small=later)
    found = status(folder)
    assert [str(found.counts[RANDOM]["saliency"][f]) for f in (0, 1)] == ["3/3", "0/3"]
    assert found.counts[RANDOM]["saliency"][1].unscored == 3
    assert not found.complete
    assert "deletion" not in json.dumps(head_of_the_table(folder)[0]["unfinished"]["unscored"])
    obey(folder)
    assert status(folder).complete
    head, lines = head_of_the_table(folder)
    assert head["unfinished"] is None
    assert any("deletion" in x for x in lines)


@pytest.mark.slow
def test_a_fold_that_is_not_there_is_trained_by_the_command_shown(folder: Path) -> None:
    before = {k: v for k, v in files(folder).items() if DISAGREEMENTS not in k and DECISIONS not in k}
    shutil.rmtree(folder / "fold=1")
    found = status(folder)
    assert found.folds == {0: "trained", 1: "absent"}
    assert str(found.counts[RANDOM]["random"][1]) == "0/3"
    train, *_ = found.commands
    assert train.startswith("python -m lit_xai.train ")
    assert train.endswith("fold=1")
    obey(folder)
    assert {k: v for k, v in files(folder).items() if DISAGREEMENTS not in k and DECISIONS not in k} == before
    assert status(folder).complete


@pytest.mark.slow
def test_folds_that_are_only_trained_are_explained_by_the_command_shown(finished: Path, tmp_path: Path) -> None:
    run("train", tmp_path, "-m", "fold=range(2)", "explain=false", small=SMALL)
    found = status(tmp_path / NAME)
    assert not found.complete
    assert [c.split()[2] for c in found.commands] == ["lit_xai.explain"] * 2
    obey(tmp_path / NAME)
    expected = {k: v for k, v in files(finished / NAME).items() if DISAGREEMENTS not in k and DECISIONS not in k}
    assert files(tmp_path / NAME) == expected


def test_a_training_that_was_interrupted_is_begun(folder: Path) -> None:
    (folder / "fold=1" / "model.ckpt").rename(folder / "fold=1" / "last.ckpt")
    found = status(folder)
    assert found.folds == {0: "trained", 1: "begun"}
    assert not found.complete
    assert found.commands[0].startswith("python -m lit_xai.train ")


def test_the_shard_that_a_process_computes_is_running(folder: Path) -> None:
    path = shard_paths(folder / "fold=1" / RANDOM / "saliency")[1]
    path.unlink()
    with Heartbeat(folder / "fold=1", "explain maps", 0, 2, "1/4", lines=False) as heart:
        heart.doing(f"{path.stem} of saliency", 2, 6, 16)
        found = status(folder)
        assert str(found.counts[RANDOM]["saliency"][1]) == "2 (+1)/3"
        assert (found.counts[RANDOM]["saliency"][1].running, found.counts[RANDOM]["saliency"][1].missing) == (1, 0)
        line = next(text for text in str(found).splitlines() if "part 1/4" in text)
        for word in (platform.node(), f"pid {os.getpid()}", "rank 0/2", path.stem, "samples/s", "ends about"):
            assert word in line
        assert not found.complete
    assert str(status(folder).counts[RANDOM]["saliency"][1]) == "2/3"
    assert not (folder / "fold=1" / "running").exists()


def test_what_a_killed_process_left_is_not_running(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for host, pid, age in ((platform.node(), dead.pid, 0), ("elsewhere", 1, DEAD + 1), ("elsewhere", 2, 0)):
        with Heartbeat(tmp_path, "train") as heart:
            heart.doing("epoch 1 of 2", 0, 4, 0)
            content = json.loads(heart.file.read_text())
        file = tmp_path / "running" / f"{host}.{pid}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**content, "host": host, "pid": pid}))
        os.utime(file, (time.time() - age,) * 2)
    assert [(b.host, b.pid) for b in alive(tmp_path, remove=True)] == [("elsewhere", 2)]
    assert [f.name for f in (tmp_path / "running").iterdir()] == ["elsewhere.2.json"]


def test_the_status_is_there_for_programs_too(finished: Path) -> None:
    found = json.loads(run("evaluate", finished, "--status", "--json", small=[]).stdout)
    assert found["complete"] is True
    assert found["shards"][RANDOM]["random"]["0"] == {
        "done": 3,
        "running": 0,
        "missing": 0,
        "damaged": [],
        "unscored": 0,
        "known": True,
    }


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["name=nobody"], "set name= or root="),
        (["nmae=nobody"], "did you mean name"),
        (["--stats"], "found --stats"),
    ],
)
def test_a_status_of_nothing_is_one_line(finished: Path, options: list[str], hint: str) -> None:
    done = run("evaluate", finished, "--status", *options, check=False, small=[])
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert hint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_status_loads_nothing_heavy(finished: Path) -> None:
    check = (
        "import sys; sys.argv = ['evaluate', '--status', sys.argv[1]]; from lit_xai.evaluate import main; main(); "
        "sys.exit(sum(m in sys.modules for m in ('torch', 'numpy', 'pytorch_lightning')))"
    )
    done = subprocess.run([sys.executable, "-c", check, f"root={finished}"], env=ENVIRONMENT, cwd=ROOT, check=False)
    assert done.returncode == 0


def test_parts_of_a_job_leave_the_same_plan() -> None:
    one = plan_text("explain", ["part=0/2", "fold=1", "explainer.rise.masks=20"], probes=9, shard_size=4)
    assert one == plan_text("explain", ["part=1/2", "fold=1", "explainer.rise.masks=20"], probes=9, shard_size=4)
    assert "rise.masks" in one


@pytest.mark.slow
def test_an_explainer_added_later_is_in_the_commands_of_a_fold_that_is_gone(folder: Path) -> None:
    for fold in (0, 1):
        run(
            "explain",
            folder.parent,
            f"fold={fold}",
            "explainer=[gradient_input]",
            small=[o for o in SMALL if "explainer=" not in o],
        )
    shutil.rmtree(folder / "fold=1")
    cmds = [(c.split()[2], "gradient_input" in c, "disagreements" in c) for c in status(folder).commands]
    assert cmds[0][0] == "lit_xai.train"
    assert ("lit_xai.explain", True, False) in cmds
