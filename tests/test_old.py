"""A folder that an earlier version left (tests/old.zip, made at commit bd678b3): its results are reused, none is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from test_commands import run

NAMED = ["name=digits-resnet18", "root=checkpoints", "progress=false"]
# what the folder's own commands said of data and model
SETTING = ["data.train_subset=80", "data.folds=2", "data.probes_per_fold=4", "data.size=8", "model.network.width=1"]
SETTING += ["model.network.stem=small", "trainer.max_epochs=2"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    zipfile.ZipFile(Path(__file__).with_name("old.zip")).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "checkpoints" / "digits-resnet18"


@pytest.mark.parametrize("probes", ["random", "disagreements"])
def test_its_maps_are_reused(old: Path, probes: str) -> None:
    before = {f: f.read_bytes() for f in old.rglob("*.safetensors")}
    for fold in (0, 1):
        done = run("explain", Path("checkpoints"), f"fold={fold}", f"probes={probes}", "logger=none", small=NAMED)
        if probes == "random":
            assert "the maps of random probes are there; new are 20 of fresh weights, 20 of other noise" in done.stdout
        elif fold == 1:  # its predictor is right on the one disagreement
            assert "is complete: nothing to do" in done.stdout
        else:
            assert "the maps of labels are there; new are 5 of what this predictor wrongly says" in done.stdout
    assert {f: f.read_bytes() for f in before} == before


def test_its_predictors_are_not_trained_again(old: Path) -> None:
    weights = (old / "fold=0" / "model.ckpt").read_bytes()
    options = [*SETTING, "fold=0", "explain=false", "logger=none"]
    run("train", Path("checkpoints"), *options, small=["progress=false"])
    assert (old / "fold=0" / "model.ckpt").read_bytes() == weights


@pytest.mark.slow
def test_a_shard_that_is_missing_is_made_as_it_was(old: Path) -> None:
    shards = [next((old / "fold=1" / "maps" / name).iterdir()) for name in ("lime", "pmi", "rise")]
    before = [load_file(shard) for shard in shards]
    for shard in shards:
        shard.unlink()
    run("explain", Path("checkpoints"), "fold=1", "logger=none", small=NAMED)
    for shard, was in zip(shards, before, strict=True):
        now = load_file(shard)
        new = {k for k in now if k.startswith("detail/") and k.count("/") == 2}  # where a score's walk starts and ends
        assert set(now) - new == set(was)
        assert all(torch.equal(now[k], was[k]) for k in was), shard


@pytest.mark.slow
def test_it_is_evaluated_beside_maps_of_today(old: Path) -> None:
    for fold in (0, 1):
        run("explain", Path("checkpoints"), f"fold={fold}", "explainer=[gradcam]", "logger=none", small=NAMED)
    run("evaluate", Path("checkpoints"), "logger=none", small=NAMED)
    summary = json.loads((old / "summary.json").read_text())
    assert set(summary["rows"]) == {"gradcam", "lime", "pmi", "rise", "saliency", "random"}
    assert len(summary["head"]["versions"]) == 2
