"""One run: photos -> plan -> prefetch -> detection -> batches -> lanes -> sinks -> segments.

This room owns the extraction pipeline. It is the top of stage one and may import every room of it;
only `commands` and `cli.py` import it.
"""

__all__ = [
    "batches",
    "clock",
    "cluster",
    "decoders",
    "detection",
    "engine",
    "face_finder",
    "forecast",
    "handing",
    "inputs",
    "lanes",
    "neighbours",
    "networks",
    "outcome",
    "pace",
    "parts",
    "pipeline",
    "plan",
    "prefetch",
    "process",
    "provenance",
    "respec",
    "run",
    "sink",
    "upgrade",
    "upstream",
    "watching",
    "work",
]
