"""The documentation: links, anchors, commands and options in it, and the quickstart that is run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from flashray.cli import VERBS
from flashray.errors import ConfigError
from flashray.help_texts import HELP, OVERVIEW
from tests.support.cli_page import BLOCK, PAGE, VERB_OPTIONS, rendered

ROOT = Path(__file__).resolve().parents[1]
LOG, RESULTS = ROOT / "docs" / "log.md", ROOT / "docs" / "results"
PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {LOG})]
# of the log and the results, which quote commands of earlier versions, only the links are checked
LINKED = [*PAGES, *([LOG] if LOG.exists() else []), *sorted(RESULTS.rglob("*.md"))]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        name, n = slug, 0
        while name in found:
            n += 1
            name = f"{slug}-{n}"
        found.add(name)
    return found


def not_there_yet(target: Path) -> bool:
    """The log and the results may not be there yet; links to them are checked once they are."""
    return (target == LOG and not LOG.exists()) or (target.is_relative_to(RESULTS) and not RESULTS.exists())


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not_there_yet(target):
            continue
        assert target.exists(), f"{link} leads nowhere"
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target), f"{link}: {target.name} has no such heading"


def commands(text: str) -> list[list[str]]:
    """The command lines in fenced blocks that begin with `flashray`, generated blocks left out."""
    found = []
    for block in FENCE.findall(BLOCK.sub("", text)):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ")
            if line.startswith("flashray "):
                found.append(shlex.split(line, comments=True)[1:])
    return found


def check_command(words: list[str]) -> None:
    """Refuse an unknown verb or option; nothing is run."""
    verb, *rest = words
    if verb.startswith("--"):
        assert verb in ("--help", "--version")
        return
    assert verb in VERBS, f"flashray {verb}"
    if verb == "train":
        verb, *rest = [f"train {rest[0]}", *rest[1:]]
    options, positionals, several = VERB_OPTIONS[verb]
    rest = [word for word in rest if word not in ("--help", "--help-all")]
    try:
        options.normalise(rest, positionals, several)
    except ConfigError as error:
        pytest.fail(f"flashray {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_have_known_verbs_and_options(page: Path) -> None:
    for words in commands(page.read_text()):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_scripts_that_are_named_exist(page: Path) -> None:
    for script in re.findall(r"python (jobs/[a-z_]+\.py)", page.read_text()):
        assert (ROOT / script).is_file(), script


def test_the_examples_of_the_help_are_accepted() -> None:
    for verb, text in HELP.items():
        examples = [line.strip() for line in re.split(r"^examples?:", text, flags=re.MULTILINE)[1].splitlines()]
        found = [line for line in examples if line]
        assert found
        for line in found:
            assert line.startswith(f"flashray {verb} ")
            check_command(shlex.split(line)[1:])


def test_the_options_that_the_help_names_exist() -> None:
    for verb, text in HELP.items():
        kinds = ["train prior", "train severity"] if verb == "train" else [verb]
        for name in set(re.findall(r"--([a-z][\w.-]*\w)", text)) - {"help", "help-all"}:
            refused = []
            for kind in kinds:
                try:
                    VERB_OPTIONS[kind][0].resolve(name.removeprefix("no-"))
                except ConfigError:
                    refused.append(kind)
            assert len(refused) < len(kinds), f"flashray {verb}: --{name}"


def test_the_help_names_every_verb_and_fits_a_screen() -> None:
    assert set(HELP) == set(VERBS)
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", OVERVIEW, re.MULTILINE)
    for text in (OVERVIEW, *HELP.values()):
        assert len(text.splitlines()) <= 40
        assert max(map(len, text.splitlines())) <= 110


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert text == rendered(text), "run python -m tests.support.cli_page"


def test_every_option_says_what_it_means() -> None:
    rows = re.findall(r"^\| `(--[^`]+)` \|[^|]*\| *(.*?) *\|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) > 100
    assert [option for option, meaning in rows if not meaning] == []


def test_the_diffs_of_contributing_apply() -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    found = re.findall(
        r"^```diff\n(.*?)^```", (ROOT / "docs" / "contributing.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(found) == 3
    for diff in found:
        checked = subprocess.run(["git", "apply", "--check", "-"], input=diff, cwd=ROOT, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_paths_of_one_machine(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(work|home|root|Users|mnt)/", page.read_text())


def test_the_quickstart_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert Image.open("restored.png").size == (512, 512)
