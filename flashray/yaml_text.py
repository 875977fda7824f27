"""YAML that people give: plain values only, each name once, and no small text that unfolds into a large value."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from flashray.errors import ConfigError

_MOST_BYTES = 2**20
_DEEPEST = 32


def read_yaml(data: bytes, where: str, or_text: bool = False) -> Any:
    """The value of a YAML text.

    ConfigError, beginning with `where`, when it is no YAML in UTF-8, larger than 1 MiB or deeper than 32 levels, or has
    aliases (`*name`, which can make a value endless), tags, a name twice, NUL, or half a character. With `or_text` what
    breaks the syntax, or has tags, is a text.
    """
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{where}: is larger than {_MOST_BYTES:,} bytes, and no configuration is")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not a text in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a month 13, a number of 5000 digits
        if or_text and isinstance(error, yaml.MarkedYAMLError):  # "[2019] Photos"
            return text
        raise ConfigError(f"{where}: is not a YAML file: {' '.join(str(error).split())}") from error


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not supported{event.start_mark}; write the values where they belong")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"it is deeper than {_DEEPEST} levels{event.start_mark}")
        if isinstance(event, yaml.ScalarEvent) and re.search("[\0\ud800-\udfff]", event.value):
            raise yaml.YAMLError(f"a value holds NUL or half a character{event.start_mark}")


class _Loader(yaml.SafeLoader):
    """Refuses doubled names, and takes 1e-3 for a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), names[0])
            raise yaml.YAMLError(f"the name {twice!r} is given twice{node.start_mark}")
        return values


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
