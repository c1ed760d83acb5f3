"""What application developers do: unmodified client libraries against the real engine on both tiers."""

from __future__ import annotations

import json
import subprocess

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from stoker.testing.server import RunningStoker

QUESTION = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def client(stoker: RunningStoker) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stoker.url}/v1", api_key="any", max_retries=0)


@pytest.mark.parametrize("model", ["chat", "reserved"])
def test_the_openai_client_chats_on_both_tiers(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, max_tokens=8, temperature=0
    )
    parsed = answer.parse()
    assert parsed.choices[0].message.content
    assert parsed.usage.completion_tokens == 8
    assert answer.headers["x-stoker-tier"] == {"chat": "serverless", "reserved": "dedicated"}[model]
    assert answer.headers["x-stoker-request-id"].startswith("req_")


def test_both_tiers_give_the_same_greedy_words(client: openai.OpenAI) -> None:
    words = {
        model: client.chat.completions.create(model=model, messages=QUESTION, max_tokens=16, temperature=0)
        .choices[0]
        .message.content
        for model in ("chat", "reserved")
    }
    assert words["chat"] == words["reserved"]


def test_a_stream_arrives_in_pieces_and_without_a_usage_chunk_unless_asked(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="chat", messages=QUESTION, max_tokens=8, temperature=0, stream=True)
    )
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) >= 4
    assert all(c.usage is None for c in chunks)


def test_a_stream_ends_with_usage_when_asked(client: openai.OpenAI) -> None:
    *_, last = client.chat.completions.create(
        model="chat", messages=QUESTION, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage.completion_tokens == 8


async def test_the_async_client_streams(stoker: RunningStoker) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stoker.url}/v1", api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(model="chat", messages=QUESTION, max_tokens=6, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert text


def test_completions_and_embeddings(client: openai.OpenAI) -> None:
    completed = client.completions.create(model="chat", prompt="Once upon a time", max_tokens=5, temperature=0)
    assert completed.choices[0].text
    vectors = client.embeddings.create(model="vectors", input=["coal", "fire"], encoding_format="float")
    assert len(vectors.data) == 2
    assert len(vectors.data[0].embedding) == len(vectors.data[1].embedding) == 576


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert {m.id for m in client.models.list()} == {"chat", "reserved", "vectors"}
    assert client.models.retrieve("chat").id == "chat"


def test_an_unknown_model_is_named_with_the_nearest(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="chatt", messages=QUESTION)
    assert refused.value.code == "model_not_found"
    assert "chat" in refused.value.message


def test_a_prompt_beyond_the_context_is_refused_with_its_size(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "coal " * 4000}])
    assert "context" in refused.value.message


def test_an_embeddings_deployment_says_what_it_offers_when_asked_to_chat(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="vectors", messages=QUESTION)
    assert refused.value.status_code in {400, 404}
    assert "embeddings" in refused.value.message


def test_langchain_chats_streams_and_embeds(stoker: RunningStoker) -> None:
    chat = ChatOpenAI(model="chat", base_url=f"{stoker.url}/v1", api_key="any", max_tokens=8, temperature=0)
    assert chat.invoke("Say hello.").content
    assert "".join(str(piece.content) for piece in chat.stream("Say hello."))
    vectors = OpenAIEmbeddings(
        model="vectors", base_url=f"{stoker.url}/v1", api_key="any", check_embedding_ctx_length=False
    )
    assert len(vectors.embed_query("coal")) == 576


def test_curl_gets_json_and_the_headers_that_say_what_happened(stoker: RunningStoker) -> None:
    body = json.dumps({"model": "chat", "messages": QUESTION, "max_tokens": 4})
    done = subprocess.run(
        ["curl", "-sS", "-i", f"{stoker.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True, check=True,
    )  # fmt: skip
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    names = {line.split(":")[0].lower() for line in head.decode().splitlines()[1:]}
    assert names >= {
        "x-stoker-request-id", "x-stoker-served-by", "x-stoker-tier", "x-stoker-cold-start-ms",
        "x-stoker-queue-ms", "x-stoker-cost-usd",
    }  # fmt: skip
    assert json.loads(content)["usage"]["completion_tokens"] == 4
