"""Secrets in URIs do not reach messages, records or tracking."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus, urlsplit

_HIDDEN = "***"
_SECRET_NAMES = ("auth", "credential", "jwt", "key", "pass", "pwd", "secret", "sig", "token")  # parts of names


def redact(text: str) -> str:
    """The text with the secrets of its URIs replaced by ***: user name and password, and secret parameters.

    A URI ends at white space. Where the text can be read in two ways, too much is hidden rather than too little: an
    unescaped `/`, `?` or `@` belongs to the password if it may, and all that follows the first secret parameter is
    hidden with it. Text without secrets comes back unchanged.
    """
    return re.sub(r"\S+", lambda word: _redact_word(word[0]), text)


def _redact_word(word: str) -> str:
    body = word.rstrip("\"'`<>()[]{},;.:")
    closing = word[len(body) :]
    before, separator, rest = body.partition("://")
    if separator and ":" not in before:
        return _hide_parameters(f"{before}://{_hide_user(rest)}") + closing
    return _hide_parameters(_hide_plain_user(body)) + closing


def _hide_user(rest: str) -> str:
    """What follows `scheme://`, without user name and password."""
    try:
        authority = urlsplit(f"//{rest}").netloc
    except ValueError:  # brackets or other characters that no host has
        return _HIDDEN if "@" in rest else rest
    if ":" in authority and "@" in rest[len(authority) :]:  # the password may hold what ends an authority
        start, _, host = rest.rpartition("@")
        return _HIDDEN if "?" in start or "#" in start else f"{_HIDDEN}@{host}"
    if "@" in authority:
        return f"{_HIDDEN}@{authority.rpartition('@')[2]}{rest[len(authority) :]}"
    return rest


def _hide_plain_user(text: str) -> str:
    """`user:password@host` without a scheme, as in RAY_ADDRESS; paths and `models:/NAME@ALIAS` have no user."""
    start, _, host = text.rpartition("@")
    has_user = ":" in start and not start.lstrip("\"'`<([{").startswith(("/", "models:/"))
    return f"{_HIDDEN}@{host}" if has_user else text


def _hide_parameters(uri: str) -> str:
    """Without the value of the first secret parameter of query or fragment, and what follows it."""
    for parameter in re.finditer(r"[?&;#]([^?&;#=]*)=", uri):
        name = unquote_plus(parameter[1]).lower()
        if any(part in name for part in _SECRET_NAMES):
            return uri[: parameter.end()] + _HIDDEN
    return uri
