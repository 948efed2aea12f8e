"""Fillers as samplers, by the command: a table and two pictures of one fold, or one line that says why not."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from lit_xai.cli.schema import help_text, with_lists
from lit_xai.metrics.statistics import FEW
from lit_xai.quality.sampler import MEASURES

from test_commands import Done
from test_commands import run as run_command

TRAINED = [
    "data=digits",
    "data.train_subset=200",
    "data.folds=2",
    "data.probes_per_fold=12",
    "data.size=16",
    "model.network.width=4",
    "trainer.max_epochs=1",
    "explainer=[random]",
    "score=[]",
    "logger=none",
    "progress=false",
]
NAMED = ["name=tiny", "sampler_draws=6", "logger=none", "progress=false"]  # the rest is that of the folder
FILES = ("samplers.csv", "samplers.tex", "samplers-umap.png", "samplers-tradeoff.png")
PRINTED = "printed=[{source: a paper, table: samplers, columns: {l2: {black: 9, blur: 1, real: 0, flow: 2, uniform_noise: 7}}}]"
BESIDE = ("samplers-printed.csv", "samplers-printed.tex")


def evaluate(root: Path, *options: str, check: bool = True) -> Done:
    return run_command("evaluate", root, *options, check=check, small=NAMED)


@pytest.fixture(scope="module", autouse=True)
def flat_umap():
    """Two features in the place of UMAP's plane, which takes ten seconds to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_xai.quality.sampler_quality.umap_plane", lambda x, seed: x[:, :2].clone())
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 of a tiny classifier of digits, without samplers."""
    root = tmp_path_factory.mktemp("trained")
    run_command("train", root, "name=tiny", "fold=0", small=TRAINED)
    return root


@pytest.fixture(scope="module")
def compared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The fold's folder after a comparison, and what was printed."""
    root = tmp_path_factory.mktemp("compared")
    shutil.copytree(trained, root, dirs_exist_ok=True)
    done = evaluate(root, "fold=0", "samplers=[black,blur,uniform_noise]", "filler.black.value=0.2", PRINTED)
    return root / "tiny" / "fold=0", done.stdout


def table(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "samplers.csv").open() as file:
        return {(r["sampler"], r["measure"]): r for r in csv.DictReader(file)}


def test_every_file_is_there_and_nothing_else_has_changed(compared: tuple[Path, str], trained: Path) -> None:
    folder, _ = compared
    before = {f.relative_to(trained / "tiny" / "fold=0") for f in (trained / "tiny" / "fold=0").rglob("*")}
    after = {f.relative_to(folder) for f in folder.rglob("*")}
    assert {str(f) for f in after - before} == {*FILES, *BESIDE}
    for name in FILES:
        assert (folder / name).stat().st_size > 500, name
    for file in before:
        original = trained / "tiny" / "fold=0" / file
        assert original.is_dir() or original.read_bytes() == (folder / file).read_bytes(), file


def test_the_table_has_every_sampler_and_no_bare_number(compared: tuple[Path, str]) -> None:
    rows = table(compared[0])
    assert list(rows) == [(s, m) for s in ("real", "noise", "black", "blur", "uniform_noise") for m in MEASURES]
    for row in rows.values():
        assert row["note"] or float(row["low"]) <= float(row["high"])
    assert {rows["blur", m]["reference"] for m in MEASURES} == {"black"}
    assert rows["black", "l2"]["images"] == "12"
    assert rows["black", "l2"]["draws"] == "6"
    assert rows["real", "mahalanobis"]["images"] == "88"  # held out, and not explained
    assert float(rows["blur", "l2"]["value"]) < float(rows["uniform_noise", "l2"]["value"])
    assert float(rows["noise", "mahalanobis"]["minus_real_low"]) > 0


def test_what_a_paper_prints_of_samplers_stands_beside_ours(compared: tuple[Path, str]) -> None:
    folder, out = compared
    assert "beside what is printed: a paper" in out
    assert "flow is printed and not here" in " ".join(out.split())
    rows = {r["method"]: r for r in csv.DictReader((folder / BESIDE[0]).read_text().splitlines())}
    assert rows["black"]["value"] == table(folder)["black", "l2"]["value"]
    assert float(rows["black"]["printed"]) == 9
    assert rows["flow"]["value"] == ""


def test_the_terminal_and_latex_show_the_same_table(compared: tuple[Path, str]) -> None:
    folder, out = compared
    row, tex = table(folder)["black", "ssim"], (folder / "samplers.tex").read_text()
    value, low, high = (f"{float(row[k]):.3f}" for k in ("value", "low", "high"))
    cell = f"{value} [{low[1:]}, {high[1:]}]"
    assert cell in out
    assert cell in tex
    assert "6 samples of each of 12 held-out probes" in out
    assert "black 0.5, blur 0.5, uniform_noise 0.5" in out
    assert r"uniform\_noise" in tex
    assert tex.count("&") == 7 * 6
    assert len([line for line in tex.splitlines() if line.endswith(r"\\")]) == 6


def test_a_filler_is_overridden_on_the_command_line(compared: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(compared[0].parent.parent, tmp_path, dirs_exist_ok=True)
    evaluate(tmp_path, "fold=0", "samplers=[black]")
    darker, black = table(compared[0]), table(tmp_path / "tiny" / "fold=0")
    assert float(black["black", "l2"]["value"]) != float(darker["black", "l2"]["value"])


def test_the_same_command_gives_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("one", "two"):
        shutil.copytree(trained, tmp_path / name)
        evaluate(tmp_path / name, "fold=0", "samplers=[uniform_noise]", "sampler_images=5")
        found = table(tmp_path / name / "tiny" / "fold=0")
        rows.append({k: r for k, r in found.items() if k[1] != "seconds_per_1000"})
    assert rows[0] == rows[1]
    assert rows[0]["uniform_noise", "l2"]["images"] == "5"


def test_of_fewer_than_ten_images_the_table_has_values_alone_and_says_so(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    out = evaluate(tmp_path, "fold=0", "samplers=[black,grey]", "sampler_images=9").stdout
    fold = tmp_path / "tiny" / "fold=0"
    row = table(fold)["grey", "l2"]
    assert row["note"] == FEW
    assert all(row[k] for k in ("value", "difference"))
    assert not any(row[k] for k in row if k.endswith(("low", "high")))
    assert f"9 held-out probes, share of superpixels hidden: black 0.5, grey 0.5; {FEW}" in " ".join(out.split())
    rows = [x for x in (fold / "samplers.tex").read_text().splitlines() if x.startswith(("black &", "grey &"))]
    rows += [x for x in out.splitlines() if x.startswith(("│ black", "│ grey"))]
    assert len(rows) == 4
    assert not any(mark in line for line in rows for mark in ("[", "*", "°"))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(trained: Path) -> None:
    before = sorted(trained.rglob("*"))
    out = evaluate(trained, "fold=0", "samplers=[black,grey]", "dry_run=true").stdout
    assert "6 samples of at most 32 held-out probes by black, grey" in out
    assert sorted(trained.rglob("*")) == before


BAD = {
    "unknown filler": (["samplers=[blakc]"], "filler=blakc is not there; choose one of: "),
    "missing checkpoint": (["samplers=[black,patch_sampler]"], "is missing: train it by python -m lit_xai.train"),
    "checkpoint elsewhere": (
        ["samplers=[patch_sampler]", "filler.patch_sampler.checkpoint=/nowhere"],
        "/nowhere is missing",
    ),
    "fold not trained": (["samplers=[black]", "fold=1"], "fold=1/model.ckpt is missing: run python -m lit_xai.train"),
    "fold outside": (["samplers=[black]", "fold=7"], "folds are 0..1"),
    "nobody": (["samplers=[black]", "name=nobody"], "run python -m lit_xai.train"),
    "no samples": (["samplers=[black]", "sampler_draws=0"], "sampler_draws must be a whole number of at least 1"),
    "no images": (["samplers=[black]", "sampler_images=0"], "sampler_images must be a whole number"),
    "a few images": (["samplers=[black]", "sampler_images=3"], "at least 4 images, found 3"),
    "explanations of nobody": (["name=nobody"], "lit_xai.train"),
    "misspelt option": (["samplers=[black]", "filler.black.valeu=1"], "filler.black.value"),
    "another model": (["samplers=[black]", "model.network.width=5"], "holds another configuration"),
    "real": (["samplers=[black]", "+filler.real={_target_:lit_xai.fillers.Colour}"], "named 'real'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(case: str, trained: Path) -> None:
    options, hint = BAD[case]
    before = sorted(trained.rglob("*"))
    done = evaluate(
        trained, *(["fold=0"] if not any(o.startswith("fold=") for o in options) else []), *options, check=False
    )
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert hint in done.stderr
    assert sorted(trained.rglob("*")) == before


def test_a_full_disk_leaves_no_half_written_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    done = evaluate(tmp_path, "fold=0", "samplers=[black]", check=False)
    assert done.returncode != 0
    assert "could not be written (No space left on device)" in done.stderr
    assert not [f for f in tmp_path.rglob("*") if "samplers" in f.name]


def test_samplers_are_short_for_fillers_and_nothing_is_explained() -> None:
    assert with_lists(["samplers=[black,grey]", "fold=1"]) == ["filler=[black,grey]", "fold=1"]
    assert with_lists(with_lists(["samplers=black"])) == ["filler=black"]
    text = help_text("evaluate", "")
    assert "samplers: null" in text
    assert "uniform_noise" in text
