"""`python -m lit_xai.audit`: from data and a model to the answer whether its explanations can be trusted."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lit_xai.cli import side_by_side
from lit_xai.cli.command import command, parted

ABOUT = """Train the predictors of all folds side by side, explain and score, explain what they disagree on, and evaluate: one command.
python -m lit_xai.audit PATH: pictures in one folder per class, of any sizes; or a folder of results, checkpoints/<name>.
models=[resnet18,lipschitz]: several models. name=<folder> alone: data and model are the folder's, and what is trained is not
trained again. dry_run=true says what would be done and how long it would take. Whatever ended it, the same command goes on."""


def read(arguments: list[str]) -> list[str]:
    """A folder in the place of `key=value`: of pictures, or of results.

    Raises:
        UsageError: there is no such folder, or several.
    """
    from lit_xai.errors import UsageError

    overrides, flags = parted(arguments)
    folders = [o for o in overrides if names_folder(o)]
    for o in [o for o in overrides if o.startswith("data=") and ("/" in o or o.removeprefix("data=") in (".", ".."))]:
        folders.append(o.removeprefix("data="))
        overrides.remove(o)
    if not folders:
        return arguments
    if len(folders) > 1:
        raise UsageError(f"one folder is audited at a time, found {', '.join(folders)}")
    path = Path(folders[0]).expanduser()
    if not path.is_dir():
        raise UsageError(f"{path} is no folder: give a folder of pictures or of results, or options as key=value")
    rest, path = [o for o in overrides if o not in folders], path.resolve()
    if any(path.glob("fold=*")):
        return [*flags, f"root={path.parent}", f"name={path.name}", *rest]
    given = {o.partition("=")[0] for o in rest}
    side = side_of(path)
    options = {"experiment": "own_pictures", "data.root": path, "data.name": name_of(path), "name": "null"}
    options |= {"data.size": side, "data.resize": side * 9 // 8} if not {"data.size", "data.resize"} & given else {}
    return [*flags, *(f"{k}={v}" for k, v in options.items() if k not in given), *rest]


def names_folder(argument: str) -> bool:
    """Whether an argument is a folder and no `key=value`; a folder's name may hold a `=`, too."""
    key, equals, _ = argument.partition("=")
    home = argument == "~" or argument.startswith("~/")
    if not equals:
        return home or not argument.startswith("~")
    return not re.fullmatch(r"[+~]*[\w.@]+", key) and Path(argument).expanduser().is_dir()


def name_of(path: Path) -> str:
    """A folder's name as a name of data."""
    return re.sub(r"[^\w.-]+", "-", path.name, flags=re.ASCII).strip(".-") or "pictures"


def side_of(path: Path) -> int:
    """128, or 64 or 32 where half of the pictures (of the first hundred) are smaller."""
    from itertools import islice
    from statistics import median

    from PIL import Image

    sides = []
    for file in islice((f for f in sorted(path.rglob("*")) if f.is_file()), 100):
        try:
            with Image.open(file) as picture:
                sides.append(min(picture.size))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # whoever reads it says what is wrong with it
    usual = median(sides) if sides else 128
    return next((s for s in (128, 64) if s <= usual), 32)


@command("audit", ABOUT, sweeps=False, read=read, ahead=lambda overrides: side_by_side.serve())
def main(cfg: Any) -> None:
    """What the command does: train, explain, evaluate, and write the page with the verdict."""
    import sys

    from lit_xai.cli.ensembles import ensembles
    from lit_xai.cli.together import together

    every = ensembles(cfg, "audit", parted(sys.argv[1:])[1])
    failed = together(every, cfg.jobs, cfg.dry_run)
    if cfg.dry_run:
        return
    conclude(every)
    failed.end()


def conclude(every: list[Any]) -> None:
    """What the results of some ensembles say: tables, and one page with the verdict on each."""
    import shlex
    import sys

    from lit_xai.evaluate import audits
    from lit_xai.store.names import PREDICTIONS

    def ready(ensemble: Any) -> bool:
        return len(list(ensemble.folder.glob(f"fold=*/{PREDICTIONS}"))) >= min(2, ensemble.cfg.data.folds)

    found = [ensemble for ensemble in every if ready(ensemble)]
    if found:
        classes, seconds = zip(*map(known_of, found), strict=True)
        first, command = found[0], shlex.join(["python", "-m", "lit_xai.audit", *sys.argv[1:]])
        base = first.folder.name.removesuffix(f"-{first.cfg.model.name}")
        into = first.folder.with_name(f"{base}-audit") if len(found) > 1 else first.folder
        folders, own = [e.folder for e in found], [e.cfg for e in found]
        audits(first.cfg, folders, into, command, own, classes=classes, seconds=seconds)


def known_of(ensemble: Any) -> tuple[tuple[str, ...], tuple[float, float] | None]:
    """The names of the classes, and the seconds of one forward and one backward pass of an image; nothing where data are gone."""
    import torch

    from lit_xai.cli.loaded import predictor_of
    from lit_xai.engine import seconds_per_image
    from lit_xai.errors import UsageError

    try:
        data = ensemble.run.data
        images = data.source.train.images(data.probes[:8].tolist())
        targets = torch.zeros(len(images), dtype=torch.long)
        seconds = seconds_per_image(predictor_of(ensemble.run.load()), images, targets, enough=0.3)
        return tuple(data.source.classes), seconds
    except (UsageError, OSError):
        return (), None


class Callable(ModuleType):
    """This module, which hides the function `lit_xai.audit` once it is imported, and therefore does the same."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from lit_xai.crossval import audit

        return audit(*args, **options)


sys.modules[__name__].__class__ = Callable

if __name__ == "__main__":
    main()
