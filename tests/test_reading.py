"""Reading stores: which bytes are read, how often, and that rows are what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lit_xai import engine
from lit_xai.errors import DamagedFile
from lit_xai.explainers import Random, Saliency
from lit_xai.metrics import Deletion, Insertion
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from lit_xai.store import fold
from lit_xai.store.fold import FoldStore, MapReader, common_samples, read_shard

from conftest import seeded
from test_engine import SOURCE, job, predicted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folds of 20 probes in shards of 8, with two scores."""
    for number in (0, 1):
        scores = {"deletion": Deletion(), "insertion": Insertion()}
        engine.explain(predicted(job(tmp_path, fold=number)), {"saliency": Saliency()}, scores, progress=False)
    return tmp_path


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch) -> str:
    """A store that a reader keeps in memory, and one that is too large for that."""
    if request.param == "large":
        monkeypatch.setattr(fold, "KEPT", 0)
    return request.param


def by_sample(folder: Path, key: str) -> dict[int, torch.Tensor]:
    """What the files of fold 0 hold, one row after the other."""
    out = {}
    for path in FoldStore(folder / "fold=0").shards("maps", "saliency"):
        tensors, _ = read_shard(path)
        out.update(dict(zip(tensors["sample"].tolist(), tensors[key], strict=True)))
    return out


@pytest.mark.parametrize("key", ["maps", "score/deletion", "score/insertion"])
def test_rows_are_those_of_the_files_in_any_order(folder, size, key):
    expected = by_sample(folder, key)
    reader = MapReader(FoldStore(folder / "fold=0"), "maps", "saliency")
    assert reader.samples.tolist() == sorted(expected)
    for seed in range(6):
        some = reader.samples[torch.randint(20, (1 + 5 * seed,), generator=seeded(seed))]  # also several times
        assert torch.equal(reader.rows(some, key), torch.stack([expected[s] for s in some.tolist()]))
    with pytest.raises(KeyError, match="sample 100000 "):
        reader.rows(torch.tensor([100_000]), key)
    assert reader.holds(torch.tensor([100_000, int(some[0])])).tolist() == [False, True]


def test_opening_a_reader_of_a_large_store_reads_no_maps(folder, monkeypatch):
    monkeypatch.setattr(fold, "KEPT", 0)
    monkeypatch.setattr(fold, "read_whole", lambda path: pytest.fail("read"))
    reader = MapReader(FoldStore(folder / "fold=0"), "maps", "saliency")
    assert reader.scores() == ["deletion", "insertion"]
    assert common_samples([reader, reader]).tolist() == reader.samples.tolist()
    assert len(common_samples([])) == 0


def test_an_evaluation_opens_every_file_once_and_twice_where_the_store_is_large(folder, size, opens):
    summarise(Ensemble(folder), progress=False)
    assert set(opens) == set(folder.glob("fold=*/maps/*/*.safetensors"))
    assert set(opens.values()) == {1 if size == "small" else 2}


@pytest.mark.parametrize("key", ["maps", "score/deletion"])
def test_an_altered_file_is_refused_when_its_rows_are_used(folder, size, key):
    path = FoldStore(folder / "fold=0").shards("maps", "saliency")[1]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    reader = MapReader(FoldStore(folder / "fold=0"), "maps", "saliency")
    with pytest.raises(DamagedFile, match="checksum"):
        reader.rows(reader.samples, key)
    with pytest.raises(DamagedFile, match="checksum"):
        summarise(Ensemble(folder), progress=False)


def test_a_file_that_is_replaced_by_another_is_noticed(folder, monkeypatch):
    monkeypatch.setattr(fold, "KEPT", 0)
    reader = MapReader(FoldStore(folder / "fold=0"), "maps", "saliency")
    last, first = reader.files[-1], reader.files[0]
    last.write_bytes(first.read_bytes())  # eight rows where four were
    with pytest.raises(DamagedFile, match="was replaced"):
        reader.rows(reader.samples)


def test_the_table_of_all_parts_is_made_again_when_a_shard_changed_meanwhile(tmp_path, monkeypatch):
    from lit_xai.callbacks import explain
    from lit_xai.callbacks.explain import Explain
    from lit_xai.data.folds import FoldData
    from lit_xai.report.dashboard import Dashboard

    work, explainers = predicted(job(tmp_path)), {"random": Random()}
    callback = Explain(explainers, {"deletion": Deletion()}, work.store, progress=False)
    data = FoldData(lambda: SOURCE)
    data.__dict__["probes"] = work.samples
    predictions = work.store.read_predictions()
    table = tmp_path / "fold=0" / "scores.csv"

    class Silent(Dashboard):
        def table(self, name, columns, rows):
            self.columns, self.rows = columns, rows

    engine.explain(work, explainers, {"deletion": Deletion()}, (0, 2), progress=False)
    callback.report(Silent([]), engine.Tasks.of(work, explainers, {"deletion": Deletion()}, (0, 2)), data, predictions)
    assert not table.exists()  # the other part has something to do
    engine.explain(work, explainers, {"deletion": Deletion()}, (1, 2), progress=False)
    real, made = explain.score_table, []

    def meanwhile(*arguments):
        """The other part writes another score after the first table was read."""
        found = real(*arguments)
        made.append(found)
        if len(made) == 1:
            engine.explain(work, explainers, {"insertion": Insertion()}, progress=False)
        return found

    monkeypatch.setattr(explain, "score_table", meanwhile)
    callback.report(
        dashboard := Silent([]), engine.Tasks.of(work, explainers, {"deletion": Deletion()}, (1, 2)), data, predictions
    )
    assert len(made) == 2
    assert {"deletion", "insertion"} <= set(dashboard.columns)
    header = table.read_text().splitlines()[0].split(",")
    assert {"explainer", "deletion", "insertion"} <= set(header)
    assert len(dashboard.rows) == 20
