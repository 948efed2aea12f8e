"""A folder that an earlier version left (tests/old.zip, made at commit bd678b3): its results are reused, but for maps that were drawn
by another version of the noise.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from lit_xai.store.fold import read_shard

from test_commands import Done, run

NAMED = ["name=digits-resnet18", "root=checkpoints", "progress=false"]
# what the folder's own commands said of data and model
SETTING = ["data.train_subset=80", "data.folds=2", "data.probes_per_fold=4", "data.size=8", "model.network.width=1"]
SETTING += ["model.network.stem=small", "trainer.max_epochs=2"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    zipfile.ZipFile(Path(__file__).with_name("old.zip")).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoints" / "digits-resnet18"


DRAWN = ["lime", "pmi", "random", "rise"]


def explain(fold: int, *options: str, check: bool = True) -> Done:
    """One fold's, without checks."""
    options = (f"fold={fold}", "checks=0", "logger=none", *options)
    return run("explain", Path("checkpoints"), *options, small=NAMED, check=check)


def forget(old: Path, *names: str) -> None:
    """Delete maps of these explainers, as the line says."""
    for folder in (f / kind / n for f in old.glob("fold=*") for kind in ("maps", "disagreements") for n in names):
        shutil.rmtree(folder)


@pytest.mark.parametrize(("probes", "kind"), [("random", "maps"), ("disagreements", "disagreements")])
def test_maps_that_were_drawn_with_other_noise_are_refused_in_one_line(old: Path, probes: str, kind: str) -> None:
    before = {f: f.read_bytes() for f in old.rglob("*.safetensors")}
    done = explain(0, f"probes={probes}", check=False)
    folders = f"checkpoints/digits-resnet18/fold=0/{kind}/{{{','.join(DRAWN)}}}"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {folders} was drawn by another version of the noise (noise: None there, 2 here), and maps of both do not mix: "
        f"choose another name=, or rm -r {folders}"
    )
    assert {f: f.read_bytes() for f in old.rglob("*.safetensors")} == before


@pytest.mark.parametrize("probes", ["random", "disagreements"])
def test_its_maps_of_methods_that_draw_nothing_are_reused(old: Path, probes: str) -> None:
    forget(old, *DRAWN)
    before = {f: f.read_bytes() for f in old.rglob("*.safetensors")}
    for fold in (0, 1):
        explain(fold, f"probes={probes}", "explainer=[saliency]", "score=[insertion]")
    assert {f: f.read_bytes() for f in before} == before


def test_a_score_that_draws_is_computed_anew_from_its_maps(old: Path) -> None:
    forget(old, *DRAWN)
    (shard,) = (old / "fold=0" / "maps" / "saliency").iterdir()
    was, said = read_shard(shard)
    assert "noise" not in said["scores"]["mufidelity"]["definition"]
    explain(0, "explainer=[saliency]")
    now, says = read_shard(shard)
    assert says["scores"]["mufidelity"]["definition"] == {**said["scores"]["mufidelity"]["definition"], "noise": 2}
    assert says["scores"]["insertion"] == said["scores"]["insertion"]
    assert says["fingerprint"] == said["fingerprint"]
    assert {n for n in was if not torch.equal(now[n], was[n])} == {"score/mufidelity"}
    assert "complete: nothing to do" in explain(0, "explainer=[saliency]").stdout


def test_its_predictors_are_not_trained_again(old: Path) -> None:
    weights = (old / "fold=0" / "model.ckpt").read_bytes()
    options = [*SETTING, "fold=0", "explain=false", "logger=none"]
    run("train", Path("checkpoints"), *options, small=["progress=false"])
    assert (old / "fold=0" / "model.ckpt").read_bytes() == weights


@pytest.mark.slow
def test_a_shard_that_is_missing_is_made_as_it_was(old: Path) -> None:
    forget(old, *DRAWN)
    (shard,) = (old / "fold=1" / "maps" / "saliency").iterdir()
    was = read_shard(shard)[0]
    shard.unlink()
    explain(1, "explainer=[saliency]")
    now = read_shard(shard)[0]
    new = {k for k in now if k.startswith("detail/") and k.count("/") == 2}  # where a score's walk starts and ends
    assert set(now) - new == set(was)
    assert all(torch.equal(now[k], was[k]) for k in was if k != "score/mufidelity")


@pytest.mark.slow
def test_it_is_evaluated_beside_maps_of_today(old: Path) -> None:
    forget(old, "random")
    for fold in (0, 1):
        explain(fold, "explainer=[gradcam]")
    run("evaluate", Path("checkpoints"), "logger=none", small=NAMED)
    summary = json.loads((old / "summary.json").read_text())
    assert set(summary["rows"]) == {"gradcam", "lime", "pmi", "rise", "saliency", "random"}
    assert len(summary["head"]["versions"]) == 2
