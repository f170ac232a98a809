"""Writes the index: rows from the folders' content, and totals from the rows."""

import logging
import time
from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import and_, case, delete, func, insert, select, update
from sqlalchemy.orm import Session

from arwkv_api.index.lease import Lease, is_abandoned
from arwkv_api.index.orm import NOT_KNOWN, DatasetRow, ManifestRow, ShardRow
from arwkv_api.index.timeline import grown
from arwkv_api.index.totals import BATCH_MANIFESTS, grow, recompute
from arwkv_api.roots.manifests import Identity, Shard, ShardState
from arwkv_api.words import words_in
from arwkv_store.errors import UnsupportedVersion
from arwkv_store.format.layout import NOTES_FILE
from arwkv_store.format.notes import Notes, version_of

log = logging.getLogger("arwkv_api.indexing")

# Rows named in one statement: below the number of parameters that every database takes.
NAMED_ROWS = 500


def store_identity(session: Session, held: Lease, name: str, folder: str, identity: Identity) -> DatasetRow | None:
    """Add or correct the dataset's row; if it is another dataset than before, its shards are forgotten.

    None if `name` belongs to a dataset under another root that is still served.
    """
    row = session.scalar(select(DatasetRow).where(DatasetRow.name == name))
    if row is not None and row.root != held.root and not is_abandoned(session, row.root):
        return None
    if row is None:
        row = DatasetRow(name=name, created_at_s=identity.mark_ns / 1e9, dataset_hash="", parts=0)
        session.add(row)
    known = row.state == "ready" and row.dataset_hash == identity.dataset_hash
    if row.dataset_hash != identity.dataset_hash and row.id is not None:
        forget_shards(session, row)
    row.root, row.folder = held.root, folder
    row.identity, row.identity_mtime_ns = identity.raw, identity.mark_ns
    row.dataset_hash = identity.dataset_hash
    row.teacher, row.parts = identity.info.teacher.model, identity.info.corpus.parts
    row.words = words_in(name, identity.info.model_dump())
    if row.state != "withdrawn":
        row.state, row.problem = "ready" if known else "indexing", None
    row.updated_at_s = time.time()
    row.revision = (row.revision or 0) + 1
    session.flush()
    return row


def store_notes(session: Session, dataset_id: int, raw: bytes) -> None:
    """Take in the bytes of the dataset's notes.json; those that cannot be read have no words."""
    try:
        notes = Notes.from_bytes(raw, NOTES_FILE)
    except UnsupportedVersion:
        notes = Notes()
    row = session.get_one(DatasetRow, dataset_id)
    row.notes_version, row.note_words = version_of(raw), words_in(notes.text, notes.tags)
    row.tags = f" {' '.join(notes.tags)} " if notes.tags else ""
    row.revision += 1


def mark_ready(session: Session, dataset_id: int) -> None:
    """Serve a dataset: all of its shards were read."""
    row = session.get_one(DatasetRow, dataset_id)
    if row.state == "indexing":
        row.state = "ready"
        _touch(row)


def mark_unreadable(session: Session, held: Lease, name: str, folder: str, problem: str) -> None:
    """Mark the folder's dataset as unreadable, with the reason."""
    row = session.scalar(select(DatasetRow).where(DatasetRow.name == name))
    if row is not None and (row.root != held.root or row.state == "withdrawn"):
        return
    if row is not None and (row.state, row.problem) == ("unreadable", problem):
        return
    held.renew(session)
    if row is None:
        now = time.time()
        row = DatasetRow(
            name=name, identity=b"", identity_mtime_ns=0, dataset_hash="", teacher="", parts=0, created_at_s=now
        )
        row.words = words_in(name)
        session.add(row)
    row.root, row.folder, row.state, row.problem = held.root, folder, "unreadable", problem
    row.updated_at_s = time.time()
    row.revision = (row.revision or 0) + 1
    log.warning("%s", problem)


def mark_missing(session: Session, held: Lease, present: Collection[str]) -> None:
    """Mark datasets that are gone from this root."""
    rows = select(DatasetRow).where(DatasetRow.root == held.root, DatasetRow.state.not_in(("missing", "withdrawn")))
    gone = [row for row in session.scalars(rows) if row.name not in present]
    if gone:
        held.renew(session)
    for row in gone:
        row.state, row.problem = "missing", f"{row.name}: the folder or its dataset.json is gone"
        row.revision, row.updated_at_s = row.revision + 1, time.time()
        log.warning("%s", row.problem)


def store_shards(session: Session, dataset_id: int, shards: Sequence[Shard], *, replaced: bool) -> None:
    """Add shards; `replaced`: some are in the index already, so the totals are counted again."""
    if not shards:
        return
    parts = [shard.files.part for shard in shards]
    delete_shards(session, dataset_id, parts)
    session.execute(insert(ShardRow), [{"dataset_id": dataset_id, **_columns(shard)} for shard in shards])
    ids = select(ShardRow.part, ShardRow.id).where(ShardRow.dataset_id == dataset_id, ShardRow.part.in_(parts))
    id_of = dict(session.execute(ids).all())
    raw = [{"shard_id": id_of[shard.files.part], "raw": shard.raw} for shard in shards]
    session.execute(insert(ManifestRow), raw)
    if replaced:
        refresh_totals(session, dataset_id)
    else:
        _grow_totals(session.get_one(DatasetRow, dataset_id), shards)


def _grow_totals(row: DatasetRow, shards: Sequence[Shard]) -> None:
    good = [shard.manifest for shard in shards if shard.manifest is not None]
    row.shards, row.faulty_shards = row.shards + len(good), row.faulty_shards + len(shards) - len(good)
    row.samples += sum(manifest.rows for manifest in good)
    row.tokens += sum(manifest.tokens for manifest in good)
    row.size_bytes += sum(manifest.size_bytes for manifest in good)
    grow(row, [manifest.stats for manifest in good])
    commits = [(s.files.committed_at_s, s.manifest.tokens, s.manifest.size_bytes) for s in shards if s.manifest]
    row.growth = grown(row.growth, commits)
    _touch(row)


def mark_vanished(session: Session, dataset_id: int, parts: Iterable[int]) -> None:
    """Mark committed shards whose manifest is gone."""
    for some in _some(list(parts)):
        gone = update(ShardRow).where(ShardRow.dataset_id == dataset_id, ShardRow.part.in_(some))
        session.execute(gone.values(state=ShardState.MISSING, fingerprint="", problem="its manifest is gone"))
    refresh_totals(session, dataset_id)


def refresh_totals(session: Session, dataset_id: int) -> None:
    """Count the dataset's totals and statistics again, from every committed shard."""
    row = session.get_one(DatasetRow, dataset_id)
    committed = ShardRow.state == ShardState.COMMITTED
    sums = [func.coalesce(func.sum(case((committed, column), else_=0)), 0) for column in _SUMMED]
    verified = and_(committed, ShardRow.verified_at_s > 0)
    many = [func.coalesce(func.sum(case((kind, 1), else_=0)), 0) for kind in (committed, ~committed, verified)]
    counts = session.execute(select(*many, *sums).where(ShardRow.dataset_id == dataset_id)).one()
    row.shards, row.faulty_shards, row.verified_shards, row.samples, row.tokens, row.size_bytes = map(int, counts)
    commits = select(ShardRow.committed_at_s, ShardRow.tokens, ShardRow.size_bytes).where(
        ShardRow.dataset_id == dataset_id, committed
    )
    row.growth = grown(None, ((at_s, tokens, size) for at_s, tokens, size in session.execute(commits)))
    manifests = (
        select(ManifestRow.raw)
        .join(ShardRow, ShardRow.id == ManifestRow.shard_id)
        .where(ShardRow.dataset_id == dataset_id, committed)
        .order_by(ShardRow.part)
    )
    recompute(row, session.scalars(manifests.execution_options(yield_per=BATCH_MANIFESTS)))
    _touch(row)


def forget(session: Session, held: Lease, name: str) -> None:
    """Let the next scan read dataset `name` of this root again, withdrawn or not."""
    row = session.scalar(select(DatasetRow).where(DatasetRow.name == name, DatasetRow.root == held.root))
    if row is not None:
        held.renew(session)
        forget_shards(session, row)
        row.state, row.identity_mtime_ns = "indexing", 0  # dataset.json is read again, too


def forget_shards(session: Session, row: DatasetRow) -> None:
    """Delete the rows of all of the dataset's shards."""
    session.execute(delete(ShardRow).where(ShardRow.dataset_id == row.id))
    row.shards = row.samples = row.tokens = row.size_bytes = row.faulty_shards = row.verified_shards = 0
    row.sampled_regions = row.sampled_bytes = 0
    row.stats = row.growth = None
    _touch(row)


def delete_shards(session: Session, dataset_id: int, parts: list[int]) -> None:
    """Delete some shards' rows; totals do not change."""
    for some in _some(parts):
        session.execute(delete(ShardRow).where(ShardRow.dataset_id == dataset_id, ShardRow.part.in_(some)))


_SUMMED = (ShardRow.samples, ShardRow.tokens, ShardRow.size_bytes)


def _touch(row: DatasetRow) -> None:
    row.revision, row.updated_at_s = row.revision + 1, time.time()


def _some(parts: list[int]) -> Iterable[list[int]]:
    return (parts[start : start + NAMED_ROWS] for start in range(0, len(parts), NAMED_ROWS))


def _columns(shard: Shard) -> dict[str, object]:
    manifest = shard.manifest
    entropy_mean = None if manifest is None else manifest.stats.entropy_mean
    tail_mass_mean = None if manifest is None else manifest.stats.tail_mass_mean
    return {
        "part": shard.files.part,
        "state": shard.state,
        "problem": shard.problem,
        "samples": manifest.rows if manifest else 0,
        "tokens": manifest.tokens if manifest else 0,
        "size_bytes": manifest.size_bytes if manifest else 0,
        "first_sample_id": manifest.first_sample_id if manifest else 0,
        "last_sample_id": manifest.last_sample_id if manifest else 0,
        "entropy_mean": NOT_KNOWN if entropy_mean is None else entropy_mean,
        "tail_mass_mean": NOT_KNOWN if tail_mass_mean is None else tail_mass_mean,
        "committed_at_s": shard.files.committed_at_s,
        "fingerprint": shard.files.fingerprint,
    }
