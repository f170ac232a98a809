"""The content of /metrics in Prometheus's text form: requests and bytes of all workers, and the state of the index."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from arwkv_api.config import Settings
from arwkv_api.index.lease import pause_s
from arwkv_api.index.orm import DatasetRow, LeaseRow
from arwkv_api.index.pace import pass_days, verification_rate

REQUESTS = Counter("arwkv_http_requests", "Requests answered.", ["method", "route", "status"])
SECONDS = Histogram("arwkv_http_request_seconds", "Time until the whole response was sent.", ["route"])
SENT_BYTES = Counter("arwkv_http_response_bytes", "Bytes of response bodies sent.", ["route"])
VERIFICATIONS = Counter("arwkv_verifications", "Shards verified, by outcome.", ["outcome"])
VERIFIED_BYTES = Counter("arwkv_verified_bytes", "Bytes read to verify shards.")

MEDIA_TYPE = CONTENT_TYPE_LATEST
# A lag below this is never too large, even for a quickly scanned root.
LAG_LIMIT_S = 120.0


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


@dataclass(frozen=True)
class ScanLag:
    """Seconds since the scan of the root that waits longest, and their limit; `late` if no process scans it."""

    lag_s: float
    limit_s: float
    late: bool


def scan_lag(session: Session, settings: Settings) -> ScanLag:
    """How far the index is behind the roots: infinite before the first scan of each. Slow roots may lag longer."""
    now = time.time()
    wanted = select(LeaseRow).where(LeaseRow.root.in_(settings.roots), LeaseRow.scanned_at_s > 0)
    rows = session.scalars(wanted).all()
    took_s = [row.scan_took_s for row in rows]
    round_s = sum(took_s) + pause_s(max(took_s, default=0.0))
    limit_s = max(LAG_LIMIT_S, 3 * settings.scan_interval_s, 3 * settings.store_scan_interval_s, 2 * round_s)
    if len(rows) < len(settings.roots):
        return ScanLag(float("inf"), limit_s, late=True)
    # A root that is being scanned now counts as scanned.
    late = any(now - row.scanned_at_s > limit_s and row.expires_at_s < now for row in rows)
    return ScanLag(max(now - min(row.scanned_at_s for row in rows), 0.0), limit_s, late)


class _Index(Collector):
    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings

    def collect(self) -> Iterator[Metric]:
        roots = self._settings.roots
        served = (DatasetRow.root.in_(roots), DatasetRow.state != "withdrawn")
        sums = [func.coalesce(func.sum(column), 0) for column in _FIGURES.values()]
        with Session(self._engine) as session:
            totals = session.execute(select(*sums).where(*served)).one()
            states = session.execute(
                select(DatasetRow.state, func.count()).where(*served).group_by(DatasetRow.state)
            ).all()
            scan = scan_lag(session, self._settings)
        total_bytes = float(totals[list(_FIGURES).index("arwkv_dataset_bytes")])
        days = pass_days(total_bytes, verification_rate(total_bytes, self._settings.verify_mb_per_s))
        yield GaugeMetricFamily("arwkv_verification_days", "Days that it takes to verify every shard once.", days)
        yield GaugeMetricFamily("arwkv_scan_lag_seconds", "Since a root was looked at.", scan.lag_s)
        yield GaugeMetricFamily("arwkv_scan_lag_limit_seconds", "Lag above which /ready says no.", scan.limit_s)
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
