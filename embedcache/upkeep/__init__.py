"""What is done to a cache that is already there: verify, merge, compact, forget, pin, in and out.

This room owns the commands that read or rewrite whole caches on this machine. It imports `store`
and what lies below it; nothing here knows networks or remotes.
"""

__all__ = [
    "compaction",
    "exchange",
    "findings",
    "forgetting",
    "freeing",
    "inventory",
    "local",
    "merging",
    "pinning",
    "rewrite",
    "verify",
]
