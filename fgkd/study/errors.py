"""The error of a study file, and what its messages have in common."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class StudyError(ValueError):
    """A study file, or a notebook's parameter, that is not valid."""


def printable(text: str) -> str:
    """A text without control characters, by which data could steer a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)


def hint(name: object, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where one of the known names is close, else ''."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def expected(name: object, known: Iterable[str]) -> str:
    """The end of a message about a name that is none of those known, in their order."""
    names = list(known)
    return f"{hint(name, names)}: expected one of {', '.join(names)}"


def unknown_name(names: Iterable[object], known: Iterable[str], what: str) -> str | None:
    """A message about the first of the names that is not known; None where all are.

    what: what the names are, such as 'key'.
    """
    allowed = sorted(known)
    for name in sorted(map(str, set(names) - set(allowed))):
        return f"{what} '{name}' is unknown{expected(name, allowed)}"
    return None
