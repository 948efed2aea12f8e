"""What is logged to Weights & Biases: real runs that are kept offline, read back from their files."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from lit_xai.report.dashboard import Dashboard, wandb_logger
from lit_xai.report.runs import artifact_name, cleaned, project_name, tags_of

from offline import Offline

LONG = "a_data_set_of_eighty_characters" + "x" * 49
EMOJI = "ünïcode 🦙"


def logged(folder: Path, name: str = "digits-resnet18", run: str = "fold=0", **options) -> Dashboard:
    return Dashboard([wandb_logger(folder, name, run, "train", {"seed": 0}, **{"mode": "offline", **options})])


def read(dashboard: Dashboard) -> Offline:
    """End the run and read its file."""
    (run,) = dashboard.runs
    place = Path(run.dir).parent
    run.finish()
    return Offline.read(place)


# ------------------------------------------------------------------------------------------------------ names and server


@pytest.mark.parametrize("name", [LONG, "a--b", "-", EMOJI, f"{LONG}-{LONG}", "line\nfeed", "\udcff"])
def test_no_name_of_a_folder_stops_a_run(tmp_path: Path, name: str) -> None:
    there = read(logged(tmp_path, name, tags=["", "x" * 100], project=f"a/b#{LONG}{LONG}"))
    assert 1 <= len(there.run.run_group) <= 128
    assert all(1 <= len(tag) <= 64 for tag in there.run.tags)
    assert not set(there.run.project) & set("/\\#?%:")


def test_names_that_are_taken_stay_and_others_do_not_meet() -> None:
    assert tags_of(["digits", "", "digits", EMOJI]) == ["digits", EMOJI]
    assert cleaned(EMOJI) == project_name(EMOJI) == EMOJI
    assert artifact_name("maps", "digits-resnet18", "fold=0") == "maps-digits-resnet18-fold-0"
    long = [cleaned(LONG * 2 + end) for end in "ab"]
    assert long[0] != long[1]
    assert artifact_name("ü") != artifact_name("ö")
    assert len(artifact_name("ü" * 200)) <= 128


@pytest.fixture
def closed_port(monkeypatch) -> str:
    """The address of a server that is not there, as that of W&B, and a key for it."""
    import wandb

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # it reads its environment once
    yield url
    wandb.teardown()


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_an_absent_server_costs_a_line_and_the_run_is_kept_offline(tmp_path: Path, closed_port, capfd, mode) -> None:
    dashboard = logged(tmp_path, mode=mode)
    dashboard.scalars({"mege/rise": 0.5})
    there = read(dashboard)
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        f"W&B: {closed_port} cannot be used ([Errno 111] Connection refused): this run is kept offline"
    ]
    assert not err
    assert there.history["mege/rise"] == [0.5]
