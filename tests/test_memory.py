"""How many images go into a model call, and what happens where they do not fit."""

from __future__ import annotations

import json

import pytest
import torch
from lit_xai.cache import SHARE, share_of_memory
from lit_xai.calls import AUTO, images_a_call
from lit_xai.calls.memory import MOST, power_of_two
from lit_xai.core import TrainedOn
from lit_xai.data.images import InMemory
from lit_xai.engine import Job, Tasks, compute, plan
from lit_xai.engine.sizes import sized
from lit_xai.errors import UsageError
from lit_xai.explainers import RISE, AveragedGradient, IntegratedGradients, Lime, MeaningfulPerturbation, SlidingPatch
from lit_xai.explainers.gradient import SmoothGrad
from lit_xai.fillers.constant import Colour
from lit_xai.metrics.fidelity import Deletion, Insertion, MuFidelity
from lit_xai.segments import Grid
from lit_xai.store.fold import FoldStore
from torch import Tensor, nn

from conftest import seeded


class Narrow(nn.Module):
    """A linear model on a device that has no room for more than `room` images; `asked` are the sizes of its calls."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.asked = room, []
        self.weight = nn.Parameter(torch.randn(4, 3, 12, 12, generator=seeded(2)))

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.einsum("bchw,kchw->bk", x, self.weight)


GRID = Grid(3)
EXPLAINERS = [
    RISE(40),
    IntegratedGradients(20),
    SmoothGrad(20),
    Lime(GRID, samples=60),
    SlidingPatch(3, 3, Colour(0.0), scale=False, incremental="never"),
    AveragedGradient(GRID, points=12),
    MeaningfulPerturbation(steps=3),
]
SCORES = [MuFidelity(30), Deletion(filler=Colour(0.0)), Insertion()]


@pytest.mark.parametrize("explainer", EXPLAINERS, ids=lambda e: type(e).__name__)
def test_where_calls_do_not_fit_half_of_them_give_the_same_map(explainer, rgb, targets, caplog):
    few = 1 if isinstance(explainer, MeaningfulPerturbation) else 7
    whole = explainer(Narrow(10**6), rgb, targets)
    found = explainer(Narrow(few), rgb, targets)
    assert torch.allclose(found, whole, atol=1e-5 * float(whole.abs().max()))
    assert "images a model call do not fit (CUDA out of memory" in caplog.text


@pytest.mark.parametrize("score", SCORES, ids=lambda s: type(s).__name__)
def test_a_score_is_the_same_where_calls_do_not_fit(score, rgb, targets):
    maps = rgb.mean(1)
    whole = score(Narrow(10**6), rgb, maps, targets)
    assert torch.allclose(score(Narrow(5), rgb, maps, targets), whole, atol=1e-5)


def test_later_calls_begin_with_what_did_fit(rgb, targets):
    model = Narrow(20)
    RISE(40, max_batch=64)(model, rgb, targets)
    assert model.asked[:3] == [64, 32, 16]
    model.asked.clear()
    RISE(40, max_batch=64)(model, rgb, targets)
    assert max(model.asked) == 16


def test_where_one_image_does_not_fit_it_says_so(rgb, targets):
    with pytest.raises(torch.OutOfMemoryError):
        RISE(4)(Narrow(0), rgb, targets)


@pytest.mark.parametrize("wrong", [0, -1, True, "many"])
def test_a_size_that_is_none_is_refused(wrong, rgb, linear):
    with pytest.raises(UsageError, match="max_batch must be at least 1, or auto, found"):
        images_a_call(linear, rgb, wrong)


def test_on_the_cpu_auto_is_64_and_less_of_large_images(linear):
    assert images_a_call(linear, torch.zeros(2, 3, 32, 32)) == 64
    assert images_a_call(linear, torch.zeros(2, 3, 224, 224)) == 16
    assert images_a_call(linear, torch.zeros(2, 3, 32, 32), 200) == 200


# of a call that needs 100 bytes and 10 an image
@pytest.mark.parametrize(
    ("room", "size"), [(0, 1), (230, 1), (2 * (100 + 640), 64), (2 * (100 + 1279), 64), (1e9, MOST)]
)
def test_a_power_of_two_of_images_takes_half_of_the_room(room, size):
    assert power_of_two({8: 180, 16: 260}, int(room)) == size


def test_a_call_whose_need_does_not_grow_is_not_taken_to_need_nothing():
    assert power_of_two({8: 2**30, 16: 2**30}, 2**36) == 512


@pytest.mark.parametrize("text", ["0", "1.5", "half", "nan", "-.2"])
def test_a_share_of_the_memory_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv(SHARE, text)
    with pytest.raises(UsageError, match="is no share of a device's memory"):
        share_of_memory()


# ------------------------------------------------------------------------------------------------------------- in a fold


PIXELS = InMemory(torch.randint(256, (10, 3, 12, 12), generator=seeded(1), dtype=torch.uint8))


def job_in(folder, model: nn.Module) -> Job:
    samples = torch.arange(8)
    store, trained_on = FoldStore(folder / "fold=0"), TrainedOn((0.5,) * 3)
    return Job(model, PIXELS, samples, samples % 4, store, {"folds": 2}, trained_on, batch_size=4, shard_size=4)


def test_the_size_is_kept_with_the_fold_and_all_its_parts_use_it(tmp_path):
    model = Narrow(10**6)
    compute(Tasks.of(job_in(tmp_path, model), {"rise": RISE(20)}, {}, (0, 2)), progress=False)
    file = tmp_path / "fold=0" / "plans" / "calls-cpu.json"
    assert json.loads(file.read_text()) == {"device": "cpu", "max_batch": 64}
    assert max(model.asked) == 64
    file.write_text(json.dumps({"device": "cpu", "max_batch": 5}))  # as another part found it
    model.asked.clear()
    tasks = Tasks.of(job_in(tmp_path, model), {"rise": RISE(20)}, {"insertion": Insertion()}, (1, 2))
    assert "5 images a call" in str(plan(tasks, enough=0.01))
    model.asked.clear()
    compute(tasks, progress=False)
    assert max(model.asked) == 5


@pytest.mark.parametrize("text", ["", "[]", '{"max_batch": 0}', '{"max_batch": "x"}'])
def test_a_damaged_size_is_found_out_anew(text, tmp_path):
    file = tmp_path / "fold=0" / "plans" / "calls-cpu.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    compute(Tasks.of(job_in(tmp_path, Narrow(10**6)), {"rise": RISE(20)}, {}, (0, 2)), progress=False)
    assert json.loads(file.read_text())["max_batch"] == 64


def test_numbers_that_somebody_chose_stay():
    assert sized(RISE(max_batch=7), 64).max_batch == 7
    assert sized(RISE(max_batch=AUTO), 64).max_batch == 64
