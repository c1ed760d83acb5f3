"""Which addresses may be asked."""

from __future__ import annotations

import pytest

from stoker.models.dialling import AddressRefused, CheckedResolver, check_host, is_public


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("172.16.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("not an address", False),
    ],
)
def test_only_public_addresses_are_asked(address: str, may: bool) -> None:
    assert is_public(address) is may


def test_a_host_written_as_an_address_is_judged_without_a_resolver() -> None:
    with pytest.raises(AddressRefused, match="allow_private"):
        check_host("169.254.169.254", allow_private=False)
    check_host("169.254.169.254", allow_private=True)
    check_host("example.org", allow_private=False)


async def test_a_name_that_leads_home_is_refused() -> None:
    with pytest.raises(AddressRefused, match="localhost"):
        await CheckedResolver(allow_private=False).resolve("localhost", 80)
    assert await CheckedResolver(allow_private=True).resolve("localhost", 80)
