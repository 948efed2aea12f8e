"""README and docs/: links lead somewhere, names are those of the code, commands are read as written, the site is whole."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "jobs" / "README.md", ROOT / "checkpoints" / "README.md"]
PAGES += [p for p in sorted((ROOT / "docs").rglob("*.md")) if "/_" not in str(p)]
CHANGES = ROOT / "CHANGELOG.md"  # it names what was
EXAMPLES = {"blurred_gradient", "small_painter", "my_measures"}  # what pages on writing one's own let a reader write
OWN = ("train", "explain", "evaluate", "audit", "degradation")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


@cache
def text_of(page: Path) -> str:
    return page.read_text()


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", text_of(page))


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub and MyST call the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-"))
    return found


def broken(page: Path) -> list[str]:
    """Links of a page to files or headings that are not there."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", [*PAGES, CHANGES], ids=named)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken(page) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A *heading*, with `code`: [x](y.md)\n")
    (tmp_path / "a.md").write_text(
        "# Top\n[a](there.md) [b](there.md#a-heading-with-code-x) [c](#top) [d](http://elsewhere)\n`[e](f)`\n"
        "[g](gone.md) [h](there.md#gone) [i](#gone)\n```text\n# no heading\n[j](k)\n```\n[l](#no-heading)\n"
    )
    assert broken(tmp_path / "a.md") == ["gone.md", "there.md#gone", "#gone", "#no-heading"]


def test_every_page_of_docs_is_listed_where_a_reader_begins() -> None:
    start, tree = text_of(ROOT / "docs" / "README.md"), (ROOT / "docs" / "index.rst").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "README.md":
            assert f"]({page.name})" in start, f"docs/README.md lacks {page.name}"
            assert re.search(rf"^   {page.stem}$", tree, re.M), f"docs/index.rst lacks {page.stem}"


def test_tests_and_files_that_pages_name_are_there() -> None:
    tests = "\n".join(f.read_text() for f in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"def (test_\w+)", tests))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", text_of(page)):
            assert name in defined, f"{named(page)}: {name}"
        for path in re.findall(r"\bpython ([\w/]+\.py)\b", text_of(page)):
            assert (ROOT / path).exists(), f"{named(page)}: {path}"
        for path in re.findall(r"`((?:docs|jobs|configs|tests|lit_xai|benchmarks|tools)/[\w./-]+)`", text_of(page)):
            mine = Path(path).stem in EXAMPLES or path.startswith(("docs/_build", "benchmarks/results", "jobs/logs"))
            assert mine or (ROOT / path).exists(), f"{named(page)}: {path}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=named)
def test_a_decision_is_kept_where_its_line_says(page: Path) -> None:
    for line in text_of(page).splitlines():
        cells = line.split(" | ")
        for place in re.findall(r"`([\w.]+)`", cells[-2]) if len(cells) >= 4 else ():
            parts = place.split(".")
            files = [ROOT / "lit_xai" / Path(*parts[:n]) for n in range(len(parts), 0, -1)]
            both = ((n, f) for n, path in enumerate(files) for f in (path.with_suffix(".py"), path / "__init__.py"))
            n, file = next(((n, f) for n, f in both if f.exists()), (len(parts), None))
            assert file is not None, place
            rest = parts[len(parts) - n :]
            assert all(re.search(rf"\b{name}\b", file.read_text()) for name in rest), place


def shell(page: Path) -> str:
    """The commands of a page as lines for bash: blocks that assign variables whole, of the others what begins with python."""
    lines = []
    indented = re.findall(r"(?:^(?: {4}.*)?\n)+", prose(page), re.M)
    for block in [b for language, b in FENCED.findall(text_of(page)) if language in ("", "bash", "text")] + indented:
        if re.search(r'^[A-Z]+="', block, re.M):
            lines.append(block)
        else:
            lines += [line for line in map(str.strip, block.splitlines()) if line.startswith("python ")]
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        found = re.fullmatch(rf"(?:python -m )?(?:lit_xai\.)?({'|'.join(OWN)}) (.*)", span)
        if found and ("=" in found[2] or found[2].startswith("--") or found[2].isupper()):
            lines.append(f"python -m lit_xai.{found[1]} {found[2]}")
    return re.sub(r"<([\w/]+)>", r"\1", "\n".join(lines)).replace("=...", "=x")


@cache
def commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """Page, module and arguments of every command, parted into words by bash itself."""
    script = "python() { printf '%s\\n' \"$PAGE\" \"$@\"; printf '\\f\\n'; }\n"
    script += "\n".join(f"PAGE={named(page)}\n{shell(page)}" for page in PAGES)
    done = subprocess.run(
        ["/bin/bash", "-e"], input=script, capture_output=True, text=True, env={"PATH": ""}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = [call.strip("\n").split("\n") for call in done.stdout.split("\f\n")[:-1]]
    return [(page, words[1], tuple(words[2:])) for page, *words in found if words[0] == "-m"]


def composed(name: str, overrides: list[str]) -> str:
    """What stands against a command; empty if nothing does."""
    from lit_xai.cli.compose import CommandError, compose

    launches = importlib.util.find_spec("submitit") is not None  # the extra lit_xai[slurm]
    try:
        compose(name, [o for o in overrides if launches or o != "launcher=slurm"])
    except CommandError as e:
        return str(e)
    return ""


def read(name: str, arguments: tuple[str, ...]) -> list[str]:
    """The overrides of a command, as the command itself reads them; places that stand for a reader's own go."""
    from lit_xai.cli.command import parted, quoted
    from lit_xai.cli.schema import with_lists

    mine = [a for a in arguments if a not in ("DIR", "PATH") and not a.removesuffix(".py").endswith(tuple(EXAMPLES))]
    overrides, flags = parted(mine)
    if {"--help", "--status"} & set(flags):
        return []
    return with_lists([quoted(o, bool({"-m", "--multirun"} & set(flags))) for o in overrides])


def batches(calls: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Command lines put together where no choice is in another's way: a composition costs a tenth of a second.

    A command joins one that builds on it.
    """
    from lit_xai.cli.keys import COMMANDS
    from lit_xai.cli.schema import GROUPS, LISTS, every

    everything = {g: every(g) for g in LISTS}
    found: list[tuple[str, dict[str, str]]] = []
    for name, overrides in sorted(calls, key=lambda call: (-len(COMMANDS[call[0]].__mro__), -len(call[1]))):
        mine = dict(o.split("=", 1) for o in overrides if o not in everything.values())
        for group, least in (("explainer", "random"), ("score", "deletion")):
            inside = {k.split(".")[1] for k in mine if k.startswith(f"{group}.")}
            if everything[group] in overrides:
                mine[group] = f"[{','.join(sorted(inside) or [least])}]"
        for other, theirs in found:
            if issubclass(COMMANDS[other], COMMANDS[name]) and not any(
                in_the_way(g, mine, theirs) for g in GROUPS if g not in LISTS
            ):
                for key, value in mine.items():
                    both = [v.strip("[]") for v in (theirs.get(key), value) if v] if key in LISTS else []
                    union = ",".join(dict.fromkeys(",".join(both).split(",")))
                    theirs[key] = f"[{union}]" if both else theirs.get(key, value)
                break
        else:
            found.append((name, mine))
    return [(name, [f"{k}={v}" for k, v in mine.items()]) for name, mine in found]


def in_the_way(group: str, a: dict[str, str], b: dict[str, str]) -> bool:
    """Whether two commands choose otherwise, or one sets what is inside of another's choice."""
    if group in a and group in b:
        return a[group] != b[group]
    other = b if group in a else a
    inside = ("data.", "model.", "trainer.") if group == "experiment" else (f"{group}.",)
    return (group in a or group in b) and any(key.startswith(inside) for key in other)


def test_every_command_that_is_written_is_one() -> None:
    from lit_xai.cli.keys import keys_of
    from lit_xai.cli.schema import GROUPS

    calls = []
    known = {name: {*GROUPS, "hydra", *keys_of(name)} for name in OWN}
    for page, module, arguments in commands():
        package, _, name = module.partition(".")
        assert package in ("lit_xai", "benchmarks"), f"{page}: {module}"
        if package == "lit_xai":
            assert name in OWN, f"{page}: {module}"
            calls.append((page, name, read(name, arguments)))
            keys = {re.split(r"[.@=]", o.lstrip("+~"))[0] for o in calls[-1][2]}
            assert keys <= known[name], f"{page}: {name} {keys - known[name]}"
    assert len(calls) > 60
    if any(composed(name, overrides) for name, overrides in batches([call[1:] for call in calls])):
        assert [(page, o, why) for page, name, o in calls if (why := composed(name, o))] == []  # which one is it?


@pytest.mark.slow
def test_every_command_is_composed_by_itself() -> None:
    wrong = {}
    for page, module, arguments in commands():
        package, _, name = module.partition(".")
        if package == "lit_xai" and (found := composed(name, read(name, arguments))):
            wrong[page, module, *arguments] = found
    assert wrong == {}


def test_choices_and_keys_that_pages_name_are_there() -> None:
    from lit_xai.cli.complete import complete
    from lit_xai.cli.schema import GROUPS, config_dir, options

    known = {group: options(group) for group in GROUPS}
    files = {group: (config_dir() / group).rglob("*.yaml") for group in GROUPS}
    yamls = {
        group: "\n".join(yaml.dump(complete(yaml.safe_load(f.read_text()))) for f in found)
        for group, found in files.items()
    }
    key = re.compile(rf"(?<![\w.+])({'|'.join(GROUPS)})((?:\.\w+)*)=(\[[\w/,]+\]|[\w/]+)")
    seen = 0
    for page in PAGES:
        spans = [s for s in re.findall(r"`([^`\n]+)`", prose(page)) if "(" not in s or "lit_xai." in s]
        for group, path, value in key.findall(" ".join(spans)):
            if page.stem in ("new_explainer", "new_sampler") or value == "null":
                continue
            leaf, seen = path.rpartition(".")[2], seen + 1
            if leaf:
                assert re.search(rf"\b{leaf}:", yamls[group]), f"{named(page)}: {group}{path}"
            else:
                lacking = set(value.strip("[]").split(",")) - {*known[group]}
                assert not lacking, f"{named(page)}: {group}={','.join(lacking)}"
    assert seen > 100


LOADS = re.compile(
    r"""<(?:script|img|iframe|source|embed|audio|video)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
    r"""|@import[^;]*|url\(\s*["']?(?:https?:)?//[^)]*\)""",
    re.I,
)


def test_what_a_page_would_load_from_elsewhere_is_found() -> None:
    loads = [
        '<script async src="https://cdn/x.js"></script>',
        "<img alt='' src='//host/x.png'>",
        "url(http://host/font)",
    ]
    loads += ['<link rel="stylesheet" href="https://fonts/css">', '@import "https://fonts/css"']
    assert all(LOADS.search(text) for text in loads)
    assert not LOADS.search(
        '<a href="https://host">x</a> <img src="_images/a.png"> <script src="_static/x.js"></script>'
    )


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra lit_xai[docs]")
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        tmp_path / "trees",
        ROOT / "docs",
        tmp_path / "site",
    ]
    done = subprocess.run(list(map(str, build)), capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    site = tmp_path / "site"
    pages = {str(f.relative_to(site)): f.read_text() for f in site.rglob("*") if f.suffix in (".html", ".css")}
    assert {"index.html", "tutorial.html", "clusters.html", "_reference/commands.html"} <= pages.keys()
    assert {name: found[0] for name, text in pages.items() if (found := LOADS.search(text))} == {}
    assert "explainer.rise" not in pages["_reference/commands.html"]
    assert "RISE" in pages["_reference/explainers.html"]
    assert "lit_xai.audit PATH" in pages["_reference/commands.html"]


# what a command needs that the next test has not, and what runs it
ELSEWHERE = {
    "FILE": "weights or an archive: test_pretrained.py, test_own_data.py",
    "FOLDER": "weights: test_pretrained.py",
    "model=pretrained": "weights: test_pretrained.py",
    "data=medmnist": "an archive: test_own_data.py",
    "fashion_mnist": "a data set that is fetched",
    "cifar10": "a data set that is fetched",
    "paper_": "a data set that is fetched, or trained samplers",
    "label_errors=": "the extra labels: test_label_errors.py",
    "launcher=slurm": "a cluster: tests/slurm",
    "name=fashion": "a cluster: tests/slurm",
    "name=mine": "a folder of explain_folds: test_docs.py",
    "small_painter": "a sampler of one's own: test_docs.py",
    "my_measures": "a measure of one's own: test_docs.py",
    "samplers=": "trained samplers: test_samplers_command.py",
    "model=inpainter": "minutes: test_generative_commands.py",
    "model=ddim": "minutes: test_generative_commands.py",
    "generative_": "trained samplers: test_generative_commands.py",
    "pomelo": "trained samplers: test_generative_commands.py",
    "patch_sampler": "minutes: test_information_commands.py",
    "information/": "trained samplers: test_information_commands.py",
    "sanity=labels": "a predictor of random labels: test_information_commands.py",
    "experiment=degradation": "an ensemble a level: test_commands.py",
    "experiment=robustness": "many explainers: test_perturbation_commands.py",
    "experiment=shapes": "large counts: test_perturbation_commands.py",
    "compare=[a,b]": "folders of a reader's own: test_commands.py",
    "dashboard=true": "the extra dashboards: test_dashboard.py",
    "data.plant": "test_plant.py",
}


def test_what_is_run_elsewhere_has_its_tests() -> None:
    named_files = re.findall(r"test_\w+\.py|tests/\w+", " ".join(ELSEWHERE.values()))
    assert [f for f in named_files if not (ROOT / "tests" / f.removeprefix("tests/")).exists()] == []


LITTLE = ["data.probes_per_fold=3", "checks=2", "model.network.width=4", "trainer.max_epochs=1"]
LITTLE += [
    "explainer=[saliency,random]",
    "score=[deletion]",
    "batch_size=8",
    "shard_size=8",
    "logger=none",
    "progress=false",
]
OF_DATA = {
    "digits": ["data.train_subset=240", "data.size=16"],
    "shapes": ["data.samples=150", "data.test=40", "data.size=16"],
    "folder": ["data.size=16", "data.resize=16", "data.num_workers=0"],
}


def little(name: str, arguments: list[str]) -> list[str]:
    """Options that make a command a matter of seconds, but for those that it gives itself or reads from its folder."""
    keys = {a.split("=", 1)[0] for a in arguments}
    if "image" in keys or "dry_run" in keys or "--help" in arguments or "--status" in arguments:
        return []
    if {"name", "compare"} & keys and name != "train" and "experiment" not in keys:
        return ["progress=false", "logger=none"]
    data = next((a.removeprefix("data=") for a in arguments if a.startswith("data=")), "digits")
    data = "shapes" if "experiment" in keys else "folder" if any(a.startswith("/") for a in arguments) else data
    here = [o for o in [*LITTLE, *OF_DATA[data]] if o.split("=", 1)[0] not in keys]
    return [*here, *(["test_probes=24"] if "probes=test" in arguments else [])]


@pytest.mark.slow
def test_the_commands_of_the_pages_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from test_commands import run
    from test_own_pictures import draw_pictures

    monkeypatch.chdir(tmp_path)
    draw_pictures(tmp_path / "DIR", 16)
    Image.new("RGB", (20, 20), "red").convert("L").save("photo.jpg")
    done: set[tuple[str, ...]] = set()
    for page, module, arguments in commands():
        package, _, name = module.partition(".")
        if package != "lit_xai" or (name, *arguments) in done or any(w in a for w in ELSEWHERE for a in arguments):
            continue
        done.add((name, *arguments))
        mine = [re.sub(r"(?<==)x$|(?<=checkpoints/)name\b", "digits-resnet18", a) for a in arguments]
        mine = [str(tmp_path / "DIR") if a in ("DIR", "PATH") else a for a in mine]
        if mine == ["--status"]:
            mine += ["name=digits-resnet18"]
        result = run(name, tmp_path / "checkpoints", *mine, small=little(name, mine), check=False)
        assert result.returncode == 0, f"{page}: {name} {mine}: {result.stderr[-2000:]}"
    assert len(done) > 25
