"""One taste per viewer: ratings joined to vectors, a model of them, and what it is compared with.

This room owns `fit-taste`. It imports `heads.dataset`, `heads.fitting` and what saves a head, and
writes nothing outside the folder that it is given (after Rothe, Timofte and Van Gool 2016).
"""

__all__ = ["fit", "model", "ratings", "result", "saved", "trial", "viewer"]
