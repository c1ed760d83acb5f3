"""Migrations make exactly the schema; newer ledgers are refused; opening a current one imports no framework."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from stoker.errors import StateDirUnusable
from stoker.ledger.migrations import HEAD
from stoker.ledger.schema import metadata
from stoker.ledger.stores.connection import open_migrated
from stoker.ledger.stores.migrate import alembic_config
from stoker.ledger.stores.sqlite import SqliteLedger


def objects(path: Path) -> dict[str, list[str]]:
    """Return each table's and index's definition, as its sorted lines."""
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE name != 'alembic_version'").fetchall()
    connection.close()
    return {name: sorted(line.strip(" ,") for line in (sql or "").splitlines()) for name, sql in rows if sql}


def test_migrations_make_exactly_the_schema(tmp_path: Path) -> None:
    open_migrated(tmp_path / "migrated").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'declared'}")
    metadata.create_all(engine)
    engine.dispose()
    assert objects(tmp_path / "migrated") == objects(tmp_path / "declared")


def test_the_newest_migration_is_the_one_that_we_name() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


@pytest.mark.parametrize("revision", [f"{int(HEAD) + 1:04d}", "abcdef"], ids=["a greater number", "no number of ours"])
async def test_a_ledger_of_a_newer_stoker_is_refused(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "ledger.sqlite3"
    open_migrated(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()
    with pytest.raises(StateDirUnusable, match=f"revision {revision}.*newer Stoker"):
        await SqliteLedger.open(path)


async def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(b"not a database " * 100)
    with pytest.raises(StateDirUnusable, match="not a ledger"):
        await SqliteLedger.open(tmp_path / "ledger.sqlite3")


async def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateDirUnusable, match="cannot be opened"):
        await SqliteLedger.open(tmp_path / "none" / "ledger.sqlite3")


def test_a_migration_that_fails_leaves_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE settlements (in_the_way)")  # the last table to be made
    connection.commit()
    connection.close()
    with pytest.raises(StateDirUnusable, match="already exists"):
        open_migrated(path)
    assert set(objects(path)) == {"settlements"}


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    open_migrated(tmp_path / "ledger.sqlite3").close()
    assert (tmp_path / "ledger.sqlite3").stat().st_mode & 0o777 == 0o600


def test_opening_a_current_ledger_imports_neither_alembic_nor_sqlalchemy(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    open_migrated(path).close()
    program = (
        "import asyncio, pathlib, sys\n"
        "from stoker.ledger.stores.sqlite import SqliteLedger\n"
        "async def main():\n"
        f"    await (await SqliteLedger.open(pathlib.Path({str(path)!r}))).close()\n"
        "asyncio.run(main())\n"
        "print({'alembic', 'sqlalchemy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
