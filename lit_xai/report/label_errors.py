"""The list of probable label errors as files and as tables, and how good it is where the errors are known."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.data.images import ImageSet, seen
from lit_xai.metrics.label_errors import CONFIDENCE, LIST, WAYS, WITH, Judged, judge, names_of, reasons, ways
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.report.figure import new_figure, save, wrapped
from lit_xai.report.table import Column, Table, interval
from lit_xai.store.files import write_atomically, write_csv
from lit_xai.store.names import LABEL_ERRORS

SHOWN, ACROSS = 16, 8  # pictures, and how many stand in a row
COLUMNS = (
    "sample",
    "path",
    "given",
    "predicted",
    "probability",
    "agreement_predicted",
    "agreement_given",
    "reasons",
    "listed",
    "rank_with_reasons",
)


@dataclass(frozen=True)
class Listed:
    """A pool of samples, of which the first `length` are the list of probable label errors.

    Attributes:
        name: of the folder.
        method: whose maps the reasons are.
        samples, given, predicted: `[p]` their numbers, their labels, what the predictor says that never saw them.
        probability: `[p]` what that one gives the label: the list's score, small = probably wrong.
        about_given, about_predicted: `[p]` how much the folds' maps agree for the label and for what is predicted.
        length: of the list.
        true: `[p]` the right labels, where wrong ones were planted; else None.
        errors, total: how many labels of how many are wrong.
        classes, paths: names of classes and files, where there are any.
        seed: of resamples.
    """

    name: str
    method: str
    samples: Int[Tensor, "p"]
    given: Int[Tensor, "p"]
    predicted: Int[Tensor, "p"]
    probability: Float[Tensor, "p"]
    about_given: Float[Tensor, "p"]
    about_predicted: Float[Tensor, "p"]
    length: int
    true: Int[Tensor, "p"] | None
    errors: int
    total: int
    classes: Sequence[str] = ()
    paths: Sequence[str] = ()
    seed: int = 0

    @property
    def reasons(self) -> Float[Tensor, "p"]:
        """How much more the folds agree about the predicted class than about the label."""
        return reasons(self.about_predicted, self.about_given)

    @cached_property
    def judged(self) -> Judged | None:
        """How good the list is; None where nobody knows the errors, or nothing is listed."""
        if self.true is None or not self.length:
            return None
        wrong = self.true != self.given
        return judge(wrong, self.length, self.probability, self.reasons, self.errors, self.total, self.seed)

    @cached_property
    def agreed(self) -> dict[str, Estimate]:
        """Means over the list: agreement for the predicted class, for the label, and their difference."""
        values = {"predicted": self.about_predicted, "given": self.about_given, "reasons": self.reasons}
        return {n: mean_estimate(v[: self.length], self.seed) for n, v in values.items()} if self.length else {}

    @property
    def sentence(self) -> str:
        """How long the list is, and what it is worth."""
        said = f"{self.length:,} of {self.total:,} labels are probably wrong (confident learning on out-of-fold probabilities)."
        if self.length:
            agree = "agree more" if self.agreed["reasons"].low > 0 else "are not shown to agree more"
            said += f" The folds' {self.method} maps of them {agree} for the predicted class than for the label."
        j = self.judged
        if j is not None:
            gain, sharper = j.gain[WITH], j.auc_gain
            helps = "help" if gain.low > 0 else "harm" if gain.high < 0 else "are not shown to help"
            said += (
                f" Of {self.errors:,} planted errors the list holds {j.recall[LIST].text()}, and {j.precision[LIST].text()} of it are errors. At "
                f"the same length, reasons beside self-confidence {helps}: precision {j.precision[WITH].text()} instead of "
                f"{j.precision[CONFIDENCE].text()} ({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])"
            )
            come = (
                "come earlier"
                if sharper.low > 0
                else "come later"
                if sharper.high < 0
                else "are not shown to come earlier"
            )
            said += f"; errors within the list {come}."
        return said

    def rows(self) -> list[list[Any]]:
        """Of the file, in the order of the pool."""
        places = ways(self.probability, self.reasons)[WITH].argsort(stable=True).argsort() + 1
        rows: list[list[Any]] = []
        for row, sample in enumerate(self.samples.tolist()):
            numbers = (self.probability, self.about_predicted, self.about_given, self.reasons)
            rows.append(
                [
                    sample,
                    self.paths[sample] if sample < len(self.paths) else "",
                    *names_of(self.classes, [int(self.given[row]), int(self.predicted[row])]),
                    *(round(float(values[row]), 6) for values in numbers),
                    "yes" if row < self.length else "no",
                    int(places[row]),
                    *(names_of(self.classes, [int(self.true[row])]) if self.true is not None else []),
                ]
            )
        return rows

    def table(self) -> Table | None:
        """How good the list is, in every one of `WAYS`; None where nobody knows."""
        j = self.judged
        if j is None:
            return None
        columns = [
            Column("list"),
            *(interval(n, head=f"{n} [95 %]") for n in ("precision", "recall", "gain")),
        ]
        rows = [[way, j.precision[way], j.recall[way], j.gain.get(way)] for way in WAYS]
        auc = ", ".join(f"{n} {e.text()}" for n, e in j.auc.items())
        caption = (
            f"{self.length:,} of {self.total:,} samples, {self.errors:,} errors; precision of as many by each rank; /: share of all samples that are "
            f"errors, with reasons: mean where reasons are dealt at random (as high: p {j.p:.3f}); gain: against self-confidence, paired over the "
            f"pool of {len(self.samples):,}; within the list an error lies before a right label by {auc} (area under the ROC curve, chance .5), with "
            f"reasons minus self-confidence {j.auc_gain.text()}"
        )
        return Table(columns, rows, f"probable label errors of {self.name}", caption)

    def plain(self) -> dict[str, Any]:
        """All figures of the list, ready for JSON."""
        j = self.judged
        parts = {} if j is None else {"precision": j.precision, "recall": j.recall, "gain": j.gain, "auc": j.auc}
        return {
            "name": self.name,
            "method": self.method,
            "length": self.length,
            "samples": self.total,
            "planted": self.errors if self.true is not None else None,
            "sentence": self.sentence,
            "agreement": {n: e.plain() for n, e in self.agreed.items()},
            **{n: {way: e.plain() for way, e in of.items()} for n, of in parts.items()},
            **({} if j is None else {"p": j.p, "auc_gain": j.auc_gain.plain()}),
        }


def kept(folder: Path) -> dict[str, Any] | None:
    """What a folder's file says of its list; None where there is no file, or another one."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        said = json.loads((folder / f"{LABEL_ERRORS}.json").read_text())
        kinds = {"sentence": str, "length": int, "samples": int, "method": str}
        if all(isinstance(said[k], kind) for k, kind in kinds.items()):
            return {k: said[k] for k in kinds}
    return None


def picture(folder: Path) -> str:
    """Its picture as a data URI; empty where there is none."""
    with contextlib.suppress(OSError):
        return f"data:image/png;base64,{base64.b64encode((folder / f'{LABEL_ERRORS}.png').read_bytes()).decode()}"
    return ""


def write(found: Listed, images: ImageSet, folder: Path, show: Sequence[int] | None = None) -> list[Path]:
    """The list as `label_errors.csv`, its figures as `.json`, its first pictures as `.png`; the figures on the terminal, too."""
    table = found.table()
    if table is not None:
        table.show()
    print(found.sentence, flush=True)
    files = [folder / f"{LABEL_ERRORS}{suffix}" for suffix in (".csv", ".json", ".png")]
    write_csv(files[0], [*COLUMNS, *(["true"] if found.true is not None else [])], found.rows())
    write_atomically(files[1], json.dumps(found.plain(), indent=1) + "\n")
    if not found.length:
        files[2].unlink(missing_ok=True)
        return files[:2]
    draw(found, images, files[2], show)
    return files


def draw(found: Listed, images: ImageSet, path: Path, show: Sequence[int] | None = None) -> Path:
    """The first `SHOWN` of the list, label and prediction above each."""
    number = min(SHOWN, found.length)
    rows = -(-number // ACROSS)
    figure, axes = new_figure(1.25 * ACROSS, 0.6 + 1.6 * rows, rows, ACROSS)
    title = f"{found.name}: the first {number} of {found.length:,} probable label errors, label → prediction"
    figure.suptitle(wrapped(title, figure.get_figwidth(), 9), fontsize=9)
    for place, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if place < number:
            picture = seen(images.images([int(found.samples[place])]), show)[0].permute(1, 2, 0).numpy()
            axis.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            names = names_of(found.classes, [int(found.given[place]), int(found.predicted[place])])
            right = "" if found.true is None else f"\n{'error' if found.true[place] != found.given[place] else 'right'}"
            axis.set_title(wrapped(" → ".join(names), 1.2, 6) + right, fontsize=6)
    return save(figure, path)
