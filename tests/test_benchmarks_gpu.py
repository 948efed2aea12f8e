"""`python -m benchmarks gpu`: every row is there and stands for the work that it names, and no row ends the run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest
import torch
from benchmarks import __main__, gpu
from benchmarks.gpu import METHODS, SIZES, Found, Place, Row
from benchmarks.harness import Report
from benchmarks.setting import rows_through
from lit_xai.incremental import COSTS
from torch import nn

from transfers import DEVICE, Counted, moved

CPU = Place(torch.device("cpu"), small=True)


def cell(report: Report, name: str, column: str) -> object:
    """What the table says of a row."""
    rows = {row[0]: dict(zip(report.columns, row, strict=True)) for row in report.rows}
    return rows[name][column]


def fails(place: Place) -> Found:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


def works(place: Place) -> Found:
    return Found(2.0, 1.0, 2.0)


def test_a_cpu_tries_every_row_and_judges_none():
    told = []
    report = gpu.gpu("cpu", minutes=2, each=lambda r: told.append(r.rows[-1][0]))
    names = [row.name for row in gpu.rows_of()]
    assert [row[0] for row in report.rows] == names == told
    assert [n for n in names if cell(report, n, "ours") is None] == ["incremental, constants"]
    assert not [note for note in report.notes if "Error" in note or "OutOfTime" in note or "left out" in note]
    assert report.targets == []
    assert "numbers mean nothing" in report.title


def test_every_tensor_of_a_row_is_on_the_device(monkeypatch):
    def to(module: nn.Module, *given, **options) -> nn.Module:
        wanted = given and isinstance(given[0], torch.device | str) and torch.device(given[0]) == DEVICE
        return moved(module) if wanted else whole(module, *given, **options)

    whole = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", to)
    # torch knows no autocast for this device, and tensors that hold others no inference mode
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "inference_mode", lambda on=True: torch.no_grad() if on else torch.enable_grad())
    monkeypatch.setitem(COSTS, DEVICE.type, COSTS["cuda"])
    monkeypatch.setitem(sys.modules, "captum", None)
    place = Place(DEVICE, small=True)
    # Lightning chooses the device of a training; the others differ in size alone from those that are tried
    others = "training", "incremental, constants", "incremental S", "incremental R", "PMI"
    rows = [row for row in gpu.rows_of() if not (row.name.startswith(others) or "32 px" in row.name)]
    try:
        with Counted():
            found = {row.name: row.measure(place) for row in rows}
    finally:
        gpu.let_go()
    assert len(found) == 15
    assert all(f.ours is not None for f in found.values())


@pytest.mark.parametrize("which", SIZES["tried"])
@pytest.mark.parametrize("name", METHODS)
def test_the_bare_calls_take_as_many_images_as_the_method(name, which):
    done, _ = gpu.method_works(CPU, name, which)
    size = CPU.size(which)
    model = gpu.classifier(size, CPU.device)
    found = {who: rows_through(model, work) for who, work in done.items()}
    ours = found.pop("ours")
    assert all(ours <= rows < ours + -(-ours // size.batch) for rows in found.values()), (ours, found)


def test_a_peer_that_is_not_installed_is_left_out_and_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    done, note = gpu.method_works(CPU, "SmoothGrad", "32 px")
    assert list(done) == ["ours", "bare"]
    assert "captum is left out" in note


def test_a_row_that_fails_says_why_is_missed_and_ends_nothing(monkeypatch):
    rows = [Row("first", fails, 1, limit=1.15), Row("second", works, 1, limit=1.15)]
    monkeypatch.setattr(gpu, "rows_of", lambda: rows)
    report = gpu.gpu("cpu")
    assert cell(report, "first", "ours") is None
    assert any(note == "first: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB" for note in report.notes)
    assert cell(report, "second", "ours/bare") == 2.0
    missed = rows[0].target(None)
    assert missed is not None
    assert not missed.met
    assert str(missed) == "MISSED first, over bare: - (target <= 1.15)"


def test_a_row_is_judged_by_its_ratio_or_by_its_value():
    found = Found(0.02, 0.001, 20.0)
    assert not Row("by ratio", works, 1, limit=1.15).target(found).met
    assert Row("by value", works, 1, limit=0.03, of_value=True).target(found).met
    assert not Row("fast", works, 1, limit=0.03, of_value=True, at_least=True).target(found).met
    assert Row("told", works, 1).target(found) is None


def test_a_row_that_takes_too_long_is_stopped_and_the_rest_is_named(monkeypatch):
    def sleeps(place: Place) -> Found:
        try:
            time.sleep(20)
        except Exception:
            pytest.fail("whoever catches errors would go on")
        return works(place)

    monkeypatch.setattr(gpu, "rows_of", lambda: [Row("slow", sleeps, 1), Row("later", works, 1)])
    began = time.perf_counter()
    report = gpu.gpu("cpu", minutes=0.1 / 60)
    assert time.perf_counter() - began < 5
    assert any(note.startswith("slow: OutOfTime") for note in report.notes)
    assert [row[0] for row in report.rows] == ["slow"]
    assert any("left out" in note and note.endswith("later") for note in report.notes)


def test_convolutions_round_to_tf32_only_where_a_row_says_so(monkeypatch):
    seen = []

    def looks(place: Place) -> Found:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return works(place)

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(gpu, "rows_of", lambda: [Row("full", looks, 1), Row("rounded", looks, 1, tf32=True)])
    report = gpu.gpu("cpu")
    assert seen == [(False, False), (True, False)]
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
    assert "rounded: TF32 convolutions" in report.notes


def test_the_command_keeps_its_rows_as_json_even_of_a_run_that_is_stopped(monkeypatch, tmp_path):
    def stopped(place: Place) -> Found:
        raise KeyboardInterrupt

    out = tmp_path / "there" / "gpu.json"
    monkeypatch.setattr(gpu, "rows_of", lambda: [Row("done", works, 1, limit=1.15), Row("stopped", stopped, 1)])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--device", "cpu", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        __main__.main()
    kept = json.loads(out.read_text())["benchmarks"]["gpu"]["rows"]
    assert [(row["row"], row["ours/bare"], row["target"]) for row in kept] == [("done", 2.0, "<= 1.15 x bare")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_command_names_the_option_that_tries_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu"])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_that_is_only_beside_it_is_imported():
    hide = """
import importlib.metadata as metadata, sys
absent = "ot umap wandb captum quantus timm transformers".split()
whole, found = metadata.distribution, metadata.version
def missing(name): return name.replace("-", "_").lower() in {*absent, "pot", "umap_learn"}
def distribution(name):
    if missing(name): raise metadata.PackageNotFoundError(name)
    return whole(name)
metadata.distribution = distribution
metadata.version = lambda name: distribution(name).version
sys.modules.update(dict.fromkeys(absent))
from benchmarks.gpu import gpu
report = gpu("cpu")
print([row[0] for row in report.rows if row[2] is None])
print([note for note in report.notes if "Error" in note])
"""
    run = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["['incremental, constants']", "[]"]
