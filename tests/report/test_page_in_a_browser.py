"""The page in headless Chromium: sliders, switches, sorting, keyboard, sizes of windows, and silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flashray.report.page import readable, render
from tests.support.browser import Browser, browser
from tests.support.pages import NAMES, page_of

CUT = "getComputedStyle(document.querySelector('.compare .after')).clipPath"
KEYS = "[...document.querySelectorAll('.sortable tbody th')].map(cell => cell.textContent)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report # 100%.html"
    path.write_bytes(render(page_of()))
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture
def tab(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The page, freshly opened; it must have been silent when the test ends."""
    chromium.open(page)
    yield chromium
    assert chromium.run("document.readyState") == "complete"
    assert chromium.complaints == []
    assert chromium.requests == []


def heads(tab: Browser) -> list[str]:
    found: list[str] = tab.run("[...document.querySelectorAll('.sortable thead th')].map(one => one.ariaSort)")
    return found


def column(tab: Browser, number: int) -> list[Any]:
    """What the rows of a column are sorted by, from the top."""
    cells = f"[...document.querySelectorAll('.sortable tbody tr')].map(row => row.cells[{number}])"
    found: list[Any] = tab.run(f"{cells}.map(cell => cell.dataset.v ?? cell.textContent)")
    return found


def test_the_mouse_moves_a_slider(tab: Browser) -> None:
    assert tab.run(CUT) == "inset(0px 0px 0px 50%)"
    tab.click(".compare input", across=0.2)
    moved = tab.run("Number(document.querySelector('.compare input').value)")
    assert 15 <= moved <= 25
    assert tab.run(CUT) == f"inset(0px 0px 0px {moved}%)"
    assert tab.run("document.querySelectorAll('.compare input')[1].value") == "50", "the others stay"


def test_the_keyboard_moves_a_slider(tab: Browser) -> None:
    tab.run("document.querySelector('.compare input').focus()")
    tab.press("ArrowRight", 7)
    assert tab.run(CUT) == "inset(0px 0px 0px 57%)"
    tab.press("ArrowLeft", 10)
    assert tab.run(CUT) == "inset(0px 0px 0px 47%)"
    tab.press("Home")
    assert tab.run(CUT) in ("inset(0px 0px 0px 0%)", "inset(0px)")
    tab.press("End")
    assert tab.run(CUT) == "inset(0px 0px 0px 100%)"
    assert "100 %" in tab.run("document.querySelector('.compare input').getAttribute('aria-valuetext')")


def test_pictures_are_decoded_and_fill_their_frames(tab: Browser) -> None:
    sizes = tab.run("[...document.images].map(one => [one.naturalWidth, one.complete])")
    assert all(width > 0 and complete for width, complete in sizes)
    assert tab.run("document.querySelector('.compare').clientHeight") > 100


def test_switches_show_the_crop_and_one_of_the_maps(tab: Browser) -> None:
    shown = "[...document.querySelectorAll('#p1 .compare')].map(one => getComputedStyle(one).display !== 'none')"
    seen = "[...document.querySelectorAll('#p1 .compare:not([hidden]) .map')].map(one => one.checkVisibility())"
    legends = "[...document.querySelectorAll('#p1 .legend')].map(one => one.checkVisibility())"
    assert tab.run(shown) == [True, False]
    tab.click("#p1 [data-view='1']")
    assert tab.run(shown) == [False, True]
    assert tab.run("document.querySelector('#p1 [data-view=\"1\"]').ariaPressed") == "true"
    assert tab.run("document.querySelector('#p1 [data-view=\"0\"]').ariaPressed") == "false"
    tab.click("#p1 [data-view='0']")
    assert tab.run(shown) == [True, False]
    for clicked, expected in (
        (None, [False, False]),
        ("0", [True, False]),
        ("1", [False, True]),
        ("1", [False, False]),
    ):
        if clicked is not None:
            tab.click(f"#p1 button[data-map='{clicked}']")
        assert tab.run(seen) == tab.run(legends) == expected
        pressed = "[...document.querySelectorAll('#p1 button[data-map]')].map(one => one.ariaPressed === 'true')"
        assert tab.run(pressed) == expected


def test_a_crop_is_shown_pixel_by_pixel(tab: Browser) -> None:
    tab.click("#p1 [data-view='1']")
    sizes = tab.run("[...document.querySelectorAll('#p1 .compare')].map(one => [one.clientWidth, one.clientHeight])")
    natural = tab.run("[...document.querySelectorAll('#p1 .after')].map(one => [one.naturalWidth, one.naturalHeight])")
    assert sizes[1] == natural[1] == [400, 400]


def test_headers_sort_the_table(tab: Browser) -> None:
    assert heads(tab) == ["none"] * 4
    tab.click(".sortable thead th:nth-child(3) button")
    assert heads(tab) == ["none", "none", "ascending", "none"]
    values = column(tab, 2)
    assert values[-1] == "", "what has no value comes last"
    assert [float(one) for one in values[:-1]] == sorted(float(one) for one in values[:-1])
    tab.click(".sortable thead th:nth-child(3) button")
    assert heads(tab) == ["none", "none", "descending", "none"]
    values = column(tab, 2)
    assert values[-1] == ""
    assert [float(one) for one in values[:-1]] == sorted((float(one) for one in values[:-1]), reverse=True)
    tab.click(".sortable thead th:nth-child(4) button")
    assert column(tab, 3)[-1] == "Infinity"
    assert heads(tab) == ["none", "none", "none", "ascending"]
    assert sorted(tab.run(KEYS)) == sorted(readable(name) for name in NAMES), "no row is lost"


def test_the_keyboard_sorts_the_table(tab: Browser) -> None:
    tab.run("document.querySelector('.sortable thead button').focus()")
    tab.press("Tab")
    tab.press("Enter")
    assert heads(tab) == ["none", "ascending", "none", "none"]
    assert column(tab, 1) == sorted(column(tab, 1))
    assert "Result" in tab.run("document.querySelector('[role=status]').textContent")


def test_a_row_leads_to_its_picture(tab: Browser) -> None:
    tab.click(".sortable tbody a")
    assert tab.run("location.hash") == "#p0"
    assert tab.run("document.querySelector(':target').id") == "p0"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_any_window_in_light_and_dark(chromium: Browser, page: Path, width: int, dark: bool) -> None:
    chromium.open(page, width, 800, dark)
    assert chromium.run("document.documentElement.scrollWidth") == width, "only tables scroll sideways"
    background = chromium.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(background) < 200) is dark
    small = chromium.run(
        "[...document.querySelectorAll('button')].filter(b => b.getBoundingClientRect().height < 24).length"
    )
    assert small == 0, "fingers find every button"
    assert chromium.complaints == chromium.requests == []


def test_a_foreign_script_does_not_run(chromium: Browser, page: Path, tmp_path: Path) -> None:
    """Were a name ever not escaped, the page's policy would still refuse its script and its request."""
    broken = tmp_path / "broken.html"
    bad = b"<main><script>window.harmed = 1</script><img src='http://127.0.0.1:9/x' onerror='window.harmed = 2'>"
    broken.write_bytes(page.read_bytes().replace(b"<main>", bad))
    chromium.open(broken)
    assert chromium.run("window.harmed") is None
    assert len([one for one in chromium.complaints if "Content Security Policy" in one]) >= 2
