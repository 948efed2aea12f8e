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


def by_sample(folder: Path, key: str) -> dict[int, torch.Tensor]:
    """What the files of fold 0 hold, one row after the other."""
    out = {}
    for path in FoldStore(folder / "fold=0").shards("maps", "saliency"):
        tensors, _ = read_shard(path)
        out.update(dict(zip(tensors["sample"].tolist(), tensors[key], strict=True)))
    return out


@pytest.mark.parametrize("key", ["maps", "score/deletion", "score/insertion"])
def test_rows_are_those_of_the_files_in_any_order(folder, key):
    expected = by_sample(folder, key)
    reader = MapReader(FoldStore(folder / "fold=0"), "maps", "saliency")
    assert reader.samples.tolist() == sorted(expected)
    for seed in range(6):
        some = reader.samples[torch.randint(20, (1 + 5 * seed,), generator=seeded(seed))]  # also several times
        assert torch.equal(reader.rows(some, key), torch.stack([expected[s] for s in some.tolist()]))
    with pytest.raises(KeyError, match="sample 100000 "):
        reader.rows(torch.tensor([100_000]), key)
    assert reader.holds(torch.tensor([100_000, int(some[0])])).tolist() == [False, True]


def test_opening_a_reader_reads_no_maps(folder, monkeypatch):
    monkeypatch.setattr(fold, "read_whole", lambda path: pytest.fail("read"))
    reader = MapReader(FoldStore(folder / "fold=0"), "maps", "saliency")
    assert reader.scores() == ["deletion", "insertion"]
    assert common_samples([reader, reader]).tolist() == reader.samples.tolist()
    assert len(common_samples([])) == 0


def test_an_evaluation_reads_every_file_once_and_keeps_no_maps(folder, monkeypatch):
    read: list[Path] = []
    whole = fold.read_whole
    monkeypatch.setattr(fold, "read_whole", lambda path: read.append(path) or whole(path))
    everything = Ensemble(folder)
    everything.summarise(progress=False)
    files = [p for p in read if "maps" in p.parts]
    assert sorted(files) == sorted(folder.glob("fold=*/maps/*/*.safetensors"))
    for reader in everything.readers("saliency").values():
        assert reader.open[1].shape[0] <= 8  # one shard
        assert set(reader.columns) == {"score/deletion", "score/insertion"}


@pytest.mark.parametrize("key", ["maps", "score/deletion"])
def test_an_altered_file_is_refused_when_its_rows_are_used(folder, key):
    path = FoldStore(folder / "fold=0").shards("maps", "saliency")[1]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    reader = MapReader(FoldStore(folder / "fold=0"), "maps", "saliency")
    with pytest.raises(DamagedFile, match="checksum"):
        reader.rows(reader.samples, key)
    with pytest.raises(DamagedFile, match="checksum"):
        Ensemble(folder).summarise(progress=False)


def test_a_file_that_is_replaced_by_another_is_noticed(folder):
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
    callback.report(Silent([]), work, data, predictions)
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
    callback.report(dashboard := Silent([]), work, data, predictions)
    assert len(made) == 2
    assert dashboard.columns[-2:] == ["deletion", "insertion"]
    assert table.read_text().splitlines()[0].endswith("explainer,deletion,insertion")
    assert len(dashboard.rows) == 20
