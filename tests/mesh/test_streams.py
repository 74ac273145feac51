"""Inference streams over one link, mostly against a peer that can say anything. Time is virtual where it matters."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing
from mesh.harness import (
    LOAD,
    UPGRADE,
    Raw,
    answer_of,
    hello,
    request,
    session_and_raw,
    session_over,
    session_pair,
    text_of,
    wait_until,
)

from meshnode.backend import Events
from meshnode.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    LinkLost,
    MeshnodeError,
    ModelNotFound,
    Overloaded,
    WorkerFailed,
)
from meshnode.inference import (
    MAX_ARGUMENTS_PIECE,
    MAX_TOKEN_TEXT,
    MAX_TOOL_NAME,
    Alternative,
    Chunk,
    End,
    Event,
    Finish,
    Phase,
    Progress,
    Request,
    TokenLogprob,
    ToolCall,
    Usage,
)
from meshnode.mesh.credit import WINDOW, cost
from meshnode.mesh.link import accept_link
from meshnode.mesh.peer import PeerBackend
from meshnode.mesh.served import QUIET_S
from meshnode.mesh.session import Session
from meshnode.mesh.streams import MAX_HELD_BYTES, MAX_STREAMS
from meshnode.testing import FakeWorker
from meshnode.wire.codec import MAX_REQUEST, encode, encode_request
from meshnode.wire.messages import (
    Body,
    Cancel,
    Credit,
    Frame,
    Open,
    Ping,
    StreamChunk,
    StreamEnd,
    StreamError,
    StreamProgress,
)

Clock = trio.testing.MockClock
END = End(usage=Usage(prompt_tokens=1, completion_tokens=1))


def backend(session: Session) -> PeerBackend:
    return PeerBackend(lambda: session)


async def ask(session: Session, text: str = "Hello?") -> tuple[Event, ...]:
    async with backend(session).submit(request(text)) as events:
        return await answer_of(events)


async def send_request(peer: Raw, stream: int, sent: Request | None = None) -> None:
    body = encode_request(sent or request())
    await peer.send(Open(stream, len(body)), Body(stream, body))


async def test_an_answer_streams_back_event_by_event() -> None:
    worker = FakeWorker()
    async with session_pair(worker) as (asker, _):
        events = await ask(asker)

    assert isinstance(events[0], Progress)
    assert events[0].phase is Phase.PREFILL
    assert text_of(events) == "Hello from a fake worker."
    assert [event.token_ids for event in events if isinstance(event, Chunk)] == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert events[-2:] == (
        Chunk(choice=0, text=".", token_ids=(5,), finish=Finish.STOP),
        End(usage=Usage(prompt_tokens=1, completion_tokens=6)),
    )
    assert worker.requests == [request()]


async def test_many_streams_share_one_link() -> None:
    async with session_pair(FakeWorker(["a", "b"])) as (asker, _):
        answers: list[str] = []

        async def one() -> None:
            answers.append(text_of(await ask(asker)))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)

    assert answers == ["ab"] * 100


async def test_a_request_far_above_the_window_arrives_whole() -> None:
    worker = FakeWorker(["ok"])
    text = "x" * (MAX_REQUEST - 1000)
    async with session_pair(worker) as (asker, _):
        assert text_of(await ask(asker, text)) == "ok"

    assert worker.requests[0].messages[0].content == text


async def test_a_request_above_the_limit_is_refused_before_anything_is_sent() -> None:
    async with session_pair(FakeWorker()) as (asker, _):
        with pytest.raises(InvalidRequest, match="at most 8388608"):
            await ask(asker, "x" * MAX_REQUEST)
        assert text_of(await ask(asker)) == "Hello from a fake worker."


async def test_one_huge_chunk_arrives_in_pieces_that_make_the_same_text() -> None:
    text, ids = "ü" * 30_000, tuple(range(5_000))
    other = Alternative(7, b"y" * MAX_TOKEN_TEXT, -2.0)
    likely = tuple(TokenLogprob(token, b"x" * MAX_TOKEN_TEXT, -1.0, (other,) * 20) for token in range(40))
    name, arguments = "\N{FOX FACE}" * MAX_TOOL_NAME, "\N{FOX FACE}" * MAX_ARGUMENTS_PIECE
    calls = (ToolCall(0, name, name, arguments), ToolCall(0, "", "", arguments), ToolCall(1, "c", "now", ""))

    class OneChunk(FakeWorker):
        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            yield listed(
                Chunk(
                    choice=2,
                    text=text,
                    token_ids=ids,
                    finish=Finish.LENGTH,
                    logprobs=likely,
                    reasoning=arguments,
                    tool_calls=calls,
                    stop=2,
                ),
                End(usage=Usage(prompt_tokens=1, completion_tokens=1)),
            )

    async with session_pair(OneChunk()) as (asker, _):
        chunks = [event for event in await ask(asker) if isinstance(event, Chunk)]

    assert text_of(chunks) == text
    assert sum((chunk.token_ids for chunk in chunks), ()) == ids
    assert sum((chunk.logprobs for chunk in chunks), ()) == likely
    assert "".join(chunk.reasoning for chunk in chunks) == arguments
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
    assert [(piece.index, piece.id, piece.name) for piece in pieces if piece.id] == [(0, name, name), (1, "c", "now")]
    assert "".join(piece.arguments for piece in pieces if piece.index == 0) == 2 * arguments
    assert pieces[-1] == calls[-1]
    assert [chunk.finish for chunk in chunks] == [None] * (len(chunks) - 1) + [Finish.LENGTH]
    assert [chunk.stop for chunk in chunks] == [None] * (len(chunks) - 1) + [2]
    assert {chunk.choice for chunk in chunks} == {2}


def test_every_text_of_a_chunk_costs_its_bytes() -> None:
    calls = (ToolCall(0, "c1", "now", '"ü"'), ToolCall(0, "", "", "x"))

    assert cost(StreamChunk(1, 0, "ü", b"\0" * 4)) == 16 + 2 + 4
    assert cost(StreamChunk(1, 0, "", b"", reasoning="üü")) == 16 + 4
    assert cost(StreamChunk(1, 0, "", b"", tool_calls=calls)) == 16 + (16 + 2 + 3 + 4) + (16 + 1)


class listed:  # noqa: N801 - reads as a function
    """Events that are there at once, one batch each."""

    def __init__(self, *events: Event) -> None:
        self._events = list(events)

    def __aiter__(self) -> "listed":
        return self

    async def __anext__(self) -> tuple[Event, ...]:
        await trio.lowlevel.checkpoint()
        if not self._events:
            raise StopAsyncIteration
        return (self._events.pop(0),)


@pytest.mark.parametrize(
    "error",
    [
        ModelNotFound("No node has it.", param="model"),
        Overloaded("Full.", retry_after=2.5),
        WorkerFailed("The worker died."),
        DeadlineExceeded("Too late."),
    ],
)
async def test_an_error_crosses_with_its_code_words_and_details(error: MeshnodeError) -> None:
    async with session_pair(FakeWorker(fail_after=2, failure=lambda: error)) as (asker, _):
        with pytest.raises(type(error)) as caught:
            await ask(asker)

    assert type(caught.value) is type(error)
    assert (caught.value.message, caught.value.param, caught.value.retry_after) == (error.message, error.param, error.retry_after)


async def test_a_bug_of_the_server_crosses_without_its_details_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(FakeWorker):
        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            raise KeyError("secret detail")
            yield

    async with session_pair(Buggy()) as (asker, server):
        with pytest.raises(InternalError) as caught:
            await ask(asker)
        assert server.is_up

    assert "secret" not in str(caught.value)
    assert "secret detail" in caplog.text


async def test_an_answer_without_an_end_is_an_error() -> None:
    class Endless(FakeWorker):
        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            yield listed(Chunk(choice=0, text="and then"))

    async with session_pair(Endless()) as (asker, _):
        with pytest.raises(InternalError, match="without an end"):
            await ask(asker)


async def test_leaving_early_stops_the_work_before_and_after_the_first_token(autojump_clock: Clock) -> None:
    for batches in (0, 2):
        worker = FakeWorker(["word"] * 100, delay=1)
        async with session_pair(worker) as (asker, _):
            async with backend(asker).submit(request()) as events:
                for _ in range(batches):
                    await anext(events)
                await trio.testing.wait_all_tasks_blocked()
                start = trio.current_time()
            await trio.testing.wait_all_tasks_blocked()

            assert worker.cancelled == 1
            assert worker.steps == max(0, batches - 1)
            assert trio.current_time() - start < 0.1
            await trio.sleep(5)
            assert worker.steps == max(0, batches - 1)


async def test_a_cancelled_wait_for_events_loses_nothing(autojump_clock: Clock) -> None:
    async with session_pair(FakeWorker(["a", "b", "c"], delay=1)) as (asker, _):
        events: list[Event] = []
        async with backend(asker).submit(request()) as source:
            while not events or not isinstance(events[-1], End):
                with trio.move_on_after(0.3):
                    events += await anext(source)

    assert text_of(events) == "abc"


async def test_a_backend_may_be_entered_under_one_deadline_and_left_under_another(autojump_clock: Clock) -> None:
    async with session_pair(FakeWorker(["a", "b"], delay=1)) as (asker, _):
        block = backend(asker).submit(request())
        with trio.fail_after(1):
            source = await block.__aenter__()
        with trio.fail_after(10):
            assert text_of(await answer_of(source)) == "ab"
            await block.__aexit__(None, None, None)


async def test_nothing_about_a_request_for_16_seconds_is_a_lost_link(autojump_clock: Clock) -> None:
    async with session_and_raw() as (session, _, peer):
        start = trio.current_time()
        with pytest.raises(LinkLost, match="peer has said nothing"):
            await ask(session)
        assert 16 <= trio.current_time() - start < 17
        assert isinstance((await peer.receive_until(cast(type[Frame], Cancel)))[-1], Cancel)
        assert session.is_up


async def test_a_slow_server_says_every_second_that_it_is_at_it(autojump_clock: Clock) -> None:
    worker = FakeWorker(["late"], delay=60)
    async with session_pair(worker) as (asker, _):
        events = await ask(asker)

    waiting = [event for event in events if isinstance(event, Progress)]
    assert len(waiting) >= 2 * 60 / QUIET_S - 2
    assert waiting[0].phase is Phase.QUEUED
    assert waiting[-1].phase is Phase.PREFILL
    assert text_of(events) == "late"


async def test_progress_that_nobody_takes_does_not_pile_up() -> None:
    async with session_and_raw() as (session, _, peer), backend(session).submit(request()) as events:
        for done in range(1000):
            await peer.send(StreamProgress(2, Phase.PREFILL, done, 1000))
        await trio.testing.wait_all_tasks_blocked()
        assert await anext(events) == (Progress(phase=Phase.PREFILL, done=999, total=1000),)


async def test_a_slow_reader_stops_its_own_stream_at_the_window_and_no_other(autojump_clock: Clock) -> None:
    slow = FakeWorker(["x" * 1000] * 1000)
    async with session_pair(slow) as (asker, _):
        async with backend(asker).submit(request()) as events:
            await anext(events)
            await trio.testing.wait_all_tasks_blocked()
            in_window = WINDOW // cost(StreamChunk(1, 0, "x" * 1000, b"\0" * 4))
            assert slow.steps <= in_window + 1
            assert len(text_of(await ask(asker))) == 1_000_000

            await trio.sleep(25)
            rest: list[Event] = []
            with pytest.raises(DeadlineExceeded, match="reader took nothing"):
                await collect(events, rest)
            assert len(text_of(rest)) <= in_window * 1000
        assert asker.is_up
        assert slow.cancelled == 1


async def collect(events: Events, into: list[Event]) -> None:
    async for batch in events:
        into += batch


async def test_a_peer_that_sends_more_than_its_credit_is_closed() -> None:
    async with session_and_raw() as (session, node, peer), backend(session).submit(request()) as events:
        with pytest.raises(LinkLost, match="closed with 4429: more than the 65536 bytes"):
            await overrun(peer)
        await wait_until(lambda: node.ends)
        assert "more than the 65536 bytes" in node.ends[0]
        received: list[Event] = []
        with pytest.raises(LinkLost, match="lost the link to peer: more than the 65536 bytes"):
            await collect(events, received)
        assert len(text_of(received)) <= WINDOW


async def overrun(peer: Raw) -> None:
    for _ in range(20):
        await peer.send(StreamChunk(2, 0, "x" * 8000, b""))
    while True:
        await peer.receive()


async def test_credit_comes_back_when_half_of_the_window_was_read() -> None:
    async with session_and_raw() as (session, _, peer), backend(session).submit(request()) as events:
        await peer.send(*[StreamChunk(2, 0, "x" * 8000, b"") for _ in range(5)])
        await trio.testing.wait_all_tasks_blocked()
        assert not any(isinstance(frame, Credit) for frame in peer.got)
        assert len(text_of(await anext(events))) == 40_000

        credit = (await peer.receive_until(cast(type[Frame], Credit)))[-1]
        assert credit == Credit(2, 5 * 8016)


async def test_the_open_streams_of_a_link_are_limited_for_us() -> None:
    async with session_and_raw() as (session, _, _peer):
        open_ones = [session.open(b"x") for _ in range(MAX_STREAMS)]
        with pytest.raises(Overloaded, match="256 requests"):
            await ask(session)
        session.close(open_ones[0])
        session.open(b"x")


async def test_the_open_streams_of_a_link_are_limited_for_the_peer() -> None:
    async with session_and_raw(FakeWorker(delay=1000)) as (session, _, peer):
        for index in range(MAX_STREAMS + 1):
            await send_request(peer, 2 * index + 1)
        refusal = await peer.receive()

        assert isinstance(refusal, StreamError)
        assert (refusal.stream, refusal.code, refusal.load) == (2 * MAX_STREAMS + 1, "overloaded", LOAD)
        assert session.is_up


async def test_the_requests_that_a_peer_has_us_hold_are_limited_in_bytes() -> None:
    async with session_and_raw() as (session, _, peer):
        count = MAX_HELD_BYTES // MAX_REQUEST
        await peer.send(*[Open(2 * index + 1, MAX_REQUEST) for index in range(count + 1)])
        refusal = await peer.receive()

        assert isinstance(refusal, StreamError)
        assert (refusal.stream, refusal.code) == (2 * count + 1, "overloaded")
        assert session.is_up


async def test_a_request_that_does_not_arrive_is_given_up(autojump_clock: Clock) -> None:
    async with session_and_raw() as (_, _, peer):
        await peer.send(Open(1, 1000), Body(1, b"x"))
        error = (await peer.receive_until(cast(type[Frame], StreamError)))[-1]

    assert isinstance(error, StreamError)
    assert error.code == "deadline_exceeded"
    assert "30 s" in error.message


async def test_a_request_that_cannot_be_read_is_the_askers_fault() -> None:
    async with session_and_raw() as (session, _, peer):
        await peer.send(Open(1, 4), Body(1, b"junk"))
        error = await peer.receive()
        assert isinstance(error, StreamError)
        assert error.code == "invalid_request"
        await send_request(peer, 3)
        assert isinstance((await peer.receive_until(cast(type[Frame], StreamEnd)))[-1], StreamEnd)
        assert session.is_up


async def test_the_load_comes_with_the_end_and_is_passed_on() -> None:
    async with session_and_raw() as (session, node, peer):
        await send_request(peer, 1)
        end = (await peer.receive_until(cast(type[Frame], StreamEnd)))[-1]
        assert isinstance(end, StreamEnd)
        assert end.load == LOAD

        session.open(b"x")
        await peer.send(StreamError(2, "overloaded", "no", None, None, LOAD))
        await trio.testing.wait_all_tasks_blocked()
        assert node.loads == [LOAD]


async def test_after_a_cancel_what_is_still_under_way_is_ignored() -> None:
    async with session_and_raw() as (session, _, peer):
        async with backend(session).submit(request()):
            await peer.receive()
        await peer.send(
            StreamChunk(2, 0, "late", b""), StreamProgress(2, Phase.QUEUED, 0, 0), Credit(2, 1), Ping(1, False, bytes(8))
        )
        await trio.testing.wait_all_tasks_blocked()
        assert session.is_up


async def test_an_open_and_its_cancel_in_one_message_leave_no_work() -> None:
    worker = FakeWorker(delay=1000)
    async with session_and_raw(worker) as (session, _, peer):
        body = encode_request(request())
        await peer.send(Open(1, len(body)), Body(1, body), Cancel(1), Cancel(1), Body(1, b""), Credit(1, 0))
        await trio.testing.wait_all_tasks_blocked()

        assert worker.steps == 0
        assert len(worker.requests) == worker.cancelled
        assert session.is_up


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([hello("peer")], "HELLO again"),
        ([Open(2, 1)], "not a new one"),
        ([Open(3, 1), Open(3, 1)], "not a new one"),
        ([Open(3, 1), Open(1, 1)], "not a new one"),
        ([Open(0, 1)], "not a new one"),
        ([Open(1, MAX_REQUEST + 1)], "8388608 are allowed"),
        ([Open(1, 2), Body(1, b"xxx")], "more than the 2 bytes"),
        ([Open(1, 90_000), *[Body(1, b"x" * 20_000)] * 2, Credit(1, 1)], "credit for more"),
        ([Body(5, b"x")], "not opened"),
        ([Body(2, b"x")], "not opened"),
        ([Cancel(7)], "not opened"),
        ([Cancel(2**53)], "not opened"),
        ([Credit(2, 1)], "not opened"),
        ([StreamChunk(2, 0, "x", b"")], "not opened"),
        ([StreamChunk(1, 0, "x", b"")], "not opened"),
        ([StreamEnd(4, END)], "not opened"),
        ([StreamError(9, "x", "y")], "not opened"),
    ],
)
async def test_frames_against_the_protocol_end_the_link_with_the_reason(frames: list[Frame], why: str) -> None:
    async with session_and_raw() as (_, node, peer):
        await peer.send(*frames)
        await wait_until(lambda: node.ends)
        assert why in node.ends[0]
        with pytest.raises(LinkLost, match=why):
            await drain(peer)


async def drain(peer: Raw) -> None:
    while True:
        await peer.receive()


async def test_an_unknown_finish_is_against_the_protocol() -> None:
    async with session_and_raw() as (session, node, peer):
        session.open(b"x")
        await peer.send(StreamChunk(2, 0, "x", b"", "because"))
        await wait_until(lambda: node.ends)
        assert "finish" in node.ends[0]


async def open_for_ever(stream: trio.abc.Stream) -> None:
    """OPEN after OPEN, 500 to a message, and not one byte is read."""
    for start in itertools.count(1, 1000):
        message = b"".join(encode(Open(start + 2 * index, MAX_REQUEST)) for index in range(500))
        await stream.send_all(b"\x82\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message)


async def test_a_peer_that_makes_us_answer_and_does_not_read_is_closed(autojump_clock: Clock) -> None:
    """Each refused OPEN is answered; the answers must not pile up without end."""
    near, far = trio.testing.lockstep_stream_pair()
    reasons: list[str] = []

    async def accept() -> None:
        session, node = session_over(await accept_link(nursery, near), "peer", FakeWorker(delay=1000))
        await session.run()
        reasons.extend(node.ends)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await far.send_all(UPGRADE)
        await far.receive_some()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await open_for_ever(far)

    assert "control frames" in reasons[0]


async def test_a_lost_link_ends_every_stream_with_what_came_before_it() -> None:
    async with session_and_raw() as (session, _, peer), backend(session).submit(request()) as events:
        await peer.send(StreamChunk(2, 0, "so far", b""))
        await peer.link.abort()
        received: list[Event] = []
        with pytest.raises(LinkLost, match="lost the link to peer: it closed the connection"):
            await collect(events, received)

        assert text_of(received) == "so far"
        assert not session.is_up
        with pytest.raises(LinkLost, match="lost the link to peer"):
            await ask(session)


async def test_a_lost_link_stops_the_work_of_the_peer_that_asked() -> None:
    worker = FakeWorker(delay=1000)
    async with session_and_raw(worker) as (_, _, peer):
        await send_request(peer, 1)
        await trio.testing.wait_all_tasks_blocked()
        await peer.link.abort()
        await trio.testing.wait_all_tasks_blocked()

        assert worker.cancelled == 1


async def test_tokens_of_one_step_travel_in_one_message() -> None:
    """That is what makes a token cost 3 us to send and not 37."""

    class Lockstep(FakeWorker):
        @asynccontextmanager
        async def submit(self, request: Request) -> AsyncIterator[Events]:
            await step.wait()
            yield listed(Chunk(choice=0, text="x"), END)

    step = trio.Event()
    async with session_and_raw(Lockstep()) as (_, _, peer):
        for stream in range(1, 100, 2):
            await send_request(peer, stream)
        await trio.testing.wait_all_tasks_blocked()
        step.set()
        await trio.testing.wait_all_tasks_blocked()
        messages = 0
        ended = 0
        while ended < 50:
            messages += 1
            assert not peer.got
            ended += isinstance(await peer.receive(), StreamEnd)
            ended += sum(isinstance(frame, StreamEnd) for frame in peer.got)
            peer.got.clear()

    assert messages <= 10


class CutAt(trio.abc.Instrument):
    """Cancels `scope` as `task` waits for the `at`th time."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, at: int) -> None:
        self._task = task
        self._scope = scope
        self._left = at

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


async def test_a_request_cut_at_any_await_leaves_no_stream_at_either_end(autojump_clock: Clock) -> None:
    """So small are the steps that each of them is met; the far end's work stops as well."""
    worker = FakeWorker(delay=0.01)
    async with session_pair(worker) as (asker, server):
        at, is_over = 1, False
        while not is_over:
            with trio.CancelScope() as scope:
                cut = CutAt(trio.lowlevel.current_task(), scope, at)
                trio.lowlevel.add_instrument(cut)
                try:
                    assert text_of(await ask(asker)) == "Hello from a fake worker."
                    is_over = not scope.cancel_called
                finally:
                    trio.lowlevel.remove_instrument(cut)
            await wait_until(lambda: not server._streams._served)

            assert not asker._streams._asked
            assert len(worker.requests) == worker.finished + worker.cancelled
            at += 1
    assert at > 6
