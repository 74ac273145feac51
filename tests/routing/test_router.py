import random

import msgspec
import pytest

from meshnode.gossip.member import Member
from meshnode.inference import Message, Request, Resume, Sampling
from meshnode.names import ModelDigest
from meshnode.routing.ask import ask_of
from meshnode.routing.breaker import Mode, Outcome
from meshnode.routing.policy import POLICIES
from meshnode.routing.router import USUAL_OUTPUT, Router
from meshnode.routing.table import Candidate, route
from meshnode.testing import fake_member

REQUEST = Request(id="r", model="m", messages=(Message(role="user", content="x" * 4000),))
DIGEST = ModelDigest(b"d" * 32)
NOW = 10.0


def node(name: str, step_ms: float = 20.0, active: int = 0) -> Member:
    plain = fake_member(name, "m", active=active)
    load = msgspec.structs.replace(
        plain.load[0], prefill_per_s=1000.0, step_ms=step_ms, stream_ms=2.0, remaining_ms=1000 * active
    )
    return msgspec.structs.replace(plain, load=(load,), load_at=NOW, rtt_ms=1.0)


def candidates(*members: Member) -> tuple[Candidate, ...]:
    return route("m", (fake_member("me"), *members), me=fake_member("me").id).candidates


def router(policy: str = "estimate") -> Router:
    return Router(policy=POLICIES[policy], rng=random.Random(1))


def test_a_request_in_figures() -> None:
    ask = ask_of(REQUEST, DIGEST, usual_output=300.0)
    short = ask_of(msgspec.structs.replace(REQUEST, sampling=Sampling(max_tokens=20), n=3), DIGEST, usual_output=300.0)
    resumed = ask_of(
        msgspec.structs.replace(REQUEST, resume=(Resume(token_ids=(1,) * 250, emitted_chars=0),)), DIGEST, usual_output=300.0
    )
    embedded = ask_of(msgspec.structs.replace(REQUEST, messages=(), inputs=("x" * 400, "y" * 400)), DIGEST, usual_output=300.0)

    text = ask_of(msgspec.structs.replace(REQUEST, messages=(), prompt="x" * 4000), DIGEST, usual_output=300.0)
    ids = ask_of(msgspec.structs.replace(REQUEST, messages=(), prompt=tuple(range(1000))), DIGEST, usual_output=300.0)

    assert (text.prompt_tokens, len(text.chain)) == (ids.prompt_tokens, len(ids.chain)) == (1000, 15)
    assert not set(text.chain) & set(ids.chain)
    odd = msgspec.structs.replace(REQUEST, messages=(), prompt=(-1, 2**63) * 50)
    assert len(ask_of(odd, DIGEST, usual_output=300.0).chain) == 1  # no tokens at all, which the worker will say
    assert ask.prompt_tokens == pytest.approx(1004)
    assert (embedded.prompt_tokens, embedded.output_tokens) == (200, 1)
    assert len(ask.chain) == 15
    assert (ask.output_tokens, short.output_tokens) == (300, 60)
    assert (resumed.prompt_tokens, resumed.output_tokens) == (ask.prompt_tokens + 250, 50)


def test_the_length_of_answers_is_learned_for_each_model() -> None:
    learning = router()
    for _ in range(200):
        learning.learn_length(DIGEST, 40)

    assert learning.ask(REQUEST, DIGEST).output_tokens == pytest.approx(40, abs=1)
    assert learning.ask(REQUEST, ModelDigest(b"e" * 32)).output_tokens == USUAL_OUTPUT


def test_many_at_once_are_spread_by_what_each_will_take() -> None:
    """No gossip in between: only the bookings tell."""
    sending, found = router(), candidates(node("a"), node("b"), node("slow", step_ms=45.0))
    ask = sending.ask(REQUEST, DIGEST)
    sent = []
    for _ in range(24):
        choice = sending.choose(found, ask, now=NOW)
        assert choice
        sent.append(sending.begin(choice, ask, now=NOW + 0.001))

    shares = {name: sum(attempt.candidate.node_name == name for attempt in sent) for name in ("a", "b", "slow")}
    assert abs(shares["a"] - shares["b"]) <= 1
    assert 1 <= shares["slow"] <= 6


def test_what_is_over_is_booked_no_longer_however_it_ended() -> None:
    sending, found = router(), candidates(node("a"))
    ask = sending.ask(REQUEST, DIGEST)
    for outcome in Outcome:
        choice = sending.choose(found, ask, now=NOW)
        assert choice
        attempt = sending.begin(choice, ask, now=NOW)
        assert len(sending.known.bookings) == 1
        sending.end(attempt, outcome, now=NOW)

    assert len(sending.known.bookings) == 0


def test_a_prompt_that_was_sent_somewhere_is_worth_sending_there_again() -> None:
    sending, found = router(), candidates(*(node(name) for name in "abcdef"))
    ask = sending.ask(REQUEST, DIGEST)
    first = sending.choose(found, ask, now=NOW)
    assert first
    sending.end(sending.begin(first, ask, now=NOW), Outcome.SERVED, now=NOW)

    again = [sending.choose(found, ask, now=NOW) for _ in range(20)]
    assert {choice.candidate.node_name for choice in again if choice} == {first.candidate.node_name}
    assert {choice.reason for choice in again if choice} == {"prefix"}


def test_the_explanation_has_every_candidate_with_all_terms_and_says_why() -> None:
    explaining = router()
    found = candidates(
        node("fast"), node("near", step_ms=20.5), node("slow", step_ms=200.0), node("busy", active=40), node("bad")
    )
    for _ in range(3):
        explaining.known.end(found[4].holder, Outcome.FAILED, NOW)
    small = msgspec.structs.replace(found[0], node=b"s" * 16, node_name="small", context_length=100)
    ask = explaining.ask(REQUEST, DIGEST)
    explanation = explaining.explain((*found, small), ask, now=NOW)
    choice = explaining.choose((*found, small), ask, now=NOW)

    assert explanation
    assert choice
    rows = {row.node_name: row for row in explanation.candidates}
    assert len(rows) == 6
    assert [row.node_name for row in rows.values() if row.chosen] == [choice.candidate.node_name]
    assert rows[choice.candidate.node_name].verdict == f"chosen: {choice.reason}"
    other = ({"fast", "near"} - {choice.candidate.node_name}).pop()
    assert rows[other].verdict == "as good, and not drawn"
    assert "most of its time by writing the answer" in rows["slow"].verdict
    assert "most of its time by its queue" in rows["busy"].verdict
    assert rows["bad"].breaker is Mode.OPEN
    assert "its breaker is open" in rows["bad"].verdict
    assert "does not fit its context of 100" in rows["small"].verdict
    assert rows["slow"].estimate.finish == pytest.approx(rows["slow"].estimate.first + rows["slow"].estimate.decode)
    assert [row.score for row in explanation.candidates] == sorted(row.score for row in explanation.candidates)
    assert msgspec.json.decode(msgspec.json.encode(explanation))["candidates"][0]["estimate"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_be_explained_and_asking_why_draws_nothing(policy: str) -> None:
    one, other = router(policy), router(policy)
    found = candidates(node("a"), node("b"), node("c"))
    ask = one.ask(REQUEST, DIGEST)
    explanations = [one.explain(found, ask, now=NOW) for _ in range(5)]
    after = [one.choose(found, ask, now=NOW) for _ in range(20)]

    assert all(explanation and sum(row.chosen for row in explanation.candidates) == 1 for explanation in explanations)
    assert after == [other.choose(found, ask, now=NOW) for _ in range(20)]
    assert one.explain((), ask, now=NOW) is None
