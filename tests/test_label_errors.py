"""Probable label errors: the list, whether the folds' reasons agree, and how good the list is where errors are known."""

from __future__ import annotations

import base64
import csv
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from lit_xai.data.images import Source
from lit_xai.errors import UsageError
from lit_xai.metrics.label_errors import (
    ALONE,
    CONFIDENCE,
    LIST,
    WAYS,
    WITH,
    agreement,
    area,
    first,
    judge,
    listed,
    pool,
    reasons,
    require_cleanlab,
    ways,
)
from lit_xai.report.label_errors import COLUMNS, Listed, kept, picture, write
from lit_xai.store.fold import FoldStore
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from conftest import seeded
from test_commands import run


def noisy(number: int = 600, classes: int = 4, share: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Right labels, labels of which some are wrong, and probabilities of a good predictor that never saw them."""
    g = seeded(7)
    true = torch.randint(classes, (number,), generator=g)
    wrong = torch.rand(number, generator=g) < share
    given = torch.where(wrong, (true + 1 + torch.randint(classes - 1, (number,), generator=g)) % classes, true)
    logits = torch.randn(number, classes, generator=g) + 4 * torch.nn.functional.one_hot(true, classes)
    return true, given, logits.softmax(1)


def by_hand(given: np.ndarray, p: np.ndarray) -> set[int]:
    """Confident learning as the paper has it: thresholds, confident joint, calibration, the largest margins of every pair of classes."""
    n, k = p.shape
    threshold = [p[given == c, c].mean() for c in range(k)]
    joint = np.zeros((k, k))
    for i in range(n):
        above = [c for c in range(k) if p[i, c] >= threshold[c]]
        if above:
            joint[given[i], max(above, key=lambda c: p[i, c])] += 1
    out = set()
    for i in range(k):
        row = joint[i] / joint[i].sum() * (given == i).sum()
        members = np.flatnonzero(given == i)
        for j in range(k):
            if i != j:
                margin = p[members, j] - p[members, i]
                out |= set(members[np.argsort(-margin)[: round(row[j])]].tolist())
    return {i for i in out if p[i].argmax() != given[i]}


def test_the_list_is_that_of_confident_learning_by_hand() -> None:
    pytest.importorskip("cleanlab")
    true, given, p = noisy()
    found, expected = set(listed(given, p).tolist()), by_hand(given.numpy(), p.double().numpy())
    assert len(found & expected) >= 0.95 * len(found | expected)
    assert {i for i in found if true[i] != given[i]} >= {i for i in expected if true[i] != given[i]} - (
        expected - found
    )
    assert sum(bool(true[i] != given[i]) for i in found) > 0.9 * len(found)


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    pytest.importorskip("cleanlab")
    _, given, p = noisy()
    with pytest.raises(UsageError, match="1 samples have no probabilities"):
        listed(given, p.index_fill(0, torch.tensor([3]), torch.nan))


def test_the_least_self_confident_comes_first_and_right_labels_give_an_empty_list() -> None:
    pytest.importorskip("cleanlab")
    true, given, p = noisy()
    own = p[listed(given, p), given[listed(given, p)]]
    assert bool((own.diff() >= 0).all())
    sure = 0.9 * torch.nn.functional.one_hot(true, 4).float() + 0.025
    assert listed(true, sure).tolist() == []


def test_a_class_that_no_sample_has_is_no_obstacle() -> None:
    pytest.importorskip("cleanlab")
    _, given, p = noisy()
    more = torch.cat([p * 0.999, torch.full((len(p), 1), 0.001)], 1)
    assert set(listed(given, more).tolist()) == set(listed(given, p).tolist())


def test_the_pool_begins_with_the_list_and_takes_in_the_next_that_are_predicted_otherwise() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    given = torch.tensor([1, 1, 0, 0, 0])
    assert pool(torch.tensor([2, 0]), given, p).tolist() == [2, 0, 3, 1]
    assert pool(torch.tensor([2]), given, p).tolist() == [2, 0]
    assert pool(torch.tensor([], dtype=torch.long), given, p).tolist() == []


def test_agreement_is_the_mean_rank_correlation_of_all_pairs_without_constant_maps() -> None:
    maps = torch.randn(4, 3, 5, 6, generator=seeded(1))
    maps[2, 1] = 3.0
    maps[:3, 2] = 0.0
    for image in (0, 1):
        known = [f for f in range(4) if image == 0 or f != 2]
        rho = [spearmanr(maps[a, image].flatten(), maps[b, image].flatten())[0] for a, b in combinations(known, 2)]
        assert float(agreement(maps)[image]) == pytest.approx(np.mean(rho))
    assert bool(agreement(maps)[2].isnan())
    assert reasons(torch.tensor([0.5, torch.nan]), torch.tensor([0.2, 0.4])).tolist() == pytest.approx([0.3, 0.0])


def test_ranks_by_self_confidence_and_by_reasons_are_averaged() -> None:
    found = ways(torch.tensor([0.2, 0.1, 0.3, 0.4]), torch.tensor([0.1, 0.9, 0.1, 0.8]))
    assert found[LIST].tolist() == [1, 2, 3, 4]
    assert found[CONFIDENCE].tolist() == [2, 1, 3, 4]
    assert found[ALONE].tolist() == [3.5, 1, 3.5, 2]
    assert found[WITH].tolist() == [2.75, 1, 3.25, 3]
    assert first(found[WITH], 2).tolist() == [True, True, False, False]
    assert first(found[ALONE], 3).tolist() == [True, True, False, True]


def test_the_area_is_that_of_the_roc_curve() -> None:
    values = (torch.randn(300, generator=seeded(2)) * 2).round()
    wrong = torch.rand(300, generator=seeded(3)) < torch.sigmoid(values)
    e = area(values, wrong)
    assert e.value == pytest.approx(roc_auc_score(wrong.numpy(), values.numpy()))
    assert e.low < e.value < e.high < 0.95
    assert np.isnan(area(values, torch.ones(300, dtype=torch.bool)).value)


def test_reasons_that_know_the_errors_gain_and_reasons_that_know_nothing_do_not() -> None:
    wrong = torch.zeros(200, dtype=torch.bool)
    wrong[:100:2] = True  # half of the list
    wrong[100:120] = True
    sure = torch.linspace(0, 0.5, 200)
    knowing = judge(wrong, 100, sure, wrong.double(), 80, 5000)
    assert [knowing.precision[w].value for w in WAYS] == [0.5, 0.5, 0.7, 0.7]
    assert [knowing.recall[w].value for w in WAYS] == pytest.approx([50 / 80, 50 / 80, 70 / 80, 70 / 80])
    assert knowing.gain[WITH].value == pytest.approx(0.2)
    assert knowing.gain[WITH].low > 0.1
    assert knowing.gain[LIST].value == 0
    assert knowing.p < 0.01
    assert knowing.auc[ALONE].value == 1
    assert knowing.auc_gain.value == pytest.approx(knowing.auc[WITH].value - knowing.auc[CONFIDENCE].value)
    assert knowing.auc_gain.low > 0.1
    assert knowing.precision[LIST].null == 80 / 5000
    deaf = judge(wrong, 100, sure, torch.randn(200, generator=seeded(4)).double(), 80, 5000)
    assert deaf.gain[WITH].low < 0.02
    assert deaf.p > 0.05
    null = deaf.precision[WITH].null
    assert null is not None
    assert abs(deaf.precision[WITH].value - null) < 0.1
    same = judge(wrong, 100, sure, torch.zeros(200).double(), 80, 5000)
    assert (same.precision[WITH].value, same.gain[WITH].value, same.auc_gain.value) == (0.5, 0.0, 0.0)


def test_a_list_that_reasons_alone_cannot_mend_is_not_said_to_be_mended() -> None:
    """More errors stand behind the list than in it: any mixing takes them in, and no reason is to be thanked for it."""
    wrong = torch.cat([torch.zeros(50), torch.ones(50)]).bool()
    sure = torch.cat([torch.linspace(0.5, 0.9, 50), torch.linspace(0, 0.4, 50)])
    found = judge(wrong, 50, sure, torch.randn(100, generator=seeded(9)).double(), 50, 1000)
    assert (found.precision[LIST].value, found.precision[CONFIDENCE].value) == (0.0, 1.0)
    assert found.gain[WITH].high < 0


def test_the_list_is_written_with_names_ranks_and_the_truth(tmp_path: Path, digits: Source) -> None:
    five = torch.arange(5)
    found = Listed(
        "n", "gradcam", five, digits.labels[:5], digits.labels[1:6], torch.rand(5), torch.rand(5), torch.rand(5) + 1, 3,
        digits.labels[:5], 2, 1797, digits.classes,
    )  # fmt: skip
    files = write(found, digits.train, tmp_path)
    assert [f.name for f in files] == ["label_errors.csv", "label_errors.json", "label_errors.png"]
    with files[0].open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS, "true"]
    assert [r["listed"] for r in rows] == ["yes"] * 3 + ["no"] * 2
    assert sorted(int(r["rank_with_reasons"]) for r in rows) == [1, 2, 3, 4, 5]
    assert (rows[1]["given"], rows[1]["predicted"], rows[1]["true"]) == ("1", "2", "1")
    assert json.loads(files[1].read_text())["length"] == 3


def test_nothing_listed_is_said_and_leaves_no_picture(tmp_path: Path, digits: Source) -> None:
    nobody, none = torch.zeros(0, dtype=torch.long), torch.zeros(0)
    found = Listed("n", "gradcam", nobody, nobody, nobody, none, none, none, 0, None, 0, 1797)
    assert [f.suffix for f in write(found, digits.train, tmp_path)] == [".csv", ".json"]
    assert found.sentence.startswith("0 of 1,797 labels are probably wrong")


def test_probabilities_of_other_weights_or_samples_are_not_taken(tmp_path: Path) -> None:
    store, samples, p = FoldStore(tmp_path / "fold=0"), torch.tensor([3, 8]), torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    assert store.read_probabilities(samples, "a") is None
    store.write_probabilities(samples, p, "a")
    assert torch.equal(store.read_probabilities(samples, "a"), p)  # type: ignore[arg-type]
    assert store.read_probabilities(samples, "b") is None
    assert store.read_probabilities(samples + 1, "a") is None


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(UsageError, match=r"label_errors= needs cleanlab .*: pip install 'lit_xai\[labels\]'"):
        require_cleanlab()


def test_an_unknown_method_is_refused_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    done = run("evaluate", tmp_path, "name=n", "label_errors=salienzy", "progress=false", check=False, small=[])
    line = "label_errors=salienzy is no explainer: choose one of"
    assert (done.returncode, line in done.stderr, done.stderr.count("\n")) == (1, True, 1)


def test_what_was_listed_is_in_the_page_of_an_audit_and_a_file_that_is_none_is_not(
    tmp_path: Path, digits: Source
) -> None:
    assert kept(tmp_path) is None
    (tmp_path / "label_errors.json").write_text('["no list"]')
    assert kept(tmp_path) is None
    three = torch.arange(3)
    found = Listed(
        "n", "gradcam", three, three, three + 1, torch.rand(3), torch.rand(3), torch.rand(3), 2, None, 0, 1797
    )
    write(found, digits.train, tmp_path)
    assert kept(tmp_path) == {"sentence": found.sentence, "length": 2, "samples": 1797, "method": "gradcam"}
    uri = picture(tmp_path)
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == (tmp_path / "label_errors.png").read_bytes()


@pytest.mark.slow
def test_the_command_lists_planted_errors_of_a_trained_folder(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    small = ["progress=false", "logger=none"]
    train = ["data.train_subset=200", "data.folds=2", "data.size=12", "model.network.width=4", "trainer.max_epochs=6"]
    run("train", tmp_path, *train, "fold=0", "explain=false", "label_noise=0.1", "name=n", small=small)
    failed = run("evaluate", tmp_path, "name=n", "label_errors=true", check=False, small=small)
    assert (failed.returncode, "fold=1/model.ckpt is missing" in failed.stderr) == (1, True)
    run("train", tmp_path, *train, "fold=1", "explain=false", "label_noise=0.1", "name=n", small=small)
    kept = tmp_path / "n" / "fold=1" / "probabilities.safetensors"
    before = kept.read_bytes()
    kept.unlink()  # as of an earlier version
    out = run("evaluate", tmp_path, "name=n", "label_errors=saliency", small=small).stdout
    assert kept.read_bytes() == before
    assert "planted errors" in out
    with (tmp_path / "n" / "label_errors.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["listed"] == "yes"]
    assert sum(r["given"] != r["true"] for r in rows) >= 5
    for f in "01":
        run("train", tmp_path, *train, f"fold={f}", "explain=false", "name=m", "model.lr=1e-9", small=small)
    ignorant = run("evaluate", tmp_path, "name=m", "label_errors=saliency", check=False, small=small)
    assert (ignorant.returncode, ignorant.stderr.count("\n")) == (1, 1)
    assert "label_errors= needs predictors that know the classes: theirs are 0.1" in ignorant.stderr
