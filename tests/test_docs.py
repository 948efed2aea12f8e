"""The worked examples of docs/ do what they say."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


@pytest.mark.slow
def test_your_own_model_gives_a_summary_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("your_own_model.md", "python")[:2])
    exec(compile(code, "your_own_model.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert {line.split()[0] for line in printed.splitlines() if line} >= {"saliency", "gradcam", "random"}
    folder = tmp_path / "checkpoints" / "mine"
    files = {f: f.read_bytes() for f in folder.rglob("*.safetensors")}
    assert len([f for f in files if "maps" in f.parts]) == 3 * 3
    assert "torch.Size([3, 1, 8, 8])" in printed
    summary = (folder / "summary.json").read_bytes()
    victim = next(f for f in files if "gradcam" in f.parts and "maps" in f.parts)
    victim.unlink()
    exec(compile(code, "your_own_model.md", "exec"), {"__name__": "example"})
    assert {f: f.read_bytes() for f in folder.rglob("*.safetensors")} == files
    assert (folder / "summary.json").read_bytes() == summary


@pytest.mark.slow
@pytest.mark.kind("groups")
def test_the_data_set_of_the_page_on_data_is_audited_by_its_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("data.md", "python")
    exec(compile(code.replace('"k": 3', '"probes_per_fold": 4, "k": 3'), "data.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[-1] == "('forest', 'water')"


@pytest.mark.slow
def test_a_trained_model_and_a_module_by_folds_are_audited_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, _, _, alone, folds, declared = blocks("your_own_model.md", "python")
    names = {"__name__": "example"}
    exec(compile(alone, "your_own_model.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "persistence needs those of other folds" in printed
    assert "depend on the model" in printed
    exec(compile(declared, "your_own_model.md", "exec"), names)
    made = first[: first.index("summary = explain_folds(")]
    exec(compile(made + folds, "your_own_model.md", "exec"), names)
    assert capsys.readouterr().out.strip()
    for folder in ("network", "mine-audited"):
        files = {f.name for f in (tmp_path / "checkpoints" / folder).iterdir()}
        assert files >= {"audit.html", "audit.json", "audit.md", "summary.json", "cases.csv"}


def test_the_readmes_python_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own, library, notebook = blocks("../README.md", "python")
    for code in (own, library):
        exec(compile(code, "README.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert "Do not trust any of it: no better than chance" in printed
    assert "Estimate(" in printed
    compile(notebook, "README.md", "exec")  # it reads what the demo leaves


def test_a_plain_module_needs_and_takes_a_training_function(tmp_path: Path) -> None:
    import torch
    from lit_xai.crossval import explain_folds, load
    from lit_xai.errors import UsageError
    from lit_xai.explainers import Random, Saliency
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = torch.rand(40, 1, 8, 8, generator=generator) / 2 + labels.view(-1, 1, 1, 1) / 2
    dataset = TensorDataset(images, labels)

    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    def fit(module: nn.Module, training_set: object, fold: int) -> None:
        optimizer = torch.optim.Adam(module.parameters(), 0.05)
        for x, y in DataLoader(training_set, batch_size=16):  # type: ignore[arg-type]
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()

    explainers = {"saliency": Saliency(), "random": Random()}
    with pytest.raises(UsageError, match="train="):
        explain_folds(make, dataset, explainers, k=2, root=tmp_path / "none", scores={}, progress=False)
    summary = explain_folds(
        make, dataset, explainers, k=2, root=tmp_path / "plain", train=fit, scores={}, progress=False
    )
    assert [row.explainer for row in summary.rows] == ["saliency", "random"]
    model, split, maps, images = load(tmp_path / "plain", 1, make(), dataset)
    assert torch.equal(images[maps.samples[:3]], torch.stack([dataset[int(i)][0] for i in maps.samples[:3]]))
    assert maps["saliency"].shape == (40, 8, 8)
    assert split.k == 2
    assert isinstance(model, nn.Module)


def test_images_outside_the_unit_range_are_refused(tmp_path: Path) -> None:
    import torch
    from lit_xai.crossval import explain_folds
    from lit_xai.errors import UsageError
    from lit_xai.explainers import Random
    from torch.utils.data import TensorDataset

    dataset = TensorDataset(torch.full((8, 1, 4, 4), 255.0), torch.arange(8) % 2)
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        explain_folds(torch.nn.Flatten, dataset, {"random": Random()}, k=2, root=tmp_path)


def with_files(folder: Path, files: dict[str, str]) -> Callable[..., str]:
    """Python in a copy of the package and its configurations, with some more files."""
    for part in ("lit_xai", "configs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        (folder / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, timeout=240
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    return python


def keeps_the_contract(kind: type, known: dict[str, object]) -> None:
    """All of what is promised of its kind holds of a new thing."""
    for name, check in vars(kind).items():
        if name.startswith("test_"):
            wants = [n for n in inspect.signature(check).parameters if n != "self"]
            check(kind(), **{n: copy.deepcopy(known[n]) for n in wants})


@pytest.mark.slow
def test_a_new_sampler_is_one_file_and_two_yamls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lit_xai.fillers

    from test_commands import run
    from test_contracts import RNG, TestFiller

    monkeypatch.setattr(lit_xai.fillers, "__path__", [*lit_xai.fillers.__path__, str(tmp_path)])
    (tmp_path / "small_painter.py").write_text(blocks("new_sampler.md", "python")[0])
    for group, text in zip(("model", "filler"), blocks("new_sampler.md", "yaml"), strict=True):
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / "small_painter.yaml").write_text(text)
    small = ["data.train_subset=100", "data.folds=2", "data.size=16", "trainer.max_epochs=1", "model.width=4"]
    options = [f"--config-dir={tmp_path / 'own'}", "model=small_painter", "fold=0", "logger=none", "progress=false"]
    run("train", tmp_path, *options, small=small)
    folder = tmp_path / "digits-small_painter" / "fold=0"
    assert (folder / "quality.csv").read_text().startswith("images,hole_l1")
    assert (folder / "samples.png").exists()
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    keep = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(3)) < 0.6
    known = {"file": tmp_path / "own" / "filler" / "small_painter.yaml", "images": images, "keep": keep}
    assert len(RNG.samples) == len(images)
    keeps_the_contract(TestFiller, known)


def test_a_new_explainer_is_offered_where_its_yaml_is(tmp_path: Path) -> None:
    node = blocks("new_explainer.md", "yaml")[0]
    python = with_files(tmp_path, {"configs/explainer/blurred_gradient.yaml": node})
    both = "import sys, lit_xai.train as t\nfor a in (['--help'], ['--cfg', 'job']): sys.argv[1:] = a; t.main()"
    out = python("-c", both)
    assert "|gradient| at a blurred image" in out
    assert "  blurred_gradient:\n    _target_: lit_xai.explainers.blurred_gradient.BlurredGradient" in out


@pytest.mark.slow
def test_a_new_explainer_is_one_file_and_one_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lit_xai.explainers

    from test_commands import run
    from test_contracts import RNG, TestExplainer, small_network

    monkeypatch.setattr(lit_xai.explainers, "__path__", [*lit_xai.explainers.__path__, str(tmp_path)])
    (tmp_path / "blurred_gradient.py").write_text(blocks("new_explainer.md", "python")[0])
    file = tmp_path / "own" / "explainer" / "blurred_gradient.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(blocks("new_explainer.md", "yaml")[0])
    small = ["data.train_subset=100", "data.folds=2", "data.probes_per_fold=4", "data.size=16", "model.network.width=4"]
    small += [
        "trainer.max_epochs=1",
        "score=[deletion]",
        "explainer=[blurred_gradient]",
        "progress=false",
        "logger=csv",
    ]
    place = f"--config-dir={tmp_path / 'own'}"
    run("train", tmp_path, "-m", place, "fold=0,1", small=small)
    assert "blurred_gradient" in run("evaluate", tmp_path, place, small=small).stdout
    folder = tmp_path / "digits-resnet18"
    assert "blurred_gradient" in json.loads((folder / "summary.json").read_text())["rows"]
    logged = "".join(f.read_text() for f in folder.rglob("metrics.csv"))
    assert "deletion/blurred_gradient" in logged
    assert "mege/blurred_gradient" in logged
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    known = {"file": file, "model": small_network(), "images": images, "targets": torch.tensor([0, 3, 1, 2, 3])}
    assert len(RNG.samples) == len(images)
    keeps_the_contract(TestExplainer, known)


def test_a_new_measure_is_one_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from argparse import Namespace

    from lit_xai.degradation import measured
    from lit_xai.metrics import measures
    from lit_xai.report import levels
    from lit_xai.report.ensemble import Ensemble

    from test_commands import run
    from test_crossval import explained

    (tmp_path / "my_measures.py").write_text(blocks("new_measure.md", "python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    explained(tmp_path / "mine")
    try:
        options = ["name=mine", "measures=[my_measures]", "logger=csv", "progress=false"]
        out = run("evaluate", tmp_path, *options, small=[]).stdout
        pairs = Ensemble(tmp_path / "mine").pairs("saliency")
        expected = float((pairs.distance[pairs.equal] < 0.2).double().mean())
        rows = measured(Namespace(root=tmp_path, name="mine", seed=0), "none", 0.0, ["saliency"])
        study = levels.table(rows).file()
        assert dict(zip(study[0], study[1][0], strict=True))["alike"] == expected
        assert "alike" in levels.rank_correlations([*rows, ["label_noise", 0.1, *rows[0][2:]]]).file()[0]
    finally:
        measures.MEASURES.pop("alike", None)
        sys.modules.pop("my_measures", None)
    folder = tmp_path / "mine"
    assert "alike ↑" in out
    row = json.loads((folder / "summary.json").read_text())["rows"]["saliency"]["alike"]
    assert row["value"] == expected
    assert row["low"] <= expected <= row["high"]
    for file, text in (
        ("summary.csv", "saliency,alike,"),
        ("summary.tex", r"alike $\uparrow$"),
        ("report.html", "alike ↑"),
    ):
        assert text in (folder / file).read_text(), file
    assert "alike/saliency" in next(folder.rglob("metrics.csv")).read_text()


def test_the_example_of_perturbation_runs(convnet: object) -> None:
    import torch

    images = torch.nn.functional.interpolate(torch.rand(2, 3, 5, 5), size=16, mode="bilinear")
    names = {"model": convnet, "images": images, "labels": torch.tensor([1, 3]), "image": images[0]}
    exec(compile(blocks("perturbation.md", "python")[0], "perturbation.md", "exec"), names)
    assert names["fit"].samples.tolist() == [s for s in names["fit"].samples.tolist() if 256 <= s <= 10_000]
    assert names["gap"].needed > 0


@pytest.mark.slow
def test_the_figures_of_the_limit_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lime_limit.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "docs" / "lime_limit.py"), run_name="__main__")
    assert {f.name for f in tmp_path.iterdir()} == {"detectors.png", "linear.png"}


def test_what_the_examples_of_all_pages_import_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    written = [(page.name, code) for page in pages for code in blocks(os.path.relpath(page, ROOT / "docs"), "python")]
    assert len(written) > 15
    for page, code in written:
        for node in ast.walk(ast.parse(code, page)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "lit_xai":
                module = importlib.import_module(node.module)
                assert [n.name for n in node.names if n.name not in vars(module)] == [], page


def test_the_examples_of_certificates_windows_and_pomelo_run() -> None:
    from lit_xai.explainers import RISE
    from lit_xai.fillers import DDIM
    from lit_xai.rng import SampleRng

    torch.manual_seed(0)
    images = torch.rand(2, 1, 14, 14)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 3)
    ).eval()
    names = {"model": model, "images": images, "targets": torch.tensor([0, 2]), "rng": SampleRng(0, (0, 1))}
    names["explainer"] = RISE(masks=8)
    exec(compile(blocks("deeper.md", "python")[0], "deeper.md", "exec"), names)
    assert names["question"].images.shape == images.shape
    names |= {"image": images[:1], "pixels": images[:1, :, :8, :8], "top": torch.tensor([1]), "left": torch.tensor([2])}
    exec(compile(blocks("incremental.md", "python")[0], "incremental.md", "exec"), names)
    assert names["logits"].kept >= 0
    exec(compile(blocks("generative.md", "python")[0], "generative.md", "exec"), names)
    assert isinstance(names["method"].perturbation.filler, DDIM)
