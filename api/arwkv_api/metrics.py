"""What /metrics shows, in Prometheus's text form: requests and bytes of all workers, and the index as it is now."""

import os
import time
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from arwkv_api.config import Settings
from arwkv_api.tables import DatasetRow, LeaseRow

REQUESTS = Counter("arwkv_http_requests", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram("arwkv_http_request_seconds", "Time until the whole response was sent.", ["route"])
SENT_BYTES = Counter("arwkv_http_response_bytes", "Bytes of response bodies sent.", ["route"])
VERIFICATIONS = Counter("arwkv_verifications", "Shards read through, and what was found.", ["outcome"])
VERIFIED_BYTES = Counter("arwkv_verified_bytes", "Bytes read to verify shards.")

MEDIA_TYPE = CONTENT_TYPE_LATEST


def exposition(engine: Engine, settings: Settings) -> bytes:
    """The text of /metrics."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        requests = CollectorRegistry()
        MultiProcessCollector(requests)  # type: ignore[no-untyped-call]  # the library types this one partly
    else:
        requests = REGISTRY
    index = CollectorRegistry()
    index.register(_Index(engine, settings))
    return generate_latest(requests) + generate_latest(index)


def scan_lag_s(session: Session, settings: Settings) -> float:
    """Seconds since the longest-waiting root was looked at; infinite before the first look."""
    roots = list(map(str, settings.roots))
    scanned = session.execute(
        select(func.count(), func.min(LeaseRow.scanned_at_s)).where(LeaseRow.root.in_(roots), LeaseRow.scanned_at_s > 0)
    ).one()
    return max(time.time() - scanned[1], 0.0) if scanned[0] == len(roots) else float("inf")


class _Index(Collector):
    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings

    def collect(self) -> Iterator[Metric]:
        roots = list(map(str, self._settings.roots))
        served = (DatasetRow.root.in_(roots), DatasetRow.state != "withdrawn")
        sums = [func.coalesce(func.sum(column), 0) for column in _FIGURES.values()]
        with Session(self._engine) as session:
            totals = session.execute(select(*sums).where(*served)).one()
            states = session.execute(
                select(DatasetRow.state, func.count()).where(*served).group_by(DatasetRow.state)
            ).all()
            yield GaugeMetricFamily(
                "arwkv_scan_lag_seconds", "Since a root was looked at.", scan_lag_s(session, self._settings)
            )
        datasets = GaugeMetricFamily("arwkv_datasets", "Datasets under the roots.", labels=["state"])
        for state, count in states:
            datasets.add_metric([state], count)
        yield datasets
        for (name, column), total in zip(_FIGURES.items(), totals, strict=True):
            yield GaugeMetricFamily(name, f"Sum over the datasets: {column.key}.", float(total))


_FIGURES = {
    "arwkv_shards": DatasetRow.shards,
    "arwkv_shards_faulty": DatasetRow.faulty_shards,
    "arwkv_shards_verified": DatasetRow.verified_shards,
    "arwkv_samples": DatasetRow.samples,
    "arwkv_tokens": DatasetRow.tokens,
    "arwkv_dataset_bytes": DatasetRow.size_bytes,
}
