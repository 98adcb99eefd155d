"""Sentences of the notebooks: whether an expectation held, by one rule, and numbers with their intervals.

An expectation about a number with an interval held where the interval lies beyond the limit on the expected
side, did not hold where it lies beyond it on the other side, and cannot be told where it contains the limit.
"""

from __future__ import annotations

from IPython.display import Markdown

from fgkd.analysis.blocks import exceeds as exceeds
from fgkd.analysis.selection import listed as listed

WORDS = {True: "Held.", False: "Did not hold.", None: "Cannot tell."}


def verdict(held: bool | None, text: str) -> Markdown:
    """A sentence after the verdict in bold; None: cannot tell.

    >>> verdict(None, "The interval contains 0.").data
    '**Cannot tell.** The interval contains 0.'
    """
    return Markdown(f"**{WORDS[None if held is None else bool(held)]}** {text}")


def both(*held: bool | None) -> bool | None:
    """Whether all parts of an expectation held; None where one cannot be told.

    False where one did not, whatever the others.

    >>> both(True, None), both(None, False), both(True, True)
    (None, False, True)
    """
    if any(part is False for part in held):
        return False
    return None if None in held else True


def percent(share: float, interval: tuple[float, float] | None = None) -> str:
    """A share in percent, with its 95 % interval.

    >>> percent(0.25), percent(0.25, (0.158, 0.372))
    ('25.0%', '25.0% (15.8% to 37.2%)')
    """
    if interval is None:
        return f"{share:.1%}"
    low, high = interval
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def points(difference: float, interval: tuple[float, float]) -> str:
    """A difference of two shares in points, with its 95 % interval.

    >>> points(0.1, (0.02, 0.18))
    '+10.0 points (+2.0 to +18.0)'
    """
    low, high = interval
    return f"{100 * difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
