"""How a dataset grew: running totals of its committed shards over time."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from arwkv_api.models import TimelinePoint, moment
from arwkv_api.tables import ShardRow


def timeline_of(session: Session, dataset_id: int, points: int) -> list[TimelinePoint]:
    """At most `points` running totals, evenly spaced from the first commit to the last."""
    mine = (ShardRow.dataset_id == dataset_id, ShardRow.state == "committed")
    first_s, last_s = session.execute(
        select(func.min(ShardRow.committed_at_s), func.max(ShardRow.committed_at_s)).where(*mine)
    ).one()
    if first_s is None:
        return []
    width_s = max((last_s - first_s) / (points - 1), 1e-3)
    slot = func.floor((ShardRow.committed_at_s - first_s) / width_s)
    sums = [func.count(), func.sum(ShardRow.tokens), func.sum(ShardRow.size_bytes)]
    rows = session.execute(
        select(func.max(ShardRow.committed_at_s), *sums).where(*mine).group_by(slot).order_by(slot)
    ).all()
    shards = tokens = size_bytes = 0
    grown = []
    for at_s, *more in rows:
        shards, tokens, size_bytes = shards + int(more[0]), tokens + int(more[1]), size_bytes + int(more[2])
        grown.append(TimelinePoint(at=moment(at_s), shards=shards, tokens=tokens, size_bytes=size_bytes))
    return grown
