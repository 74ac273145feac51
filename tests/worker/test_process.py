"""What the child refuses by name, and how a request's wishes become a sampler."""

import pytest

pytest.importorskip("llama_cpp")

import time
from typing import cast

import msgspec
import numpy as np

from meshnode.errors import InvalidRequest, RequestError, Unsupported
from meshnode.inference import (
    MAX_BIASES,
    MAX_CHOICES,
    Bias,
    End,
    Logprobs,
    Message,
    Request,
    ResponseFormat,
    Resume,
    Sampling,
    Usage,
)
from meshnode.tools import Choice, Tools
from meshnode.worker import process
from meshnode.worker.admission import check, check_tokens, sampler, seed, wanted_tools
from meshnode.worker.engine import Engine
from meshnode.worker.gguf import Facts
from meshnode.worker.job import Job
from meshnode.worker.llama import LlamaRuntime
from meshnode.worker.loaded import LoadedModel, control
from meshnode.worker.penalties import Penalties
from meshnode.worker.process import JOIN_S, _Channel, _serve
from meshnode.worker.protocol import Cancel, Load, Submit, ToChild
from meshnode.worker.runtime import Runtime

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
    check(msgspec.structs.replace(PLAIN, messages=(), inputs=("a",)))
    check(msgspec.structs.replace(PLAIN, sampling=Sampling(temperature=0, top_p=1, top_k=0, seed=-5, max_tokens=1, stop=("x",))))


def test_an_answer_of_a_form_cannot_call_tools_yet() -> None:
    tools = '[{"type":"function","function":{"name":"f"}}]'
    form = ResponseFormat(kind="json_object")

    assert refused(Unsupported, response_format=form, tools=tools) == "response_format"
    check(msgspec.structs.replace(PLAIN, response_format=form, tools=tools, tool_choice='"none"'))
    check(msgspec.structs.replace(PLAIN, response_format=form))


@pytest.mark.parametrize(
    ("param", "changes"),
    [
        ("messages", {"messages": ()}),
        ("messages", {"prompt": "Once"}),
        ("echo", {"echo": True}),
        ("messages", {"inputs": ("a text beside messages",)}),
        ("n", {"n": 0}),
        ("n", {"n": MAX_CHOICES + 1}),
        ("resume", {"resume": (Resume(token_ids=(), emitted_chars=-1),)}),
        ("resume", {"resume": (Resume(token_ids=(1,), emitted_chars=0),), "n": 2}),
        ("temperature", {"sampling": Sampling(temperature=-1)}),
        ("temperature", {"sampling": Sampling(temperature=float("nan"))}),
        ("top_p", {"sampling": Sampling(top_p=0)}),
        ("top_p", {"sampling": Sampling(top_p=1.5)}),
        ("top_k", {"sampling": Sampling(top_k=-1)}),
        ("max_tokens", {"sampling": Sampling(max_tokens=-1)}),
        ("stop", {"sampling": Sampling(stop=("",))}),
        ("logprobs", {"logprobs": Logprobs(top=21)}),
        ("logprobs", {"logprobs": Logprobs(top=-1)}),
        ("min_p", {"sampling": Sampling(min_p=1.1)}),
        ("min_p", {"sampling": Sampling(min_p=float("nan"))}),
        ("typical_p", {"sampling": Sampling(typical_p=0)}),
        ("typical_p", {"sampling": Sampling(typical_p=1.1)}),
        ("repeat_penalty", {"sampling": Sampling(repeat_penalty=0)}),
        ("repeat_penalty", {"sampling": Sampling(repeat_penalty=11)}),
        ("repeat_last_n", {"sampling": Sampling(repeat_last_n=-2)}),
        ("presence_penalty", {"sampling": Sampling(presence_penalty=2.1)}),
        ("frequency_penalty", {"sampling": Sampling(frequency_penalty=-2.1)}),
        ("logit_bias", {"sampling": Sampling(logit_bias=(Bias(1, 101),))}),
        ("logit_bias", {"sampling": Sampling(logit_bias=(Bias(1, 1),) * (MAX_BIASES + 1))}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(param: str, changes: dict[str, object]) -> None:
    assert refused(InvalidRequest, **changes) == param


def test_the_requests_wishes_come_before_the_files_and_the_files_before_ours() -> None:
    assert sampler(Sampling(), FACTS).temperature == 0.3
    assert sampler(Sampling(temperature=0), FACTS).temperature == 0
    assert sampler(Sampling(), FACTS).top_k == 40
    assert sampler(Sampling(top_k=0), FACTS).top_k == 0


def test_every_wish_reaches_the_sampler() -> None:
    asked = Sampling(min_p=0.1, typical_p=0.9, repeat_penalty=1.2, repeat_last_n=9, presence_penalty=0.3, frequency_penalty=-0.4)
    made = sampler(asked, FACTS)

    assert (made.min_p, made.typical_p) == (0.1, 0.9)
    assert made.penalties == Penalties(repeat=1.2, last=9, presence=0.3, frequency=-0.4)
    assert sampler(Sampling(), FACTS).penalties == Penalties()
    assert sampler(Sampling(), FACTS, ending={3}).bias is None


def test_biases_add_up_to_one_a_token_and_what_ends_an_answer_can_be_forbidden() -> None:
    row = np.zeros(5, np.float32)
    asked = Sampling(logit_bias=(Bias(1, 5.0), Bias(1, -2.0), Bias(3, 7.0)), ignore_eos=True)
    bias = sampler(asked, FACTS, ending={3, 4}).bias
    assert bias is not None
    bias.apply(row)

    assert row.tolist() == [0, -2, 0, -np.inf, -np.inf]


@pytest.mark.parametrize("token", [-1, 100])
@pytest.mark.parametrize("param", ["logit_bias", "resume"])
def test_a_token_that_the_model_does_not_have_is_refused_by_its_id(param: str, token: int) -> None:
    def naming(*tokens: int) -> Request:
        if param == "resume":
            return msgspec.structs.replace(PLAIN, resume=(Resume(token_ids=tokens, emitted_chars=0),))
        return msgspec.structs.replace(PLAIN, sampling=Sampling(logit_bias=tuple(Bias(token, 1) for token in tokens)))

    check_tokens(naming(0, 99), 100)
    with pytest.raises(InvalidRequest, match=rf"'{param}' names token {token}; .* 0 to 99") as caught:
        check_tokens(naming(0, token), 100)

    assert caught.value.param == param


TOOLS = '[{"type": "function", "function": {"name": "f"}}]'


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, Tools()),
        ({"tools": "[]"}, Tools()),
        ({"tools": TOOLS}, Tools(("f",), Choice.AUTO)),
        ({"tools": TOOLS, "tool_choice": '"auto"'}, Tools(("f",), Choice.AUTO)),
        ({"tools": TOOLS, "tool_choice": '"none"'}, Tools()),
        ({"tools": TOOLS, "tool_choice": '"required"'}, Tools(("f",), Choice.REQUIRED)),
        (
            {"tools": TOOLS, "tool_choice": '{"type": "function", "function": {"name": "f"}}'},
            Tools(("f",), Choice.FUNCTION, "f"),
        ),
    ],
)
def test_what_is_asked_about_tools_comes_to(changes: dict[str, object], wanted: Tools) -> None:
    assert wanted_tools(msgspec.structs.replace(PLAIN, **changes)) == wanted


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": "["}, "tools"),
        ({"tools": "[" * 100_000}, "tools"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tool_choice"),
        ({"messages": (Message(role="assistant", content="", tool_calls="{"),)}, "messages[0].tool_calls"),
    ],
)
def test_what_a_peer_says_wrongly_about_tools_is_refused_by_name(changes: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wanted_tools(msgspec.structs.replace(PLAIN, **changes))

    assert caught.value.param == param


def test_the_ids_of_calls_differ_from_turn_to_turn_even_if_requests_call_themselves_alike() -> None:
    later = msgspec.structs.replace(PLAIN, messages=(*PLAIN.messages, *PLAIN.messages))

    assert seed(PLAIN) == seed(msgspec.structs.replace(PLAIN))
    assert len({seed(PLAIN), seed(later), seed(msgspec.structs.replace(PLAIN, id="s"))}) == 3


class Marked:
    """As much of a runtime as is asked whether a mark is a control token: `[A]` is, `<b>` has text, others are none."""

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        return {"[A]": [1], "<b>": [2]}.get(text, [3, 4]) if parse_special else [3, 4]

    def piece(self, token: int) -> bytes:
        return b"" if token == 1 else b"x"


def test_only_marks_that_are_control_tokens_need_to_be_spelt() -> None:
    assert [control(cast(LlamaRuntime, Marked()), text) for text in ("[A]", "<b>", "<c>")] == [(1,), (), ()]


def test_a_seed_is_kept_and_a_missing_one_is_drawn() -> None:
    assert sampler(Sampling(seed=5), FACTS).seed == 5
    assert sampler(Sampling(), FACTS).seed != sampler(Sampling(), FACTS).seed


class OneSlot:
    """As much of a runtime as an idle engine looks at."""

    slots = 1
    context_length = 8
    pool = 8


class CountingModel:
    """Prepares nothing, but says for which streams it should have."""

    def __init__(self) -> None:
        self.prepared: list[int] = []
        self.engine = Engine(cast(Runtime, OneSlot()), clock=lambda: 0.0)
        self.busy = False
        self.cancel = self.engine.cancel
        self.context_length, self.note, self.on_gpu = 256, "", False

    def job(self, stream: int, request: Request, chain: tuple[int, ...] = ()) -> Job:
        self.prepared.append(stream)
        raise InvalidRequest("no more is wanted here")


class Script:
    """The parent's commands, a list for each time that the child looks."""

    def __init__(self, *batches: list[ToChild]) -> None:
        self._batches = list(batches)

    def commands(self, *, wait: bool) -> list[ToChild]:
        if not self._batches:
            raise EOFError
        return self._batches.pop(0)

    def send(self, message: object) -> None:
        pass


def test_nothing_is_prepared_for_a_request_that_was_cancelled_while_others_were_prepared() -> None:
    model = CountingModel()
    script = Script([Submit(stream, PLAIN) for stream in (1, 2, 3)], [Cancel(2)], [], [])
    with pytest.raises(EOFError):
        _serve(cast(_Channel, script), cast(LoadedModel, model))

    assert model.prepared == [1, 3]


class Table:
    """What `_Outbox` needs of an engine, and of a channel: the events of each message that was sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.sent: list[int] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(process, "_step", lambda held, _engine: len(held))

    def send(self, message: int) -> None:
        self.sent.append(message)


def test_short_steps_go_to_the_parent_together_and_nothing_waits_for_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch)
    outbox = process._Outbox(cast(_Channel, table), cast(Engine, None))
    event = [(1, End(usage=Usage(prompt_tokens=1, completion_tokens=1)))]
    outbox.put(event, more=True)
    assert table.sent == [1], "the first after a pause goes at once"
    for _ in range(4):
        table.now += JOIN_S / 3.9
        outbox.put(event, more=True)
    assert table.sent == [1, 4]
    outbox.put(event, more=True)
    outbox.put(event, more=False)
    assert table.sent == [1, 4, 2]
    outbox.put(event, more=True)
    outbox.flush()
    outbox.flush()
    assert table.sent == [1, 4, 2, 1]


def test_what_comes_together_with_load_is_carried_out_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent may cancel a request to the child before this one, as soon as this one is there."""
    model = CountingModel()
    monkeypatch.setattr(process, "LoadedModel", lambda _load: model)
    load = Load(path=b"m.gguf", facts=FACTS, slots=1, context_length=256)
    script = Script([load, Cancel(7), Submit(1, PLAIN), Submit(2, PLAIN), Cancel(1)], [], [])
    loaded = process._load(cast(_Channel, script))
    assert loaded
    with pytest.raises(EOFError):
        _serve(cast(_Channel, script), *loaded)

    assert model.prepared == [2]
