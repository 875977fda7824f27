"""Command lines over dataclasses: short names, hyphens, flags without a value, and errors that name the nearest."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from flashray.build import nearest
from flashray.errors import ConfigError
from flashray.storage import redact
from flashray.yaml_text import read_yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """The options of a verb."""

    full: Mapping[str, str]  # every accepted name → the full dotted name
    flags: frozenset[str]  # full names of the options that need no value
    open: tuple[str, ...]  # prefixes below which any name is accepted, such as solver.settings

    @classmethod
    def of(cls, sections: Mapping[str, type[Any]], short: Sequence[str] = ()) -> Options:
        """The fields of these dataclasses (prefix, "" for none → dataclass), by their dotted names.

        The full names in `short` are also accepted by their last part.
        """
        fields = [one for prefix, section in sections.items() for one in fields_of(section, prefix)]
        full = {name: name for name, _ in fields} | {name.rpartition(".")[2]: name for name in short}
        flags = frozenset(name for name, hint in fields if hint is bool)
        open = tuple(name for name, hint in fields if typing.get_origin(hint) is dict)
        return cls(full, flags, open)

    def resolve(self, name: str) -> str:
        """The full name of an option as the user typed it; ConfigError with the nearest names for an unknown one."""
        plain = name.replace("-", "_")
        if plain in self.full:
            return self.full[plain]
        if plain.startswith(tuple(f"{prefix}." for prefix in self.open)):
            return plain
        hint = nearest(plain, self.full).replace("did you mean ", "did you mean --").replace(" or ", " or --")
        raise ConfigError(f"--{name} is not an option{hint.replace('_', '-')}; --help-all lists them")

    def _denied(self, name: str) -> str | None:
        """The full name of the flag that `no-NAME` sets to false; None where it is no such option."""
        plain = name.replace("-", "_")
        full = self.full.get(plain.removeprefix("no_")) if plain not in self.full else None
        return full if full in self.flags and plain.startswith("no_") else None

    def normalise(self, argv: Sequence[str], positionals: Sequence[str] = (), rest: str | None = None) -> list[str]:
        """A command line in the form `--full_name value …`.

        `positionals` are the full names of the positional arguments, in their order; `rest` is that of the list that
        takes all further ones.
        """
        result: list[str] = []
        bare: list[str] = []
        tokens = list(argv)
        while tokens:
            token = tokens.pop(0)
            if not token.startswith("--") or token == "--":
                bare.append(token)
                continue
            name, equals, value = token[2:].partition("=")
            name = name if name.replace("-", "_") not in PARSER_OPTIONS else name.replace("-", "_")
            denied = self._denied(name)
            if denied is not None and not equals:
                result += [f"--{denied}", "false"]
                continue
            full = name if name in PARSER_OPTIONS else self.resolve(name)
            if not equals and full in self.flags:
                value = tokens.pop(0) if tokens and tokens[0].lower() in ("true", "false") else "true"
            elif not equals and name != "print_config":
                if not tokens:
                    raise ConfigError(f"--{name} has no value; give one after it")
                value = tokens.pop(0)
            result += [f"--{full}"] if name == "print_config" else [f"--{full}", value]
        if len(bare) > len(positionals) and rest is None:
            raise ConfigError(f"{bare[len(positionals)]!r} is one argument too many; options begin with --")
        for full, value in reversed(list(zip(positionals, bare, strict=False))):
            result = [f"--{full}", value, *result]
        if rest is not None and bare[len(positionals) :]:
            result += [f"--{rest}", repr(bare[len(positionals) :])]
        return result


PARSER_OPTIONS = ("config", "print_config")
_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a text",
    "list": "[…, …]",
    "dict": "{name: value}",
}


def fields_of(section: type[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of a dataclass's fields, nested ones included."""
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        name = f"{prefix}.{field.name}" if prefix else field.name
        hint = hints[field.name]
        nested = [one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)]
        if hint not in nested:
            yield name, hint
        for one in nested:  # of `AutoencoderConfig | Literal["none"]` too
            yield from fields_of(typing.cast(type[Any], one), name)


def make_parser(prog: str, sections: Mapping[str, type[Any]], description: str = "") -> Any:
    """A jsonargparse parser of these sections; it raises errors instead of ending the process."""
    from jsonargparse import ArgumentParser

    parser: Any = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file with the keys below")
    for prefix, section in sections.items():
        parser.add_class_arguments(section, prefix or None)
    fields = [one for prefix, section in sections.items() for one in fields_of(section, prefix)]
    parser.texts = {f"--{name}" for name, hint in fields if {str, type(None)} <= {*typing.get_args(hint)}}
    return parser


def parse(parser: Any, argv: Sequence[str]) -> Any:
    """The parser's dataclasses of a normalised command line; ConfigError for a value of the wrong type."""
    from jsonargparse import ArgumentError

    for name, value in pairwise(argv):
        if name == "--config" and os.path.isfile(value):
            read_yaml(Path(value).read_bytes(), f"config {value}")
        elif value.lstrip().startswith(("[", "{", "&", "!")):  # the parser reads it as YAML, whatever it unfolds into
            read_yaml(value.encode(errors="replace"), name, or_text=True)
    printed = io.StringIO()  # by --print_config, which ends the process
    try:
        with redirect_stdout(printed):
            values = parser.parse_args(list(argv))
        for name, value in dict(pairwise(argv)).items():  # of a text that may be none, "#1.csv" is a comment in YAML
            if name in parser.texts and value != "null" and values[name[2:]] is None:
                values[name[2:]] = value or None
        return parser.instantiate(values)
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(readable(" ".join(str(error).split()))) from error
    finally:
        print(re.sub("(?<=tracking_uri: ).+", lambda uri: redact(uri[0]), printed.getvalue()), end="")


def typed(name: str) -> str:
    """A full name as people type it: strength for start.strength, limit for policy.limit."""
    section, _, rest = name.partition(".")
    return rest if section in ("io", "resources", "policy") or name == "start.strength" else name


def readable(text: str) -> str:
    """The parser's message about a value of the wrong type, in the words of the other messages."""
    given = r"(?: Given value type: .*? Given value:| Got value:(?!.* Given value type:))"  # the former of a union
    found = re.match(rf'Parser key "([\w.]+)": (.*?){given} ?(.*)$', text)
    if not found:
        return text
    name, types, value = found.groups()
    choices = re.findall(r"'(\w+)'", types) if "Literal" in types else []
    kinds = [what for kind, what in _KINDS.items() if re.search(rf"<class '{kind}'>|\b{kind}\[", types)]
    wanted = ", ".join(choices) if choices else " or ".join(kinds)
    return f"--{typed(name)} is {value!r}; give {wanted}" if wanted else text


def parse_as(
    cls: type[T], prog: str, argv: Sequence[str], positionals: Sequence[str] = (), rest: str | None = None
) -> T:
    """A command line as one dataclass; `--help-all` prints all options and ends the process."""
    options = Options.of({"": cls})
    parser = make_parser(prog, {"": cls})
    if "--help-all" in argv:
        parser.print_help()
        raise SystemExit(0)
    values = parse(parser, options.normalise(argv, positionals, rest))
    return cls(**{field.name: getattr(values, field.name) for field in dataclasses.fields(cls)})  # type: ignore[arg-type]
