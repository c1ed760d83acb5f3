"""From a declared price to what one request costs, in integer nano-USD. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

from stoker.money import TokenPrice, nanousd


class PriceDeclaration(Protocol):
    """Dollars per million tokens, as a configuration declares them."""

    @property
    def input_usd_per_million(self) -> Decimal: ...
    @property
    def cached_input_usd_per_million(self) -> Decimal | None: ...
    @property
    def output_usd_per_million(self) -> Decimal: ...


def token_price(declared: PriceDeclaration) -> TokenPrice:
    """Convert a declaration; cached input costs as much as other input unless it has a price of its own."""
    cached = declared.cached_input_usd_per_million
    return TokenPrice(
        input_nanousd_per_million=nanousd(declared.input_usd_per_million),
        cached_input_nanousd_per_million=nanousd(declared.input_usd_per_million if cached is None else cached),
        output_nanousd_per_million=nanousd(declared.output_usd_per_million),
    )


def price_nanousd(
    price: TokenPrice | None,
    *,
    input_tokens: int | None,
    output_tokens: int | None,
    cached_input_tokens: int | None = None,
) -> int | None:
    """Return what a request costs; None (unpriced, which is not free) without a price or without token counts.

    Args:
        cached_input_tokens: the part of `input_tokens` that a cache supplied; taken as 0 when unknown, and as all of
            `input_tokens` when an engine reports more than that.
    """
    if price is None or input_tokens is None or output_tokens is None:
        return None
    return price.cost_nanousd(
        input_tokens=input_tokens,
        cached_input_tokens=min(cached_input_tokens or 0, input_tokens),
        output_tokens=output_tokens,
    )
