"""What is kept of a dataset's manifests, rebuilt from them: the summary beside them, or a service's index.

The database of a service is a cache of the manifests. It belongs to the service, so the service does the work:
`POST /v1/datasets/NAME/reindex` deletes the dataset's rows, and the service's next scan reads every manifest again.
Until then the dataset's state is `indexing`.
"""

import time
from typing import Any

from arwkv_store.dataset.summarize import summarize
from arwkv_store.errors import UsageError
from arwkv_store.places.cache import FileCache
from arwkv_store.places.http_source import HttpSource

POLL_S = 1.0


def reindex(uri: str) -> dict[str, Any]:
    """Rebuild the summary of a folder or a store, or the index of the service that serves the dataset; what it counts.

    Raises as `summarize` and `reindex_served` do.
    """
    if uri.startswith(("http://", "https://")):
        return reindex_served(uri)
    summary = summarize(uri)
    return {"uri": uri, "shards": len(summary.parts), "tokens": int(summary.tokens.sum())}


def reindex_served(uri: str) -> dict[str, Any]:
    """Waits until the dataset is indexed again; returns the service's description of it.

    Raises UsageError for a URI of something else, or a dataset that cannot be read.
    """
    source = HttpSource(uri, FileCache.of(None, None))
    answer = source.post("/reindex")
    while answer.get("state") == "indexing":
        time.sleep(POLL_S)
        answer = source.dataset()
    if not all(isinstance(answer.get(name), int) for name in ("shards", "tokens")):
        raise source.no_service("/reindex")
    if answer.get("state") != "ready":
        raise UsageError(f"{uri}: {answer.get('state')}: {answer.get('problem')}")
    return answer
