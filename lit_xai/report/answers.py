"""What an audit says: statuses, the number an answer rests on, the verdict on one network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lit_xai.metrics.comparisons import PERMUTED_LABELS
from lit_xai.report.conditions import Condition
from lit_xai.report.summarise import WHOLE_IMAGE

SHOWN, NOT_SHOWN, CONTRADICTED, NOT_APPLICABLE = "shown", "not shown", "contradicted", "not applicable"
ORDER = TRUST, CARE, DISTRUST = "trust", "trust with care", "do not trust"
ICONS = {SHOWN: "✓", NOT_SHOWN: "?", CONTRADICTED: "✗", NOT_APPLICABLE: "–", TRUST: "✓", CARE: "!", DISTRUST: "✗"}
CALLED = {
    "random": "noise",
    "image": "the brightness of the image itself",
    "edges": "the edges of the image",
    "centre": "a blob in the middle",
    "image_random": "the image times noise",
    WHOLE_IMAGE: "the whole image",
    PERMUTED_LABELS: "chance",
}


def called(null: str) -> str:
    """A null in words."""
    return CALLED.get(null, null)


@dataclass(frozen=True)
class Number:
    """What one column says to a question.

    Attributes:
        column: of the summary.
        status: `shown`, `not shown`, `contradicted` or `not applicable`.
        reason: in words.
        value, low, high: the number and its 95 % interval.
        null: what it is compared with; empty = a number of the condition.
        reference: the value of that.
        p, p_corrected: of the comparison, where there is a test.
        samples, predictors: that it rests on; `predictors` is 0 where the interval is over samples alone.
        needed: how many samples (predictors, if those are counted) would show it, if value and spread stay as they are.
    """

    column: str
    status: str
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    null: str = ""
    reference: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    samples: int = 0
    predictors: int = 0
    needed: int | None = None


@dataclass(frozen=True)
class Answer:
    """One method's answer to a question: its status, why, and the numbers it rests on."""

    status: str
    reason: str
    numbers: tuple[Number, ...] = ()


@dataclass
class Verdict:
    """What is to be said of the explanations of one network.

    Attributes:
        overall: `trust`, `trust with care` or `do not trust`: that of the best method.
        sentence: the same in plain words, methods named.
        tag: what is to be said of a planted tag; empty where there is none.
        because: why no method is trusted, or with care at most, whatever its numbers are.
        methods: the overall judgement of each.
        answers: `{method: {question: answer}}`.
        conditions: what was asked.
    """

    overall: str
    sentence: str
    tag: str
    because: list[str]
    methods: dict[str, str]
    answers: dict[str, dict[str, Answer]]
    conditions: list[Condition] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The judgement, and of how many methods it is."""
        number = sum(overall == self.overall for overall in self.methods.values())
        if self.overall == DISTRUST:
            return f"{DISTRUST} any of {len(self.methods)} methods"
        return f"{self.overall} {number} of {len(self.methods)} methods"

    def standing(self) -> dict[str, tuple[int, ...]]:
        """The place of every method, smaller = better: its judgement, how much is contradicted, how little is shown."""
        out: dict[str, tuple[int, ...]] = {}
        for name, overall in self.methods.items():
            found = [a.status for a in self.answers[name].values()]
            out[name] = ORDER.index(overall), found.count(CONTRADICTED), -found.count(SHOWN)
        return out

    def unanswered(self) -> list[tuple[str, str, str, list[str]]]:
        """What could not be shown and why: question, status, reason, methods."""
        lines: dict[tuple[str, str, str], list[str]] = {}
        for c in self.conditions:
            for method, answers in self.answers.items():
                answer = answers[c.key]
                if answer.status in (NOT_SHOWN, NOT_APPLICABLE):
                    lines.setdefault((c.question, answer.status, answer.reason), []).append(method)
        return [(*said, methods) for said, methods in lines.items()]

    def plain(self) -> dict[str, Any]:
        """What `audit.json` holds of a verdict."""
        return {
            "overall": self.overall,
            "headline": self.headline,
            "sentence": self.sentence,
            "tag": self.tag,
            "because": self.because,
            "methods": {
                m: {"overall": overall, "answers": {k: asdict(a) for k, a in self.answers[m].items()}}
                for m, overall in self.methods.items()
            },
        }
