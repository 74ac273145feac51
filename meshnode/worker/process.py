"""The child process of one model: `python -m meshnode.worker.process FD PARENT_PID`.

One thread, one loop: take the commands that have come (waiting for some only when there is nothing to do), run one engine step,
send what it brought as one message. So a cancel takes effect before the next step. Of new requests only one is prepared for each
step, since rendering and tokenising a long one takes seconds, in which others may be cancelled: then nothing is done for them. A
request that fails, for whatever reason, fails alone; what fails for everybody ends the process, and the parent starts another.
"""

import math
import os
import secrets
import select
import socket
import sys
import time
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec

from meshnode import tools
from meshnode.errors import ConfigurationError, InternalError, InvalidRequest, MeshnodeError, Unsupported
from meshnode.inference import MAX_BIASES, MAX_TOP_LOGPROBS, Event, Request, Sampling
from meshnode.worker import confinement, sampling
from meshnode.worker.answer import Form
from meshnode.worker.dialect import dialect_of, opening
from meshnode.worker.engine import Engine, Happening, Job
from meshnode.worker.gguf import Facts
from meshnode.worker.llama import LlamaRuntime
from meshnode.worker.machine import MemoryShort
from meshnode.worker.penalties import DEFAULT_LAST, Bias, Penalties
from meshnode.worker.prompt import Tokenizer
from meshnode.worker.protocol import Cancel, Failure, Frames, Load, Ready, Refused, Step, Submit, ToChild, ToParent, frame
from meshnode.worker.renderer import CHATML, Renderer

_RECEIVE = 256 * 1024
_END_OF_TURN = "<|im_end|>"

Number = TypeVar("Number", int, float)


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


class _Model:
    """A loaded model, and how requests become jobs for its engine."""

    def __init__(self, load: Load) -> None:
        facts = load.facts
        renderer = Renderer()  # first, so that its interpreter starts while the model loads
        runtime = LlamaRuntime(Path(os.fsdecode(load.path)), facts, slots=load.slots, context_length=load.context_length)
        renderer.compile(facts.chat_template or CHATML, bos=runtime.bos(), eos=runtime.eos())
        controls = runtime.control_texts()
        self.engine = Engine(runtime, clock=time.monotonic)
        self.note = "" if facts.chat_template else "The file has no chat template; ChatML is used."
        self._facts = facts
        self._ending = runtime.ending()
        self._vocabulary = runtime.vocabulary()
        self._render = renderer.render
        self._tokens = Tokenizer(runtime.tokenize, controls=controls, first=runtime.first_token()).tokens
        # A model to which ChatML's end of turn is no token spells it, and would go on with the next turn.
        self._dialect = dialect_of(facts.chat_template, takes_tools=renderer.takes_tools)
        self._marks = {token: text for text in self._dialect.texts for token in control(runtime, text)}
        self._stops = () if facts.chat_template or _END_OF_TURN in controls else (_END_OF_TURN,)

    def job(self, stream: int, request: Request) -> Job:
        """Raises Unsupported, InvalidRequest, or what a bug raises."""
        check(request)
        check_bias(request.sampling, self._vocabulary)
        wanted = wanted_tools(request)
        prompt = self._render(request.messages, request.tools if wanted.names else None)
        forced, begun = opening(self._dialect, wanted, prompt)
        return Job(
            stream=stream,
            prompt=self._tokens((*prompt, *forced)),
            sampler=sampler(request.sampling, self._facts, self._ending),
            max_tokens=request.sampling.max_tokens,
            stops=request.sampling.stop + self._stops,
            logprobs=request.logprobs.top if request.logprobs else None,
            form=self._form(request, wanted, begun),
        )

    def _form(self, request: Request, wanted: tools.Tools, begun: str) -> Form:
        dialect = self._dialect
        shown = {token: text for token, text in self._marks.items() if wanted.names or text in (dialect.thinking or ())}
        return Form(
            thinking=dialect.thinking,
            marks=dialect.marks,
            kinds=tools.kinds(request.tools) if request.tools is not None and wanted.names else {},
            parallel=request.parallel_tool_calls and wanted.choice is not tools.Choice.FUNCTION,
            begun=begun,
            seed=request.id,
            short_ids=dialect.short_ids,
            controls={token: text.encode() for token, text in shown.items()},
        )


def control(runtime: LlamaRuntime, text: str) -> tuple[int, ...]:
    """The control token of this text, whose piece is empty, if the model has one."""
    tokens = runtime.tokenize(text, True)
    return (tokens[0],) if len(tokens) == 1 and not runtime.piece(tokens[0]) else ()


def wanted_tools(request: Request) -> tools.Tools:
    """The tools for this answer, once everything about tools is known to be right: a peer may send anything."""
    for index, message in enumerate(request.messages):
        if message.tool_calls is not None:
            tools.calls(message.tool_calls, f"messages[{index}].tool_calls")
    names = tools.names(request.tools) if request.tools is not None else ()
    return tools.requested(names, request.tool_choice)


def check(request: Request) -> None:
    """Refuse by name what this worker cannot do yet, and values that make no sense."""
    unsupported = {
        "n": request.n > 1,
        "response_format": request.response_format.kind != "text",
        "resume": request.resume is not None,
    }
    asked = request.sampling
    invalid = {
        "n": request.n < 1,
        "messages": not request.messages,
        "temperature": asked.temperature is not None and not asked.temperature >= 0,
        "top_p": asked.top_p is not None and not 0 < asked.top_p <= 1,
        "top_k": asked.top_k is not None and asked.top_k < 0,
        "max_tokens": asked.max_tokens is not None and asked.max_tokens < 1,
        "stop": not all(asked.stop),
        "logprobs": request.logprobs is not None and not 0 <= request.logprobs.top <= MAX_TOP_LOGPROBS,
        "min_p": not _within(asked.min_p, 0, 1),
        "typical_p": asked.typical_p == 0 or not _within(asked.typical_p, 0, 1),
        "repeat_penalty": not _within(asked.repeat_penalty, 0.1, 10),
        "repeat_last_n": asked.repeat_last_n is not None and asked.repeat_last_n < -1,
        "presence_penalty": not _within(asked.presence_penalty, -2, 2),
        "frequency_penalty": not _within(asked.frequency_penalty, -2, 2),
        "logit_bias": len(asked.logit_bias) > MAX_BIASES or not all(_within(each.bias, -100, 100) for each in asked.logit_bias),
    }
    for param in (name for name, wrong in unsupported.items() if wrong):
        raise Unsupported(f"This node's worker does not support {param!r} yet.", hint="Leave it out.", param=param)
    for param in (name for name, wrong in invalid.items() if wrong):
        raise InvalidRequest(f"The value of {param!r} is not possible.", param=param)


def _within(value: float | None, low: float, high: float) -> bool:
    """Also for none; never for one that is not a number."""
    return value is None or low <= value <= high


def check_bias(asked: Sampling, vocabulary: int) -> None:
    """Refuse by its id a token that the model does not have."""
    for token in (each.token for each in asked.logit_bias if not 0 <= each.token < vocabulary):
        message = f"'logit_bias' names token {token}; this model's are 0 to {vocabulary - 1}."
        raise InvalidRequest(message, param="logit_bias")


def sampler(asked: Sampling, facts: Facts, ending: Collection[int] = ()) -> sampling.Sampler:
    """The request's wishes before the file's before llama.cpp's. `ending` are the tokens with which the model ends an answer."""
    biases = {each.token: each.bias for each in asked.logit_bias} | (dict.fromkeys(ending, -math.inf) if asked.ignore_eos else {})
    return sampling.Sampler(
        seed=secrets.randbits(64) if asked.seed is None else asked.seed,
        temperature=_first(asked.temperature, facts.temperature, sampling.DEFAULT_TEMPERATURE),
        top_p=_first(asked.top_p, facts.top_p, sampling.DEFAULT_TOP_P),
        top_k=_first(asked.top_k, facts.top_k, sampling.DEFAULT_TOP_K),
        min_p=_first(asked.min_p, 0.0),
        typical_p=_first(asked.typical_p, 1.0),
        penalties=Penalties(
            repeat=_first(asked.repeat_penalty, 1.0),
            last=_first(asked.repeat_last_n, DEFAULT_LAST),
            presence=_first(asked.presence_penalty, 0.0),
            frequency=_first(asked.frequency_penalty, 0.0),
        ),
        bias=Bias(biases) if biases else None,
    )


def _first(*values: Number | None) -> Number:
    return next(value for value in values if value is not None)


def _queue(commands: list[ToChild], waiting: dict[int, Submit], engine: Engine) -> None:
    """Carry out what is cheap: requests join `waiting`, by stream, and cancelled ones leave it or the engine."""
    for command in commands:
        match command:
            case Cancel(stream=stream):
                if waiting.pop(stream, None) is None:
                    engine.cancel(stream)
            case Submit(stream=stream):
                waiting[stream] = command
            case Load():
                raise AssertionError("a second LOAD")
            case _:
                assert_never(command)


def _take(submit: Submit, model: _Model) -> list[Happening]:
    """Prepare a request for the engine; what that brings at once is its refusal."""
    try:
        model.engine.submit(model.job(submit.stream, submit.request))
    except MeshnodeError as error:
        return [(submit.stream, error)]
    except Exception as error:
        # Where it happened, without the message, which could quote the prompt.
        print(type(error).__name__, *traceback.format_tb(error.__traceback__), sep="\n", file=sys.stderr)  # noqa: T201 - the parent reads it
        return [(submit.stream, InternalError(f"The worker failed on this request: {type(error).__name__}."))]
    return []


def _serve(channel: _Channel, model: _Model) -> None:
    """Until the parent is gone."""
    waiting: dict[int, Submit] = {}
    while True:
        _queue(channel.commands(wait=not (model.engine.busy or waiting)), waiting, model.engine)
        happened: list[Happening] = []
        if waiting:
            happened += _take(waiting.pop(next(iter(waiting))), model)
        if model.engine.busy:
            happened += model.engine.step()
        if happened:
            events = tuple((stream, _told(event)) for stream, event in happened)
            engine = model.engine
            channel.send(Step(events=events, kv_free_tokens=engine.kv_free_tokens, tokens_per_s=engine.tokens_per_s))


def _told(event: Event | MeshnodeError) -> Event | Failure:
    if isinstance(event, MeshnodeError):
        return Failure(code=event.code, message=str(event), param=event.param, retry_after=event.retry_after)
    return event


def _load(channel: _Channel) -> _Model | None:
    """The model that the parent wants, or None after the refusal was told."""
    (command,) = channel.commands(wait=True)
    assert isinstance(command, Load)
    try:
        model = _Model(command)
    except ConfigurationError as error:
        message = error.message.encode("utf-8", "replace").decode()  # it may name a file whose name is no UTF-8
        channel.send(Refused(message=message, hint=error.hint, permanent=not isinstance(error, MemoryShort)))
        return None
    channel.send(Ready(note=model.note))
    return model


def main() -> None:
    channel = _Channel(socket.socket(fileno=int(sys.argv[1])))
    confinement.confine(parent=int(sys.argv[2]))
    try:
        if model := _load(channel):
            _serve(channel, model)
    except (EOFError, ConnectionError):
        pass  # the parent is gone, and so do we


if __name__ == "__main__":
    main()
