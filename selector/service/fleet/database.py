"""Opens the database behind the store, SQLite or PostgreSQL, and brings its schema up to date."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from platformdirs import user_data_path
from sqlalchemy.exc import ArgumentError, InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

BUSY_S = 30.0
"""So long a writer waits for another one (SQLite), and a start for another one's migration (PostgreSQL)."""
_MIGRATION_LOCK = 0x50F7ED4E7  # any number that is ours alone
_DRIVERS = {
    "sqlite": "sqlite+pysqlite",
    "sqlite+pysqlite": "sqlite+pysqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
"""By what a URL may begin with; others are not installed."""
_creating = threading.Lock()
_NAME_ONE = "name one with --store sqlite:///FILE or in SORTEDNET_STORE"


class StoreError(ValueError):
    """A store that cannot be opened: a wrong URL, no database there, a newer schema."""

    exit_code = 2


class StoreUnavailable(Exception):
    """The database does not answer, or not in time. The same request may work a little later."""


def default_url() -> str:
    """A SQLite file in the user's data folder. Raises StoreError where there is no such folder."""
    try:
        folder = user_data_path("sortednet", appauthor=False)
        if not folder.is_absolute():  # the home of a user without an entry is not known, and stays as `~`
            raise RuntimeError(f"{folder} is no folder")
    except (RuntimeError, KeyError):
        raise StoreError(f"store: this user has no home folder to keep one in; {_NAME_ONE}") from None
    return f"sqlite:///{folder / 'store.db'}"


def open_engine(url: str) -> sa.Engine:
    """An engine whose schema is the newest, with no connection open, so that a server may fork.

    `url`: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/NAME`. Raises StoreError; passwords are not in its text.
    """
    try:
        address = sa.make_url(url)
    except (ArgumentError, ValueError):  # the latter of a port that is no number
        raise StoreError("store: is no URL; allowed are sqlite:///FILE and postgresql://USER@HOST/NAME") from None
    if address.drivername not in _DRIVERS:
        raise StoreError(f"store {_shown(address)!r}: allowed are sqlite:///FILE and postgresql://USER@HOST/NAME")
    if (
        address.get_backend_name() == "sqlite" and "?" in url
    ):  # SQLAlchemy would drop it, and what follows, from the file's name
        raise StoreError(f"store {url!r}: a ? is not allowed, neither in the file's name nor with options after it")
    address = address.set(drivername=_DRIVERS[address.drivername])
    engine = _sqlite(address) if address.get_backend_name() == "sqlite" else _postgresql(address)
    try:
        migrate(engine)
    except CommandError as error:
        raise StoreError(f"store {_shown(address)!r}: is of a newer sortednet ({error}); update this one") from None
    except (StoreUnavailable, SQLAlchemyError) as error:
        why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StoreError(f"store {_shown(address)!r}: cannot be opened: {why}") from None
    finally:
        engine.dispose()
    return engine


def migrate(engine: sa.Engine, revision: str = "head") -> None:
    """Upgrades the schema in one transaction, under a lock: of several that start at once one does it, the others wait."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text(f"SET LOCAL lock_timeout = '{BUSY_S:.0f}s'"))
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that only reads. Raises StoreUnavailable."""
    with _available(), engine.begin() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that writes. SQLite's lock is taken at its begin: one that read first could not wait for it later.
    Raises StoreUnavailable."""
    with _available(), engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection:
        yield connection


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, InternalError, PoolTimeout) as error:  # the others are defects of ours
        raise StoreUnavailable(str(getattr(error, "orig", None) or error)) from error


def _sqlite(address: sa.URL) -> sa.Engine:
    if not address.database or address.database == ":memory:":
        raise StoreError("store: a SQLite file needs a name: sqlite:///FILE")
    try:
        _create(Path(address.database))
    except OSError as error:
        raise StoreError(f"store {_shown(address)!r}: cannot be written: {error.strerror}; {_NAME_ONE}") from None
    engine = sa.create_engine(address, connect_args={"timeout": BUSY_S}, pool_timeout=BUSY_S)

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # begin as we say, not as the driver guesses
        _write_ahead_log(connection)
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine


def _create(file: Path) -> None:
    """Makes the file where there is none, and opens none that is there: a process that closes any handle on a file loses all
    its locks on it, those of other connections too (POSIX; sqlite.org/howtocorrupt.html, section 2.2). Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file = Path(os.path.realpath(file))  # of a link, that which it leads to
    with _creating:  # until the handle is closed nobody else in this process may think that the file is there
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # what it holds is for its owner alone
        except FileExistsError:
            if not os.access(file, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _write_ahead_log(connection: Any) -> None:
    """Readers and a writer at once. The file remembers it. Changing to it does not heed the busy timeout: hence the loop."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            others = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL)
            if not others or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _postgresql(address: sa.URL) -> sa.Engine:
    return sa.create_engine(
        address,
        pool_pre_ping=True,  # a database that was restarted is found again
        pool_timeout=10,
        connect_args={"connect_timeout": 5, "tcp_user_timeout": 10_000, "application_name": "sortednet"},
    )


def _shown(address: sa.URL) -> str:
    return address.render_as_string(hide_password=True)
