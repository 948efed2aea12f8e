"""A folder that came from anybody decides no code: what a file may name, and what happens to a command that reads another one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lit_xai.cli.offered import PLACES, offered, refuse_other_code
from lit_xai.cluster.status import status
from lit_xai.errors import UsageError
from lit_xai.store.files import read_checkpoint
from lit_xai.store.names import is_name
from lit_xai.store.plans import read_plan, repeatable

from test_commands import run as run_command

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "data.train_subset=100",
    "data.folds=2",
    "data.probes_per_fold=3",
    "data.size=8",
    "model.network.width=2",
    "trainer.max_epochs=1",
    "explainer=[saliency,sliding_patch]",
    "score=[deletion]",
    "progress=false",
    "logger=none",
]
NAME = "digits-resnet18"


def run(cmd: str, root: Path, *options: str, check: bool = True, small: list[str] | None = None) -> Any:
    return run_command(
        cmd, root, *options, check=check, small=["logger=none", "progress=false"] if small is None else small
    )


# ---------------------------------------------------------------------------------------------------------- which names


def targets_of(node: Any, kind: str) -> list[tuple[str, str]]:
    if isinstance(node, list):
        return [found for item in node for found in targets_of(item, kind)]
    if not isinstance(node, dict):
        return []
    own = [(kind, node["_target_"])] if "_target_" in node else []
    return own + [found for value in node.values() for found in targets_of(value, kind)]


def targets_in_configs() -> list[tuple[str, str]]:
    """(kind, target) of every node of the package's own yamls."""
    found = []
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        folder = file.relative_to(ROOT / "configs").parts[0]
        content = yaml.safe_load(file.read_text())
        if (folder in PLACES and folder not in ("explainer", "score", "filler")) or folder in PLACES:
            found += targets_of(content, folder)
        else:
            found += [t for key, node in content.items() if key in PLACES for t in targets_of(node, key)]
    return sorted(set(found))


def test_every_target_of_the_package_is_offered() -> None:
    everything = targets_in_configs()
    assert len(everything) > 70
    assert [t for t in everything if not offered(t[1], t[0])] == []


CODE = [
    "os.system",
    "os.popen",
    "os.remove",
    "os.execv",
    "posix.system",
    "subprocess.run",
    "subprocess.Popen",
    "subprocess.check_output",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.compile",
    "builtins.__import__",
    "importlib.import_module",
    "runpy.run_path",
    "pickle.load",
    "pickle.loads",
    "shutil.rmtree",
    "shutil.copy",
    "pathlib.Path.unlink",
    "code.interact",
    "pty.spawn",
    "ctypes.CDLL",
    "webbrowser.open",
    "socket.socket",
    "functools.partial",
    "operator.attrgetter",
    "io.open",
    "tempfile.mkdtemp",
    "threading.Thread",
    "multiprocessing.Process",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.save",
    "torch.ops.load_library",
    "torch.utils.cpp_extension.load",
    "torch.package.PackageImporter",
    "torch.compile",
    "torch.serialization.load",
    "torch.nn.Module",
    "torch.nn.Linear",
    "numpy.load",
    "numpy.save",
    "numpy.fromfile",
    "numpy.memmap",
    "numpy.lib.npyio.load",
    "numpy.f2py.compile",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "hydra.utils.get_method",
    "hydra.utils.get_class",
    "hydra.utils.get_object",
    "hydra.main",
    "hydra._internal.utils._locate",
    "omegaconf.OmegaConf.load",
    "pytorch_lightning.Trainer.fit",
    "pytorch_lightning.LightningModule",
    "yaml.unsafe_load",
    "joblib.load",
    "pandas.read_pickle",
    "lit_xai.models.pretrained.torch.load",
    "lit_xai.models.torch.load",
    "lit_xai.core.torch",
    "lit_xai.core.torch.load",
    "lit_xai.core.F",
    "lit_xai.data.sources.np.load",
    "lit_xai.data.sources.fetch",
    "lit_xai.data.sources.os.remove",
    "lit_xai.store.files.write_atomically",
    "lit_xai.store.files.torch.load",
    "lit_xai.engine.loop.explain",
    "lit_xai.train.main",
    "lit_xai.cluster.interruption.subprocess.run",
    "lit_xai.core.hashlib",
    "lit_xai.explainers.lime.Path",
    "lit_xai.fillers.fitted.copy",
    "lit_xai.core.replace",
    "lit_xai.models.classifier.nn",
    "torchvision.transforms.v2.Lambda",
    "torchvision.transforms.Lambda",
    "torchvision.transforms.v2.functional.to_image",
    "torchvision.datasets.utils.download_url",
    "torchvision.transforms.v2.torch.load",
    "torchvision.io.read_file",
]


@pytest.mark.parametrize("target", CODE)
def test_other_code_is_not_offered(target: str) -> None:
    assert [kind for kind in PLACES if offered(target, kind)] == []


@pytest.mark.parametrize(
    "target", [None, 3, "", "os", ".system", "lit_xai.core.", ["os.system"], {"_target_": "x"}, "lit_xai.core.__name__"]
)
def test_what_is_no_name_is_not_offered(target: Any) -> None:
    assert not any(offered(target, kind) for kind in PLACES)


def test_names_that_older_folders_hold_are_the_same_things() -> None:
    from lit_xai import core, fillers

    for name in ("Blur", "Colour", "Mean"):
        assert offered(f"lit_xai.core.{name}", "score")
        assert getattr(core, name) is getattr(fillers, name)


def test_a_module_beside_the_command_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef Explainer(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not offered("evil.Explainer", "explainer")
    assert not (tmp_path / "ran").exists()


def test_a_kind_takes_its_own_things_alone() -> None:
    assert offered("lit_xai.explainers.RISE", "explainer")
    assert not offered("lit_xai.explainers.RISE", "model")
    assert not offered("lit_xai.models.Classifier", "explainer")
    assert not offered("pytorch_lightning.Trainer", "explainer")
    assert not offered("lit_xai.explainers.RISE", "anything")


@pytest.mark.parametrize(
    "node",
    [
        {"filler": {"_target_": "os.system"}},
        {"a": [{"b": {"_target_": "os.system", "_partial_": True}}]},
        {"options": {"perturb_func": {"_target_": "hydra.utils.get_method", "path": "os.system"}}},
        {"filler": "${oc.create:'{_target_: os.system}'}"},
        {"masks": "${oc.decode:4}"},
    ],
)
def test_nested_code_and_interpolations_are_refused(node: dict[str, Any]) -> None:
    whole = {"explainer": {"rise": {"_target_": "lit_xai.explainers.RISE", **node}}}
    with pytest.raises(UsageError, match=r"explainer\.rise\..* in here"):
        refuse_other_code(whole, Path("here"))


# --------------------------------------------------------------------------------------------------------- whole folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    run("train", root, "-m", "fold=0,1", small=SMALL)
    return root


class Evil:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.mark), "w")


@pytest.fixture
def crafted(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder, with a pickle beside it."""
    shutil.copytree(trained, tmp_path / "shared")
    torch.save(Evil(tmp_path / "ran"), tmp_path / "evil.pth")
    return tmp_path / "shared"


def evil_nodes(at: Path) -> dict[str, dict[str, Any]]:
    """Nodes that would leave the mark, by what they do."""
    load = {"_target_": "torch.load", "f": str(at / "evil.pth"), "weights_only": False}
    touch = {"_target_": "builtins.open", "file": str(at / "ran"), "mode": "w"}
    return {
        "load": load,
        "open": touch,
        "pickle": {"_target_": "numpy.load", "file": str(at / "evil.pth"), "allow_pickle": True},
        "partial": {**touch, "_partial_": True},
        "helper": {"_target_": "hydra.utils.instantiate", "config": touch},
        "reached": {**load, "_target_": "lit_xai.models.pretrained.torch.load"},
        "positional": {"_target_": "os.system", "_args_": [f"touch {at / 'ran'}"]},
    }


def edited(file: Path, *path: str, value: Any) -> None:
    """Change one place of a yaml or JSON file."""
    whole = yaml.safe_load(file.read_text())
    node = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    file.write_text(json.dumps(whole) if file.suffix == ".json" else yaml.safe_dump(whole))


def refused(root: Path, done: Any) -> None:
    """One line, an exit status that says so, and no mark."""
    assert not (root.parent / "ran").exists(), "the folder's code ran"
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert "Error:" not in done.stderr, "an exception's name is no message"


@pytest.mark.parametrize("dry", ["true", "false"])
@pytest.mark.parametrize(
    "where",
    [
        ("explainer", "saliency"),
        ("explainer", "sliding_patch", "filler"),
        ("score", "deletion", "filler"),
        ("data", "source"),
        ("data", "augment"),
        ("model",),
        ("model", "network"),
    ],
    ids=".".join,
)
def test_a_saved_configuration_runs_no_code(crafted: Path, where: tuple[str, ...], dry: str) -> None:
    node = evil_nodes(crafted.parent)["open"]
    fold = crafted / NAME / "fold=0"
    edited(fold / "config.yaml", *where, value=[node] if where[-1] == "augment" else node)
    shutil.rmtree(fold / "plans")
    refused(crafted, run("explain", crafted, f"name={NAME}", "fold=0", f"dry_run={dry}", check=False))


@pytest.mark.parametrize("what", ["load", "pickle", "partial", "helper", "reached", "positional"])
def test_a_saved_configuration_runs_code_of_no_kind(crafted: Path, what: str) -> None:
    fold = crafted / NAME / "fold=0"
    edited(fold / "config.yaml", "explainer", "saliency", value=evil_nodes(crafted.parent)[what])
    shutil.rmtree(fold / "plans")
    refused(crafted, run("explain", crafted, f"name={NAME}", "fold=0", check=False))


@pytest.mark.parametrize(
    "command", [("evaluate", "samplers=[black]"), ("explain", "sanity=independent"), ("explain", "summary=true")]
)
def test_no_other_command_runs_it_either(crafted: Path, command: tuple[str, str]) -> None:
    node = evil_nodes(crafted.parent)["open"]
    edited(crafted / NAME / "fold=0" / "config.yaml", "model", "network", value=node)
    refused(crafted, run(command[0], crafted, f"name={NAME}", "fold=0", command[1], check=False))


def test_a_trainer_of_a_file_is_plain(crafted: Path) -> None:
    edited(
        crafted / NAME / "fold=0" / "config.yaml", "trainer", "callbacks", value=[evil_nodes(crafted.parent)["open"]]
    )
    refused(crafted, run("explain", crafted, f"name={NAME}", "fold=0", check=False))


def test_a_plans_explainer_is_looked_at(crafted: Path) -> None:
    file = crafted / NAME / "fold=0" / "plans" / "maps" / "saliency.json"
    edited(file, "node", value=evil_nodes(crafted.parent)["open"])
    refused(crafted, run("explain", crafted, f"name={NAME}", "fold=0", check=False))


def test_a_checkpoints_configuration_runs_no_code(crafted: Path) -> None:
    file = crafted / NAME / "fold=0" / "model.ckpt"
    for where in ("model", "network"):
        content = read_checkpoint(file)
        model = content["config"]["model"]
        (model if where == "network" else content["config"])[where] = evil_nodes(crafted.parent)["reached"]
        torch.save(content, crafted.parent / "own.ckpt")
        picture = f"image={ROOT / 'docs' / 'nothing.png'}"
        done = run("explain", crafted, picture, f"checkpoint={crafted.parent / 'own.ckpt'}", check=False)
        refused(crafted, done)
        assert "is not run" in done.stderr


def test_the_library_reads_it_neither(crafted: Path) -> None:
    import lit_xai

    edited(crafted / NAME / "fold=0" / "config.yaml", "model", "network", value=evil_nodes(crafted.parent)["reached"])
    with pytest.raises(UsageError, match="is not run"):
        lit_xai.load(crafted / NAME, 0)
    assert not (crafted.parent / "ran").exists()


def test_a_pickle_is_no_checkpoint(crafted: Path) -> None:
    shutil.copy(crafted.parent / "evil.pth", crafted / NAME / "fold=0" / "model.ckpt")
    next((crafted / NAME / "fold=0" / "maps" / "saliency").iterdir()).unlink()
    refused(crafted, run("explain", crafted, f"name={NAME}", "fold=0", check=False))


def test_a_pickle_is_no_state_to_go_on_from(crafted: Path) -> None:
    fold = crafted / NAME / "fold=0"
    (fold / "model.ckpt").unlink()
    shutil.copy(crafted.parent / "evil.pth", fold / "last.ckpt")
    refused(crafted, run("train", crafted, "fold=0", check=False, small=SMALL))


@pytest.mark.parametrize(
    "text", ["[1, 2]", "data: 1", "", "data: {}\nmodel: {}", "!!python/object/apply:os.system ['true']", "a: [", "\x00"]
)
def test_a_configuration_that_is_none_is_refused(crafted: Path, text: str) -> None:
    (crafted / NAME / "fold=0" / "config.yaml").write_text(text)
    done = run("explain", crafted, f"name={NAME}", "fold=0", check=False)
    refused(crafted, done)
    assert "config.yaml" in done.stderr


@pytest.mark.parametrize("what", ["open", "helper"])
def test_a_tuned_file_outside_the_package_names_no_code(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "shared"
    (folder / "tuned").mkdir(parents=True)
    node = {"model": {"network": evil_nodes(tmp_path)[what]}}
    (folder / "tuned" / f"{NAME}.yaml").write_text("# @package _global_\n" + yaml.safe_dump(node))
    for dry in ("true", "false"):
        places = ["--config-dir", str(folder)]
        refused(folder, run("train", tmp_path / "none", *places, "fold=0", f"dry_run={dry}", check=False, small=SMALL))
    (folder / "tuned" / f"{NAME}.yaml").write_text(
        "# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}\n"
    )
    refused(folder, run("train", tmp_path / "none", *places, "fold=0", check=False, small=SMALL))


# --------------------------------------------------------------------------------------- files that are shown to people


@pytest.mark.parametrize(
    "override",
    [
        "explainer.rise={_target_:os.system}",
        "explainer.rise._target_=torch.load",
        "+explainer.x={'_target_': os.system}",
        "hydra.searchpath=[/tmp/x]",
        "hydra/launcher=x",
        "--config-dir=/tmp/x",
        "data.root=${oc.decode:x}",
        "data.root=x\nrm -rf y",
        "x; rm -rf y",
        3,
    ],
)
def test_what_a_file_may_not_decide_stands_in_no_command(override: Any, crafted: Path) -> None:
    assert not repeatable(override)
    fold = crafted / NAME / "fold=0"
    next((fold / "maps" / "saliency").iterdir()).unlink()
    file = fold / "plans" / "maps" / "saliency.json"
    edited(file, "overrides", value=["explainer=[saliency]", override])
    shutil.rmtree(fold / "plans" / "disagreements", ignore_errors=True)
    commands = [c for c in status(crafted / NAME).commands if "fold=0" in c]
    assert commands
    assert all(c.startswith("# a plan in ") for c in commands)


@pytest.mark.parametrize(
    "override",
    [
        "explainer=[rise]",
        "score.deletion.filler._target_=lit_xai.fillers.Blur",
        "data.root=${oc.env:HOME}",
        "~score",
        "++model.lr=1",
    ],
)
def test_ordinary_options_are_repeated(override: str) -> None:
    assert repeatable(override)


@pytest.mark.parametrize(
    "content", ['{"door": "evil"}', '{"probes": "9"}', "[]", '{"overrides": 3}', '{"node": "os.system"}', "{"]
)
def test_a_plan_of_another_form_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    assert read_plan(tmp_path / "plan.json") == {}


@pytest.mark.parametrize("field", ["done", "samples", "pid", "ends"])
def test_a_heartbeat_of_another_form_is_none(crafted: Path, field: str) -> None:
    import os
    import platform

    beat = {"task": "train", "host": platform.node(), "pid": os.getpid(), "job": None, "rank": "0/1", "part": ""}
    folder = crafted / NAME / "fold=0" / "running"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps(beat))
    assert len(status(crafted / NAME).processes) == 1
    (folder / "x.json").write_text(json.dumps({**beat, field: {"_target_": "os.system"}}))
    assert status(crafted / NAME).processes == {}


def test_terminal_codes_of_a_heartbeat_are_not_printed(crafted: Path) -> None:
    import os
    import platform

    beat = {"task": "train\x1b[2J", "host": platform.node(), "pid": os.getpid(), "job": None, "rank": "0/1", "part": ""}
    folder = crafted / NAME / "fold=0" / "running"
    folder.mkdir()
    (folder / "x.json").write_text(json.dumps(beat))
    assert "\x1b" not in str(status(crafted / NAME))


# ------------------------------------------------------------------------------------------------------------- diffusers


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("scheduler_config.json", "_class_name", "DiffusionPipeline"),
        ("scheduler_config.json", "_class_name", "utils"),
        ("scheduler_config.json", "auto_map", {"AutoModel": "evil.Model"}),
        ("config.json", "auto_map", {"AutoModel": "evil.Model"}),
        ("config.json", "quantization_config", {"quant_method": "torchao"}),
        ("config.json", "custom_pipeline", "evil.py"),
    ],
)
def test_a_diffusers_folder_runs_no_code(tmp_path: Path, file: str, key: str, value: Any) -> None:
    from diffusers import DDIMScheduler, UNet2DModel
    from lit_xai.fillers import DDIM

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, **blocks).save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path)
    _ = DDIM(str(tmp_path)).module  # as it is, it is read
    edited(tmp_path / file, key, value=value)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        _ = DDIM(str(tmp_path)).module


# ---------------------------------------------------------------------------------------- ways round, each tried in earnest


def test_another_folds_configuration_decides_no_stem(crafted: Path) -> None:
    folds = [crafted / NAME / f"fold={i}" for i in (0, 1)]
    edited(folds[1] / "config.yaml", "model", "network", "stem", value=evil_nodes(crafted.parent)["open"])
    shutil.rmtree(folds[0])
    small = [o for o in SMALL if "max_epochs" not in o]
    done = run("train", crafted, "fold=0", check=False, small=small)
    assert not (crafted.parent / "ran").exists()
    assert done.returncode == 1


def test_a_checkpoints_shape_is_three_numbers(crafted: Path, tmp_path: Path) -> None:
    import lit_xai

    file = crafted / NAME / "fold=0" / "model.ckpt"
    content = read_checkpoint(file)
    content["config"]["shape"]["label_smoothing"] = evil_nodes(tmp_path)["open"]
    torch.save(content, file)
    lit_xai.load(crafted / NAME, 0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "# @package hydra.callbacks.x\n_target_: builtins.open\nfile: {ran}\nmode: w\n",
        "# @package _global_\n_target_: builtins.open\nfile: {ran}\nmode: w\n",
        "# @package _global_\ndefaults: [/model@model.schedule: evil]\n",
    ],
)
@pytest.mark.parametrize("flag", ["--config-dir", "--config-di", "--config-path"])
def test_a_tuned_file_has_no_other_way_in(tmp_path: Path, text: str, flag: str) -> None:
    folder = tmp_path / "shared"
    (folder / "tuned").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "evil.yaml").write_text(f"_target_: builtins.open\nfile: {tmp_path / 'ran'}\nmode: w\n")
    (folder / "tuned" / f"{NAME}.yaml").write_text(text.replace("{ran}", str(tmp_path / "ran")))
    refused(folder, run("train", tmp_path / "none", f"{flag}={folder}", "fold=0", check=False, small=SMALL))


@pytest.mark.parametrize(
    "override",
    ["experiment=../../tmp/evil", "experiment='/tmp/evil'", "+data@hydra.callbacks.x=digits", "explainer=[rise,../x]"],
)
def test_a_choice_that_is_a_path_is_not_repeated(override: str) -> None:
    assert not repeatable(override)


def test_a_state_to_go_on_from_deletes_no_other_files(tmp_path: Path) -> None:
    small = [
        "data.train_subset=60",
        "data.folds=2",
        "data.size=8",
        "model.network.width=2",
        "explain=false",
        "logger=none",
    ]
    small += ["trainer.max_epochs=2", "data.batch_size=10", "progress=false"]
    import signal

    from test_interruption import signalled

    with signalled("on_train_batch_start", 4, signal.SIGTERM):
        run("train", tmp_path / "ck", "fold=0", check=False, small=small)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").touch()
    file = tmp_path / "ck" / NAME / "fold=0" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    states = [k for k in content["callbacks"] if "best_model_path" in content["callbacks"][k]]
    assert states
    for key in states:
        content["callbacks"][key]["best_model_path"] = f"{file.parent}/../../../victim"
        content["callbacks"][key.replace("EachEpoch", "ModelCheckpoint")] = content["callbacks"][key]
    torch.save(content, file)
    run("train", tmp_path / "ck", "fold=0", small=small)
    assert (tmp_path / "victim" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["/../../../escaped", "..", "a/b", "x\x1b[2J", "a b; rm", ""])
def test_a_path_is_no_name(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize("name", ["/../../../escaped", "x\x1b[2J"])
def test_a_name_of_a_file_is_a_name(crafted: Path, name: str) -> None:
    file = crafted / NAME / "fold=0" / "config.yaml"
    whole = yaml.safe_load(file.read_text())
    whole["score"][name] = whole["score"]["deletion"]
    file.write_text(yaml.safe_dump(whole))
    done = run("explain", crafted, f"name={NAME}", "fold=0", check=False)
    refused(crafted, done)
    assert "\x1b" not in done.stderr
    assert not list(crafted.parent.glob("escaped*"))


def test_folders_with_other_names_are_not_shown(crafted: Path) -> None:
    folder = crafted / NAME / "fold=0" / "maps"
    shutil.copytree(folder / "saliency", folder / "zz\x1b[2J\n\nwhat completes it:\n  rm -rf x #")
    text = str(status(crafted / NAME))
    assert "\x1b" not in text
    assert "rm -rf" not in text


def test_a_file_starts_no_download(crafted: Path) -> None:
    from lit_xai.cli.saved import take_setting

    saved = yaml.safe_load((crafted / NAME / "fold=0" / "config.yaml").read_text())
    saved["data"]["download"] = True
    mine: dict[str, Any] = {"data": {}, "model": {}, "trainer": {}}
    take_setting(mine, saved, set(), Path("here"))
    assert mine["data"]["download"] is False


# ------------------------------------------------------------------------------------------------------- the user's own


@pytest.mark.parametrize(
    ("name", "command", "options"),
    [
        ("../x", "train", ["fold=0"]),
        ("/x", "explain", []),
        ("a/../../x", "evaluate", []),
        ("..", "evaluate", ["--status"]),
        (".", "evaluate", ["--status"]),
    ],
)
def test_a_name_does_not_lead_out_of_the_root(tmp_path: Path, name: str, command: str, options: list[str]) -> None:
    done = run(command, tmp_path / "root", f"name={name}", *options, check=False, small=[])
    assert done.returncode == 1
    assert "leads out of root=" in done.stderr
    assert not any(tmp_path.iterdir())


OWN = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Brightness:
    power: float = 1.0

    def __call__(self, model, images, targets, rng=None):
        return images.mean(1) ** self.power
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module and a configuration folder of the user's own."""
    (tmp_path / "own_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "own"
    (folder / "explainer").mkdir(parents=True)
    text = "# @package explainer.brightness\n# the image itself\n_target_: own_methods.Brightness\npower: 2.0\n"
    (folder / "explainer" / "brightness.yaml").write_text(text)
    (folder / "experiment").mkdir()
    experiment = "# @package _global_\ndefaults: [{override /explainer: [random, brightness]}]\nexplainer: {brightness: {power: 3.0}}\n"
    (folder / "experiment" / "mine.yaml").write_text(experiment)
    return folder


@pytest.mark.parametrize(
    "choice",
    [
        "explainer=[brightness]",
        pytest.param("experiment=mine", marks=pytest.mark.slow),
        pytest.param("+explainer.brightness={_target_:own_methods.Brightness}", marks=pytest.mark.slow),
    ],
)
def test_own_code_runs_where_the_user_names_it(tmp_path: Path, own: Path, choice: str) -> None:
    small = [o for o in SMALL if not o.startswith("explainer=")]
    place = ["--config-dir", str(own)] if choice[0] == "e" else ["explainer=[random]"]
    run("train", tmp_path / "ck", *place, "fold=0", choice, small=small)
    fold = tmp_path / "ck" / NAME / "fold=0"
    assert list((fold / "maps" / "brightness").iterdir())
    assert "nothing to do" in run("explain", tmp_path / "ck", *place, choice, small=small).stdout


def test_own_code_of_a_folder_is_named_again_or_not_run(tmp_path: Path, own: Path) -> None:
    place = ["--config-dir", str(own), "explainer=[brightness]"]
    run("train", tmp_path / "ck", *place, "fold=0", small=[o for o in SMALL if not o.startswith("explainer=")])
    assert "nothing to do" in run("explain", tmp_path / "ck", *place, f"name={NAME}").stdout
    done = run("explain", tmp_path / "ck", f"name={NAME}", check=False)
    assert "own_methods.Brightness" in done.stderr
    assert "on the command line" in done.stderr
    assert "brightness" in run("evaluate", tmp_path / "ck", f"name={NAME}").stdout
