"""Push, pull and read-through: what two copies of a cache give each other.

This room owns what is believed of a shared copy and what moves. It imports `remotes`, `store`,
`upkeep.rewrite` and `upkeep.merging`; `extraction` reads through it.
"""

__all__ = [
    "arrival",
    "belief",
    "memo",
    "moved",
    "pulling",
    "pushing",
    "screen",
    "share",
    "shared_copy",
    "survey",
]
