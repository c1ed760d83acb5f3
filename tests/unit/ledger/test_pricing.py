"""Prices: conversion and laws."""

from dataclasses import dataclass
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config.settings import TokenPriceSettings
from stoker.ledger.domain.pricing import price_nanousd, token_price


@dataclass(frozen=True)
class Declared:
    input_usd_per_million: Decimal
    cached_input_usd_per_million: Decimal | None
    output_usd_per_million: Decimal


tokens = st.integers(0, 10_000_000)
dollars = st.decimals(0, 1000, places=6)
declared = st.builds(Declared, dollars, st.none() | dollars, dollars)


def test_settings_convert_to_nano_usd() -> None:
    settings = TokenPriceSettings(input_usd_per_million=Decimal("0.1"), output_usd_per_million=Decimal("0.4"))
    price = token_price(settings)
    assert price.input_nanousd_per_million == 100_000_000
    assert price.cached_input_nanousd_per_million == 100_000_000
    assert price.output_nanousd_per_million == 400_000_000


def test_a_cached_price_of_zero_is_not_the_same_as_none() -> None:
    price = token_price(Declared(Decimal(1), Decimal(0), Decimal(2)))
    assert price_nanousd(price, input_tokens=1_000_000, cached_input_tokens=1_000_000, output_tokens=0) == 0


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens"), [(None, 1), (1, None), (None, None)], ids=["no input", "no output", "neither"]
)
def test_unknown_tokens_are_unpriced(input_tokens: int | None, output_tokens: int | None) -> None:
    price = token_price(Declared(Decimal(1), None, Decimal(2)))
    assert price_nanousd(price, input_tokens=input_tokens, output_tokens=output_tokens) is None


def test_without_a_price_nothing_is_priced() -> None:
    assert price_nanousd(None, input_tokens=1, output_tokens=1) is None


@given(declared, tokens, tokens, st.none() | tokens)
def test_a_price_is_exact_to_half_a_nano_usd_and_never_negative(
    price: Declared, input_tokens: int, output_tokens: int, cached: int | None
) -> None:
    cost = price_nanousd(
        token_price(price), input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached
    )
    used = min(cached or 0, input_tokens)
    cached_usd = price.cached_input_usd_per_million
    exact = (
        (input_tokens - used) * price.input_usd_per_million
        + used * (price.input_usd_per_million if cached_usd is None else cached_usd)
        + output_tokens * price.output_usd_per_million
    ) * 1000
    assert cost is not None
    assert cost >= 0
    assert abs(cost - exact) <= Decimal("0.5")


@given(declared, tokens, tokens, tokens, tokens)
def test_more_tokens_never_cost_less(price: Declared, inputs: int, outputs: int, more_in: int, more_out: int) -> None:
    converted = token_price(price)
    less = price_nanousd(converted, input_tokens=inputs, output_tokens=outputs)
    more = price_nanousd(converted, input_tokens=inputs + more_in, output_tokens=outputs + more_out)
    assert less is not None
    assert more is not None
    assert less <= more
