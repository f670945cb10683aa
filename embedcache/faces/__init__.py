"""Face detection: MTCNN in batches or BlazeFace, their boxes, and the crop of one face.

This room owns the way from pixels to boxes and crops. It imports `spec`, `errors`, `photos` and the
arrays of `store.faces`.
"""

__all__ = ["blazeface", "detector", "mtcnn", "named"]
