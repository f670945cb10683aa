"""Frozen networks: their names, their weights, and the way from pixels to vectors.

This room owns timm and facenet-pytorch and everything that decides a vector's spec. It imports
`faces`, `photos`, `store.faces`, `spec` and `errors`, and knows nothing of caches or runs.
"""

__all__ = [
    "cuda_lane",
    "facenet",
    "folding",
    "forward",
    "listing",
    "loading",
    "names",
    "saliency",
    "spec_memo",
    "weights",
]
