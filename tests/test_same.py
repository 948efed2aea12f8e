"""The ruler of refactors sees what it must see, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lit_xai.store.files import save_weights
from lit_xai.store.tensors import write_tensors

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("same", ROOT / "tools" / "same.py")
assert spec is not None
assert spec.loader is not None
same = importlib.util.module_from_spec(spec)
spec.loader.exec_module(same)

SHARD, CHECKPOINT = Path("digits/maps/rise/000000000-000000001.safetensors"), Path("digits/model.ckpt")


def shard(root: Path, value: float = 1.0, **meta: Any) -> None:
    """A file as the store writes it."""
    fingerprint = {"explainer": {"name": "RISE", "masks": 20}}
    write_tensors(root / SHARD, {"maps": torch.tensor([value, 2.0])}, {"fingerprint": fingerprint, "code": "a", **meta})


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A folder of results."""
    root = tmp_path / "before"
    shard(root)
    save_weights(torch.nn.Linear(2, 2), root / CHECKPOINT, {"root": str(root), "epochs": 3})
    (root / "summary.json").write_text(json.dumps({"rows": {"rise": [0.5, None, "x"]}, "version": "1"}))
    (root / "scores.csv").write_text("sample,rise\n0,0.5\n")
    (root / "report.html").write_text('<p>.5</p><img src="data:image/png;base64,AAAA">')
    (root / "printed").mkdir()
    printed = {"command": "train fold=7", "code": 1, "out": "about T", "err": "error: no fold 7"}
    (root / "printed" / "bad-00.json").write_text(json.dumps(printed))
    return root


@pytest.fixture
def after(before: Path, tmp_path: Path) -> Path:
    """The same, elsewhere."""
    shutil.copytree(before, tmp_path / "after")
    return tmp_path / "after"


def test_other_code_other_places_and_other_pictures_are_no_difference(before: Path, after: Path) -> None:
    shard(after, code="b", version="2")
    content = torch.load(after / CHECKPOINT, weights_only=True)
    torch.save({**content, "config": {"root": str(after), "epochs": 3}}, after / CHECKPOINT)
    (after / "summary.json").write_text(json.dumps({"rows": {"rise": [0.5 + 1e-13, None, "x"]}, "version": "2"}))
    (after / "report.html").write_text('<p>.5</p><img src="data:image/png;base64,BBBB">')
    assert list(same.differences(before, after)) == []


def changed_shard(root: Path) -> None:
    shard(root, value=1.0 + 2**-23)


def changed_fingerprint(root: Path) -> None:
    shard(root, fingerprint={"explainer": {"name": "RISE", "masks": 21}})


def changed_weights(root: Path) -> None:
    content = torch.load(root / CHECKPOINT, weights_only=True)
    content["state_dict"]["bias"][0] += 1e-7
    torch.save(content, root / CHECKPOINT)


def changed_number(root: Path) -> None:
    (root / "summary.json").write_text(json.dumps({"rows": {"rise": [0.5 + 1e-11, None, "x"]}, "version": "1"}))


def changed_text(root: Path) -> None:
    (root / "scores.csv").write_text("sample,rise\n0,0.50\n")


def changed_page(root: Path) -> None:
    (root / "report.html").write_text('<p>.6</p><img src="data:image/png;base64,AAAA">')


def changed_error(root: Path) -> None:
    printed = {"command": "train fold=7", "code": 1, "out": "about T", "err": "error: no such fold"}
    (root / "printed" / "bad-00.json").write_text(json.dumps(printed))


def changed_code(root: Path) -> None:
    printed = {"command": "train fold=7", "code": 0, "out": "about T", "err": "error: no fold 7"}
    (root / "printed" / "bad-00.json").write_text(json.dumps(printed))


def lost_file(root: Path) -> None:
    (root / "scores.csv").unlink()


@pytest.mark.parametrize(
    "change",
    [
        changed_shard,
        changed_fingerprint,
        changed_weights,
        changed_number,
        changed_text,
        changed_page,
        changed_error,
        changed_code,
        lost_file,
    ],
)
def test_every_change_is_listed(before: Path, after: Path, change: Any) -> None:
    change(after)
    assert list(same.differences(before, after))


def test_times_rates_and_places_are_taken_out_of_what_is_printed() -> None:
    text = "train: 3 steps, about 0.1 min on this CPU\n13:01:02 host pid 7 rank 0/1: fold=0\nin 2.5 s -> /x/y/digits\n"
    assert same.plain(text, Path("/x/y")) == "train: 3 steps, about T on this CPU\nin T s -> ROOT/digits\n"
