"""All folds in one command: what is run, what is skipped, what becomes of steps that fail or are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lit_xai.audit import read, side_of
from lit_xai.cli import side_by_side
from lit_xai.cli.display import Display, expected_end, span
from lit_xai.cli.side_by_side import DONE, FAILED, LEFT, WAITING, Share, Step, share, why
from lit_xai.errors import UsageError
from PIL import Image

from test_commands import ENVIRONMENT, ROOT, run, shards
from test_own_pictures import draw_pictures

SMALL = ["data.train_subset=120", "data.folds=2", "data.probes_per_fold=4", "data.size=16", "model.network.width=4"]
SMALL += ["trainer.max_epochs=2", "explainer=[saliency,random]", "score=[deletion]", "logger=none", "checks=2"]
ONE = Share(1, 1)


def steps_in(folder: Path) -> dict[str, int]:
    """How often each fold's log says that a command began, by fold."""
    return {f.parent.name: f.read_text().count(" lit_xai.") for f in sorted(folder.glob("fold=*/log.txt"))}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The root of an audit, and what was printed."""
    root = tmp_path_factory.mktemp("audited")
    return root, run("audit", root, small=SMALL).stdout


# ------------------------------------------------------------------------------------------------------- the command


def test_one_command_trains_explains_and_evaluates_all_folds(audited: tuple[Path, str]) -> None:
    root, text = audited
    folder = root / "digits-resnet18"
    assert (folder / "summary.json").exists()
    assert steps_in(folder) == {"fold=0": 2, "fold=1": 2}
    first, second, *_ = text.splitlines()
    assert first == f"digits: 120 images of 10 classes, 2 folds; resnet18 -> {folder}"
    assert second == "explained by saliency, random; scores: deletion"
    assert "4 steps; " in text
    assert ", ends about " in text
    assert "digits-resnet18 fold 1: train and explain, done in" in text


@pytest.mark.slow
def test_several_models_have_a_folder_each_and_go_on_from_what_is_there(audited: tuple[Path, str]) -> None:
    text = run("audit", audited[0], "models=[resnet18,lipschitz]", "dry_run=true", small=SMALL).stdout
    resnet18, lipschitz = audited[0] / "digits-resnet18", audited[0] / "digits-lipschitz"
    assert f"2 folds; resnet18, lipschitz -> {resnet18}, {lipschitz}" in text
    assert "8 steps; " in text
    named = run("audit", audited[0], "models=[resnet18,lipschitz]", "name=a", "dry_run=true", small=SMALL).stdout
    assert f"{audited[0]}/a-resnet18, {audited[0]}/a-lipschitz" in named


@pytest.mark.slow
def test_the_maps_are_those_of_the_single_commands(audited: tuple[Path, str], tmp_path: Path) -> None:
    for fold in (0, 1):
        run("train", tmp_path, f"fold={fold}", "progress=false", small=SMALL)
    for fold in (0, 1):
        run("explain", tmp_path, f"fold={fold}", "progress=false", "probes=disagreements", small=SMALL)
    name = "digits-resnet18"
    assert shards(tmp_path / name) == shards(audited[0] / name)


def test_every_null_joins_the_methods_that_are_named(tmp_path: Path) -> None:
    options = [o for o in SMALL if not o.startswith("explainer=")]
    text = run("audit", tmp_path, "explainer=[saliency]", "dry_run=true", small=options).stdout
    assert "explained by saliency, random, image, edges, centre, image_random; scores" in text


def test_what_is_done_is_not_done_again(audited: tuple[Path, str]) -> None:
    root, _ = audited
    before = steps_in(root / "digits-resnet18")
    text = run("audit", root, "dry_run=true", small=SMALL).stdout
    assert "4 steps, 4 of them done already" in text
    assert steps_in(root / "digits-resnet18") == before


@pytest.mark.parametrize("changed", ["cap=3", "explainer=[saliency,gradcam,random]"])
def test_what_is_asked_for_in_another_way_is_looked_at_again(audited: tuple[Path, str], changed: str) -> None:
    text = run("audit", audited[0], changed, "dry_run=true", small=SMALL).stdout
    assert "4 steps; " in text


@pytest.mark.slow
def test_a_folder_of_results_is_audited_as_it_was_made_and_only_what_is_missing_is_trained(
    audited: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "digits-resnet18"
    shutil.copytree(audited[0] / folder.name, folder)
    known = shards(folder)
    shutil.rmtree(folder / "fold=1")
    text = run("audit", tmp_path, "name=digits-resnet18", "logger=none", small=[]).stdout
    assert "explained by random, saliency" in text
    assert "digits-resnet18 fold 1: train and explain, done in" in text
    assert "fold 0: train" not in text
    assert shards(folder) == known


def test_train_takes_all_folds_at_once(audited: tuple[Path, str]) -> None:
    text = run("train", audited[0], "fold=all", "dry_run=true", small=SMALL).stdout
    assert "2 steps, " in text
    assert "digits: 120 images of 10 classes, 2 folds; resnet18 -> " in text


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("jobs=0", "jobs must be auto or a whole number of at least 1, found 0"),
        ("folds=[0,2]", "folds must be all or some of 0..1"),
        ("models=[resnet19]", "model=resnet19 is not there; choose one of"),
        ("score.deletion.step=64", "was computed otherwise (score.deletion.step: 0 there, 64 here)"),
        ("trainer.max_epochs=3", "holds another configuration (trainer.max_epochs: 2 there, 3 here)"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line_before_any_step(
    audited: tuple[Path, str], option: str, line: str
) -> None:
    done = run("audit", audited[0], option, check=False, small=SMALL)
    assert done.returncode == 1
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_fold_that_fails_is_named_with_its_reason_and_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "digits-resnet18" / "fold=1" / "last.ckpt").mkdir(parents=True)  # no file: it cannot be resumed
    small = [*SMALL, "data.folds=3"]
    done = run("audit", tmp_path, check=False, small=small)
    folder = tmp_path / "digits-resnet18"
    assert done.returncode == 1
    assert f"1 of 6 steps failed: digits-resnet18 fold 1: {folder}/fold=1/last.ckpt does not load" in done.stderr
    assert f"({folder}/fold=1/log.txt)" in done.stderr
    assert "fold 0: explain disagreements, left out: digits-resnet18 fold 1 failed" in done.stdout
    assert (folder / "fold=2" / "scores.csv").exists()
    assert (folder / "summary.json").exists(), "two folds are something"


# ------------------------------------------------------------------------------------------------- a folder as argument


def test_a_folder_of_pictures_is_an_argument_and_its_pictures_decide_the_side(tmp_path: Path) -> None:
    small, large = draw_pictures(tmp_path / "a", each=2), tmp_path / "my pictures (1)" / "cats"
    large.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (300, 200 + i)).save(large / f"{i}.png")
    assert (side_of(small), side_of(large.parent)) == (32, 128)
    given = read([str(large.parent), "cap=3", "--json"])
    assert given == [
        "--json",
        "experiment=own_pictures",
        f"data.root={large.parent}",
        "data.name=my-pictures-1",
        "name=null",
        "data.size=128",
        "data.resize=144",
        "cap=3",
    ]
    assert "data.resize=144" not in read([str(small), "data.size=40"])
    assert read([f"data={large.parent}"]) == read([str(large.parent)])


def test_a_folder_of_results_is_an_argument(audited: tuple[Path, str]) -> None:
    assert read([f"{audited[0]}/digits-resnet18", "cap=3"]) == [f"root={audited[0]}", "name=digits-resnet18", "cap=3"]


def test_options_alone_are_left_as_they_are() -> None:
    assert read(["data=digits", "~logger", "-m"]) == ["data=digits", "~logger", "-m"]


def test_no_folder_or_two_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder: give a folder of pictures or of results, or options"):
        read([f"{tmp_path}/none"])
    with pytest.raises(UsageError, match="one folder is audited at a time"):
        read([str(tmp_path), str(tmp_path)])


def test_a_folder_of_pictures_is_audited_with_no_option_but_its_place(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "mine", each=6)
    text = run("audit", tmp_path, str(pictures), "dry_run=true", small=[]).stdout
    assert f"mine: 18 images of 3 classes, 5 folds; resnet18 -> {tmp_path}/mine-resnet18" in text


# ----------------------------------------------------------------------------------------------------- side by side


def step(folder: Path, number: int, *arguments: str, after: list[Step] | None = None) -> Step:
    return Step("explain", list(arguments), folder / "digits" / f"fold={number}", "explain", after or [])


def test_a_step_that_fails_leaves_out_those_after_it_and_no_others(tmp_path: Path) -> None:
    bad, good = step(tmp_path, 0, "no_key=1"), step(tmp_path, 1, "--version")
    last = step(tmp_path, 2, "--version", after=[bad])
    after_last = step(tmp_path, 3, "--version", after=[last])
    assert side_by_side.run([bad, good, last, after_last], ONE) == 0
    assert [s.state for s in (bad, good, last, after_last)] == [FAILED, DONE, LEFT, LEFT]
    assert bad.reason.startswith("unknown key no_key")
    assert last.reason == "digits fold 0 failed"
    assert "lit_xai 0" in good.log.read_text()


def test_a_step_begins_when_those_before_it_are_done(tmp_path: Path) -> None:
    first = step(tmp_path, 0, "--version")
    second = step(tmp_path, 1, "--version", after=[first])
    side_by_side.run([second, first], Share(2, 1))
    assert second.began >= first.ended > 0


def test_a_signal_is_passed_on_once_and_begins_nothing_new(tmp_path: Path) -> None:
    small = [*SMALL, "trainer.max_epochs=500", "progress=false", f"root={tmp_path}", "name=digits"]
    first = Step("train", [*small, "fold=0"], tmp_path / "digits" / "fold=0", "train")
    second = step(tmp_path, 1, "--version")
    sent: list[float] = []

    def watch() -> None:
        if not sent and (first.fold / "running").exists():
            sent.append(time.time())
            os.kill(os.getpid(), signal.SIGTERM)

    assert side_by_side.run([first, second], ONE, watch) == signal.SIGTERM
    assert second.state == WAITING
    assert "interrupted by SIGTERM: epoch" in first.reason
    assert (first.fold / "last.ckpt").exists()


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share("auto", 5) == Share(5, 1)
    assert share("auto", 3) == Share(3, 2)
    assert share(2, 5) == Share(2, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert share(2, 5) == Share(2, 1)


def test_cards_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert share("auto", 5, ["0", "1"]).cards == ("0", "1", "0", "1", "0")
    assert share("auto", 5, ["0"]) == Share(5, 1, ("0",) * 5)
    assert share("auto", 5, ["0", "1", "4", "5"], each=2).cards == ("0,1", "4,5")
    assert share(3, 5, ["0", "1"]).cards == ("0", "1", "0")
    assert share("auto", 1, ["0", "1"]).cards == ("0",)


def test_processes_that_share_a_card_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIT_XAI_MEMORY_SHARE", raising=False)
    shared = Share(3, 1, ("0", "1", "0"))
    given = [side_by_side.environment_of(shared, job) for job in range(3)]
    assert [e["LIT_XAI_MEMORY_SHARE"] for e in given] == ["0.5", "1", "0.5"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in given] == ["0", "1", "0"]
    monkeypatch.setenv("LIT_XAI_MEMORY_SHARE", "0.5")  # of a card that others use, too
    assert side_by_side.environment_of(shared, 0)["LIT_XAI_MEMORY_SHARE"] == "0.25"


def test_a_process_that_was_killed_says_by_what(tmp_path: Path) -> None:
    assert why(tmp_path / "none", -signal.SIGKILL) == "killed by SIGKILL (by the system, where memory ran out?)"
    (tmp_path / "log").write_text("something\nerror: no \x1bsuch thing\n\n")
    assert why(tmp_path / "log", 1) == "no ?such thing"


# --------------------------------------------------------------------------------------------------------- the display


def test_the_end_is_expected_by_what_steps_of_the_same_kind_took(tmp_path: Path) -> None:
    steps = [step(tmp_path, i) for i in range(4)]
    steps[0].state, steps[0].began, steps[0].ended = DONE, 100.0, 110.0
    steps[1].state, steps[1].began = "running", 110.0
    assert expected_end(steps, 1, 114.0) == 114.0 + 6.0 + 10.0 + 10.0
    assert expected_end(steps, 3, 114.0) == 114.0 + 10.0, "no sooner than the longest step that is left"


def test_the_table_has_a_row_a_fold_and_names_what_failed(tmp_path: Path) -> None:
    steps = [step(tmp_path, 0), step(tmp_path, 1)]
    steps[0].state, steps[0].reason, steps[0].began = FAILED, "no such thing", 1.0
    display = Display(steps, ONE, live=True)
    with display.console.capture() as caught:
        display.console.print(display.table(time.time()))
    rows = [" ".join(line.split()) for line in caught.get().splitlines()]
    assert "digits fold 0 0/1 failed no such thing" in rows
    assert "digits fold 1 0/1 waiting" in rows


def test_a_machine_that_is_slower_than_in_the_trial_is_slower_in_all_steps(tmp_path: Path) -> None:
    steps = [step(tmp_path, i) for i in range(3)]
    for s in steps:
        s.seconds = 10.0
    steps[0].state, steps[0].began = "running", 100.0
    assert expected_end(steps, 1, 105.0) == 105.0 + 5.0 + 10.0 + 10.0
    assert expected_end(steps, 1, 130.0) == 130.0 + 1.0 + 30.0 + 30.0


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (600.0, "10 min"), (9000.0, "2.5 h")])
def test_a_duration_is_told_in_a_fitting_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.slow
def test_an_audit_that_is_killed_anywhere_ends_with_the_same_maps(audited: tuple[Path, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lit_xai.audit", f"root={tmp_path}", *SMALL]
    killed = 0
    for moment in ("last.ckpt", "model.ckpt", "maps/*/*.safetensors", "scores.csv", "disagreements/*/*.safetensors"):
        process = subprocess.Popen(
            command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and not any(tmp_path.glob(f"*/fold=*/{moment}")):
            time.sleep(0.02)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed == 5
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert shards(tmp_path) == shards(audited[0])
