"""The page as HTML: everything is escaped, nothing is asked of a network, and it stays small."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import torch

from flashray.report.page import Column, Gallery, Page, Picture, Table, readable, render
from flashray.report.pictures import Map, views
from tests.support.pages import NAMES, page_of

VOID = {"meta", "link", "img", "input", "br", "rect"}
SCRIPTS = 1


class Parsed(HTMLParser):
    """Elements, texts and attributes; refuses elements that are not closed in their order."""

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.comments: list[str] = []
        self.feed(page.decode())
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def test_names_of_files_are_texts_and_nothing_else() -> None:
    hostile, harmless = Parsed(render(page_of())), Parsed(render(page_of([f"{n}.png" for n in range(len(NAMES))])))
    # the same elements with the same attributes, whatever the names are; long names are whole in a title
    assert [(tag, sorted({*values} - {"title"})) for tag, values in hostile.elements] == [
        (tag, sorted({*values} - {"title"})) for tag, values in harmless.elements
    ]
    assert not hostile.comments
    assert [tag for tag, _ in hostile.elements].count("script") == SCRIPTS
    assert not [name for _, values in hostile.elements for name in values if name.startswith("on")]
    scripts = ["".join(text for tag, text in parsed.texts if tag == "script") for parsed in (hostile, harmless)]
    assert scripts[0] == scripts[1]
    shown = [text for tag, text in hostile.texts if tag == "bdi"]
    for name in NAMES:
        assert readable(name) in shown


def test_every_character_of_the_page_can_be_seen() -> None:
    parsed = Parsed(render(page_of()))
    said = [text for tag, text in parsed.texts if tag not in ("script", "style") and text.strip()]
    said += [value for _, values in parsed.elements for value in values.values()]
    for text in said:
        assert "".join(text.split("\n")).isprintable(), repr(text)
    assert readable("a\nb\u202e\udcff\0") == "a\\nb\\u202e\\udcff\\x00"
    assert readable("\N{FOX FACE} é\u00a0") == "\N{FOX FACE} é\\xa0"
    assert readable("x" * 200, 90) == f"{'x' * 60} … {'x' * 30}"


def test_nothing_is_loaded_from_anywhere() -> None:
    page = render(page_of([name.replace("http://", "") for name in NAMES]))
    assert b"http:" not in page
    assert b"https:" not in page
    assert b"//" not in re.sub(rb"data:image/\w+;base64,[\w+/=]*", b"", page)
    loads = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "formaction", "ping"}
    for tag, values in Parsed(page).elements:
        for name in loads & values.keys():
            value = values[name]
            assert value.startswith("data:") if name == "src" or tag == "link" else value.startswith("#"), (tag, value)
    style = re.search(rb"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert b"url(" not in style[1]
    assert b"@import" not in style[1]


def test_people_without_a_mouse_or_eyes_can_use_it() -> None:
    parsed = Parsed(render(page_of()))
    tags = [tag for tag, _ in parsed.elements]
    assert ("html", {"lang": "en"}) in parsed.elements
    ranges = [values for tag, values in parsed.elements if tag == "input"]
    assert {values["type"] for values in ranges} == {"range"}
    labels = [values["aria-label"] for values in ranges]
    assert any("plain.png" in label for label in labels)
    assert all(labels)
    assert all("alt" in values for tag, values in parsed.elements if tag == "img")
    sorted_by = [values for tag, values in parsed.elements if tag == "th" and "aria-sort" in values]
    assert len(sorted_by) == 4
    assert tags.count("h1") == 1
    anchors = {values["id"] for _, values in parsed.elements if "id" in values}
    links = {values["href"] for tag, values in parsed.elements if tag == "a"}
    assert {link.removeprefix("#") for link in links} <= anchors
    assert len(anchors) == sum("id" in values for _, values in parsed.elements)


def test_equal_content_gives_equal_bytes() -> None:
    assert render(page_of()) == render(page_of())


def test_a_page_with_nothing_to_show_is_a_page() -> None:
    page = Parsed(render(Page("Restored: x", "", [])))
    assert {"h1", "main"} <= {tag for tag, _ in page.elements}
    assert not [tag for tag, _ in page.elements if tag in ("table", "figure", "section")]


def test_the_dearest_page_is_a_few_megabytes() -> None:
    """As many pictures as a run shows, of pure noise, each with two maps; and as many rows, with the longest names."""
    noise = torch.rand(3, 1000, 1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = torch.rand(125, 125, generator=torch.Generator().manual_seed(0))
    maps = [Map("Severity map", "0", "1", values), Map("Spread", "0", "1", values.flip(0))]
    shown = views(noise, noise.flip(1), maps)
    keys = [f"{n}" + "\U000e0001" * 2000 for n in range(400)]
    columns = [Column("File"), *(Column("x", 2) for _ in range(9)), Column("Remarks")]
    page = Page(
        "Restored: x",
        "",
        [],
        galleries=[Gallery("All", "", [Picture(key, shown, maps=maps) for key in keys[:14]])],
        images=Table(columns, [[key, *[1.0] * 9, key] for key in keys]),
        failures=[(key, key) for key in keys[:100]],
    )
    assert len(render(page)) < 8_000_000
