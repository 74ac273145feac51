"""The endpoints and what every answer carries. Memory streams on a mock clock where time matters."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from api.serving import CHAT, CLOSE, SECRET, STREAMED, FakeNode, app_of, get, in_memory, post, read_all, served
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair

from meshnode.api import auth
from meshnode.api.app import App
from meshnode.api.connection import Connection, Idle
from meshnode.api.http import Request, Response, header_text
from meshnode.api.limits import Limits
from meshnode.api.trace import continued
from meshnode.errors import LinkLost, MeshnodeError, Unauthorized, WorkerFailed
from meshnode.inference import Chunk
from meshnode.keys import KeyRing
from meshnode.names import is_traceparent
from meshnode.testing import FakeWorker


async def ask(app: App, sent: bytes) -> tuple[str, bytes]:
    """Head and body of the one answer to `sent`, over a memory stream."""
    async with trio.open_nursery() as nursery:
        with in_memory(app, nursery) as stream:
            await stream.send_all(sent)
            received = await read_all(stream)
            await stream.aclose()
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode(), body


def unchunked(body: bytes) -> list[bytes]:
    """The pieces of a chunked body, one for each write."""
    pieces = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return pieces


# Late headers


async def test_the_head_of_a_stream_leaves_with_the_first_text(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        with in_memory(app_of(FakeWorker(["one", "two"], delay=3)), nursery) as stream:
            began = trio.current_time()
            await stream.send_all(post(STREAMED, CLOSE))
            first = await stream.receive_some()

            assert trio.current_time() - began == pytest.approx(6)
            assert first.startswith(b"HTTP/1.1 200")
            assert b'"content":"one"' in first
            assert b"[DONE]" in await read_all(stream)


async def test_a_failure_within_ten_seconds_keeps_its_status(autojump_clock: MockClock) -> None:
    worker = FakeWorker(delay=4, fail_after=0, failure=lambda: WorkerFailed("It died."))
    head, body = await ask(app_of(worker), post(STREAMED, CLOSE))

    assert head.startswith("HTTP/1.1 503")
    assert b"It died." in body


async def test_after_ten_seconds_the_head_goes_out_and_comments_keep_the_stream_alive(autojump_clock: MockClock) -> None:
    """Prefill takes 24 s and each word as long: first silence, then the progress in words, then silence between the words."""
    _, body = await ask(app_of(FakeWorker(["one", "two"], delay=24)), post(STREAMED, CLOSE))
    pieces = unchunked(body)
    kinds = [b"one" if b'"one"' in piece else b"two" if b'"two"' in piece else piece.strip() for piece in pieces[:-1]]

    assert kinds == [
        b": keep-alive", b": keep-alive", b": prefill 2/2", b": prefill 2/2", b"one", b": keep-alive", b": keep-alive", b"two"
    ]  # fmt: skip
    assert pieces[-2].endswith(b"data: [DONE]\n\n")


async def test_comments_keep_a_stream_alive_while_a_call_grows_of_which_nothing_is_shown(autojump_clock: MockClock) -> None:
    words: list[str | Chunk] = ["one", *[Chunk(choice=0, text="")] * 8, "two"]
    _, body = await ask(app_of(FakeWorker(words, delay=3)), post(STREAMED, CLOSE))
    pieces = unchunked(body)
    kinds = [b"one" if b'"one"' in piece else b"two" if b'"two"' in piece else piece.strip() for piece in pieces[:-1]]

    assert kinds == [b"one", b": keep-alive", b": keep-alive", b"two"]


async def test_the_headers_go_out_exactly_after_ten_seconds(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        with in_memory(app_of(FakeWorker(delay=60)), nursery) as stream:
            began = trio.current_time()
            await stream.send_all(post(STREAMED, CLOSE))
            first = await stream.receive_some()
            nursery.cancel_scope.cancel()

        assert trio.current_time() - began == pytest.approx(10)
        assert first.startswith(b"HTTP/1.1 200")
        assert first.endswith(b"\r\n\r\ne\r\n: keep-alive\n\n\r\n")


async def test_a_failure_after_the_head_is_an_event_and_no_done(autojump_clock: MockClock) -> None:
    worker = FakeWorker(delay=25, fail_after=0, failure=lambda: LinkLost("The peer went away."))
    head, body = await ask(app_of(worker), post(STREAMED, CLOSE))
    last = unchunked(body)[-2]

    assert head.startswith("HTTP/1.1 200")
    assert last.startswith(b'data: {"error":{"message":')
    assert b"The peer went away." in last
    assert b"[DONE]" not in body


async def test_a_failover_before_the_first_text_is_not_seen_by_the_client(autojump_clock: MockClock) -> None:
    failing = FakeWorker(delay=6, fail_after=0, failure=lambda: LinkLost("gone"))
    workers = {"a": failing, "b": FakeWorker(["fine"], delay=6)}
    for _ in range(4):
        head, body = await ask(App(FakeNode(workers), admin_secret=SECRET, hosts=frozenset()), post(STREAMED, CLOSE))

        assert head.startswith("HTTP/1.1 200")
        assert b'"content":"fine"' in body
        assert b"error" not in body
    assert failing.requests


async def test_what_is_ready_together_leaves_in_one_write(autojump_clock: MockClock) -> None:
    """The last word, its finish, and the end come in one batch of the worker's."""
    _, body = await ask(app_of(FakeWorker(["only"])), post(STREAMED, CLOSE))

    assert len([piece for piece in unchunked(body) if piece]) == 1


async def test_a_stream_is_framed_as_server_sent_events(autojump_clock: MockClock) -> None:
    head, body = await ask(app_of(FakeWorker(['quote " and\nline \U0001f600'])), post(STREAMED, CLOSE))
    *events, done, rest = b"".join(unchunked(body)).split(b"\n\n")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]

    assert "content-type: text/event-stream" in head
    assert "cache-control: no-cache" in head
    assert "x-accel-buffering: no" in head
    assert (done, rest) == (b"data: [DONE]", b"")
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", 'quote " and\nline \U0001f600', None]
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


async def test_to_http_1_0_a_stream_is_sent_bare(autojump_clock: MockClock) -> None:
    _, body = await ask(app_of(FakeWorker()), post(STREAMED).replace(b"HTTP/1.1", b"HTTP/1.0"))

    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_flood_of_pipelined_bytes_is_not_read_into_memory(autojump_clock: MockClock) -> None:
    """While an answer runs the server reads up to its limit and no further: over this stream a send waits for its reader."""
    ours, theirs = lockstep_stream_pair()
    connection = Connection(theirs, app_of(FakeWorker(delay=60)), limits=Limits(ahead_bytes=1000), idle=Idle())
    sent = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await ours.send_all(post(CHAT))
        with trio.move_on_after(5):
            for _ in range(100):
                await ours.send_all(b"x" * 100)
                sent += 100
        nursery.cancel_scope.cancel()

    assert sent == 1000


# Endpoints


async def test_healthz_and_readyz() -> None:
    ready, waiting = (App(FakeNode({}, why_not=why), admin_secret=SECRET, hosts=frozenset()) for why in ("", "no peer yet"))

    assert (await ask(waiting, get(b"/healthz", CLOSE)))[1] == b'{"status":"ok"}'
    assert (await ask(waiting, get(b"/health", CLOSE)))[1] == b'{"status":"ok"}'
    assert (await ask(ready, get(b"/readyz", CLOSE)))[0].startswith("HTTP/1.1 200")
    head, body = await ask(waiting, get(b"/readyz", CLOSE))
    assert head.startswith("HTTP/1.1 503")
    assert json.loads(body)["reason"] == "no peer yet"


@pytest.mark.parametrize("path", [b"/v1/models/org/m:7b", b"/v1/models/org%2Fm:7b", b"/v1/models/org%2fm%3A7b"])
async def test_a_model_is_found_with_its_slashes_plain_or_encoded(path: bytes) -> None:
    app = App(FakeNode({"holder": FakeWorker()}, model="org/m:7b"), admin_secret=SECRET, hosts=frozenset())
    _, body = await ask(app, get(path, CLOSE))

    assert json.loads(body)["id"] == "org/m:7b"
    assert json.loads(body)["meta"]["context_length"] == 1024


async def test_the_status_needs_the_secret() -> None:
    app = app_of(FakeWorker())
    for credential in (
        [],
        [b"Authorization: Bearer wrong"],
        [b"Authorization: Bearer"],
        [b"Authorization: Basic " + SECRET.encode()],
    ):
        head, body = await ask(app, get(b"/mesh/v1/status", CLOSE, *credential))

        assert head.startswith("HTTP/1.1 401")
        assert "www-authenticate: Bearer" in head
        assert SECRET.encode() not in body
    for scheme in (b"Bearer ", b"bearer "):
        head, body = await ask(app, get(b"/mesh/v1/status", CLOSE, b"Authorization: " + scheme + SECRET.encode()))

        assert head.startswith("HTTP/1.1 200")
        assert json.loads(body) == {"schema": 1}


def test_an_empty_secret_admits_nobody() -> None:
    request = Request(method="GET", path="/", headers={"authorization": "Bearer "}, peer="127.0.0.1")
    with pytest.raises(Unauthorized):
        auth.check_admin(request, auth.caller_of(request, secret="", keys=KeyRing()))


async def test_the_wrong_method_is_told_the_right_one() -> None:
    head, _ = await ask(app_of(FakeWorker()), post(b"", CLOSE, path=b"/v1/models"))

    assert head.startswith("HTTP/1.1 405")
    assert "allow: GET, HEAD" in head


async def test_an_unknown_path_is_an_error_object() -> None:
    _, body = await ask(app_of(FakeWorker()), get(b"/v1/nonsense", CLOSE))

    assert json.loads(body)["error"] == {
        "message": "There is no path /v1/nonsense. Try /v1/chat/completions, /v1/models, /v1/messages, /api/chat.",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }


@pytest.mark.parametrize(("sent", "shown"), [(b"trace-1:a.b_c", "trace-1:a.b_c"), (b"a b", ""), (b"x" * 65, ""), (b"\xe9", "")])
async def test_a_sane_request_id_is_echoed_and_any_other_replaced(sent: bytes, shown: str) -> None:
    worker = FakeWorker()
    head, _ = await ask(app_of(worker), post(CHAT, CLOSE, b"X-Request-Id: " + sent))
    echoed = head.partition("x-request-id: ")[2].partition("\r\n")[0]

    assert echoed == shown if shown else echoed.startswith("req-")
    assert worker.requests[0].id.startswith(echoed)


async def test_two_requests_with_one_id_are_two_in_the_mesh() -> None:
    worker = FakeWorker()
    app = app_of(worker)
    for _ in range(2):
        await ask(app, post(CHAT, CLOSE, b"X-Request-Id: same"))

    assert worker.requests[0].id != worker.requests[1].id


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", fullmatch=True))
def test_a_trace_is_continued_as_version_00_or_there_is_none(header: str) -> None:
    ours = continued(header, span=b"12345678")

    assert not ours or (is_traceparent(ours) and ours[3:35] == header.strip()[3:35])


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", "01"),
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"00-{TRACE}-{SPAN}-ff", "01"),
        (f"01-{TRACE}-{SPAN}-01-new", "01"),
        (f"00-{TRACE}-{SPAN}-01-new", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        ("", None),
    ],
)
async def test_a_clients_trace_goes_on_in_the_request_the_answer_and_the_log(
    header: str, flags: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    worker = FakeWorker()
    with caplog.at_level(logging.INFO, logger="meshnode.api"):
        head, _ = await ask(app_of(worker), post(CHAT, CLOSE, f"traceparent: {header}".encode()))
    sent = worker.requests[0].trace

    assert bool(sent) == (flags is not None)
    assert (f"traceresponse: {sent}" in head) == bool(sent)
    assert (f"trace={TRACE}" in caplog.text) == bool(sent)
    if sent:
        assert (sent[3:35], sent[-2:]) == (TRACE, flags)
        assert SPAN not in sent


def test_what_a_peer_says_of_itself_cannot_break_a_header() -> None:
    assert header_text("a\r\nset-cookie: x\u202e\u00e9") == "a set-cookie: x ?"


async def test_the_log_has_one_line_and_neither_prompt_nor_query(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="meshnode.api"):
        await ask(app_of(FakeWorker()), post(CHAT, CLOSE, path=b"/v1/chat/completions?key=hidden"))

    [record] = caplog.records
    assert record.getMessage().startswith("POST /v1/chat/completions 200 sent ")
    assert "node=holder" in record.getMessage()
    assert "hidden" not in record.getMessage()
    assert "Say something" not in record.getMessage()


# Containment


class BrokenApp:
    """An application with a bug before its response, or in the middle of its body."""

    @asynccontextmanager
    async def __call__(self, request: Request) -> AsyncIterator[Response]:
        async def body() -> AsyncGenerator[bytes, None]:
            yield b"some"
            raise RuntimeError("a bug")

        if request.path == "/early":
            raise RuntimeError("a bug")
        yield Response(body=body() if request.path == "/late" else b"fine")

    def refuse(self, error: MeshnodeError) -> Response:
        return Response(status=error.status)


async def test_a_bug_costs_its_connection_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with served(BrokenApp()) as serving:
        assert await serving.exchange(get(b"/early")) == b""
        assert (await serving.exchange(get(b"/late"))).endswith(b"\r\n\r\n4\r\nsome\r\n")
        assert (await serving.exchange(get(b"/", CLOSE))).endswith(b"fine")

    assert sum("bug" in record.getMessage() for record in caplog.records) == 2


class BrokenWorker(FakeWorker):
    """Fails as no backend may."""

    def __init__(self) -> None:
        super().__init__(fail_after=1, failure=lambda: ZeroDivisionError("a bug"))  # type: ignore[arg-type,return-value]  # on purpose


async def test_a_bug_behind_an_endpoint_is_500_or_an_error_event_without_its_words() -> None:
    whole = await ask(app_of(BrokenWorker()), post(CHAT, CLOSE))
    streamed = await ask(app_of(BrokenWorker()), post(STREAMED, CLOSE))

    assert whole[0].startswith("HTTP/1.1 500")
    assert b'"code":"internal_error"' in whole[1]
    assert b'"code":"internal_error"' in streamed[1]
    assert b"[DONE]" not in streamed[1]
    assert b"a bug" not in whole[1] + streamed[1]


def administrator(path: bytes, body: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: localhost", b"Connection: close", b"Authorization: Bearer " + SECRET.encode()]
    return b"\r\n".join([*lines, b"Content-Type: application/json", b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body


async def test_an_administrator_drains_the_node_and_takes_that_back() -> None:
    node = FakeNode({"holder": FakeWorker()})
    app = App(node, admin_secret=SECRET, hosts=frozenset())
    bodies = [
        (await ask(app, administrator(b"/mesh/v1/drain", body)))[1] for body in (b"{}", b'{"on":false}', b'{"hand_over":true}')
    ]
    head, _ = await ask(app, administrator(b"/mesh/v1/drain", b'{"off":true}'))
    refused, _ = await ask(app, administrator(b"/mesh/v1/drain", b"{}").replace(SECRET.encode(), b"else"))

    assert node.drained == [(True, False), (False, False), (True, True)]
    assert json.loads(bodies[1]) == {"draining": False, "running": 2}
    assert head.startswith("HTTP/1.1 400")
    assert refused.startswith("HTTP/1.1 401")


async def test_an_administrator_asks_where_a_request_would_go() -> None:
    app = App(FakeNode({"a": FakeWorker(), "b": FakeWorker()}), admin_secret=SECRET, hosts=frozenset())
    _, body = await ask(app, administrator(b"/mesh/v1/explain", b'{"model":"m","prompt_tokens":5000}'))
    shown = json.loads(body)
    heads = [
        (await ask(app, administrator(b"/mesh/v1/explain", wrong)))[0].split()[1]
        for wrong in (b'{"model":"x"}', b'{"model":"m","prompt_tokens":0}', b"{}")
    ]

    assert shown["prompt_tokens"] == 5000
    assert sorted(row["node_name"] for row in shown["candidates"]) == ["a", "b"]
    assert [row["estimate"]["prefill"] for row in shown["candidates"]] == [10.0, 10.0]
    assert sum(row["chosen"] for row in shown["candidates"]) == 1
    assert heads == ["404", "400", "400"]


@pytest.mark.parametrize("sent", [CHAT, STREAMED])
async def test_a_client_says_in_a_header_how_long_it_waits(autojump_clock: MockClock, sent: bytes) -> None:
    app = app_of(FakeWorker(delay=4))
    late, _ = await ask(app, post(sent, CLOSE, b"x-meshnode-deadline-ms: 3000"))
    wrong = [
        (await ask(app, post(sent, CLOSE, b"x-meshnode-deadline-ms: " + text)))[0][:12] for text in (b"0", b"soon", b"9" * 20)
    ]

    assert late.startswith("HTTP/1.1 504")
    assert wrong == ["HTTP/1.1 400"] * 3
