"""Fixtures of the event store's tests: empty databases of SQLite and of a real PostgreSQL server.

A plugin (`pytest_plugins`), so that all test modules share one server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from ltrr.feedback.schema import open_database
from ltrr.feedback.store import EventStore
from scripts.benchmarks.postgres import postgres_server


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A server that forgets what the machine forgets, which no test makes it do; processes it does not trust."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver: pip install 'ltrr[scale]'")
    try:
        with postgres_server("-c fsync=off -c synchronous_commit=off") as url:
            yield url
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/events.db"
    server = request.getfixturevalue("server")
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return server


@pytest.fixture
def store(url) -> Iterator[EventStore]:
    with EventStore(url) as opened:
        yield opened


@pytest.fixture
def hold(url):
    """A context in which another process seems to hold the write lock; gives its connection."""
    engine = open_database(url)
    yield lambda: engine.execution_options(write=True).begin()
    engine.dispose()
