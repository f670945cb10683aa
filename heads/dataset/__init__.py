"""Labels joined to vectors: rows, targets, splits.

This room owns the way from a cache and a label table to train, dev and test rows. It imports
`embedcache.store`, `embedcache.photos`, `spec`, `errors` and `disk` only.
"""

from heads.dataset.arrays import from_arrays
from heads.dataset.ids import ids_in_cache
from heads.dataset.join import load, read_table
from heads.dataset.rows import Dataset

__all__ = [
    "Dataset",
    "arrays",
    "from_arrays",
    "ids",
    "ids_in_cache",
    "join",
    "load",
    "read_table",
    "rows",
    "split",
    "targets",
]
