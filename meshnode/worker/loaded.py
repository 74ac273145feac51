"""A loaded model: how requests become jobs for its engine, and what else is asked of it."""

import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from meshnode import tools
from meshnode.errors import InvalidRequest, Unsupported
from meshnode.inference import Chunk, End, Finish, Request, Usage
from meshnode.worker import machine
from meshnode.worker.admission import check, check_tokens, sampler, seed, wanted_tools
from meshnode.worker.answer_format import constraints_of
from meshnode.worker.constraint import Grammars
from meshnode.worker.dialect import dialect_of, opening
from meshnode.worker.embedding import Embedder
from meshnode.worker.engine import MAX_PARKED, Engine, Happening
from meshnode.worker.job import Job
from meshnode.worker.llama import LlamaRuntime
from meshnode.worker.prompt import Tokenizer
from meshnode.worker.protocol import Load, Region
from meshnode.worker.reader import PLAIN, Form
from meshnode.worker.renderer import CHATML, Renderer
from meshnode.worker.vocabulary import Vocabulary

MAX_ECHO = 1 << 20
"""Tokens sent back, in one message: as many as a request may bring."""
_END_OF_TURN = "<|im_end|>"


class LoadedModel:
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

    @property
    def only_decodes(self) -> bool:
        """Whether the next step is a short one."""
        return self.engine.only_decodes and not (self.embedder is not None and self.embedder.busy)

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
