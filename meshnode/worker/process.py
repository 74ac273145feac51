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
from collections.abc import Collection, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec

from meshnode import tools
from meshnode.errors import ConfigurationError, InternalError, InvalidRequest, MeshnodeError, Unsupported
from meshnode.inference import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Chunk,
    End,
    Event,
    Finish,
    Request,
    Sampling,
    Usage,
)
from meshnode.worker import confinement, machine, sampling
from meshnode.worker.answer_format import constraints_of
from meshnode.worker.constraint import Grammars
from meshnode.worker.dialect import dialect_of, opening
from meshnode.worker.embedding import Embedder
from meshnode.worker.engine import MAX_PARKED, Engine, Happening
from meshnode.worker.gguf import Facts
from meshnode.worker.job import Job
from meshnode.worker.llama import LlamaRuntime
from meshnode.worker.machine import MemoryShort
from meshnode.worker.penalties import DEFAULT_LAST, Bias, Penalties
from meshnode.worker.prompt import Tokenizer
from meshnode.worker.protocol import (
    Cached,
    Cancel,
    Failure,
    Frames,
    Load,
    Ready,
    Refused,
    Region,
    Step,
    Submit,
    Threads,
    ToChild,
    ToParent,
    frame,
)
from meshnode.worker.reader import PLAIN, Form
from meshnode.worker.renderer import CHATML, Renderer
from meshnode.worker.vocabulary import Vocabulary

_RECEIVE = 256 * 1024
MAX_ECHO = 1 << 20
"""Tokens sent back, in one message: as many as a request may bring."""
CACHED_S = 1.0
"""Between two reports of what is cached, while there is work: as often as a node tells others of its load."""
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
        runtime = LlamaRuntime(
            Path(os.fsdecode(load.path)),
            facts,
            slots=load.slots,
            context_length=load.context_length,
            compute=load.compute,
            memory_free=load.memory_free,
        )
        renderer.compile(facts.chat_template or CHATML, bos=runtime.bos(), eos=runtime.eos())
        controls = runtime.control_texts()
        free = machine.memory_available() or 4 * MAX_PARKED
        self.engine = Engine(runtime, clock=time.monotonic, max_parked=min(MAX_PARKED, free // 4))
        self.context_length = runtime.context_length
        self.note = "" if facts.chat_template else "The file has no chat template; ChatML is used."
        self.on_gpu = runtime.on_gpu
        self.set_threads = runtime.set_threads
        self._facts = facts
        self._ending = runtime.ending()
        self._vocabulary = runtime.vocabulary()
        self._runtime = runtime
        self.embedder: Embedder | None = None
        """Made when first asked for: it takes memory of its own."""
        self._render = renderer.render
        self._piece = runtime.piece
        self._tokens = Tokenizer(runtime.tokenize, controls=controls, first=runtime.first_token()).tokens
        self._dialect = dialect_of(facts.chat_template, takes_tools=renderer.takes_tools)
        self._marks = {token: text for text in self._dialect.texts for token in control(runtime, text)}
        # A model to which ChatML's end of turn is no token spells it, and would go on with the next turn.
        self._stops = () if facts.chat_template or _END_OF_TURN in controls else (_END_OF_TURN,)

    def job(self, stream: int, request: Request, chain: tuple[int, ...] = ()) -> Job:
        """Raises Unsupported, InvalidRequest, or what a bug raises."""
        if not self._runtime.generates:
            raise Unsupported("This model makes embeddings, and writes no text.", hint="Ask /v1/embeddings.", param="model")
        check(request)
        check_tokens(request, self._vocabulary)
        wanted = wanted_tools(request)
        prompt, begun = self._prompt(request, wanted)
        # All of such an answer follows its form: there is no room for thoughts and calls, and nothing is taken for one.
        formed = request.response_format.kind != "text"
        return Job(
            stream=stream,
            prompt=prompt,
            sampler=sampler(request.sampling, self._facts, self._ending),
            n=request.n,
            max_tokens=request.sampling.max_tokens,
            stops=request.sampling.stop + (self._stops if request.prompt is None else ()),
            logprobs=request.logprobs.top if request.logprobs else None,
            constraint=constraints_of(request.response_format, self._grammars) if formed else None,
            form=PLAIN if formed or request.prompt is not None else self._form(request, wanted, begun),
            priority=request.priority,
            chain=chain,
            resume=request.resume,
        )

    def _prompt(self, request: Request, wanted: tools.Tools) -> tuple[Sequence[int], str]:
        """Its tokens, and how it has begun the answer already."""
        if isinstance(request.prompt, tuple):
            return request.prompt, ""
        if request.prompt is not None:
            return self._tokens((Region(text=request.prompt, ours=True),)), ""
        prompt = self._render(request.messages, request.tools if wanted.names else None, request.thinking)
        forced, begun = opening(self._dialect, wanted, prompt)
        return self._tokens((*prompt, *forced)), begun

    def counted(self, job: Job, *, echo: bool) -> list[Happening]:
        """The answer to who wants no more than the prompt. Raises InvalidRequest for one too long to be echoed."""
        if echo and len(job.prompt) > MAX_ECHO:
            raise InvalidRequest(f"The prompt has {len(job.prompt)} tokens; at most {MAX_ECHO} are sent back.", param="prompt")
        text = b"".join(map(self._piece, job.prompt)).decode(errors="replace") if echo else ""
        chunk = Chunk(choice=0, text=text, token_ids=tuple(job.prompt) if echo else (), finish=Finish.LENGTH)
        usage = Usage(prompt_tokens=len(job.prompt), completion_tokens=0)
        return [(job.stream, chunk), (job.stream, End(usage=usage))]

    def embed(self, stream: int, request: Request, inputs: Sequence[str]) -> None:
        """Queue texts to embed. Raises a MeshnodeError, also where the model cannot."""
        check(request)
        if self.embedder is None:
            self._embedding = self._runtime.embedding()
            self.embedder = Embedder(self._embedding)
        self.embedder.submit(stream, [self._embedding.tokenize(text) for text in inputs])

    @property
    def busy(self) -> bool:
        return self.engine.busy or (self.embedder is not None and self.embedder.busy)

    def step(self) -> list[Happening]:
        """Of the answers, then of the texts to embed."""
        happened = self.engine.step() if self.engine.busy else []
        if self.embedder is not None and self.embedder.busy:
            happened += self.embedder.step()
        return happened

    def cancel(self, stream: int) -> None:
        self.engine.cancel(stream)
        if self.embedder is not None:
            self.embedder.cancel(stream)

    @cached_property
    def _grammars(self) -> Grammars:
        """Made when first asked for: to read all tokens takes half a second with the largest vocabularies."""
        runtime = self._runtime
        return Grammars(Vocabulary([runtime.piece(token) for token in range(runtime.vocabulary())], runtime.ending()))

    def _form(self, request: Request, wanted: tools.Tools, begun: str) -> Form:
        dialect = self._dialect
        shown = {token: text for token, text in self._marks.items() if wanted.names or text in (dialect.thinking or ())}
        return Form(
            thinking=dialect.thinking,
            marks=dialect.marks,
            kinds=tools.kinds(request.tools) if request.tools is not None and wanted.names else {},
            parallel=request.parallel_tool_calls and wanted.choice is not tools.Choice.FUNCTION,
            begun=begun,
            seed=seed(request) if wanted.names else "",
            short_ids=dialect.short_ids,
            controls={token: text.encode() for token, text in shown.items()},
        )


def control(runtime: LlamaRuntime, text: str) -> tuple[int, ...]:
    """The control token of this text, whose piece is empty, if the model has one."""
    tokens = runtime.tokenize(text, True)
    return (tokens[0],) if len(tokens) == 1 and not runtime.piece(tokens[0]) else ()


def seed(request: Request) -> str:
    """Of the ids of its calls. A client may give all its requests the same id, but a conversation grows."""
    return f"{request.id}/{blake2b(msgspec.msgpack.encode(request.messages), digest_size=16).hexdigest()}"


def wanted_tools(request: Request) -> tools.Tools:
    """The tools for this answer, once everything about tools is known to be right: a peer may send anything."""
    for index, message in enumerate(request.messages):
        if message.tool_calls is not None:
            tools.calls(message.tool_calls, f"messages[{index}].tool_calls")
    names = tools.names(request.tools) if request.tools is not None else ()
    return tools.requested(names, request.tool_choice)


def check(request: Request) -> None:
    """Refuse by name what this worker cannot do yet, and values that make no sense."""
    formed = request.response_format.kind != "text"
    unsupported = {"response_format": formed and bool(wanted_tools(request).names)}
    asked = request.sampling
    invalid = {
        "n": not 1 <= request.n <= MAX_CHOICES,
        "resume": request.resume is not None and (request.n > 1 or min(request.resume.emitted) < 0),
        "echo": request.echo and request.sampling.max_tokens != 0,
        "messages": [bool(request.messages), request.prompt is not None, request.inputs is not None].count(True) != 1,
        "temperature": asked.temperature is not None and not asked.temperature >= 0,
        "top_p": asked.top_p is not None and not 0 < asked.top_p <= 1,
        "top_k": asked.top_k is not None and asked.top_k < 0,
        "max_tokens": asked.max_tokens is not None and asked.max_tokens < 0,
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
        raise Unsupported(f"This node's worker does not support {param!r} together with tools yet.", param=param)
    for param in (name for name, wrong in invalid.items() if wrong):
        raise InvalidRequest(f"The value of {param!r} is not possible.", param=param)


def _within(value: float | None, low: float, high: float) -> bool:
    """Also for none; never for one that is not a number."""
    return value is None or low <= value <= high


def check_tokens(request: Request, vocabulary: int) -> None:
    """Refuse by its id a token that the model does not have."""
    named = {
        "logit_bias": (each.token for each in request.sampling.logit_bias),
        "resume": request.resume.token_ids if request.resume else (),
        "prompt": request.prompt if isinstance(request.prompt, tuple) else (),
    }
    for param, tokens in named.items():
        for token in (token for token in tokens if not 0 <= token < vocabulary):
            message = f"{param!r} names token {token}; this model's are 0 to {vocabulary - 1}."
            raise InvalidRequest(message, param=param)


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


def _queue(commands: list[ToChild], waiting: dict[int, Submit], model: _Model) -> None:
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


def _take(submit: Submit, model: _Model) -> list[Happening]:
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


def _serve(channel: _Channel, model: _Model) -> None:
    """Until the parent is gone."""
    waiting: dict[int, Submit] = {}
    told: tuple[tuple[int, ...], ...] = ()
    told_at = 0.0
    while True:
        _queue(channel.commands(wait=not (model.busy or waiting)), waiting, model)
        happened: list[Happening] = []
        if waiting:
            happened += _take(waiting.pop(next(iter(waiting))), model)
        if model.busy:
            happened += model.step()
        if happened:
            channel.send(_step(happened, model.engine))
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
    channel.send(Ready(context_length=model.context_length, note=model.note, on_gpu=model.on_gpu))
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
