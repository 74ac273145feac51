from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.inference import Alternative, Chunk, End, Finish, Message, Phase, Progress, Request, TokenLogprob, Usage
from meshnode.worker.protocol import (
    MAX_FRAME,
    Cancel,
    Failure,
    Frames,
    FrameTooLarge,
    Refused,
    Step,
    Submit,
    ToChild,
    ToParent,
    frame,
)

LIKELY = TokenLogprob(7, b"\xc3", -0.5, (Alternative(8, b"", -1.5),))
REQUEST = Request(id="r", model="m", messages=(Message(role="user", content="Hi \N{PILE OF POO}"),))


def test_a_step_comes_over_as_it_was() -> None:
    step = Step(
        events=(
            (1, Progress(phase=Phase.PREFILL, done=3, total=9)),
            (2, Chunk(choice=0, text="", token_ids=(7,), logprobs=(LIKELY,))),
            (2, Chunk(choice=0, text="é", token_ids=(7,), finish=Finish.STOP)),
            (2, End(usage=Usage(prompt_tokens=1, completion_tokens=2))),
            (3, Failure(code="internal_error", message="m", retry_after=1.5)),
        ),
        tokens_per_s=2.5,
    )
    (body,) = Frames().feed(frame(step))

    assert msgspec.msgpack.decode(body, type=ToParent) == step


@settings(max_examples=50)
@given(st.data())
def test_frames_come_whole_however_the_bytes_are_split(data: st.DataObject) -> None:
    sent = [Submit(stream=1, request=REQUEST), Cancel(stream=1), Cancel(stream=2)]
    stream = b"".join(map(frame, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    frames = Frames()
    received: list[ToChild] = []
    for start, end in pairwise([0, *cuts, len(stream)]):
        received += [msgspec.msgpack.decode(body, type=ToChild) for body in frames.feed(stream[start:end])]

    assert received == sent


def test_a_frame_over_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(FrameTooLarge):
        frame(Refused(message="x" * MAX_FRAME))
    with pytest.raises(FrameTooLarge):
        list(Frames().feed((MAX_FRAME + 1).to_bytes(4, "big")))
