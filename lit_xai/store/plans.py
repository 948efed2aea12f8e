"""What there is to do and by which command, for people to see; the standard library alone reads it, but where an override names code."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_xai.cli.offered import refuse_other_code
from lit_xai.cli.schema import config_dir, options
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.store.names import NAME, PROBES

LIBRARY = "explain_folds"  # the command in plans that no command but a call of this function left
PLANS, COMMANDS = "plans", ("train", "explain", LIBRARY)  # where plans are, and the commands that they may name


def called_again(root: Path) -> str:
    """What completes or mends an experiment that `explain_folds` made."""
    return f"call lit_xai.crossval.explain_folds again with the same arguments and root={str(root)!r}"


def mend(path: Path) -> str:
    """The command that writes a store's file again: the one that made it, where its plan is there."""
    fold = next((p for p in path.parents if p.name.startswith("fold=")), path.parent / "fold=0")
    place = [f"root={fold.parent.parent}", f"name={fold.parent.name}", fold.name]
    kind = path.parent.parent.name
    more = [f"explainer=[{path.parent.name}]"] if NAME.fullmatch(path.name) else []
    more += [f"probes={PROBES[kind]}"] if kind in PROBES else []
    plan = read_plan(fold / PLANS / kind / f"{path.parent.name}.json")
    if plan.get("withheld"):
        return "run the command that made it"
    if plan.get("door") == LIBRARY:
        return called_again(fold.parent)
    options = plan.get("overrides", more)
    return "run " + shlex.join(["python", "-m", f"lit_xai.{plan.get('door', 'explain')}", *options, *place])


def read_plan(file: Path) -> dict[str, Any]:
    """What a plan says (see `lit_xai.cluster.status`), of the right types; empty if there is none that can be read.

    Its command is shown to people who paste it. Where it holds an override that a file may not decide, `withheld` names it.
    """
    try:
        plan = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    types = {"door": str, "overrides": list, "scores": list, "node": dict}
    if not isinstance(plan, dict) or not all(isinstance(v, types.get(k, int)) for k, v in plan.items()):
        return {}
    if plan.setdefault("door", "explain") not in COMMANDS:
        return {}
    withheld = [o for o in plan.setdefault("overrides", []) if not repeatable(o)]
    target = plan.get("node", {}).get("_target_", "lit_xai.")
    withheld += (
        [] if str(target).startswith("lit_xai.") else [f"{file.stem}={target}"]
    )  # the user's own, who knows from where
    return {**plan, "withheld": printable(str(withheld[0]).split("=")[0])} if withheld else plan


def printable(text: str) -> str:
    """A text of a file for a terminal: no control characters, and not long."""
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


def repeatable(override: Any) -> bool:
    """Whether an override that a file tells may stand in a command: it names no code but what a file may name."""
    return isinstance(override, str) and override.isprintable() and names_no_other(override)


@functools.lru_cache(maxsize=4096)  # a thousand plans say the same few
def names_no_other(override: str) -> bool:
    """The same of a text; what it names are files of `configs/`, which do not change under a command."""
    key = re.match(r"(\+\+|\+|~)?(\w[\w./]*)(=|$)", override)
    if key is not None and (config_dir() / key[2]).is_dir():  # a choice that is a path would read any file
        value = override.partition("=")[2].strip("[]")
        if not {c.strip(" '\"") for c in value.split(",")} <= {*options(key[2]), "", "null"}:
            return False
    if key is None or key[2].startswith("hydra") or re.sub(r"\$\{oc\.env:\w+\}", "", override).count("${"):
        return False
    return "_target_" not in override or names_ours(override)


def names_ours(override: str) -> bool:
    """Whether every `_target_` of an override is one that a file may name; only this needs hydra, and torch."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        found = OverridesParser.create().parse_override(override)
        path, _, leaf = found.key_or_group.rpartition(".")
        value = {leaf: found.value()} if leaf == "_target_" else found.value()
        group = (path or leaf).partition(".")[0]
        refuse_other_code({group: value}, Path(override), (group,))
    except (HydraException, UsageError):
        return False
    return str(value).count("_target_") == override.count("_target_")


def damaged(path: Path, why: object) -> DamagedFile:
    """The error that says so."""
    text = why if isinstance(why, str) else type(why).__name__
    return DamagedFile(f"{path} is damaged ({text}): {mend(path)}")


OWN = (
    "fold",
    "part",
    "root",
    "name",
    "dry_run",
    "summary",
    "curves",
)  # keys that are given anew, or that ask for something else


def plan_file(fold: Path, kind: str, explainer: str) -> Path:
    """Where the plan of one explainer is."""
    return fold / PLANS / kind / f"{explainer}.json"


def plan_text(command: str, overrides: Sequence[str], **more: Any) -> str:
    """A plan: the same for every part and rank of the same command."""
    kept = [o for o in overrides if o.lstrip("+~").split("=")[0] not in OWN]
    return json.dumps({"door": command, "overrides": kept, **more}, sort_keys=True)
