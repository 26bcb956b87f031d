"""Passwords, tokens and addresses that carry them: kept so that nothing prints them by accident.

A `Secret` shows itself as `***` whatever is done with it but `reveal()`. What other programs and libraries say about a
failed exchange may quote what they were sent, so their words pass through a `Redactor` before anybody reads them.
"""

from __future__ import annotations

__all__ = ["HIDDEN", "Redactor", "Secret", "place_of"]

HIDDEN = "***"
# A part of an address below this is a word ("v2", "api", "hooks"), not a token; webhook tokens are 20 and more.
_SHORTEST_PART = 6


class Secret:
    """A text that is not shown: neither by `repr` nor `str` nor formatting, and it does not pickle."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")


class Redactor:
    """Takes these secrets out of a text, also where they were quoted, encoded or cut out of an address."""

    __slots__ = ("_forms",)

    def __init__(self, *secrets: Secret | None) -> None:
        forms = {form for each in secrets if each is not None for form in _forms(each.reveal())}
        self._forms = tuple(sorted(forms, key=len, reverse=True))  # the whole before its parts

    def __call__(self, text: str) -> str:
        """The text without them."""
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text


def _forms(text: str) -> set[str]:
    """How a secret may come back: itself, escaped, percent-encoded, in base64, and the parts of an address."""
    from base64 import b64encode
    from urllib.parse import quote, quote_plus, unquote

    parts = {text, *(line for line in text.splitlines() if len(line) >= _SHORTEST_PART)}
    rest = text.partition("://")[2]
    if rest:
        cut = rest
        for sign in "/?&=#:@;,":
            cut = cut.replace(sign, "\n")
        host = host_of(text)
        parts |= {part for part in cut.split("\n") if len(part) >= _SHORTEST_PART and part not in host}
        path = "/" + rest.partition("/")[2]
        parts |= {path, path[1:]} if len(path) > _SHORTEST_PART else set()
    forms = set(parts)
    for part in parts:
        forms |= {quote(part), quote(part, safe=""), quote_plus(part), unquote(part), repr(part)[1:-1]}
        if len(part) >= _SHORTEST_PART:
            forms.add(b64encode(part.encode("utf-8", "replace")).decode().rstrip("="))
    return {form for form in forms if form.strip("/ ")}


def host_of(url: str) -> str:
    """Host and port of an address, without who logs in and what is asked for."""
    rest = url.partition("://")[2] or url
    for sign in "/?#":
        rest = rest.partition(sign)[0]
    return rest.rpartition("@")[2]


def place_of(url: str) -> str:
    """What may be shown of an address: scheme, host and port."""
    scheme = url.partition("://")[0] if "://" in url else ""
    return f"{scheme}://{host_of(url)}" if scheme else host_of(url)
