"""Which metrics are compared, which way each is claimed to point, and who claims it.

They stand apart from `metrics`, so that a command that computes none need not wait for PyTorch to load.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """Which way a metric is claimed to point.

    direction: +1 larger is better, -1 smaller is better; begun: it takes a student whose training has begun,
    so that choosing by it has a price; afterwards: it takes the trained student, so that nothing is left to
    choose.
    """

    label: str
    direction: int
    source: str
    begun: bool = False
    afterwards: bool = False


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
    "nll": Claim(
        "NLL",
        -1,
        "Menon et al. 2021: teachers of better probabilities, not only of better labels, teach better",
    ),
    "ece": Claim("ECE", -1, "Guo et al. 2017: expected calibration error; a direction as for NLL"),
    "train_accuracy": Claim("training accuracy", 1, "top-1 accuracy on the views that the students see"),
    "parameters": Claim(
        "parameters", 1, "number of the teacher's weights; Cho and Hariharan 2019 found larger ones no better"
    ),
    "logme": Claim("LogME", 1, "You et al. 2021: evidence of a linear model of the labels on the features"),
    "leep": Claim(
        "LEEP", 1, "Nguyen et al. 2020: log-likelihood of the labels through the pretrained head's classes"
    ),
    "nce": Claim(
        "NCE",
        1,
        "Tran et al. 2019: negative conditional entropy of the labels given the pretrained head's class",
    ),
    "pilot": Claim(
        "pilot",
        1,
        "the student's own training accuracy after a tenth of its epochs, rounded up: successive halving "
        "(Jamieson and Talwalkar 2016) chooses so",
        begun=True,
    ),
    "agreement": Claim(
        "agreement",
        1,
        "Stanton et al. 2021: share of test images of which the student says what its teacher says",
        afterwards=True,
    ),
}
