"""The paper in one command: targets x subsets x backbones x heads to tables, figures and a page.

This room owns studies and what they print. It imports `heads.dataset`, `heads.fitting` and
`heads.labels`; nothing imports it but `cli.py`.
"""

__all__ = [
    "charts",
    "design",
    "figures",
    "gallery",
    "report",
    "results",
    "rows",
    "run",
    "tables",
    "vectors",
]
