"""What a study's tables say in sentences, and whether an expectation held: by one rule.

A number with an interval lies above a limit where all of its interval does, and below it likewise; where the
interval contains the limit, or there is none, it cannot be told (`exceeds`).
"""

from __future__ import annotations

import math

import pandas as pd
from IPython.display import Markdown

from fgkd.analysis.blocks import exceeds as exceeds
from fgkd.analysis.findings import GAINS
from fgkd.study import Study

WORDS = {True: "Held.", False: "Did not hold.", None: "Cannot tell."}
PAID = {
    True: "Distillation paid",
    False: "Distillation did harm",
    None: "Whether distillation paid these data cannot tell",
}


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


def points(difference: float, interval: tuple[float, float], of: str = "") -> str:
    """A difference of two shares in points, with its 95 % interval.

    >>> points(0.1, (0.02, 0.18))
    '+10.0 points (+2.0 to +18.0)'
    """
    low, high = interval
    return f"{100 * difference:+.1f} points{of} ({100 * low:+.1f} to {100 * high:+.1f})"


def listed(names) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def describe_standings(standings: pd.DataFrame, picks: pd.DataFrame) -> str:
    """Which teacher: the best, who is not worse, whom each rule picks.

    standings, picks: as returned by `selection.standings` and `selection.selection_summary`
    """
    is_teacher = standings.tied.notna()
    teachers = standings[is_teacher]
    best = teachers.iloc[0]
    others = [f", {row.teacher} {row.accuracy:.1%}" for row in standings[~is_teacher].itertuples()]
    text = f"The students of {best.teacher} are the most accurate: {best.accuracy:.1%} +- {best.error:.1%}"
    text += f"{''.join(others)}."
    tied = teachers.teacher[1:][teachers.tied[1:].astype(bool)]
    if len(tied):
        text += f" {listed(tied)} cannot be told apart from it."
    if teachers.groups.nunique() > 1:
        text = "Students are still missing: the teachers' means are over different groups and do not compare."
    named = picks[picks.rule.isin(["R12", "TAC", "SSP"])]
    chosen = [f"{row.rule} picks {row.teacher}, {row.accuracy:.1%}" for row in named.itertuples()]
    text += f" {'; '.join(chosen)}."
    if "TAC" in set(named.rule):
        text += " To pick by TAC takes labelled test images."
    return text


def describe_gains(gains: pd.DataFrame) -> str:
    """Whether distillation paid, by the first row of `findings.distillation_gains`."""
    if not len(gains):
        lacking = "no student was trained without a teacher (`baseline: true`)"
        return f"Whether distillation paid it cannot say: {lacking}."
    row = gains.iloc[0]
    parts = [
        points(row[kind], (row[f"{kind}_low"], row[f"{kind}_high"]), f" from {teachers}")
        for kind, teachers in GAINS.items()
        if not math.isnan(row[kind])
    ]
    return (
        f"{PAID[exceeds(row.gain_low, row.gain_high)]}: against no teacher students have {', '.join(parts)}, "
        f"with 95 % intervals over {row.over}."
    )


def describe_temperatures(table: pd.DataFrame, study: Study) -> str:
    """Whether the answer depends on T and beta, a sentence per loss of `findings.temperatures`."""
    if not len(table):
        return "Whether the answer depends on T and beta it cannot say: no loss is KD with its own ones."
    common = study.distillation
    sentences = []
    for row in table[table.metric == "ratio12"].itertuples():
        if not row.groups:
            sentences.append(f"Of {row.loss} no group has a rho of R12 beside one of kd.")
            continue
        is_told = exceeds(row.low, row.high) is not None
        depends = "The answer depends" if is_told else "Cannot tell whether the answer depends"
        bounds = "" if math.isnan(row.low) else f", 95 % {row.low:+.2f} to {row.high:+.2f}"
        sentences.append(
            f"{depends} on T and beta: R12 agrees by {row.kd:+.2f} at T {common.temperature:g}, beta "
            f"{common.beta:g} and by {row.own:+.2f} at T {row.temperature:g}, beta {row.beta:g} "
            f"({row.difference:+.2f}{bounds}; {row.datasets} data set{'s' * (row.datasets > 1)})."
        )
    return " ".join(sentences)


def explain_missing_rho(correlations: pd.DataFrame) -> str:
    """Why a table of correlations has no rho to read; '' where it has one."""
    if not len(correlations):
        return "Not computed yet: no student of any teacher has ended."
    if correlations.rho.notna().any():
        return ""
    largest = correlations.n.max()
    if largest < 3:
        return f"A rank correlation needs three teachers: no group has more than {largest} yet."
    return "No rank correlation is defined: in every group all students, or all teachers' metrics, are alike."
