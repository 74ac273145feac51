"""What the child refuses by name, and how a request's wishes become a sampler."""

import pytest

pytest.importorskip("llama_cpp")

import msgspec

from meshnode.errors import InvalidRequest, RequestError, Unsupported
from meshnode.inference import Logprobs, Message, Request, ResponseFormat, Resume, Sampling
from meshnode.worker.gguf import Facts
from meshnode.worker.process import check, sampler

PLAIN = Request(id="r", model="m", messages=(Message(role="user", content="Hi"),))
FACTS = Facts(
    architecture="llama",
    name="m",
    size=1,
    context_length=1,
    vocabulary=1,
    chat_template="",
    kv_bytes_per_token=0,
    temperature=0.3,
)


def refused(error: type[RequestError], **changes: object) -> str | None:
    with pytest.raises(error) as caught:
        check(msgspec.structs.replace(PLAIN, **changes))
    assert repr(caught.value.param) in caught.value.message
    return caught.value.param


def test_a_plain_request_passes() -> None:
    check(PLAIN)
    check(msgspec.structs.replace(PLAIN, sampling=Sampling(temperature=0, top_p=1, top_k=0, seed=-5, max_tokens=1, stop=("x",))))


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("n", {"n": 2}),
        ("tools", {"tools": "[]"}),
        ("tools", {"messages": (Message(role="tool", content="1", tool_call_id="c"),)}),
        ("tools", {"messages": (Message(role="assistant", content="", tool_calls="[]"),)}),
        ("response_format", {"response_format": ResponseFormat(kind="json_object")}),
        ("logprobs", {"logprobs": Logprobs()}),
        ("resume", {"resume": Resume(token_ids=(), emitted_chars=0)}),
    ],
)
def test_what_is_not_possible_yet_is_refused_by_name(param: str, changes: dict[str, object]) -> None:
    assert refused(Unsupported, **changes) == param


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("messages", {"messages": ()}),
        ("n", {"n": 0}),
        ("temperature", {"sampling": Sampling(temperature=-1)}),
        ("temperature", {"sampling": Sampling(temperature=float("nan"))}),
        ("top_p", {"sampling": Sampling(top_p=0)}),
        ("top_p", {"sampling": Sampling(top_p=1.5)}),
        ("top_k", {"sampling": Sampling(top_k=-1)}),
        ("max_tokens", {"sampling": Sampling(max_tokens=0)}),
        ("stop", {"sampling": Sampling(stop=("",))}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(param: str, changes: dict[str, object]) -> None:
    assert refused(InvalidRequest, **changes) == param


def test_the_requests_wishes_come_before_the_files_and_the_files_before_ours() -> None:
    assert sampler(Sampling(), FACTS).temperature == 0.3
    assert sampler(Sampling(temperature=0), FACTS).temperature == 0
    assert sampler(Sampling(), FACTS).top_k == 40
    assert sampler(Sampling(top_k=0), FACTS).top_k == 0


def test_a_seed_is_kept_and_a_missing_one_is_drawn() -> None:
    assert sampler(Sampling(seed=5), FACTS).seed == 5
    assert sampler(Sampling(), FACTS).seed != sampler(Sampling(), FACTS).seed
