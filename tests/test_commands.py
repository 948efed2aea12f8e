"""The commands as a user runs them: real processes, real data, one experiment for all tests of this file."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lit_xai.data.sources import digits
from lit_xai.models.pretrained import Normalise
from safetensors.torch import load_file

from offline import Offline

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "data.train_subset=300",
    "data.folds=2",
    "data.probes_per_fold=9",
    "checks=6",
    "data.size=16",
    "model.network.width=4",
    "trainer.max_epochs=2",
    "explainer=[saliency,gradcam,smoothgrad,rise,random]",
    "explainer.rise.masks=20",
    "explainer.smoothgrad.samples=3",
    "score.mufidelity.subsets=12",
    "score.mufidelity_cells.subsets=12",
    "batch_size=4",
    "shard_size=8",
    "progress=false",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONWARNINGS": "ignore"}


def command(cmd: str, root: Path, *options: str, small: list[str] = SMALL) -> list[str]:
    return [sys.executable, "-m", f"lit_xai.{cmd}", f"root={root}", *small, *options]


@dataclass
class Done:
    """What a command left: its exit status and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run(cmd: str, root: Path, *options: str, check: bool = True, small: list[str] = SMALL) -> Done:
    """A door's `main` in this process: what `python -m` runs, without paying for the imports again."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    main = importlib.import_module(f"lit_xai.{cmd}").main
    argv, environment = sys.argv, dict(os.environ)
    try:
        sys.argv = [f"lit_xai/{cmd}.py", *command(cmd, root, *options, small=small)[3:]]
        os.environ.update(ENVIRONMENT)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    done = Done(code, out.getvalue(), err.getvalue())
    assert not check or code == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def run_process(cmd: str, root: Path, *options: str, small: list[str] = SMALL) -> Done:
    """A command as its own process (for several ranks)."""
    done = subprocess.run(
        command(cmd, root, *options, small=small),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Done(done.returncode, done.stdout, done.stderr)


def shards(root: Path) -> dict[str, bytes]:
    """Every file of maps and predictions below a folder, by relative name."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds trained, explained, disagreements explained, evaluated."""
    root = tmp_path_factory.mktemp("finished")
    run("train", root, "-m", "fold=range(2)")
    run("explain", root, "-m", "fold=range(2)", "probes=disagreements", "logger=none")
    run("evaluate", root, "printed=[{source: a paper, columns: {mege: {saliency: 0.9}}}]")
    return root


@pytest.fixture(scope="module")
def folder(finished: Path) -> Path:
    return finished / "digits-resnet18"


def test_every_result_file_is_there(folder: Path) -> None:
    for name in (
        "summary.json",
        "summary.csv",
        "summary.tex",
        "report.html",
        "histograms.png",
        "histograms.pdf",
        "printed.csv",
        "printed.tex",
    ):
        assert (folder / name).stat().st_size > 0, name
    for name in ("model.ckpt", "config.yaml", "predictions.safetensors", "scores.csv", "gallery.png"):
        assert (folder / "fold=1" / name).stat().st_size > 0, name
    assert not list(folder.rglob("*.tmp")), "temporary files are left"


@pytest.mark.slow
def test_folders_stand_on_one_page_by_name_and_by_path_with_conditions_of_the_users_own(
    finished: Path, folder: Path
) -> None:
    done = run("evaluate", finished, f"compare=[{folder.name},{folder}]", "conditions.depends.below=.1")
    written = finished / f"compared-{folder.name}-{folder.name}"
    document = json.loads((written / "audit.json").read_text())
    assert [a["name"] for a in document["audits"]] == [folder.name] * 2
    assert document["audits"][0]["conditions"][0]["below"] == 0.1
    assert "conditions.depends.below=.1" in document["audits"][0]["command"]
    assert document["audits"][0]["verdict"]["sentence"] in done.stdout
    assert {p.name for p in written.iterdir()} == {"audit.html", "audit.json", "audit.md"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["compare=[a]"], "compare= takes two folders or more, as in compare=[a,b]; found a"),
        (["compare=[a,b]"], "compare= names a, but there are no results in a"),
        (["conditions.depends.belw=.1"], "unknown key conditions.depends.belw: did you mean conditions.depends.below"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, options: list[str], text: str) -> None:
    done = run("evaluate", tmp_path, *options, check=False)
    assert done.returncode == 1
    assert text in done.stdout + done.stderr


def test_no_number_of_the_summary_stands_bare(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["rows"]) == {"saliency", "gradcam", "smoothgrad", "rise", "random"}
    for explainer, cells in summary["rows"].items():
        assert {"mege", "reco", "reco_eq6", "reco_auc", "mufidelity", "deletion", "insertion"} <= set(cells)
        for name, cell in cells.items():
            if cell["value"] is None:
                assert cell["reason"], (explainer, name)
            else:
                few = cell["low"] is None and "fewer than 10 probes" in cell["reason"]
                assert few or cell["low"] <= cell["high"], (explainer, name)
            unmarked = explainer == "random" or name in ("sanity", "repeat") or cell["value"] is None
            assert unmarked or "difference_to_null" in cell
    for column in summary["columns"]:
        assert summary["definitions"][column], f"{column} has no definition"
    assert summary["definitions"]["explainers"]["gradcam"]["resolved"]["layer"].endswith("conv2")


def test_a_complete_run_does_nothing(finished: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in finished.rglob("*.safetensors")}
    for cmd, options in (("train", []), ("explain", []), ("explain", ["probes=disagreements"])):
        assert "nothing to do" in run(cmd, finished, "fold=1", *options).stdout
    assert before == {f: f.stat().st_mtime_ns for f in finished.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("cmd", "options", "number"),
    [
        pytest.param("train", ["fold=0"], 25, marks=pytest.mark.slow),
        ("explain", ["fold=0"], 25),
        pytest.param("explain", ["fold=0", "part=1/2"], 5, marks=pytest.mark.slow),
        ("explain", ["fold=1", "probes=disagreements"], None),
        ("evaluate", [], None),
        pytest.param("evaluate", ["--status"], None, marks=pytest.mark.slow),
    ],
)
def test_a_command_opens_every_shard_of_a_finished_store_once(finished: Path, opens, cmd, options, number) -> None:
    if "--status" in options:
        run(cmd, finished, *options, small=["name=digits-resnet18"])
    else:
        run(cmd, finished, *options, "logger=none")
    assert set(opens.values()) == {1}
    assert number in (None, len(opens))


def test_a_part_puts_no_image_through_the_model_that_is_not_its_own(finished: Path, tmp_path: Path) -> None:
    fold = tmp_path / "digits-resnet18" / "fold=0"
    shutil.copytree(finished / "digits-resnet18" / "fold=0", fold)
    shutil.rmtree(fold / "maps")
    seen = []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        if isinstance(module, Normalise):  # every predictor's first layer
            seen.append(inputs[0].detach().clone())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        small = [o for o in SMALL if not o.startswith(("explainer", "score"))]
        run("explain", tmp_path, "fold=0", "part=1/3", "explainer=[saliency]", "score=[]", "logger=none", small=small)
    finally:
        hook.remove()
    (file,) = (fold / "maps" / "saliency").iterdir()
    own = digits(16).train.images(load_file(file)["sample"].tolist())
    for image in torch.cat(seen):
        assert (image - own).abs().flatten(1).amax(1).min() == 0


def test_disagreements_are_explained_by_the_predictors_concerned(folder: Path) -> None:
    predictions = [load_file(folder / f"fold={i}" / "predictions.safetensors") for i in (0, 1)]
    correct = [p["predicted"] == p["label"] for p in predictions]
    expected = predictions[0]["sample"][correct[0] != correct[1]].tolist()
    for fold in (0, 1):
        files = sorted((folder / f"fold={fold}" / "disagreements" / "rise").glob("*.safetensors"))
        found = [s for f in files for s in load_file(f)["sample"].tolist()]
        assert sorted(found) == expected


def test_only_missing_maps_and_scores_are_computed(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    fold = copy / "digits-resnet18" / "fold=0"
    original = shards(fold)
    victim = next((fold / "maps" / "rise").glob("*.safetensors"))
    victim.unlink()
    cut = next((fold / "maps" / "saliency").glob("*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-50])
    out = run("explain", copy, "fold=0", "logger=none").stdout
    assert "done: 2 shards" in out
    assert shards(fold) == original


def test_a_part_does_its_share_and_all_parts_do_everything(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "parts"
    shutil.copytree(finished, copy)
    fold = copy / "digits-resnet18" / "fold=0"
    original = shards(fold)
    shutil.rmtree(fold / "maps")
    run("explain", copy, "fold=0", "part=1/2", "logger=none")
    names = {f.name for f in (fold / "maps" / "rise").iterdir()}
    assert names == {"000000008-000000015.safetensors"}
    run("explain", copy, "fold=0", "part=0/2", "logger=none")
    assert shards(fold) == original


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "two"
    shutil.copytree(finished, copy)
    fold = copy / "digits-resnet18" / "fold=0"
    original, scores = shards(fold), (fold / "scores.csv").read_bytes()
    shutil.rmtree(fold / "maps")
    for name in ("predictions.safetensors", "scores.csv"):
        (fold / name).unlink()
    run_process("explain", copy, "fold=0", "trainer=ddp_cpu", "logger=none")
    assert shards(fold) == original
    assert (fold / "scores.csv").read_bytes() == scores


@pytest.mark.slow
def test_shard_size_does_not_change_a_map(finished: Path, tmp_path: Path) -> None:
    fold = finished / "digits-resnet18" / "fold=0"
    copy = tmp_path / "digits-resnet18" / "fold=0"
    copy.mkdir(parents=True)
    for name in ("model.ckpt", "config.yaml", "predictions.safetensors"):
        shutil.copy(fold / name, copy / name)
    run("explain", tmp_path, "fold=0", "shard_size=5", "logger=none")
    for explainer in ("rise", "smoothgrad", "gradcam"):
        both = []
        for base in (fold, copy):
            files = sorted((base / "maps" / explainer).glob("*.safetensors"))
            both.append([load_file(f) for f in files])
        for key in ("maps", "score/mufidelity", "score/deletion"):
            a, b = (torch.cat([t[key] for t in x]).numpy().tobytes() for x in both)
            assert a == b, (explainer, key)


def interrupted(name: str, root: Path, ready: str, *options: str, small: list[str] = SMALL) -> None:
    """Start a command and kill it (SIGKILL) as soon as `ready` exists below `root`."""
    from ranks import Ranks

    process = Ranks(name, root, *options, small=small, world=1)
    process.until(lambda: list(root.rglob(ready)))
    process.send(signal.SIGKILL, 0)
    assert process.wait() == [-signal.SIGKILL], process.text()


@pytest.mark.slow
def test_killed_in_training_and_in_explaining_ends_with_equal_numbers(finished: Path, tmp_path: Path) -> None:
    longer = ["trainer.max_epochs=2", "fold=1", "logger=none"]
    interrupted("train", tmp_path, "last.ckpt", *longer)
    assert not list(tmp_path.rglob("model.ckpt"))
    interrupted("train", tmp_path, "rise/*.safetensors", *longer)
    run("train", tmp_path, *longer)
    undisturbed = shards(finished / "digits-resnet18" / "fold=1")
    undisturbed = {k: v for k, v in undisturbed.items() if not k.startswith(("disagreements", "decisions"))}
    assert shards(tmp_path / "digits-resnet18" / "fold=1") == undisturbed


@pytest.mark.slow
def test_what_a_signal_left_behind_is_not_taken_for_the_trained_weights(finished: Path, tmp_path: Path) -> None:
    fold = tmp_path / "digits-resnet18" / "fold=0"
    shutil.copytree(finished / "digits-resnet18" / "fold=0", fold)
    shutil.copy(fold / "model.ckpt", fold / "hpc_ckpt_1.ckpt")  # where Lightning's SLURM handler leaves a checkpoint
    shutil.rmtree(fold / "maps")
    run("train", tmp_path, "fold=0", "logger=none")
    assert not list(fold.glob("hpc_ckpt_*"))


def test_hydras_own_flags_take_their_values(tmp_path: Path) -> None:
    assert "masks: 20" in run("train", tmp_path, "--cfg", "job").stdout
    assert not list(tmp_path.iterdir())


def test_an_unknown_key_in_an_experiment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for part in ("lit_xai", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (tmp_path / "configs" / "experiment" / "mistyped.yaml").write_text("# @package _global_\ntrainr: {max_epochs: 3}\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    arguments = [sys.executable, "-m", "lit_xai.train", "experiment=mistyped"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode != 0
    assert "unknown key trainr" in done.stderr
    assert "trainer" in done.stderr


def test_dry_run_writes_no_results(tmp_path: Path) -> None:
    out = run("train", tmp_path, "fold=1", "dry_run=true").stdout
    assert "forward" in out
    assert "min" in out
    assert not list(tmp_path.rglob("*"))


def test_load_gives_model_split_maps_and_images(folder: Path) -> None:
    import lit_xai

    model, split, maps, images = loaded = lit_xai.load(folder, fold=1)
    assert loaded.takes == "images [b, 1, 16, 16] in [0, 1] -> logits [b, 10]"
    assert split.k == 2
    assert maps["rise"].shape == (18, 16, 16)
    assert maps.scores("rise")["deletion"].shape == (18,)
    from lit_xai.data.sources import digits
    from lit_xai.store.fold import FoldStore

    predictions = FoldStore(folder / "fold=1").read_predictions()
    samples = split.samples[:20]
    with torch.no_grad():
        predicted = model(images[samples]).argmax(1)
    assert torch.equal(images[samples], digits(16).train.images(samples.tolist()))
    assert torch.equal(predicted, predictions.of(samples))


def test_wandb_files_hold_every_promised_key(folder: Path) -> None:
    logged = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        there = Offline.read(file.parent)
        keys = {*there.history, *(f"summary:{k}" for k in there.summary), *(f"config:{k}" for k in there.config)}
        logged[there.run.job_type, there.run.display_name] = keys
        assert there.run.run_group == "digits-resnet18"
    assert {j for j, _ in logged} == {"train", "evaluate"}
    fold = logged["train", "fold=1"]
    for key in ("train/loss", "val/acc", "scores", "gallery", "stability/folds", "summary:checkpoint", "config:fold"):
        assert key in fold, key
    for key in ("unfinished", "summary:unfinished", "summary:alarms"):
        assert key in logged["evaluate", "evaluate"], key
    for explainer in ("saliency", "gradcam", "smoothgrad", "rise", "random"):
        for prefix in ("mufidelity", "deletion", "insertion", "mege", "reco"):
            assert f"{prefix}/{explainer}" in fold
            assert f"{prefix}/{explainer}" in logged["evaluate", "evaluate"]
        for which in ("equal", "differ"):
            assert f"distances/{explainer}/{which}" in fold
            assert f"distances/{explainer}/{which}" in logged["evaluate", "evaluate"]


BAD = {
    "unknown key": ("train", ["fodl=1"], "fold"),
    "added unknown key": ("train", ["+typo=1"], "typo"),
    "unknown nested key": ("train", ["trainer.max_epoch=1"], "trainer.max_epochs"),
    "unknown data set": ("train", ["data=digit"], "digits"),
    "fold outside": ("train", ["fold=7"], "0..1"),
    "negative fold": ("explain", ["fold=-1"], "0..1"),
    "bad part": ("explain", ["part=3/2"], "part"),
    "data root missing": ("train", ["data=folder", "data.root=/nowhere"], "data.root="),
    "another configuration": ("train", ["model.lr=0.5"], "name="),
    "other explainer parameters": ("explain", ["explainer.rise.masks=21"], "rise"),
    "not trained": ("explain", ["name=nobody"], "lit_xai.train"),
    "nothing to evaluate": ("evaluate", ["name=nobody"], "lit_xai.train"),
    "unknown distance": ("evaluate", ["distance=euclid"], "spearman"),
    "unknown definition": ("evaluate", ["definition=mine"], "default"),
    "fold not a number": ("train", ["fold=abc"], "whole number"),
    "no epochs": ("train", ["trainer.max_epochs=-1"], "at least 1"),
    "label noise outside": ("train", ["label_noise=2"], "[0, 1]"),
    "one fold only": ("train", ["name=one", "data.folds=1"], "data.folds"),
    "no GPU": ("train", ["name=gpu", "trainer=gpu"], "trainer=cpu"),
    "unknown explainer": ("train", ["explainer=[nothing]"], "smoothgrad"),
    "root not given": ("train", ["data=folder"], "data.root"),
    "changed score": ("train", ["score.mufidelity.subsets=13"], "mufidelity"),
    "changed target": ("explain", ["target=prediction"], "target"),
    "value of a wrong kind": ("train", ["name=kind", "model.lr=abc"], "abc"),
    "scarce class": ("train", ["name=scarce", "data.folds=40", "data.train_subset=100"], "data.folds="),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_that_names_the_mend(case: str, finished: Path) -> None:
    cmd, options, hint = BAD[case]
    small = SMALL if cmd != "train" or "explainer=[nothing]" not in options else []
    done = run(cmd, finished, "fold=0", *options, check=False, small=small)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert hint in done.stderr


def test_a_damaged_store_is_refused_by_evaluate(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(finished, copy)
    file = next((copy / "digits-resnet18" / "fold=1" / "maps" / "rise").glob("*.safetensors"))
    whole = bytearray(file.read_bytes())
    whole[-7] ^= 1  # one flipped bit
    file.write_bytes(whole)
    done = run("evaluate", copy, check=False)
    assert done.returncode != 0
    assert "damaged" in done.stderr
    assert "run python -m lit_xai." in done.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other"
    shutil.copytree(finished, copy)
    run(
        "train",
        copy,
        "name=wide",
        "model.network.width=5",
        "fold=0",
        "logger=none",
    )
    shutil.copy(copy / "wide" / "fold=0" / "model.ckpt", copy / "digits-resnet18" / "fold=0" / "model.ckpt")
    shutil.rmtree(copy / "digits-resnet18" / "fold=0" / "maps")
    done = run("explain", copy, "fold=0", check=False)
    assert done.returncode != 0
    assert "another model" in done.stderr


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "full"
    shutil.copytree(finished, copy)
    fold = copy / "digits-resnet18" / "fold=0"
    original = shards(fold)
    shutil.rmtree(fold / "maps" / "rise")
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        done = run("explain", copy, "fold=0", "logger=none", check=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert done.returncode != 0
    assert "could not be written" in done.stderr
    assert not list(copy.rglob("*.tmp"))
    run("explain", copy, "fold=0", "logger=none")
    assert shards(fold) == original


def test_help_lists_every_choice_without_torch() -> None:
    check = "import sys, lit_xai.train as t; sys.argv[1:] = ['--help']; t.main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    for group in ("data", "model", "explainer", "score"):
        for file in (ROOT / "configs" / group).rglob("[!_]*.yaml"):
            assert str(file.relative_to(ROOT / "configs" / group).with_suffix("")) in done.stdout
