"""The generated parts of docs/cli.md: `python -m tests.support.cli_page` writes them, and a test compares them."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from docstring_parser import parse

from flashray.help_texts import HELP, OVERVIEW
from flashray.option_parser import Options
from flashray.pipeline.options import OPTIONS, SECTIONS
from flashray.training.train_prior import TrainPriorConfig
from flashray.training.train_severity import TrainSeverityConfig
from flashray.verbs import CompareConfig, RegisterConfig, ReplayConfig, ReportConfig, VerifyConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"<!-- generated: (\S+) (\S+) -->\n.*?<!-- end -->", re.DOTALL)
# verb → its options, and the full names of the arguments that may stand without a name
VERB_OPTIONS: dict[str, tuple[Options, tuple[str, ...], str | None]] = {
    "restore": (OPTIONS, ("io.archive", "io.output"), None),
    "plan": (OPTIONS, ("io.archive", "io.output"), None),
    "verify": (Options.of({"": VerifyConfig}), ("output",), None),
    "report": (Options.of({"": ReportConfig}), ("output",), None),
    "compare": (Options.of({"": CompareConfig}), (), "outputs"),
    "replay": (Options.of({"": ReplayConfig}), ("output",), None),
    "register": (Options.of({"": RegisterConfig}), ("encoder", "name"), None),
    "train prior": (Options.of({"": TrainPriorConfig}), (), None),
    "train severity": (Options.of({"": TrainSeverityConfig}), (), None),
}
TRAINING = {"prior": TrainPriorConfig, "severity": TrainSeverityConfig}


def rendered(text: str) -> str:
    """The page's text with its generated parts made anew."""
    return BLOCK.sub(lambda block: f"{block[0].splitlines()[0]}\n{_content(block[1], block[2])}\n<!-- end -->", text)


def _content(kind: str, name: str) -> str:
    if kind == "help":
        return f"```\n{(OVERVIEW if name == 'overview' else HELP[name]).rstrip()}\n```"
    if kind == "section":
        prefix = "" if name == "top" else name
        return _table(_rows(SECTIONS[prefix], prefix, OPTIONS.full))
    return _table(_rows(TRAINING[name], "", {}))


def _rows(section: type[Any], prefix: str, full: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(option, default, meaning) of a dataclass's fields, nested ones included."""
    short = {value: key for key, value in full.items() if "." not in key}
    meaning = {}
    for cls in reversed([c for c in section.__mro__ if dataclasses.is_dataclass(c)]):
        meaning |= {
            name.strip(): one.description for one in parse(cls.__doc__ or "").params for name in one.arg_name.split(",")
        }
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        name = f"{prefix}.{field.name}" if prefix else field.name
        nested = [
            one for one in (hints[field.name], *typing.get_args(hints[field.name])) if dataclasses.is_dataclass(one)
        ]
        if nested:
            if any(typing.get_origin(one) is typing.Literal for one in typing.get_args(hints[field.name])):
                yield f"`--{name.replace('_', '-')}`", "", " ".join((meaning.get(field.name) or "").split())
            yield from _rows(typing.cast(type[Any], nested[0]), name, full)
            continue
        option = short.get(name, name).replace("_", "-")
        yield f"`--{option}`", _default(field), " ".join((meaning.get(field.name) or "").split())


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value == "" or value == {}:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        inner = [str(one).lower() if isinstance(one, bool) else str(one) for one in value]
        return f"`[{', '.join(inner)}]`"
    return f"`{value}`"


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = [f"| {option} | {default} | {meaning.replace('|', chr(92) + '|')} |" for option, default, meaning in rows]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *lines])


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
