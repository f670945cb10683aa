"""Push, pull and read-through: what two copies of a cache exchange.

This room owns what is believed of a shared copy and what moves. It imports `remotes`, `store` and
`upkeep` (`rewrite`, `merging`, `compaction`); `extraction` reads through it.

    share        push and pull, from the first listing to the summary
    connecting   the two ends: a remote by its address, the cache to pull into
    shared_copy  what a shared copy holds: listing, segments, small_objects, refusals, belief, memo
    union        which rows one side holds and the other lacks
    pull_plan, taking, arrival, screen, pulled_refs     a pull, in this order
    push_plan, sending, announcing, purging             a push, in this order
    live_rows    what a purge publishes in a segment's place
    joining      compaction of a shared copy
    litter       what processes that have ended left on a shared copy
    remnants     what lies there of removed segments, and of unfinished pushes
    moved        counters and the summary
    survey       `info URL` and `verify URL`
"""

__all__ = ["connecting", "joining", "moved", "share", "shared_copy", "survey"]
