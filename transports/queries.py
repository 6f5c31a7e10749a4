"""The names in a request's query: one that means nothing is most often misspelt, and must not be ignored."""

import difflib
from collections.abc import Collection, Iterable


def unknown_name(query: Iterable[str], known: Collection[str]) -> str:
    """A line on the first name of a query that is not known, with the nearest that is, of 123 bytes at the most, as a
    WebSocket's close frame takes; "" if all are known. `token` is, wherever it is asked for."""
    for name in query:
        if name in known or name == "token":
            continue
        shown = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name)
        shown = shown if len(shown) <= 24 else shown[:24] + "..."
        near = difflib.get_close_matches(name.lower(), known, 1) or [each for each in known if each in name.lower()]
        if near:
            return f"{shown}: no such name in the query; did you mean {near[0]}?"
        there = f"there are {', '.join(known)}" if known else "there are none here"
        return f"{shown}: no such name in the query; {there}"
    return ""
