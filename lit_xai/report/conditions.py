"""What must be shown of an explanation method: questions and conditions, as data that a user changes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from omegaconf import OmegaConf

from lit_xai.cli.schema import config_dir
from lit_xai.errors import UsageError
from lit_xai.metrics.statistics import LEVEL

EVERY_NULL = "every null"
FOLDS, LABELS, MASKS = "folds", "labels", "masks"
NEEDS = (FOLDS, LABELS, MASKS)


@dataclass(frozen=True)
class Condition:
    """A question, and when its answer is *shown*.

    Attributes:
        key: its short name.
        question: in words.
        columns: of the summary, all of which must hold; those that are not there are left out. Of `a|b`, the first that is there.
        below, above: the column's interval lies on this side of the number; contradicted if it lies on the other.
        better_than: significantly better than each of these: nulls by name, `every null`, `whole image`, `permuted labels`.
        after: a condition that must be shown first.
        needs: without which it cannot be asked: `folds` (two), `labels`, `masks`.
        shown, contradicted: what is said of a method's explanations then; `{null}` is what they are worse than.
    """

    key: str
    question: str
    columns: tuple[str, ...]
    below: float | None = None
    above: float | None = None
    better_than: tuple[str, ...] = ()
    after: str = ""
    needs: tuple[str, ...] = ()
    shown: str = ""
    contradicted: str = ""

    @property
    def threshold(self) -> float | None:
        """The number that the interval is compared with; None where nulls are."""
        return self.above if self.below is None else self.below

    def text(self) -> str:
        """When it is shown, in a line."""
        columns = [c.replace("|", " or ") for c in self.columns]
        of = " and ".join([", ".join(columns[:-1]), columns[-1]] if len(columns) > 1 else columns)
        if self.threshold is not None:
            side = "above" if self.below is None else "below"
            rule = f"the {100 * LEVEL:.0f} % interval of {of} lies {side} {self.threshold:g}"
        else:
            verb = "is" if len(self.columns) == 1 else "are"
            rule = f"{of} {verb} better than {' and '.join(self.better_than)}, corrected by Holm over the methods"
        return rule + (f", once {self.after} is shown" if self.after else "")

    def of(self, known: Container[str]) -> Condition:
        """The same where these columns are known: each alternative is decided."""
        parts = [c.split("|") for c in self.columns]
        return replace(self, columns=tuple(next((c for c in p if c in known), p[0]) for p in parts))

    def plain(self) -> dict[str, Any]:
        """What `audit.json` holds of a condition."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()} | {"text": self.text()}


KEYS = tuple(f.name for f in fields(Condition) if f.name != "key")
LISTS = ("columns", "better_than", "needs")


def read(given: Mapping[str, Any]) -> list[Condition]:
    """Conditions from their configuration, in order; one that is null is left out.

    Raises:
        UsageError: a key, a type or a name that means nothing.
    """
    out = [one(str(key), value) for key, value in given.items() if value is not None]
    if not out:
        raise UsageError("conditions names no question: leave it out to have those of configs/conditions/default.yaml")
    first = [c.key for c in out if not c.after]
    for c in out:
        if c.after and c.after not in first:
            known = ", ".join(first) or "none: a question waits for none that waits itself"
            raise UsageError(f"conditions.{c.key}.after must be one of {known}, found {c.after}")
    return out


def one(key: str, given: Any) -> Condition:
    """One condition; errors as `read`."""
    at = f"conditions.{key}"
    if not isinstance(given, Mapping):
        raise UsageError(f"{at} must be a mapping of {', '.join(KEYS)}, found {given!r}")
    unknown = next((k for k in given if k not in KEYS), None)
    if unknown is not None:
        raise UsageError(f"{at}.{unknown} means nothing: a condition has {', '.join(KEYS)}")
    values: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    for name in LISTS:
        value = values.get(name, ())
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, Sequence) or not all(isinstance(v, str) for v in value):
            raise UsageError(f"{at}.{name} must be a list of names, found {value!r}")
        values[name] = tuple(value)
    for name in ("below", "above"):
        if isinstance(values.get(name, 0.0), bool | str) or not isinstance(values.get(name, 0.0), float | int):
            raise UsageError(f"{at}.{name} must be a number, found {values[name]!r}")
    rules = [n for n in ("below", "above", "better_than") if values.get(n) not in (None, ())]
    if not values["columns"] or len(rules) != 1:
        raise UsageError(
            f"{at} needs columns and one of below, above, better_than; found columns {list(values['columns'])} "
            f"and {', '.join(rules) or 'none'}"
        )
    strange = next((n for n in values["needs"] if n not in NEEDS), None)
    if strange is not None:
        raise UsageError(f"{at}.needs must be of {', '.join(NEEDS)}, found {strange}")
    values = {"question": key, "shown": f"hold {key}", "contradicted": f"contradict {key}", **values}
    kept: dict[str, Any] = {k: v if k in (*LISTS, "below", "above") else str(v) for k, v in values.items()}
    return Condition(key, **kept)


def default() -> list[Condition]:
    """The conditions of `configs/conditions/default.yaml`."""
    return read(dict(OmegaConf.to_container(OmegaConf.load(config_dir() / "conditions" / "default.yaml"))))  # type: ignore[arg-type, call-overload]
