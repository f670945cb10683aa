"""Stage two: light heads on cached vectors.

    from embedcache.store import Cache
    from heads import dataset, fit, load

    data = dataset.load(Cache.open("faces.cache"), "facenet:vggface2", "labels.csv",
                        target="like_ratio", weight="swipes")
    result = fit(data)
    print(result)
    result.save("like_head")
    load("like_head").predict(vectors)
    load_taste("taste").predict(vectors, rater_id="r17")     # what fit-taste wrote

torch is loaded when an FC head is trained, and not before.
"""

from heads.comparison import compare
from heads.fitting.fit import fit
from heads.fitting.result import Fit
from heads.head import Head
from heads.saved import load, save
from heads.taste.saved import load_taste

__all__ = ["Fit", "Head", "compare", "fit", "load", "load_taste", "save"]
