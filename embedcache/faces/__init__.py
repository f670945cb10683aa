"""Face detection: MTCNN in batches, its boxes, and the crop of one face.

This room owns the way from pixels to boxes and crops. It imports `spec`, `errors`, `photos` and the
arrays of `store.faces`.
"""

__all__ = ["detector", "mtcnn"]
