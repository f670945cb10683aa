"""Every head of one dataset, fitted and judged.

This room owns training, choice on dev and the one look at test. It imports `heads.dataset` and
`heads.head`; torch is loaded when an FC head is trained.
"""

__all__ = [
    "estimator",
    "fc",
    "fit",
    "intervals",
    "judge",
    "linear",
    "logistic",
    "metrics",
    "objective",
    "protocol",
    "result",
    "scores",
    "train",
]
