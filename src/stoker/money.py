"""Money as integer nano-USD, rounded once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

NANOUSD_PER_USD = 1_000_000_000
_TOKENS_PER_MILLION = 1_000_000


def nanousd(usd: Decimal | int | str) -> int:
    """Convert dollars to integer nano-USD, halves rounded up."""
    return int((Decimal(usd) * NANOUSD_PER_USD).to_integral_value(ROUND_HALF_UP))


def format_usd(amount_nanousd: int) -> str:
    """Write nano-USD as plain decimal dollars without an exponent: 330000 → `0.00033`."""
    sign = "-" if amount_nanousd < 0 else ""
    dollars, rest = divmod(abs(amount_nanousd), NANOUSD_PER_USD)
    return f"{sign}{dollars}.{rest:09d}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """What tokens cost, in nano-USD per million tokens.

    Attributes:
        input_nanousd_per_million: for input tokens that were computed.
        cached_input_nanousd_per_million: for input tokens that a prefix cache supplied.
        output_nanousd_per_million: for generated tokens.
    """

    input_nanousd_per_million: int
    cached_input_nanousd_per_million: int
    output_nanousd_per_million: int

    def cost_nanousd(self, *, input_tokens: int, cached_input_tokens: int, output_tokens: int) -> int:
        """Price one request; `cached_input_tokens` is the part of `input_tokens` that came from a cache."""
        total = (
            (input_tokens - cached_input_tokens) * self.input_nanousd_per_million
            + cached_input_tokens * self.cached_input_nanousd_per_million
            + output_tokens * self.output_nanousd_per_million
        )
        return (total + _TOKENS_PER_MILLION // 2) // _TOKENS_PER_MILLION
