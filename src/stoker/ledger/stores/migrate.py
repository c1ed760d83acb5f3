"""Brings a SQLite ledger to the current revision. Touches the disk; imports Alembic and SQLAlchemy."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from stoker.ledger.migrations import HEAD

SCRIPTS = Path(__file__).parent.parent / "migrations"


def alembic_config(connection: Connection | None = None) -> Config:
    """Return the programmatic configuration; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def migrate(path: Path) -> None:
    """Apply the missing migrations, all of them or none.

    Raises:
        sqlite3.Error: as the driver raised it.
    """
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)

    # The driver commits before a data definition unless it is told to leave transactions alone.
    @event.listens_for(engine, "connect")
    def _leave_transactions_alone(driver_connection: Any, _record: Any) -> None:
        driver_connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), HEAD)
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise error.orig from error
        raise
    finally:
        engine.dispose()
