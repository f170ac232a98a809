"""The index's database: SQLite by default, PostgreSQL by URL, with the same migrations."""

import re
from pathlib import Path
from sqlite3 import Connection as SqliteConnection

from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from arwkv_store.errors import UsageError

# The newest migration; asserted by a test. It is stored here so that a start without migration need not import alembic.
SCHEMA_REVISION = "0008"
BUSY_TIMEOUT_MS = 10_000
MIGRATION_LOCK = 7_240_115  # any number, the same in each process


def connect(url: str) -> Engine:
    """Open the index at `url` and bring its schema up to date.

    Raises UsageError for a URL that cannot be understood or a database that cannot be opened.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise UsageError(
                    f"--database {_without_password(url)}: the index needs a file; write sqlite:///path/index.sqlite3"
                )
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        # A file's connection cannot have gone stale; a server's can.
        remote = parsed.get_backend_name() != "sqlite"
        engine = create_engine(parsed, pool_pre_ping=remote, pool_size=20, max_overflow=30)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, OSError, ValueError) as error:
        said = _without_password(f"--database {url!r}: {error}")
        raise UsageError(f"{said}; write sqlite:///FILE or postgresql://user:password@host/name") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    try:
        _upgrade(engine)
    except OperationalError as error:
        engine.dispose()
        reason = " ".join(str(error.orig).split())
        raise UsageError(f"--database {parsed.render_as_string()}: {reason}; check that it is reachable") from error
    except DatabaseError as error:
        engine.dispose()
        raise UsageError(
            f"--database {parsed.render_as_string()}: {' '.join(str(error.orig).split())}; "
            "name another one, or delete it if it was an index"
        ) from error
    except NewerSchema as error:
        engine.dispose()
        raise UsageError(
            f"--database {parsed.render_as_string()}: its schema is {error}, but this release knows only schemas up to "
            f"{SCHEMA_REVISION}; use the newer release, or delete the index, which is rebuilt"
        ) from error
    return engine


def _without_password(text: str) -> str:
    """The text without the part between a URL's scheme and host, which may hold a password."""
    return re.sub(r"://\S*@", "://***@", text)


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    assert isinstance(connection, SqliteConnection)
    # SQLite's own function handles only ASCII.
    connection.create_function("lower", 1, lambda text: text and text.lower(), deterministic=True)
    for pragma in (
        "journal_mode = WAL",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "foreign_keys = ON",
        "synchronous = NORMAL",
    ):
        connection.execute(f"PRAGMA {pragma}")


class NewerSchema(Exception):
    """The schema of a newer release; the message is its revision."""


def _upgrade(engine: Engine) -> None:
    current = _current(engine)
    if current == SCHEMA_REVISION:
        return
    if current is not None and current > SCHEMA_REVISION:
        raise NewerSchema(current)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    with engine.connect() as connection:
        # One process migrates; the others wait here and then have nothing to do.
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def _current(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return version
