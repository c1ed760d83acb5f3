"""The written-out SQL is what SQLAlchemy Core makes of the schema."""

import pytest
from sqlalchemy.dialects.sqlite import dialect, insert

from stoker.ledger import schema
from stoker.ledger.stores import statements
from stoker.testing.ledger_rows import a_settlement, an_attempt, an_intent

INSERTS = [
    statements.INSERT_REQUEST,
    statements.INSERT_SETTLEMENT,
    statements.INSERT_ATTEMPT,
    statements.INSERT_EVENT,
    statements.INSERT_INTERVAL,
]


@pytest.mark.parametrize("num_rows", [1, 3], ids=["one row", "three rows"])
@pytest.mark.parametrize("written", INSERTS, ids=lambda written: written.table)
def test_inserts_match_core(written: statements.Insert, num_rows: int) -> None:
    table = schema.metadata.tables[written.table]
    core = insert(table).values([dict.fromkeys(written.columns) for _ in range(num_rows)]).on_conflict_do_nothing()
    assert str(core.compile(dialect=dialect(paramstyle="qmark"))) == written.sql(num_rows)


@pytest.mark.parametrize("written", INSERTS, ids=lambda written: written.table)
def test_every_column_of_a_table_is_written(written: statements.Insert) -> None:
    generated = {column.name for column in schema.metadata.tables[written.table].columns if column.identity}
    assert set(schema.metadata.tables[written.table].columns.keys()) - generated == set(written.columns)


def test_rows_are_in_the_order_of_their_columns() -> None:
    intent = statements.request_row(an_intent("req_7", tenant="acme"))
    assert dict(zip(statements.INSERT_REQUEST.columns, intent, strict=True))["tenant"] == "acme"
    settlement = a_settlement("req_7", attempts=(an_attempt(1, outcome="engine_error"), an_attempt(2)))
    attempts = [
        dict(zip(statements.INSERT_ATTEMPT.columns, row, strict=True)) for row in statements.attempt_rows(settlement)
    ]
    assert [(row["request_id"], row["number"], row["outcome"]) for row in attempts] == [
        ("req_7", 1, "engine_error"),
        ("req_7", 2, "completed"),
    ]
