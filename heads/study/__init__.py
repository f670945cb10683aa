"""The paper in one command: targets x subsets x backbones x heads to tables, figures and a page.

This room owns studies and what they print. It imports `heads.dataset`, `heads.fitting`,
`heads.labels` and `heads.taste`; nothing imports it but `cli.py`.
"""

__all__ = [
    "charts",
    "design",
    "figures",
    "gallery",
    "joined",
    "report",
    "results",
    "rows",
    "run",
    "tables",
    "vectors",
    "why",
]
