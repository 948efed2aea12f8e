"""Certificates and stopping of docs/deeper.md, on digits that networks have not seen.

python docs/certificates.py certificates [--images 200]      certified and attacked radii, and whether a certificate was ever broken
python docs/certificates.py stopping [--images 60]           draws until decided against fixed numbers of draws, held against long runs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lit_xai.core import Explainer
from lit_xai.data.sources import digits
from lit_xai.explainers import RISE, Lime, SlidingPatch, SmoothGrad
from lit_xai.explainers.lime import Coalitions, ShapleyKernel
from lit_xai.fillers import Colour
from lit_xai.metrics.certificates import Question, attack_radius, attacked, certified_radius, certified_share, valued
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.models import Classifier, lipschitz
from lit_xai.report.table import Column, Table
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid
from scipy.stats import binom
from torch import Tensor, nn
from tqdm import tqdm

SIDE, TRAINED, EPOCHS = 16, 1397, 20
RADII = (0.01, 0.05, 0.1)
CELLS, STEPS, BALL_STEPS = 4, 100, 25


def network(seed: int = 0, epochs: int = EPOCHS, **options: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A classifier trained on the first digits, of 0 epochs its fresh weights; and the images and labels that it never saw."""
    source = digits(SIDE)
    images, labels = source.train.images(list(range(len(source.train)))), source.labels
    torch.manual_seed(seed)
    module = Classifier(channels=1, classes=10, side=SIDE, **options)
    optimizer = torch.optim.AdamW(module.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, max(1, epochs * -(-TRAINED // 64)))
    for _ in range(epochs):
        for some in torch.randperm(TRAINED).split(64):
            optimizer.zero_grad()
            module.loss(module(images[some]), labels[some]).backward()
            optimizer.step()
            schedule.step()
    return module.eval().predictor(), images[TRAINED:], labels[TRAINED:]


def one_lipschitz(seed: int = 0, epochs: int = EPOCHS) -> tuple[nn.Module, Tensor, Tensor]:
    """The 1-Lipschitz network."""
    return network(seed, epochs, network=partial(lipschitz, width=8), loss="tau_cross_entropy", scale=False)


def middle(values: Tensor) -> Estimate:
    """The median with its 95 % interval between order statistics."""
    ordered, n = values.double().sort().values, len(values)
    low = int(binom.ppf(0.025, n, 0.5))
    return Estimate(
        float(ordered.median()), float(ordered[max(low - 1, 0)]), float(ordered[min(n - low, n - 1)]), samples=n
    )


METHODS: dict[str, Explainer] = {
    "rise, logit": RISE(masks=64, grid=CELLS),
    "rise, probability": RISE(masks=64, grid=CELLS, output="probability"),
    "sliding patch": SlidingPatch(patch=4, stride=2, scale=False, projection="mean", filler=Colour(0.0)),
    "kernel shap": Lime(
        segments=Grid(CELLS), perturbation=Coalitions(Colour(0.0)), kernel=ShapleyKernel(), samples=64, ridge=0.0
    ),
}


def broken(question: Question) -> tuple[int, int]:
    """Certified pairs of cells whose order an attack within the radius has changed, and all that were certified, over all radii."""
    wrong = number = 0
    (ranking,) = question.rankings()
    for radius in RADII:
        holds = ranking.holds(radius)
        number += int(holds.sum())
        x = attacked(question, BALL_STEPS, radius)[1]
        now = ranking.gaps(valued(question.regions, question.outputs(x)))
        wrong += int((holds & (now <= 0)).sum())
    return wrong, number


def in_parts(ask: Callable[[slice], Tensor], number: int, name: str) -> Tensor:
    """What is asked of ten images at once, with a bar."""
    parts = [slice(start, min(start + 10, number)) for start in range(0, number, 10)]
    return torch.cat([ask(part).double() for part in tqdm(parts, desc=name, leave=False)])


def certificates(number: int) -> None:
    """The table of certified and attacked radii."""
    model, images, labels = one_lipschitz()
    fresh = one_lipschitz(seed=1, epochs=0)[0]
    images, labels = images[:number], labels[:number]
    with torch.no_grad():
        print(f"accuracy on {number} digits: {float((model(images).argmax(1) == labels).float().mean()):.3f}")
    rows = []
    for name, explainer in METHODS.items():

        def ask(part: slice, of: nn.Module = model, cells: int = CELLS, explainer: Explainer = explainer) -> Question:
            samples = SampleRng(0, tuple(range(part.start, part.stop)))
            return Question.of(explainer, of, images[part], labels[part], samples, cells)

        sure = in_parts(lambda part, ask=ask: certified_radius(ask(part)), number, name)
        null = in_parts(lambda part, ask=ask: certified_radius(ask(part, fresh)), number, name)
        found = in_parts(lambda part, ask=ask: attack_radius(ask(part), STEPS), number, name)
        held = in_parts(lambda part, ask=ask: torch.tensor([broken(ask(part))]), number, name).sum(0).long().tolist()
        shares = [
            mean_estimate(in_parts(lambda part, ask=ask, r=r: certified_share(ask(part, cells=0), r), number, name))
            for r in RADII
        ]
        assert bool((sure <= found).all())
        rows.append(
            [name, middle(sure), f"{float(null.median()):.4f}", middle(found), *shares, f"{held[0]} of {held[1]}"]
        )
    heads = ["certified radius", "fresh weights", "attack radius", *(f"pairs at {r}" for r in RADII), "broken"]
    table = Table([Column(""), *(Column(h, right=True) for h in heads)], rows, "medians over images, and mean shares")
    table.show()


DRAWN: dict[str, tuple[Callable[..., Explainer], int, int]] = {  # by number of draws; a fixed one, and a long run
    "rise, logit": (lambda n: RISE(masks=n, max_batch=512), 1000, 20_000),
    "rise, probability": (lambda n: RISE(masks=n, output="probability", max_batch=512), 1000, 20_000),
    "smoothgrad": (lambda n: SmoothGrad(samples=n, max_batch=512), 1000, 5_000),
}


def shared(maps: Tensor, long: Tensor) -> Tensor:
    """The share of the top 10 % of the pixels that two maps of every image have in common."""
    top = round(0.1 * maps[0].numel())
    chosen = [m.flatten(1) >= m.flatten(1).topk(top, dim=1).values[:, -1:] for m in (maps, long)]
    return (chosen[0] & chosen[1]).sum(1).double() / top


def stopping(number: int) -> None:
    """The table of draws until decided."""
    model, images, labels = one_lipschitz()
    images, labels, rows = images[:number], labels[:number], []
    for name, (made, fixed, long) in DRAWN.items():

        def maps(
            part: slice, draws: int | str, seed: int = 0, made: Callable[..., Explainer] = made
        ) -> tuple[Tensor, dict[str, Tensor]]:
            samples = SampleRng(seed, tuple(range(part.start, part.stop)))
            return made(draws).with_details(model, images[part], labels[part], samples)

        far = in_parts(lambda part, maps=maps, long=long: maps(part, long, seed=1)[0], number, name)
        near = in_parts(lambda part, maps=maps, fixed=fixed: maps(part, fixed)[0], number, name)
        parts = [slice(start, min(start + 10, number)) for start in range(0, number, 10)]
        found = [maps(part, "auto") for part in parts]
        taken = torch.cat([next(iter(details.values())) for _, details in found])
        decided = torch.cat([details["decided"] for _, details in found])
        until, all_alike = shared(torch.cat([m for m, _ in found]), far), shared(near, far)
        saved = 1 - taken / fixed
        rows.append(
            [
                name,
                *(mean_estimate(v) for v in (until, all_alike, until - all_alike, saved, decided)),
                f"{taken.mean():.0f}",
            ]
        )
    heads = ["until decided", "fixed 1,000", "difference", "calls saved", "cells decided", "calls"]
    title = (
        f"shared top 10 % with a run of 20,000 masks (5,000 copies), {number} digits; of a map that knows nothing: .10"
    )
    Table([Column(""), *(Column(h, right=True) for h in heads)], rows, title).show()


def main() -> None:
    """One of the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["certificates", "stopping"])
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    {"certificates": certificates, "stopping": stopping}[arguments.what](arguments.images)


if __name__ == "__main__":
    main()
