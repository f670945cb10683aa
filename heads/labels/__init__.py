"""A swipe log to labels: like ratios, weights, Table 1; and a simulated log whose truth is known.

This room owns the paper's section on labels. It imports `errors`, `disk` and polars.
"""

__all__ = ["build", "simulate", "swipes"]
