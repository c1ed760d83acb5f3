"""What `/metrics` says, and that strangers cannot make it grow."""

from __future__ import annotations

from stoker.gateway.metrics import GatewayMetrics


def test_histograms_are_cumulative_and_counters_named_as_documented() -> None:
    metrics = GatewayMetrics()
    one = metrics.of("chat", "serverless")
    one.outcomes["completed"] = 2
    one.ttft.observe(0.005)
    one.ttft.observe(0.2)
    one.ttft.observe(1000.0)
    one.input_tokens, one.cached_input_tokens, one.output_tokens = 10, 4, 7
    metrics.count_turned_away("invalid_api_key")
    text = metrics.exposition().decode()
    labels = 'deployment="chat",tier="serverless"'
    assert 'stoker_requests_total{deployment="chat",outcome="completed",tier="serverless"} 2.0' in text
    assert 'stoker_gateway_ttft_seconds_bucket{deployment="chat",le="0.005",tier="serverless"} 1.0' in text
    assert 'stoker_gateway_ttft_seconds_bucket{deployment="chat",le="0.25",tier="serverless"} 2.0' in text
    assert 'stoker_gateway_ttft_seconds_bucket{deployment="chat",le="+Inf",tier="serverless"} 3.0' in text
    assert f"stoker_gateway_ttft_seconds_count{{{labels}}} 3.0" in text
    assert 'stoker_tokens_total{deployment="chat",kind="cached_input",tier="serverless"} 4.0' in text
    assert 'stoker_turned_away_total{code="invalid_api_key"} 1.0' in text


def test_the_same_deployment_has_one_set_of_counters() -> None:
    metrics = GatewayMetrics()
    assert metrics.of("a", "serverless") is metrics.of("a", "serverless")
    assert metrics.of("a", "serverless") is not metrics.of("a", "dedicated")
