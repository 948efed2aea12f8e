"""The page of an audit: one file that asks for nothing, with every section; its twin in JSON, and the card that points into it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lit_xai import engine
from lit_xai.callbacks import Explain
from lit_xai.data.folds import Split
from lit_xai.explainers import Centre, Image, ImageRandom, Random, Saliency, SmoothGrad
from lit_xai.metrics import Deletion, MuFidelity
from lit_xai.report import audit, evidence, pictures
from lit_xai.report.audit import Audit
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from lit_xai.store.fold import FoldStore
from PIL import Image as Picture
from rich.console import Console

from test_engine import SOURCE, job, predicted
from test_reports import context, data

NAMES = ['<script>alert(1)</script> $x$ "q"', "🐈 & co", *map(str, range(2, 10))]
EXPLAINERS = {
    "saliency": Saliency(),
    "smoothgrad": SmoothGrad(samples=3),
    "random": Random(),
    "image": Image(),
    "image_random": ImageRandom(),
    "centre": Centre(),
}
SCORES = {"deletion": Deletion(step=32), "mufidelity": MuFidelity(subsets=8)}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Audit:
    root = tmp_path_factory.mktemp("stores") / "digits-flat"
    for fold in (0, 1):
        work = predicted(job(root, fold=fold))
        engine.keep_thumbnails(work, Split.make(SOURCE.labels, 2, 0, 200))
        engine.explain(work, EXPLAINERS, SCORES, progress=False)
    ensemble = Ensemble(root)
    command = "python -m lit_xai.audit data=digits"
    return Audit.of(
        ensemble, summarise(ensemble, progress=False), command=command, classes=NAMES, seconds=(0.001, 0.002)
    )


@pytest.fixture(scope="module")
def folder(found: Audit, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("audit")
    assert [f.name for f in audit.write([found], out)] == ["audit.html", "audit.json", "audit.md"]
    return out


class Page(HTMLParser):
    """Tags with their attributes, and the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "audit.html").read_text())


def test_the_page_asks_for_nothing_outside_and_is_small(page: Page, folder: Path) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    text = (folder / "audit.html").read_text()
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(text) < 3_000_000 * len(EXPLAINERS) * 2 / (13 * 5)


def test_the_page_runs_its_own_script_and_no_other(folder: Path) -> None:
    text = (folder / "audit.html").read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]  # type: ignore[index]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_names_from_data_stand_on_the_page_as_text(page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 1
    texts = " ".join(page.texts)
    assert all(name in texts for name in NAMES[:2])
    assert any(attributes.get("data-class") == NAMES[0] for _, attributes in page.tags)


def test_every_section_is_there_and_every_link_leads_somewhere(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    names = ["verdict", "audited", "evidence", "slices", "cases", "leaderboard", "limits"]
    assert sections == [*(f"a0-{n}" for n in names), "glossary"]
    for tag, attributes in page.tags:
        if tag == "a":
            assert str(attributes["href"])[1:] in ids
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_pictures_have_texts_and_no_answer_is_a_colour_alone(page: Page, folder: Path) -> None:
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "img":
            assert attributes["alt"]
    for answer in re.findall(
        r'class="s \w+"[^>]*>(.*?)</(?:a|span)>\s*(?:</td>|<small>)', (folder / "audit.html").read_text()
    ):
        assert re.search(
            r'aria-hidden="true">\S</span> (shown|not shown|contradicted|not applicable|trust|trust with care|do not trust)',
            answer,
        )


def test_the_cases_show_the_image_and_the_maps_of_all_folds(found: Audit, page: Page) -> None:
    uris = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(uris) == len(found.plain["cases"]) > 0
    picture = Picture.open(io.BytesIO(base64.b64decode(str(uris[0]).split(",")[1])))
    assert picture.size == (3 * 64 + 2 * 2, 64)  # one image and two folds


def test_pictures_keep_within_their_budget_and_methods_take_turns(found: Audit) -> None:
    cases = found.plain["cases"]
    every = pictures.sprites(found.ensemble, cases)
    budget = sum(len(strip.uri) for strip in every.values()) // 2
    kept = pictures.sprites(found.ensemble, cases, budget)
    assert 0 < sum(len(strip.uri) for strip in kept.values()) <= budget
    number = [sum(explainer == e for e, _ in kept) for explainer in ("saliency", "smoothgrad")]
    assert abs(number[0] - number[1]) <= 1


def resolved(document: Any, pointer: str) -> Any:
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def test_every_number_of_the_card_is_where_it_says(folder: Path) -> None:
    document = json.loads((folder / "audit.json").read_text())
    card = (folder / "audit.md").read_text()
    told = re.findall(r"(\S+)(?: \[[^\]]*\])? \(`(/[^`]*)`\)", card)
    assert len(told) > 30
    for text, pointer in told:
        value = resolved(document, pointer)
        value = value["value"] if isinstance(value, dict) and "value" in value else value
        if isinstance(value, float):
            assert float(text.replace(",", "")) == pytest.approx(value, abs=6e-4)
    assert "<script" not in card


def test_the_twin_holds_the_verdict_its_conditions_and_every_number(found: Audit, folder: Path) -> None:
    document = json.loads((folder / "audit.json").read_text())
    (one,) = document["audits"]
    assert document["schema"] == audit.SCHEMA
    assert one["verdict"]["sentence"] == found.verdict.sentence
    assert [c["key"] for c in one["conditions"]] == [c.key for c in found.verdict.conditions]
    for row in found.summary.rows:
        for column, e in row.estimates.items():
            assert one["rows"][row.explainer][column]["value"] == (None if e.value != e.value else e.value)
    assert one["network"]["checkpoints"] == {
        str(f): p.meta["checkpoint"] for f, p in found.ensemble.predictions.items()
    }
    assert one["command"] == "python -m lit_xai.audit data=digits"


def test_a_page_of_little_says_what_is_missing(tmp_path: Path) -> None:
    """One predictor, no labels, no scores, no method that asks the model."""
    on, store = context(data(labelled=False, probes_per_fold=12)), FoldStore(tmp_path / "bare" / "fold=0")
    Explain({"random": Random()}, {}, store, progress=False).run(on)
    nothing = summarise(Ensemble(tmp_path / "bare"), progress=False)
    Explain({"saliency": Saliency(), "random": Random()}, {}, store, progress=False).run(on)
    little = summarise(Ensemble(tmp_path / "bare"), progress=False)
    audits = [Audit.of(Ensemble(tmp_path / "bare"), summary) for summary in (nothing, little)]
    audit.write(audits, tmp_path)
    screen = io.StringIO()
    audit.show(audits, Console(file=screen, width=160))
    assert audits[0].verdict.sentence == "On digits, no method explains bare: there is nothing to judge."
    assert (
        audits[1].verdict.answers["saliency"]["persists"].reason
        == "there is one predictor alone: persistence needs those of other folds"
    )
    texts = " ".join(Page((tmp_path / "audit.html").read_text()).texts)
    for missing in (
        "No cases",
        "No score has a value a probe",
        "there is one predictor alone: persistence needs those of other folds",
    ):
        assert missing in texts
    for empty in ("accuracy", "chance"):
        assert empty not in screen.getvalue()
    assert "the images have no labels" in (tmp_path / "audit.md").read_text()


# ---------------------------------------------------------------------------------------------------------------- parts


def test_slices_of_one_kind_hold_every_probe_once_and_the_mean_over_them_is_the_table(found: Audit) -> None:
    e = next(row for row in found.summary.rows if row.explainer == "saliency").estimates["deletion"]
    for by in ("fold", "class", "prediction", "confidence"):
        of = [s for s in found.plain["slices"] if s["by"] == by]
        assert sum(s["n"] for s in of) == 20
        mean = sum(s["n"] * s["scores"]["deletion"]["saliency"]["value"] for s in of) / 20
        assert mean == pytest.approx(e.value, abs=1e-9)


def test_a_slice_of_wrong_predictions_holds_those_of_the_predictor_that_never_saw_them(found: Audit) -> None:
    e, wrong = found.ensemble, []
    for sample in found.summary.probes["saliency"]:
        home = e.predictions[int(e.split.fold(sample[None]))]
        wrong += [int(sample)] if not bool(home.right(sample[None])) else []
    parts = evidence.parts(e, found.summary.probes["saliency"])
    assert sorted(parts["prediction", "wrong"].tolist()) == sorted(wrong)


@pytest.mark.parametrize("name", sorted(EXPLAINERS))
def test_what_a_map_costs_is_told_from_its_description_alone(found: Audit, name: str) -> None:
    cost, passes = found.plain["costs"][name], EXPLAINERS[name].passes(16, 16)
    assert (cost["forward"], cost["backward"]) == tuple(passes)
    assert cost["seconds"] == pytest.approx(0.001 * passes.forward + 0.002 * passes.backward)


def test_a_method_of_the_users_own_has_no_known_cost() -> None:
    assert evidence.passes_of({"name": "Mine", "masks": 20}, 16, 16) is None
    assert evidence.passes_of({"name": "RISE", "masks": "many"}, 16, 16) is None


def test_the_terminal_says_the_verdict_first_and_leaves_out_what_is_empty(found: Audit) -> None:
    screen = io.StringIO()
    audit.show([found], Console(file=screen, width=220))
    lines = screen.getvalue().splitlines()
    assert lines[0].split(" ", 1)[1] == found.verdict.headline
    assert lines[1] == found.verdict.sentence
    assert "reco_auc" not in next(line for line in lines if "deletion ↓" in line)  # there are no disagreements


# -------------------------------------------------------------------------------------------------------------- browser


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def title_of(file: Path, width: int = 1400, dark: bool = False) -> str:
    """The title of a page once its scripts have run."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [
        f"--user-data-dir={file.parent / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]
    command += [f"--window-size={width},2000", "--virtual-time-budget=20000", "--dump-dom", f"file://{file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    return html.unescape(found[1]) if found else done.stderr


def with_script(folder: Path, script: str) -> str:
    """The page with a script more; its own policy lets none run but its own."""
    text = (folder / "audit.html").read_text().replace("script-src 'sha256-", "script-src 'unsafe-inline' 'x-", 1)
    return text.replace("</body>", f"<script>{script}</script></body>")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_sorts_filters_and_stays_within_420_pixels(folder: Path, tmp_path: Path) -> None:
    check = """
    const faults = [];
    const table = document.querySelector('table.answers'), names = () => [...table.tBodies[0].rows].map(r => r.cells[0].textContent);
    table.querySelector('thead button').click();
    if (String(names()) !== String([...names()].sort())) faults.push('sort ' + names());
    table.querySelector('thead button').click();
    if (table.tHead.rows[0].cells[0].getAttribute('aria-sort') !== 'descending') faults.push('aria-sort');
    const tools = document.querySelector('.tools[data-of=a0-case-list]'), select = tools.querySelector('select');
    select.value = 'saliency'; tools.dispatchEvent(new Event('input'));
    const seen = [...document.querySelectorAll('.case')].filter(c => !c.hidden).map(c => c.dataset.method);
    if (!seen.length || seen.some(m => m !== 'saliency')) faults.push('filter ' + seen);
    if (document.documentElement.scrollWidth > innerWidth) faults.push('wide ' + document.documentElement.scrollWidth);
    if (innerWidth > 420) faults.push('window ' + innerWidth);
    parent.document.title = faults.join('; ') || 'well';
    """
    (tmp_path / "page.html").write_text(with_script(folder, check))
    (tmp_path / "frame.html").write_text('<iframe src="page.html" width="420" height="900"></iframe>')
    assert title_of(tmp_path / "frame.html") == "well"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or shutil.which("npm") is None, reason="no Chromium, or no npm")
def test_an_accessibility_checker_finds_nothing(folder: Path, tmp_path: Path) -> None:
    """axe-core, from npm, in light and dark, with everything opened."""
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "axe-core@4.10.3"]
    if subprocess.run(install, capture_output=True, timeout=120).returncode:
        pytest.skip("npm is out of reach")
    axe = (tmp_path / "node_modules" / "axe-core" / "axe.min.js").read_text().replace("</script", "<\\/script")
    run = """
    document.querySelectorAll('details').forEach(d => { d.open = true; });
    axe.run().then(r => { document.title = 'found: ' + r.violations.map(v => v.id + ' ' + v.nodes[0].html).join('; '); });
    """
    (tmp_path / "page.html").write_text(with_script(folder, axe + run))
    for dark in (False, True):
        assert title_of(tmp_path / "page.html", dark=dark) == "found: "
