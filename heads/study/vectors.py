"""What a cache lacks of a study: a study that lacks nothing needs no photos."""

from embedcache.errors import NoSuchSpace
from embedcache.store.cache import Cache
from embedcache.store.columns import ABSENT
from heads.study.design import Study


def lacking(study: Study, cache: Cache, ids: list[str]) -> str:
    """What the cache lacks of the rows of a study, as a sentence; "" for nothing."""
    digests, known = cache.digests_of(ids, scope=study.scope)
    if n := int((~known).sum()):
        return f"{cache.path} does not have {n:,} of {len(ids):,} photo ids"
    for backbone in study.backbone:
        try:
            absent = cache.find(backbone.name).status(digests) == ABSENT
        except NoSuchSpace as error:
            return error.fact
        if n := int(absent.sum()):
            return f"{cache.path} lacks {n:,} of {len(ids):,} vectors of {backbone.name}"
    return ""
