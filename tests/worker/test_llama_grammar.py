"""Answers of a real model with random weights, held to schemas and grammars; and llama.cpp's own grammars beside ours."""

import ctypes
import json
import time
from collections.abc import Generator
from dataclasses import dataclass
from random import Random

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("llama_cpp")

from hypothesis import assume, given, settings  # noqa: E402 - after the check for the extra
from hypothesis import strategies as st  # noqa: E402
from llama_cpp import llama_cpp as c  # noqa: E402
from tiny_model import make_tiny_model  # noqa: E402
from worker.test_schema import SCHEMAS, valid  # noqa: E402

from meshnode.errors import InvalidRequest, MeshnodeError  # noqa: E402
from meshnode.inference import Chunk, Finish, ResponseFormat  # noqa: E402
from meshnode.worker.answer_format import constraints_of  # noqa: E402
from meshnode.worker.constraint import Grammars  # noqa: E402
from meshnode.worker.engine import Engine  # noqa: E402
from meshnode.worker.gguf import read_facts  # noqa: E402
from meshnode.worker.job import Job  # noqa: E402
from meshnode.worker.llama import LlamaRuntime  # noqa: E402
from meshnode.worker.sampling import Sampler  # noqa: E402
from meshnode.worker.vocabulary import Vocabulary  # noqa: E402


@dataclass(frozen=True)
class Model:
    runtime: LlamaRuntime
    grammars: Grammars

    def answer(self, asked: ResponseFormat, *, seed: int, temperature: float = 1.0) -> tuple[str, Finish]:
        engine = Engine(self.runtime, clock=time.monotonic)
        for slot in range(self.runtime.slots):
            self.runtime.cut(slot, 0)
        sampler = Sampler(seed=seed, temperature=temperature, top_p=1)
        prompt = self.runtime.tokenize("<|im_start|>user\nJSON!<|im_end|>\n<|im_start|>assistant\n", True)
        constraint = constraints_of(asked, self.grammars)
        engine.submit(Job(stream=0, prompt=prompt, sampler=sampler, max_tokens=250, constraint=constraint))
        text = ""
        while engine.busy:
            for _, event in engine.step():
                assert not isinstance(event, MeshnodeError), event
                if isinstance(event, Chunk):
                    text += event.text
                    finish = event.finish
        assert finish
        return text, finish


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    runtime = LlamaRuntime(path, read_facts(path), slots=2, context_length=512)
    pieces = [runtime.piece(token) for token in range(runtime.vocabulary())]
    return Model(runtime, Grammars(Vocabulary(pieces, runtime.ending())))


@settings(max_examples=40, deadline=None)
@given(SCHEMAS, st.integers(0, 1000), st.sampled_from([0.0, 0.8, 3.0]))
def test_an_answer_that_ends_satisfies_its_schema(model: Model, schema: object, seed: int, temperature: float) -> None:
    asked = ResponseFormat(kind="json_schema", schema=json.dumps(schema))
    try:
        text, finish = model.answer(asked, seed=seed, temperature=temperature)
    except InvalidRequest:
        assume(False)
    assume(finish is Finish.STOP)

    assert valid(schema, json.loads(text)), text


@pytest.mark.parametrize("seed", range(5))
def test_any_object_is_json_and_ends_with_its_brace(model: Model, seed: int) -> None:
    text, finish = model.answer(ResponseFormat(kind="json_object"), seed=seed)

    assert text.startswith("{")
    assert finish is Finish.LENGTH or isinstance(json.loads(text), dict)


def test_the_same_seed_gives_the_same_answer_by_a_grammar_that_is_known_already(model: Model) -> None:
    asked = ResponseFormat(kind="grammar", schema='root ::= ([a-z]{1,5} " "){20}')

    assert model.answer(asked, seed=7) == model.answer(asked, seed=7)
    assert model.answer(asked, seed=7) != model.answer(asked, seed=8)


PLAIN = (
    r'root ::= "{" ws "\"a\":" ws [0-9]+ ("," ws "\"b\":" ws ("true" | "false"))* "}"' + '\nws ::= [ \\n]?',
    r'root ::= item ("\n" item)*' + "\n" + r'item ::= "- " [A-Za-z, ]+ | [a-z]* "." | "ä" [à-ü]',
    'root ::= "(" root ")" | [a-z]{1,3} "x"?',
)  # fmt: skip


def theirs(runtime: LlamaRuntime, grammar: str) -> Generator[list[int], int, None]:
    """What llama.cpp's own grammar allows; send in the next token each time. None that ends an answer, no control token."""
    sampler = c.llama_sampler_init_grammar(runtime._vocab, grammar.encode(), b"root")
    assert sampler
    size = runtime.vocabulary()
    plain = [token for token in range(size) if runtime.piece(token) and not runtime.ends(token)]
    candidates = (c.llama_token_data * size)()
    try:
        while True:
            for token in range(size):
                candidates[token] = c.llama_token_data(token, 1.0, 0.0)
            array = c.llama_token_data_array(data=candidates, size=size, selected=-1, sorted=False)
            c.llama_sampler_apply(sampler, ctypes.byref(array))
            token = yield [token for token in plain if candidates[token].logit > 0]
            c.llama_sampler_accept(sampler, token)
    finally:
        c.llama_sampler_free(sampler)


@pytest.mark.parametrize("grammar", PLAIN)
@pytest.mark.parametrize("seed", range(3))
def test_the_same_tokens_are_allowed_as_by_llama_cpps_own_grammars(model: Model, grammar: str, seed: int) -> None:
    """In classes of nearly all characters they have bytes that are no UTF-8, and we have not."""
    rng, runtime = Random(seed), model.runtime
    held = model.grammars.constraints(grammar)()
    other = theirs(runtime, grammar)
    expected = next(other)
    for _ in range(25):
        masked = held.masked(np.zeros(runtime.vocabulary(), np.float32))
        allowed = [int(token) for token in np.flatnonzero(masked == 0) if not runtime.ends(int(token))]
        assert allowed == expected
        if not allowed:
            break
        token = rng.choice(allowed)
        held.accept(token)
        expected = other.send(token)
    other.close()
