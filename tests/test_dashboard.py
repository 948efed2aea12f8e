"""What is logged to Weights & Biases: real runs that are kept offline, read back from their files."""

from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from lit_xai.report.dashboard import Dashboard, wandb_logger
from lit_xai.report.runs import artifact_name, cleaned, project_name, tags_of, unreachable
from PIL import Image

from offline import Offline
from test_commands import run as run_command

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
def closed_port(monkeypatch) -> Iterator[str]:
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


class Refuses(BaseHTTPRequestHandler):
    """Knows nobody."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def refusing(closed_port, monkeypatch) -> Iterator[str]:
    """The address of a server that takes no key, as that of W&B."""
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        yield url
        server.shutdown()


def test_a_server_that_refuses_costs_a_line_too(tmp_path: Path, refusing, capfd) -> None:
    dashboard = logged(tmp_path, mode="online")
    dashboard.scalars({"mege/rise": 0.5})
    assert read(dashboard).history["mege/rise"] == [0.5]
    (line,) = capfd.readouterr().out.splitlines()
    assert line.startswith(f"W&B: {refusing} cannot be used (")


def test_a_server_that_answers_is_told_from_one_that_is_silent(refusing) -> None:
    assert not unreachable(refusing)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2) == "no answer within 0.2 s"


# ------------------------------------------------------------------------------------------------ what an experiment logs

NAME = "named"
SMALL = [
    f"name={NAME}",
    "data.train_subset=120",
    "data.folds=2",
    "data.probes_per_fold=4",
    "data.size=8",
    "model.network.width=4",
    "trainer.max_epochs=1",
    "explainer=[saliency,random]",
    "score=[deletion,insertion]",
    "checks=0",
    "progress=false",
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Offline]:
    """Two folds and their evaluation, as they are logged: by the run's name."""
    root = tmp_path_factory.mktemp("experiment")
    run_command("train", root, "-m", "fold=0,1", small=SMALL)
    more = ["dashboard=true"] if find_spec("wandb_workspaces") else []
    said = run_command("evaluate", root, small=[f"name={NAME}", "progress=false", *more]).stdout
    found = {(there := Offline.read(place)).run.display_name: there for place in root.glob("*/wandb/offline-run-*")}
    found["evaluate"].said = said
    return found


def test_a_fold_shows_held_out_probes_with_the_maps_of_every_method(experiment) -> None:
    columns, rows, files = experiment["fold=0"].table("probes")
    assert columns[:7] == ["sample", "label", "predicted", "confidence", "image", "saliency", "random"]
    assert set(columns[7:]) == {f"{s}/{e}" for s in ("deletion", "insertion") for e in ("saliency", "random")}
    assert len(rows) == 4
    for row in rows:
        cells = dict(zip(columns, row, strict=True))
        image, saliency, random = (np.asarray(Image.open(files[cells[n]["path"]])) for n in columns[4:7])
        assert image.shape[:2] == saliency.shape[:2] == random.shape[:2] == (64, 64)
        assert np.ptp(image) > 0
        assert (saliency[..., 0] >= saliency[..., 1]).all()  # white to red: it has no negative values
        assert (random[..., 2].astype(int) > random[..., 0]).any()  # blue: it has some
        assert all(math.isfinite(cells[n]) for n in columns[7:])


def test_a_summary_keeps_the_best_by_the_direction_of_the_number(experiment) -> None:
    fold, evaluation = experiment["fold=1"].metrics, experiment["evaluate"].metrics
    for metrics in (fold, evaluation):
        for explainer in ("saliency", "random"):
            assert metrics[f"deletion/{explainer}"] == "min"
            assert metrics[f"insertion/{explainer}"] == metrics[f"mege/{explainer}"] == "max"
            assert metrics[f"reco/{explainer}"] == metrics[f"reco_auc/{explainer}"] == "max"
    assert fold["train/loss"] == "min"
    assert fold["val/acc"] == evaluation["heldout/acc/fold=1"] == "max"
    assert "insertion/start/saliency" not in fold
    assert "stability/folds" not in fold


def test_artifacts_say_what_is_made_from_what(experiment) -> None:
    own = {n: [a for a in there.artifacts if not a.type.startswith("run_table")] for n, there in experiment.items()}
    assert [(a.type, a.name) for a in own["fold=0"]] == [
        ("dataset", "data-digits"),
        ("model", "model-named-fold-0"),
        ("maps", "maps-named-fold-0"),
    ]
    assert [(a.type, a.name) for a in own["evaluate"]] == [("summary", "summary-named")]
    made_from = {a.name: json.loads(a.metadata)["made_from"] for of in own.values() for a in of}
    assert made_from == {
        "data-digits": [],
        **{f"model-named-fold-{i}": ["data-digits"] for i in (0, 1)},
        **{f"maps-named-fold-{i}": [f"model-named-fold-{i}"] for i in (0, 1)},
        "summary-named": ["maps-named-fold-0", "maps-named-fold-1"],
    }
    digests = {a.digest for of in own.values() for a in of}
    assert len(digests) == 6  # the data are the same of both folds


def test_large_files_are_named_and_small_ones_wait_beside_the_run(experiment) -> None:
    folder = experiment["evaluate"].place.parent.parent
    entries = {a.name: a.manifest.contents for there in experiment.values() for a in there.artifacts}
    (checkpoint,) = (e for e in entries["model-named-fold-0"] if e.ref)
    assert checkpoint.ref == (folder / "fold=0" / "model.ckpt").as_uri()
    assert {e.path for e in entries["maps-named-fold-0"]} > {"about.json"}
    sent = [e for e in entries["summary-named"] if not e.ref]
    assert {e.path for e in sent} == {"about.json", "summary.json", "report.html"}
    assert all(Path(e.local_path).is_relative_to(folder) for e in sent)


# ------------------------------------------------------------------------------------------------------------- workspace


def test_a_workspace_is_built_offline_and_says_how_it_is_sent(experiment) -> None:
    pytest.importorskip("wandb_workspaces")
    file = experiment["evaluate"].place.parent.parent / "workspace.json"
    view = json.loads(file.read_text())
    (line,) = (x for x in experiment["evaluate"].said.splitlines() if "workspace" in x)
    assert line == f"W&B: a workspace in {file}; to send it: log in (wandb login), then the same command again"
    assert view["project"] == "lit_xai"
    section = view["spec"]["section"]
    rooms = {room["name"]: room["panels"] for room in section["panelBankConfig"]["sections"]}
    assert list(rooms) == ["Verdict", "Stability", "Faithfulness", "Maps", "Contradictions", "Training"]
    assert all(rooms.values())
    (runs,) = section["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group", "displayName"]
    assert [f["value"] for f in runs["filters"]["filters"]] == [NAME]


def test_every_panel_shows_a_key_that_is_logged(experiment) -> None:
    pytest.importorskip("wandb_workspaces")
    view = json.loads((experiment["evaluate"].place.parent.parent / "workspace.json").read_text())
    panels = [p for room in view["spec"]["section"]["panelBankConfig"]["sections"] for p in room["panels"]]
    shown = {key for p in panels for key in [*p["config"].get("metrics", []), *p["config"].get("mediaKeys", [])]}
    known = {key for there in experiment.values() for key in there.history}
    assert {"mege/saliency", "deletion/random", "gallery", "report", "train/loss", "heldout/acc"} <= shown
    assert shown - known <= {"audit", "stability-plane"}  # where these pages and pictures are written


@pytest.mark.parametrize(
    ("value", "logger", "why"), [("maybe", "wandb", "true or false"), ("true", "csv", "logger=wandb")]
)
def test_a_workspace_that_cannot_be_built_is_refused_before_any_work(experiment, value, logger, why) -> None:
    folder = experiment["evaluate"].place.parent.parent
    options = [f"name={NAME}", "progress=false", f"dashboard={value}", f"logger={logger}"]
    done = run_command("evaluate", folder.parent, small=options, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert why in line
    assert not done.stdout


@pytest.mark.parametrize("name", [EMOJI, 'it\'s "quoted" \\', "a_b|c"])
def test_a_workspace_takes_every_name(name: str) -> None:
    pytest.importorskip("wandb_workspaces")
    from lit_xai.report.summary import Summary
    from lit_xai.report.workspace import build

    head = {"name": name, "data": name, "alarms": [], "unfinished": None, "folds_present": [0], "held_out_accuracy": {}}
    spec = build(Summary(head, {}, [], {}, {}), "entity", "project", name)._to_model().model_dump(mode="json")["spec"]
    verdict = spec["section"]["panel_bank_config"]["sections"][0]["panels"][0]["config"]["value"]
    assert re.sub(r"\\(.)", r"\1", verdict).count(name) >= 1
