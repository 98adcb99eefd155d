"""Which metrics are compared, which way each is claimed to point, and who claims it.

A built-in metric is a row of METRICS: some need labels, the pretrained network or the student, and commands
that compute none read the table without waiting for PyTorch.  A metric of a plugin is one function of the
logits (N, C) -> (N,) under `@metric(claimed=...)`, computed with the built-in ones in every bank:

    from fgkd.metrics import margin, metric

    @metric(claimed="smaller", source="the margin on a logarithmic scale")
    def log_margin(logits):
        return margin(logits).log1p()

A bank's record carries the claims of its plugins' metrics, so that tables and report need no plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

UNDEFINED = 0.01  # share of views with a second logit <= 0, above which ratios of raw logits mean nothing
RULES = ("best", "random", "no teacher")  # of choosing a teacher, next to one per metric, by its label
# columns of the tables, which no plugin's metric may have for a name
RESERVED = frozenset(
    {
        *("dataset", "teacher", "student", "strategy", "recipe", "loss", "model", "family", "architecture"),
        *("pretraining", "norm", "seed", "seeds", "epoch", "epochs", "lr", "samples", "views", "accuracy"),
        *("accuracy_sd", "pilot_cost", "tac_single", "ratio12_nonpositive", "ratio12_crop", "ratio12_drop"),
        *("nonpositive", "confidence", "correct", "run", "commit", "device", "seconds", "peak_memory_mb"),
    }
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Claim:
    """Which way a metric is claimed to point.

    label: short name in tables and figures
    direction: +1 larger is better, -1 smaller is better
    source: who claims it, and what it measures
    begun: it takes a student whose training has begun, so that choosing by it has a price
    afterwards: it takes the trained student, so that nothing is left to choose
    plugin: a plugin registered it
    """

    label: str
    direction: Literal[1, -1]
    source: str
    begun: bool = False
    afterwards: bool = False
    plugin: bool = False


METRICS = {
    "ratio12": Claim("R12", -1, "arXiv 2605.15689: ratio of the two largest raw logits"),
    "ratio12_median": Claim("R12, median", -1, "as R12, robust to samples whose second logit is near 0"),
    "ratio12_centred": Claim("R12, centred", -1, "as R12, after each sample's mean logit is subtracted"),
    "ratio13": Claim("R13", -1, "ratio of the largest to the third raw logit"),
    "ratio23": Claim("R23", -1, "ratio of the second to the third raw logit"),
    "ratio12_softmax": Claim("R12 of softmax", -1, "ratio of the two largest probabilities"),
    "margin": Claim("margin", -1, "difference of the two largest raw logits"),
    "entropy": Claim("entropy", 1, "Shannon entropy of softmax, nats"),
    "ssp": Claim("SSP", 1, "arXiv 2605.15689: std of the probabilities of ranks 2 to 4"),
    "tac": Claim("TAC", 1, "the teacher's top-1 accuracy on the test split"),
    "nll": Claim("NLL", -1, "Menon et al. 2021: teachers of better probabilities teach better"),
    "ece": Claim("ECE", -1, "Guo et al. 2017: expected calibration error; a direction as for NLL"),
    "train_accuracy": Claim("training accuracy", 1, "top-1 accuracy on the views that the students see"),
    "parameters": Claim("parameters", 1, "number of weights; Cho and Hariharan 2019 found more no better"),
    "logme": Claim("LogME", 1, "You et al. 2021: evidence of a linear model of the labels on the features"),
    "leep": Claim("LEEP", 1, "Nguyen et al. 2020: label likelihood through the pretrained classes"),
    "nce": Claim("NCE", 1, "Tran et al. 2019: negative entropy of the labels given the pretrained class"),
    "pilot": Claim(
        "pilot",
        1,
        "Jamieson and Talwalkar 2016: training accuracy after a tenth of the student's epochs, rounded up",
        begun=True,
    ),
    "agreement": Claim(
        "agreement",
        1,
        "Stanton et al. 2021: share of test images on which student and teacher name the same class",
        afterwards=True,
    ),
}
PLUGIN_METRICS: dict[str, Callable] = {}  # the functions that plugins registered in this process


def metric(*, claimed: Literal["smaller", "larger"], label: str = "", source: str = "") -> Callable:
    """Decorator that registers a plugin's function as a metric under its name.

    The function takes logits (N, C), fp64 on any device, some hundred samples at a time, and returns (N,).

    claimed: which values are claimed to be of the better teachers
    label: short name in tables and figures; the function's unless given
    source: who claims it, and what it measures

    Raises ValueError for a name or label that is taken, and for another claim.
    """
    if claimed not in ("smaller", "larger"):
        raise ValueError(f"claimed is {claimed!r}: expected 'smaller' or 'larger', of the better teachers")

    def register(function: Callable) -> Callable:
        name = function.__name__
        claim = Claim(label or name, 1 if claimed == "larger" else -1, source, plugin=True)
        labels = [other.label for key, other in METRICS.items() if key != name]
        if name in RESERVED or (name in METRICS and not METRICS[name].plugin):
            raise ValueError(f"metric '{name}' is a column of the tables already: give it another name")
        if claim.label in (*RULES, *labels):
            raise ValueError(f"metric '{name}' is labelled '{claim.label}' as another one: give it a label")
        earlier = PLUGIN_METRICS.get(name, function)
        if earlier.__code__.co_filename != function.__code__.co_filename:
            raise ValueError(f"metric '{name}' is in {earlier.__code__.co_filename} too: rename one")
        METRICS[name] = claim
        PLUGIN_METRICS[name] = function
        return function

    return register


def plugin_claims() -> dict[str, dict[str, Any]]:
    """The claims of the plugins' metrics, as a bank's record holds them."""
    return {name: asdict(METRICS[name]) for name in PLUGIN_METRICS}


def register_claims(claims: dict[str, dict[str, Any]]) -> None:
    """Add to METRICS the claims that a bank's record holds, whose plugin may be absent."""
    for name, claim in claims.items():
        builtin = name in METRICS and not METRICS[name].plugin
        if not builtin and name not in PLUGIN_METRICS:
            METRICS[name] = Claim(**claim)


def claims_in(table) -> dict[str, Claim]:
    """The built-in metrics, and plugins' that have a column in a table, with their claims."""
    return {name: claim for name, claim in METRICS.items() if not claim.plugin or name in table}
