"""The loop over probes and the store: what it refuses, what it leaves behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import lit_xai
import pytest
import torch
from lit_xai import engine
from lit_xai.core import Explainer, TrainedOn
from lit_xai.data.folds import Split
from lit_xai.data.sources import digits
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.explainers import Random, Saliency
from lit_xai.metrics import Deletion
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.head import head, versions
from lit_xai.report.show import head_lines
from lit_xai.report.summarise import summarise
from lit_xai.store.fold import FoldStore
from lit_xai.store.tensors import read_tensors, write_tensors
from torch import Tensor, nn

SOURCE = digits(16)


@dataclasses.dataclass(frozen=True)
class Spoiled(Explainer):
    """Saliency, with NaN in the map of one sample."""

    sample: int

    def __call__(self, model, images, targets, rng=None) -> Tensor:
        maps = Saliency()(model, images, targets)
        maps[[s == self.sample for s in rng.samples]] = torch.nan
        return maps


def job(root: Path, fold: int = 0, seed: int = 0, split_seed: int = 0, **changes) -> engine.Job:
    """A seeded linear predictor with 20 probes of a two-fold split."""
    with torch.random.fork_rng():
        torch.manual_seed(fold)
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    split = Split.make(SOURCE.labels, 2, split_seed, 200)
    probes = split.probes(10)
    values = dict(
        model=model,
        images=SOURCE.train,
        samples=probes,
        targets=split.label(probes),
        store=FoldStore(root / f"fold={fold}"),
        shared={"data": "digits", "split_seed": split_seed, "folds": 2, "target": "label"},
        trained_on=TrainedOn((0.3,)),
        seed=seed,
        batch_size=4,
        shard_size=8,
    )
    return engine.Job(**{**values, **changes})


def predicted(work: engine.Job, split_seed: int = 0) -> engine.Job:
    engine.predictions_of(work, Split.make(SOURCE.labels, 2, split_seed, 200), work.store.fold)
    return work


def test_a_map_with_nan_is_refused_and_nothing_is_written(tmp_path):
    work = job(tmp_path)
    bad = int(work.samples[5])
    with pytest.raises(UsageError, match=f"NaN for sample {bad}"):
        engine.explain(work, {"spoiled": Spoiled(bad)}, {}, progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_model_that_predicts_nan_is_refused(tmp_path):
    work = job(tmp_path)
    nn.init.constant_(work.model[1].weight, torch.nan)
    with pytest.raises(UsageError, match="NaN"):
        predicted(work)


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_shards_partition_the_probes_for_any_number_of_parts(tmp_path, size):
    work = job(tmp_path, shard_size=size)
    for parts in (1, 2, 3, 7):
        seen = [i for part in range(parts) for r in work.ranges((part, parts)) for i in r]
        assert sorted(seen) == list(range(20))


def test_more_parts_than_shards_leave_some_with_nothing_to_do(tmp_path):
    work = job(tmp_path)
    assert [engine.explain(work, {"random": Random()}, {}, (p, 7), progress=False) for p in range(7)] == [1] * 3 + [
        0
    ] * 4
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_an_altered_or_cut_shard_is_written_anew_by_the_same_command(tmp_path):
    explainers, scores = {"saliency": Saliency()}, {"deletion": Deletion()}
    engine.explain(job(tmp_path), explainers, scores, progress=False)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    first, second, _ = files
    for place in (9, 500, len(files[first]) - 3):  # in the length's neighbour, the description, the maps
        data = bytearray(files[first])
        data[place] ^= 16
        first.write_bytes(data)
        second.write_bytes(files[second][:-1])
        assert engine.explain(job(tmp_path), explainers, scores, progress=False) == 2
        assert {p: p.read_bytes() for p in files} == files
    assert engine.explain(job(tmp_path), explainers, scores, progress=False) == 0


def test_what_is_left_to_do_is_what_is_unfinished_for_these_settings(tmp_path):
    explainers, scores = {"random": Random(), "saliency": Saliency()}, {"deletion": Deletion()}
    work = job(tmp_path, shard_size=1)
    engine.explain(work, explainers, scores, progress=False)
    assert not engine.Tasks.of(work, explainers, scores)
    gone, cut = (work.store.shard("maps", "saliency", n, n + 1) for n in (7, 9))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    assert [t.path for t in engine.Tasks.of(work, explainers, scores)] == [gone, cut]
    with pytest.raises(UsageError, match="seed"):
        engine.Tasks.of(job(tmp_path, shard_size=1, seed=1), explainers, scores)


@pytest.mark.parametrize(("part", "world"), [((0, 1), 1), ((0, 1), 3), ((1, 2), 2), ((0, 2), 5)])
def test_processes_share_the_tasks_of_a_part(tmp_path, part, world):
    tasks = engine.Tasks.of(job(tmp_path, shard_size=3), {"random": Random()}, {}, part)
    shares = [tasks.share(rank, world) for rank in range(world)]
    assert sorted(t.path for share in shares for t in share) == sorted(t.path for t in tasks)


def test_a_pass_is_finished_when_every_part_has_every_score(tmp_path):
    work, explainers, scores = job(tmp_path), {"random": Random()}, {"deletion": Deletion()}

    def finished(wanted):
        tasks = engine.Tasks.of(work, explainers, wanted, (0, 3))
        return not tasks and tasks.others_finished()

    assert not finished({})
    for part in range(3):
        assert not finished({})
        engine.explain(work, explainers, {} if part else scores, (part, 3), progress=False)
    assert finished({})
    assert not finished(scores)
    engine.explain(work, explainers, scores, progress=False)
    assert finished(scores)


def test_a_store_may_be_filled_by_two_versions_of_the_code_and_says_so(tmp_path, monkeypatch):
    for fold in (0, 1):
        work = predicted(job(tmp_path, fold=fold))
        engine.explain(work, {"random": Random()}, {}, (0, 2), progress=False)
    assert head(Ensemble(tmp_path))["versions"] == [
        {"version": lit_xai.__version__, "code": lit_xai.code(), "folds": [0, 1]}
    ]
    assert not any("versions" in w for w in head(Ensemble(tmp_path))["warnings"])
    monkeypatch.setattr(lit_xai, "made_by", lambda: {"version": "0.2.0", "code": "later"})
    engine.explain(work, {"random": Random()}, {}, progress=False)
    predicted(job(tmp_path, fold=1))
    found = summarise(Ensemble(tmp_path), progress=False).head
    assert found["versions"] == [
        {"version": lit_xai.__version__, "code": lit_xai.code(), "folds": [0, 1]},
        {"version": "0.2.0", "code": "later", "folds": [1]},
    ]
    assert any("2 versions of the code (0.1.0 " in w and "0.2.0 later in fold 1" in w for w in found["warnings"])


def test_a_score_added_by_later_code_does_not_hide_who_made_the_maps(tmp_path, monkeypatch):
    first = predicted(job(tmp_path))
    engine.explain(first, {"random": Random()}, {}, progress=False)
    monkeypatch.setattr(lit_xai, "made_by", lambda: {"version": "0.2.0", "code": "later"})
    engine.explain(first, {"random": Random()}, {"deletion": Deletion()}, progress=False)
    found = {(v["version"], v["code"]) for v in versions(Ensemble(tmp_path))}
    assert found == {(lit_xai.__version__, lit_xai.code()), ("0.2.0", "later")}
    meta = read_tensors(first.store.shards("maps", "random")[0])[1]
    assert meta["code"] == lit_xai.code()
    assert meta["also"] == [{"version": "0.2.0", "code": "later"}]


def test_another_shard_size_in_the_same_folder_is_refused(tmp_path):
    engine.explain(job(tmp_path), {"random": Random()}, {}, progress=False)
    with pytest.raises(UsageError, match="shard_size"):
        engine.explain(job(tmp_path, shard_size=5), {"random": Random()}, {}, progress=False)


def test_maps_of_other_parameters_are_refused(tmp_path):
    engine.explain(job(tmp_path), {"saliency": Saliency()}, {}, progress=False)
    with pytest.raises(UsageError, match=r"explainer\.output: logit there, probability here"):
        engine.explain(job(tmp_path), {"saliency": Saliency(output="probability")}, {}, progress=False)


def test_a_score_asked_for_later_equals_one_computed_with_the_maps(tmp_path):
    explainers, scores = {"saliency": Saliency()}, {"deletion": Deletion()}
    engine.explain(job(tmp_path / "at once"), explainers, scores, progress=False)
    engine.explain(job(tmp_path / "later"), explainers, {}, progress=False)
    assert engine.explain(job(tmp_path / "later"), explainers, scores, progress=False) == 3
    for file in (tmp_path / "at once").rglob("*.safetensors"):
        twin = tmp_path / "later" / file.relative_to(tmp_path / "at once")
        assert twin.read_bytes() == file.read_bytes()


@pytest.fixture
def walked(tmp_path) -> Path:
    """Two folds with a score that walks."""
    for fold in (0, 1):
        work = predicted(job(tmp_path, fold=fold))
        engine.explain(work, {"saliency": Saliency(), "random": Random()}, {"deletion": Deletion()}, progress=False)
    return tmp_path


def test_the_ends_of_a_walk_are_kept_beside_its_score_and_shown_above_the_table(walked):
    summary = summarise(Ensemble(walked), progress=False)
    p, q = [], []  # of the image and of the mean colour
    for fold in (0, 1):
        work = job(walked, fold=fold)
        for start in range(0, 20, 4):
            images, targets, _ = work.batch(start)
            for images_of, found in ((images, p), (torch.full_like(images, 0.3), q)):
                found.append(work.model(images_of).softmax(1).gather(1, targets[:, None])[:, 0].double().detach())
    for row in summary.rows:
        ends = row.plain()["deletion"]["details"]
        for end, expected in (("start", torch.cat(p)), ("end", torch.cat(q))):
            of = {"mean": expected.mean(), "min": expected.min(), "max": expected.max()}
            assert ends[end] == pytest.approx({k: float(v) for k, v in of.items()}, abs=1e-6)
        assert not summary.definitions["explainers"][row.explainer]["details"]
    line = f"output at the start -> end of the walk, mean over probes: deletion {torch.cat(p).mean():.2f} -> {torch.cat(q).mean():.2f}"
    assert line in head_lines(summary)


def test_shards_without_the_ends_of_a_walk_are_reused_and_say_nothing_of_them(walked):
    for file in walked.rglob("maps/*/*.safetensors"):
        tensors, meta = read_tensors(file)
        assert {"detail/deletion/start", "detail/deletion/end"} <= set(tensors)
        own = {k: v for k, v in meta.items() if k not in ("format", "checksum", "meta_checksum")}
        write_tensors(file, {k: v for k, v in tensors.items() if not k.startswith("detail/")}, own)
    explainers, scores = {"saliency": Saliency(), "random": Random()}, {"deletion": Deletion()}
    assert engine.explain(job(walked), explainers, scores, progress=False) == 0
    summary = summarise(Ensemble(walked), progress=False)
    assert "details" not in summary.rows[0].plain()["deletion"]
    assert not any("walk" in line for line in head_lines(summary))


def test_folds_of_different_splits_do_not_belong_together(tmp_path):
    predicted(job(tmp_path, fold=0))
    predicted(job(tmp_path, fold=1, split_seed=1), split_seed=1)
    with pytest.raises(UsageError, match="do not belong together"):
        Ensemble(tmp_path)


def test_folds_of_different_explainer_parameters_are_not_compared(tmp_path):
    for fold, output in ((0, "logit"), (1, "probability")):
        work = predicted(job(tmp_path, fold=fold))
        engine.explain(work, {"saliency": Saliency(output=output)}, {}, progress=False)
    with pytest.raises(UsageError, match=r"explainer\.output"):
        Ensemble(tmp_path).pairs("saliency")


def test_scores_of_different_definitions_are_not_averaged(tmp_path):
    for fold, fraction in ((0, 1.0), (1, 0.5)):
        work = predicted(job(tmp_path, fold=fold))
        engine.explain(work, {"random": Random()}, {"deletion": Deletion(fraction=fraction)}, progress=False)
    with pytest.raises(UsageError, match=r"score\.deletion\.fraction"):
        summarise(Ensemble(tmp_path), ["random"], progress=False)


def test_explainers_on_different_probes_are_not_compared(tmp_path):
    explainers = {"random": Random(), "saliency": Saliency()}
    for fold in (0, 1):
        engine.explain(predicted(job(tmp_path, fold=fold)), explainers, {"deletion": Deletion()}, progress=False)
        sorted((tmp_path / f"fold={fold}" / "maps" / "saliency").iterdir())[-1].unlink()
    summary = summarise(Ensemble(tmp_path), progress=False)
    row = next(r for r in summary.rows if r.explainer == "saliency")
    assert not row.differences
    assert any("16 of 20 probes (saliency)" in w for w in summary.head["warnings"])


def test_predictions_are_not_replaced_under_explanations(tmp_path):
    engine.explain(predicted(job(tmp_path)), {"random": Random()}, {}, progress=False)
    before = (tmp_path / "fold=0" / "predictions.safetensors").read_bytes()
    with pytest.raises(UsageError, match="another run"):
        predicted(job(tmp_path, split_seed=1), split_seed=1)
    assert (tmp_path / "fold=0" / "predictions.safetensors").read_bytes() == before


def test_a_file_cut_anywhere_is_never_read_as_whole(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.arange(100)}, {"note": "whole"})
    whole = file.read_bytes()
    assert read_tensors(file)[1]["note"] == "whole"
    for length in range(0, len(whole), 37):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            read_tensors(file)


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.arange(100)}, {})
    data = bytearray(file.read_bytes())
    data[-20] ^= 4
    file.write_bytes(data)
    with pytest.raises(DamagedFile, match="checksum"):
        read_tensors(file)


def test_temporary_files_of_dead_writers_are_removed_and_of_living_ones_kept(tmp_path):
    import os
    import platform

    host = platform.node()
    dead = tmp_path / "fold=0" / f".x.safetensors.{host}.999999999.tmp"
    alive = tmp_path / "fold=0" / f".y.safetensors.{host}.{os.getpid()}.tmp"
    elsewhere = tmp_path / "fold=0" / ".z.safetensors.another-host.999999999.tmp"
    dead.parent.mkdir()
    for f in (dead, alive, elsewhere):
        f.write_bytes(b"half")
    FoldStore(tmp_path / "fold=0").remove_temporary()
    assert (dead.exists(), alive.exists(), elsewhere.exists()) == (False, True, True)


def test_an_accuracy_has_a_wilson_interval():
    from lit_xai.metrics.statistics import share_estimate

    e = share_estimate(torch.arange(100) < 90, null=0.1)
    z, p, n = 1.959963984540054, 0.9, 100  # Wilson (1927)
    centre, half = (p + z * z / 2 / n), z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert (e.value, e.null) == (0.9, 0.1)
    assert (e.low, e.high) == pytest.approx((low, high), abs=1e-12)
