"""`KeyStore`, `OverrideStore` and `RecoveryStore`: what every implementation promises."""

from dataclasses import replace
from typing import Any

import pytest

from stoker.errors import Conflict
from stoker.ledger.domain.intervals import intervals_from_events
from stoker.ledger.domain.reports import UsageQuery
from stoker.ledger.records import Override
from stoker.testing.ledger_rows import NOON_US, a_key, a_settlement, a_transition, an_intent

LATER_US = NOON_US + 60_000_000


async def test_keys_come_back_as_they_were_added(ledger: Any) -> None:
    keys = [a_key("key_1"), a_key("key_2", deployments=("chat", "embed"), created_at_us=NOON_US + 1)]
    for key in reversed(keys):
        await ledger.add_key(key)
    assert list(await ledger.list_keys()) == keys


@pytest.mark.parametrize(
    "again", [a_key("key_1", sha256="f" * 64), a_key("key_2", sha256=a_key("key_1").sha256)], ids=["id", "secret"]
)
async def test_a_key_is_added_once(ledger: Any, again: Any) -> None:
    await ledger.add_key(a_key("key_1"))
    with pytest.raises(Conflict):
        await ledger.add_key(again)
    await ledger.begin(an_intent())  # the refusal harmed nobody else


async def test_a_key_is_revoked_once(ledger: Any) -> None:
    await ledger.add_key(a_key())
    assert await ledger.revoke_key("key_1", at_us=5)
    assert not await ledger.revoke_key("key_1", at_us=6)
    assert not await ledger.revoke_key("key_none", at_us=6)
    assert [key.revoked_at_us for key in await ledger.list_keys()] == [5]


async def test_the_newest_override_of_a_deployment_is_in_force(ledger: Any) -> None:
    override = Override("chat", '{"tier": "dedicated"}', "null", "cli", "more traffic", NOON_US)
    newest = replace(override, patch='{"replicas": 2}', at_us=LATER_US)
    other = replace(override, deployment="a")
    for each in (override, newest, other):
        await ledger.put_override(each)
    assert list(await ledger.list_overrides()) == [other, newest]


async def test_a_discarded_override_is_gone(ledger: Any) -> None:
    await ledger.put_override(Override("chat", "null", "{}", "cli", "", NOON_US))
    for deployment in ("chat", "unknown"):
        await ledger.discard_override(deployment, author="cli", reason="done", at_us=LATER_US)
    assert list(await ledger.list_overrides()) == []


async def test_the_declared_configuration_is_the_last_one(ledger: Any) -> None:
    assert await ledger.declared() is None
    for text in ("{}", '{"a": "ü"}'):
        await ledger.set_declared(text)
    assert await ledger.declared() == '{"a": "ü"}'


async def test_open_intents_are_settled_as_interrupted_once(ledger: Any) -> None:
    for request_id in ("open_1", "done", "open_2"):
        await ledger.begin(an_intent(request_id))
    await ledger.settle(a_settlement("done"))
    assert await ledger.settle_interrupted(at_us=LATER_US) == 2
    assert await ledger.settle_interrupted(at_us=LATER_US) == 0
    await ledger.begin(an_intent("open_3"))
    assert await ledger.settle_interrupted(at_us=LATER_US) == 1
    (row,) = (await ledger.usage(UsageQuery(0, 2**60, ()))).rows
    assert row.outcomes == {"completed": 1, "interrupted": 3}
    assert (row.output_tokens, row.num_unpriced, row.last_settled_at_us) == (5, 3, LATER_US)


async def test_only_replicas_that_nobody_adopted_are_closed(ledger: Any) -> None:
    for replica_id in ("adopted", "orphan"):
        await ledger.record(a_transition(1, replica_id=replica_id))
        await ledger.record(a_transition(2, replica_id=replica_id, from_status="starting", to_status="ready"))
    assert await ledger.last_sequences() == {"adopted": 2, "orphan": 2}
    assert list(await ledger.close_orphan_intervals(["adopted"], at_us=LATER_US)) == ["orphan"]
    assert [i.replica_id for i in await ledger.replica_intervals(only_open=True)] == ["adopted"]
    assert [(i.status, i.ended_at_us) for i in await ledger.replica_intervals() if i.replica_id == "orphan"] == [
        ("starting", NOON_US + 2_000_000),
        ("ready", LATER_US),
    ]
    assert list(await ledger.close_orphan_intervals(["adopted"], at_us=LATER_US)) == []


async def test_the_replayed_event_log_gives_the_stored_intervals(ledger: Any) -> None:
    moves = {"launch": "starting", "healthy": "ready", "drain": "draining", "exit": "stopped"}
    for replica_id, names in {"a": ["launch", "healthy", "drain", "exit"], "b": ["launch", "healthy"]}.items():
        before = "cold"
        for sequence, name in enumerate(names, start=1):
            await ledger.record(
                a_transition(
                    sequence, replica_id=replica_id, event=name, from_status=before, to_status=moves[name],
                    is_final=name == "exit",
                )
            )  # fmt: skip
            before = moves[name]
    await ledger.close_orphan_intervals([], at_us=LATER_US)
    replayed = intervals_from_events(
        await ledger.replica_events(),
        initial=lambda _: "cold",
        step=lambda _, event: moves[event],
        status_of=lambda status: status,
        is_final=lambda status: status == "stopped",
    )
    assert list(replayed) == list(await ledger.replica_intervals())
