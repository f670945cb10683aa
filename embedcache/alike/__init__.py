"""What looks alike: the nearest photos, groups of near-duplicates, the threshold that makes them.

This room owns the comparison of a space with itself. It reads a cache by its rules and embeds with
its networks; it writes nothing but `local/alike/`, and the page that a caller names.
"""

__all__ = ["embed", "groups", "linking", "nearest", "originals", "page", "threshold"]
