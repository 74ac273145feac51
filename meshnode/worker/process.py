"""The child process of one model: `python -m meshnode.worker.process FD PARENT_PID`.

One thread, one loop: take the commands that have come (waiting for some only when there is nothing to do), run one engine step,
send what it brought as one message. So a cancel takes effect before the next step. Of new requests only one is prepared for each
step, since rendering and tokenising a long one takes seconds, in which others may be cancelled: then nothing is done for them. A
request that fails, for whatever reason, fails alone; what fails for everybody ends the process, and the parent starts another.
"""

import select
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import assert_never

import msgspec

from meshnode.errors import ConfigurationError, InternalError, InvalidRequest, MeshnodeError
from meshnode.inference import (
    Event,
)
from meshnode.worker import confinement
from meshnode.worker.engine import Engine, Happening
from meshnode.worker.loaded import LoadedModel
from meshnode.worker.machine import MemoryShort
from meshnode.worker.protocol import (
    Cached,
    Cancel,
    Failure,
    Frames,
    Load,
    Ready,
    Refused,
    Step,
    Submit,
    Threads,
    ToChild,
    ToParent,
    frame,
)

_RECEIVE = 256 * 1024
JOIN_S = 0.008
"""A small model makes a token in less, and to wake the parent for each costs a fifth of that. Nobody sees so short a delay."""
CACHED_S = 1.0
"""Between two reports of what is cached, while there is work: as often as a node tells others of its load."""


class _Channel:
    """The socket to the parent: commands in, messages out. Sending waits for the parent, which always reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._frames = Frames()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def commands(self, *, wait: bool) -> list[ToChild]:
        """What has come; at least one when `wait`. Raises EOFError when the parent is gone."""
        commands: list[ToChild] = []
        while self._poll.poll(None if wait and not commands else 0):
            data = self._socket.recv(_RECEIVE)
            if not data:
                raise EOFError
            commands += [msgspec.msgpack.decode(body, type=ToChild) for body in self._frames.feed(data)]
        return commands

    def send(self, message: ToParent) -> None:
        self._socket.sendall(frame(message))


def _queue(commands: Sequence[ToChild], waiting: dict[int, Submit], model: LoadedModel) -> None:
    """Carry out what is cheap: requests join `waiting`, by stream, and cancelled ones leave it or the model."""
    for command in commands:
        match command:
            case Cancel(stream=stream):
                if waiting.pop(stream, None) is None:
                    model.cancel(stream)
            case Threads(count=count):
                model.set_threads(count)
            case Submit(stream=stream):
                waiting[stream] = command
            case Load():
                raise AssertionError("a second LOAD")
            case _:
                assert_never(command)


def _take(submit: Submit, model: LoadedModel) -> list[Happening]:
    """Prepare a request for the engine; what that brings at once is its refusal."""
    try:
        if submit.request.inputs is not None:
            model.embed(submit.stream, submit.request, submit.request.inputs)
            return []
        job = model.job(submit.stream, submit.request, submit.chain)
        if job.max_tokens == 0:
            return model.counted(job, echo=submit.request.echo)
        if not job.prompt:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        model.engine.submit(job)
    except MeshnodeError as error:
        return [(submit.stream, error)]
    except Exception as error:
        # Where it happened, without the message, which could quote the prompt.
        print(type(error).__name__, *traceback.format_tb(error.__traceback__), sep="\n", file=sys.stderr)  # noqa: T201 - the parent reads it
        return [(submit.stream, InternalError(f"The worker failed on this request: {type(error).__name__}."))]
    return []


class _Outbox:
    """What steps brought, on its way to the parent. Steps that follow each other within `JOIN_S` go together."""

    def __init__(self, channel: _Channel, engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._held: list[Happening] = []
        self._sent_at = 0.0

    def put(self, happened: Sequence[Happening], *, more: bool) -> None:
        """`more`: another step follows at once."""
        self._held += happened
        if self._held and (not more or time.monotonic() - self._sent_at >= JOIN_S):
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._channel.send(_step(self._held, self._engine))
            self._held, self._sent_at = [], time.monotonic()


def _serve(channel: _Channel, model: LoadedModel, early: Sequence[ToChild] = ()) -> None:
    """Until the parent is gone."""
    waiting: dict[int, Submit] = {}
    _queue(early, waiting, model)
    outbox = _Outbox(channel, model.engine)
    told: tuple[tuple[int, ...], ...] = ()
    told_at = 0.0
    while True:
        commands = channel.commands(wait=not (model.busy or waiting))
        _queue(commands, waiting, model)
        if waiting:
            outbox.flush()  # what follows may take long
            outbox.put(_take(waiting.pop(next(iter(waiting))), model), more=False)
        if model.busy:
            outbox.put(model.step(), more=model.only_decodes)
        now = time.monotonic()
        if now - told_at >= CACHED_S or not model.engine.busy:
            told_at, chains = now, model.engine.slots.chains
            if chains != told:
                told = chains
                channel.send(Cached(chains=chains))


def _step(happened: list[Happening], engine: Engine) -> Step:
    speed = engine.speed
    step_s, stream_s = speed.line()
    return Step(
        events=tuple((stream, _told(event)) for stream, event in happened),
        free_slots=engine.free_slots,
        waiting=engine.waiting,
        remaining_s=engine.remaining_s,
        kv_free_tokens=engine.kv_free_tokens,
        prefill_per_s=speed.prefill_rate,
        tokens_per_s=speed.tokens_per_s,
        step_s=step_s,
        stream_s=stream_s,
    )


def _told(event: Event | MeshnodeError) -> Event | Failure:
    if isinstance(event, MeshnodeError):
        return Failure(code=event.code, message=str(event), param=event.param, retry_after=event.retry_after)
    return event


def _load(channel: _Channel) -> tuple[LoadedModel, list[ToChild]] | None:
    """The model that the parent wants, and what came with that: CANCEL of a request to the child before. None after a refusal."""
    command, *early = channel.commands(wait=True)
    assert isinstance(command, Load)
    try:
        model = LoadedModel(command)
    except ConfigurationError as error:
        message = error.message.encode("utf-8", "replace").decode()  # it may name a file whose name is no UTF-8
        channel.send(Refused(message=message, hint=error.hint, permanent=not isinstance(error, MemoryShort)))
        return None
    channel.send(Ready(context_length=model.context_length, note=model.note, on_gpu=model.on_gpu))
    return model, early


def main() -> None:
    channel = _Channel(socket.socket(fileno=int(sys.argv[1])))
    confinement.confine(parent=int(sys.argv[2]))
    try:
        if loaded := _load(channel):
            _serve(channel, *loaded)
    except (EOFError, ConnectionError):
        pass  # the parent is gone, and so do we


if __name__ == "__main__":
    main()
