"""Do two checkouts give the same results? The ruler that a refactor is held to.

    python tools/same.py BEFORE AFTER                two folders, or commits of this repository
    python tools/same.py BEFORE AFTER --only digits bad    some of the groups of commands
    python tools/same.py --list                      the commands

The same commands run in both, each with one thread and in a folder of its own. Compared are: every shard's fingerprint,
definitions and tensors bit for bit, state dicts bit for bit, numbers of JSON files to 1e-12, CSV, LaTeX and YAML files as text,
pages without their pictures, which files there are at all, exit codes, and what is printed (without times, rates and paths).
Which code made a file (its version and digest) is left out. What differs is listed, a line each; the exit code is 1 then.
A whole comparison takes some ten minutes of two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DIGITS = (
    "data.train_subset=300 data.folds=2 data.probes_per_fold=9 data.size=16 model.network.width=4 trainer.max_epochs=3"
)
DIGITS += " batch_size=4 shard_size=8 explainer.rise.masks=20 explainer.smoothgrad.samples=3 explainer.lime.samples=60"
DIGITS += " explainer.kernel_shap.samples=60 explainer.integrated_gradients.steps=4 explainer.sliding_patch.stride=56"
DIGITS += " explainer.averaged_gradient.points=3 explainer.meaningful_perturbation.steps=3 score.mufidelity.subsets=12"
SHAPES = "data=shapes data.samples=160 data.test=16 data.size=32 data.folds=2 data.probes_per_fold=6 data.tag=0.5"
SHAPES += " model.network.width=4 trainer.max_epochs=2 shard_size=8"
TRUTH = "explainer=[lime,sliding_patch,gradcam,random] explainer.lime.samples=80 explainer.sliding_patch.stride=56"
TRUTH += " score=[truth/localisation_error,truth/pointing_game,truth/mask_iou,truth/mass_on_tag,insertion]"
SMALL = "data.train_subset=200 data.folds=2 data.probes_per_fold=4 data.size=16"
GENERATORS = (
    "data=shapes data.size=16 data.samples=120 data.test=24 data.folds=2 data.probes_per_fold=4 data.batch_size=16"
)
CLASSIFIER = f"{GENERATORS} model.network.width=4 trainer.max_epochs=2 shard_size=8"
QUICK = "explainer.lime_g.samples=80 explainer.sp_g.stride=112 explainer.mp_g.steps=2 explainer.pomelo_ddim.samples=40"
QUICK += " explainer.pomelo_ddim.filler.steps=3 explainer.pomelo_flow.samples=40"

# groups of commands, in order; `{root}` is the folder of one checkout
COMMANDS: dict[str, list[str]] = {
    "digits": [
        f"train {DIGITS} fold=0 dry_run=true",
        f"train {DIGITS} -m fold=0,1",
        f"train {DIGITS} fold=0",
        f"explain {DIGITS} -m fold=0,1 probes=disagreements",
        "evaluate name=digits-resnet18",
        "evaluate name=digits-resnet18 definition=xplique",
        "evaluate name=digits-resnet18 definition=paper distance=ssim only=[rise,gradcam,random] pairs=[[rise,gradcam]]",
        "evaluate name=digits-resnet18 --status",
        "evaluate name=digits-resnet18 --status --json",
        "explain name=digits-resnet18 fold=0 sanity=[cascading,independent] sanity_images=3 sanity_stages=2 explainer=[saliency,gradcam]",
        "explain name=digits-resnet18 fold=1 curves=true explainer=[saliency,random] score=[deletion,insertion]",
        "explain name=digits-resnet18 fold=1 filler=[black,mean,shuffle]",
        "evaluate name=digits-resnet18 fold=0 samplers=[black,uniform_noise] sampler_draws=6 sampler_images=8",
        f"explain {DIGITS} name=other fold=0",
    ],
    "parts": [
        f"train {SMALL} model.network.width=4 trainer.max_epochs=1 explain=false name=parts fold=0",
        "explain name=parts fold=0 explainer=[rise,random] explainer.rise.masks=9 shard_size=2 part=1/2 score=[deletion]",
        "evaluate name=parts --status",
        "explain name=parts fold=0 explainer=[rise,random] explainer.rise.masks=9 shard_size=2 part=0/2 score=[deletion]",
        "evaluate name=parts",
    ],
    "lipschitz": [
        f"train {SMALL} model=lipschitz model.network.width=4 trainer.max_epochs=2 explainer=[saliency,gradcam,random] score=[mufidelity] "
        "score.mufidelity.subsets=12 -m fold=0,1",
        "evaluate name=digits-lipschitz",
    ],
    "shapes": [
        f"train {SHAPES} {TRUTH} -m fold=0,1",
        "evaluate name=shapes-resnet18",
        "explain name=shapes-resnet18 fold=0 filler=[black,blur] explainer=[random]",
        "explain image={picture} checkpoint={root}/shapes-resnet18/fold=0/model.ckpt explainer=[saliency,lime] explainer.lime.samples=80",
        f"explain {SHAPES} name=shapes-resnet18 -m fold=0,1 experiment=robustness",
        "evaluate name=shapes-resnet18",
    ],
    "samplers": [
        f"train {SMALL} model=patch_sampler model.patch=4 model.width=4 model.depth=1 trainer.max_epochs=2 -m fold=0,1",
        f"train {SMALL} model=conditional_gaussian model.patch=4 model.positions=2000 -m fold=0,1",
        f"train {SMALL} model.network.width=4 trainer.max_epochs=2 explainer=[information/pmi,information/information_gain,information/pda,"
        "random] explainer.pmi.stride=4 explainer.pmi.draws=2 explainer.information_gain.stride=4 explainer.pda.stride=4 explainer.pda.draws=2 "
        "score=[] -m fold=0,1",
        "explain name=digits-resnet18 fold=1 filler=[patch_sampler,conditional_gaussian] explainer=[random]",
        "evaluate name=digits-resnet18",
    ],
    "generators": [
        f"train {GENERATORS} model=ddim model.width=[8] model.attention=0 trainer.max_epochs=2 fold=0",
        f"train {GENERATORS} model=inpainter model.width=4 model.critic=4 trainer.max_epochs=2 fold=0",
        f"train {GENERATORS} model=flow model.steps=2 model.width=8 model.levels=2 trainer.max_epochs=2 fold=0",
        f"train {CLASSIFIER} fold=0 explainer=[generative/lime_g,generative/sp_g,generative/mp_g,pomelo/pomelo_ddim,pomelo/pomelo_flow,random] "
        f"score=[replaced/deletion_grey] {QUICK}",
        "evaluate name=shapes-resnet18",
        "evaluate name=shapes-resnet18 fold=0 samplers=[ddim,inpainter,flow] sampler_draws=6 sampler_images=8 filler.ddim.steps=3",
    ],
    "degradation": [
        f"degradation {SMALL} model.network.width=4 trainer.max_epochs=1 experiment=degradation explainer=[saliency,random] "
        "levels.label_noise=[] levels.weight_noise=[0.1,0.5] data.probes_per_fold=4",
    ],
    "library": ["library"],
    "help": [f"{door} --help" for door in ("train", "explain", "evaluate", "degradation")],
    "bad": [
        "train fold=7 data.folds=5",
        "train fold=x",
        "train data=nothing",
        "train model=nothing",
        "train explainer=[nothing]",
        "train exploiner=[rise]",
        "train trainer.max_epoch=3",
        "train model.network.widht=3",
        "train +model.nothing=1",
        "train data.folds=1",
        "train data.probes_per_fold=0",
        "train seed=-1",
        "train label_noise=2",
        "train batch_size=0",
        "train shard_size=0",
        "train data.batch_size=none",
        "train explainer.rise.masks=many",
        "train target=truth",
        "train model.lr=0",
        "train model.schedule=often",
        "train model.network.stem=wide",
        "train trainer=gpu",
        "train data=fashion_mnist data.root={root}/nowhere",
        "train data=folder data.root={root}/nowhere",
        "train data=npz data.path={root}/nowhere.npz",
        "train data=folder",
        "train score=[truth/pointing_game]",
        "train experiment=nothing",
        "train pairs=[rise]",
        "explain name=nothing",
        "explain probes=some",
        "explain part=4/2",
        "explain part=x",
        "explain image={root}/nowhere.jpg",
        "explain image={root}/nowhere.jpg checkpoint={root}/nowhere.ckpt",
        "explain model=pretrained model.weights={root}/nowhere.pth data=pictures data.root={root}",
        "explain sanity=deep",
        "explain curves=maybe",
        "evaluate name=nothing",
        "evaluate name=nothing --status",
        "evaluate definition=own",
        "evaluate name=nothing samplers=[]",
        "degradation levels.heat=[0.1]",
        "degradation experiment=degradation levels.weight_noise=[2]",
    ],
}

LIBRARY = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from lit_xai.crossval import explain_folds
from lit_xai.explainers import GradCAM, Random, Saliency
from lit_xai.metrics import Deletion

def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

def fit(module, data, fold):
    x, y = (torch.stack([torch.as_tensor(d[i]) for d in data]) for i in (0, 1))
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()

raw = load_digits()
data = TensorDataset(torch.tensor(raw.images[:200] / 16, dtype=torch.float32)[:, None], torch.tensor(raw.target[:200]))
explainers = {"saliency": Saliency(), "gradcam": GradCAM(layer="0"), "random": Random()}
explain_folds(make, data, explainers, k=2, root=ROOT, train=fit, scores={"deletion": Deletion()}, probes_per_fold=12, progress=False)
"""

# what a command prints that no two runs share
TIMES = [
    (r"\d\d:\d\d:\d\d \S+ pid \d+.*\n", ""),  # the lines of a log
    (r"about [\d.,]+ (min|s|h)\b", "about T"),
    (r"in [\d.]+ s\b", "in T s"),
    (r"[\d.]+(e[+-]?\d+)? samples/s", "N samples/s"),
    (r"seconds_per_1000_draws [\d.]+", "seconds_per_1000_draws T"),
    (r",seconds_per_1000,.*", ",seconds_per_1000,T"),
    (r"offline-run-\d+_\d+-\w+", "offline-run"),
]
UNCOMPARED = {
    "code",
    "version",
    "versions",
    "also",
    "meta_checksum",
    "pytorch-lightning_version",
    "seconds_per_1000_draws",
}
TEXTS = (".csv", ".tex", ".yaml", ".txt")


# ------------------------------------------------------------------------------------------------ in one checkout


def play(root: Path, groups: list[str]) -> None:
    """Run the commands with the `lit_xai` that is on the path; leave what each printed in `printed/`."""
    import lit_xai
    import torch
    from PIL import Image

    ours = os.environ["PYTHONPATH"]
    if not Path(lit_xai.__file__ or "").is_relative_to(ours):
        sys.exit(f"error: lit_xai comes from {lit_xai.__file__}, not from {ours}")
    torch.set_num_threads(1)
    picture = root / "picture.png"
    root.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize((40, 40)).convert("RGB").save(picture)
    for group in groups:
        for number, line in enumerate(COMMANDS[group]):
            folder = Path(group)  # relative: what a checkpoint says of its place is in its digest
            words = [
                w.format(root=folder, picture=picture.name) if "{root}" in w or "{picture}" in w else w
                for w in shlex.split(line)
            ]
            code, out, err = once(folder, words)
            texts = {"command": line, "code": code, "out": plain(out, root), "err": plain(err, root)}
            file = root / "printed" / f"{group}-{number:02d}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(texts))
            print(f"{group} {number + 1}/{len(COMMANDS[group])}: {line[:100]} -> {code}", flush=True)


def once(folder: Path, words: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of one command."""
    import importlib

    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, environment = sys.argv, dict(os.environ)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if words == ["library"]:
                exec(compile(LIBRARY, "library", "exec"), {"__name__": "library", "ROOT": str(folder / "mine")})
            else:
                options = [] if "--help" in words else [f"root={folder}"]
                options += [] if {"--help", "--status"} & set(words) else ["logger=none", "progress=false"]
                sys.argv = [f"lit_xai/{words[0]}.py", *words[1:], *options]
                importlib.import_module(f"lit_xai.{words[0]}").main()
    except SystemExit as e:
        code = int(e.code or 0)
    except Exception as e:
        code, _ = 99, err.write(f"{type(e).__name__}: {e}")
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
    return code, out.getvalue(), err.getvalue()


def plain(text: str, root: Path) -> str:
    """What was printed, without what no two runs share."""
    text = text.replace(str(root), "ROOT")
    if "seconds_per_1000" in text and "│" in text:  # the last column of a table is a time
        text = re.sub(r"│[^│\n]*│\n", "│\n", text)
    for pattern, by in TIMES:
        text = re.sub(pattern, by, text)
    return text


# ---------------------------------------------------------------------------------------------------- comparison


def differences(a: Path, b: Path) -> Iterator[str]:
    """What differs between the folders of two checkouts, a line each."""
    files = [
        {str(f.relative_to(r)) for f in r.rglob("*") if f.is_file() and ".multirun" not in f.parts} for r in (a, b)
    ]
    for name in sorted(files[0] ^ files[1]):
        yield f"{name}: only {'before' if name in files[0] else 'after'}"
    for name in sorted(files[0] & files[1]):
        one, other = a / name, b / name
        if name.startswith("printed/"):
            yield from printed(json.loads(one.read_text()), json.loads(other.read_text()))
        elif one.suffix == ".safetensors":
            yield from (f"{name}: {d}" for d in nodes(tensors_of(one), tensors_of(other), "", 0.0))
        elif one.suffix == ".ckpt":
            yield from (f"{name}: {d}" for d in nodes(checkpoint_of(one, a), checkpoint_of(other, b), "", 0.0))
        elif one.suffix == ".json":
            yield from (f"{name}: {d}" for d in nodes(json_of(one, a), json_of(other, b), "", 1e-12))
        elif one.suffix in TEXTS or one.suffix == ".html":
            yield from (f"{name}: {d}" for d in lines_of(text_of(one, a), text_of(other, b)))


def printed(one: dict[str, Any], other: dict[str, Any]) -> Iterator[str]:
    """What one command printed differently."""
    if one["code"] != other["code"]:
        yield f"`{one['command']}`: exit code {one['code']} before, {other['code']} after"
    for what in ("out", "err"):
        yield from (f"`{one['command']}` {what}: {d}" for d in lines_of(one[what], other[what]))


def lines_of(one: str, other: str) -> Iterator[str]:
    """Lines that only one of two texts has."""
    if one != other:
        diff = difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0)
        yield from (d[:240] for d in diff if d[:1] in "+-" and d[:3] not in ("+++", "---"))


def text_of(file: Path, root: Path) -> str:
    """A text file, without pictures, paths, and columns that are times."""
    text = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "PICTURE", plain(file.read_text(), root))
    if file.name == "samplers.tex":
        return re.sub(r" & [^&\n]*\\\\$", "", text, flags=re.M)
    if file.name not in ("samplers.csv", "quality.csv"):
        return text
    header, *rows = (line.split(",") for line in text.splitlines())
    return "\n".join(
        ",".join(c for n, c in zip(header, row, strict=False) if n not in UNCOMPARED) for row in [header, *rows]
    )


def json_of(file: Path, root: Path) -> Any:
    """A JSON file without paths."""
    return json.loads(plain(file.read_text(), root))


def tensors_of(file: Path) -> dict[str, Any]:
    """A shard: its description, and every tensor's type, shape and bytes."""
    from safetensors import safe_open

    with safe_open(file, "pt") as f:
        meta = json.loads((f.metadata() or {}).get("lit_xai", "{}"))
        return {"meta": meta, "tensors": {k: digest(f.get_tensor(k)) for k in f.keys()}}  # noqa: SIM118


def checkpoint_of(file: Path, root: Path) -> Any:
    """A checkpoint: its configuration, and every weight's type, shape and bytes."""
    import torch

    content = torch.load(file, map_location="cpu", weights_only=True)
    weights = {k: digest(v) for k, v in content["state_dict"].items()}
    return {"weights": weights, "config": json.loads(plain(json.dumps(content["config"], default=str), root))}


def digest(tensor: Any) -> str:
    """A tensor's type, shape and bytes, in short."""
    import hashlib

    import torch

    content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype}{list(tensor.shape)} {hashlib.blake2b(content, digest_size=8).hexdigest()}"


def nodes(one: Any, other: Any, path: str, tolerance: float) -> Iterator[str]:
    """Where two nested values differ; numbers may by `tolerance`, relative above 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other} - UNCOMPARED, key=str):
            here = f"{path}.{key}".lstrip(".")
            if key not in one or key not in other:
                yield f"{here}: only {'before' if key in one else 'after'}"
            else:
                yield from nodes(one[key], other[key], here, tolerance)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from nodes(a, b, f"{path}[{i}]", tolerance)
    elif isinstance(one, float) and isinstance(other, int | float) and not isinstance(other, bool):
        if (
            one != other
            and not (math.isnan(one) and math.isnan(other))
            and not abs(one - other) <= tolerance * max(1, abs(one))
        ):
            yield f"{path}: {one!r} before, {other!r} after"
    elif one != other:
        yield f"{path}: {str(one)[:100]} before, {str(other)[:100]} after"


# ----------------------------------------------------------------------------------------------------------- main


def checkout(name: str, work: Path) -> Path:
    """The folder of a checkout; a commit of this repository is exported."""
    if (Path(name) / "lit_xai").is_dir():
        return Path(name).resolve()
    folder = work / f"checkout-{name.replace('/', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).resolve().parent.parent
    archive = subprocess.run(["git", "-C", str(here), "archive", name], stdout=subprocess.PIPE)
    if archive.returncode:
        sys.exit(f"error: {name} is neither a checkout nor a commit of {here}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def main() -> None:
    """Run both, compare, list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?")
    parser.add_argument("after", nargs="?")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="groups of commands")
    parser.add_argument("--work", type=Path, help="where results go, and stay; a temporary folder if not given")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        for group, lines in COMMANDS.items():
            print("\n".join(f"{group}: {line}" for line in lines))
        return
    if options.play:
        play(options.play, options.only)
        return
    if not options.before or not options.after:
        parser.error("name two checkouts, or two commits")
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {"was": checkout(options.before, work), "now": checkout(options.after, work)}  # as long as each other
        running = {side: start(folder, (work / side).resolve(), options.only) for side, folder in sides.items()}
        codes = {side: process.wait() for side, process in running.items()}
        if any(codes.values()):
            sys.exit(f"error: a comparison was not run to its end ({codes}): see {work}/*.log")
        found = list(differences((work / "was").resolve(), (work / "now").resolve()))
    print("\n".join(found))
    number = sum(len(COMMANDS[g]) for g in options.only)
    print(f"{number} commands: {f'{len(found)} differences' if found else 'everything is the same'}")
    sys.exit(bool(found))


def start(folder: Path, root: Path, groups: list[str]) -> subprocess.Popen[bytes]:
    """The commands in one checkout, as a process."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "COLUMNS": "160",
    }
    environment |= {"PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--play", str(root), "--only", *groups]
    with open(root.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    main()
