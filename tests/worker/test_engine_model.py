"""The engine driven at random over a table: whatever comes in whatever order, each gets the answer that it would get alone."""

from dataclasses import dataclass, field

import pytest

pytest.importorskip("numpy")

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from worker.table import END, Table

from meshnode.inference import Chunk, End, Finish, Priority, Progress, Resume
from meshnode.worker.engine import Engine
from meshnode.worker.job import Job
from meshnode.worker.sampling import Sampler

PROMPTS = st.lists(st.integers(1, 2), max_size=20)
"""Of two tokens, so that many begin alike."""
WORD = "HELLO WORLD, HOW ARE YOU TODAY?"


@dataclass
class Asked:
    """What a stream must say, and what it has said."""

    n: int
    tokens: list[int]
    resumed: int
    finish: Finish
    said: dict[int, list[int]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    ended: bool = False


class Clients(RuleBasedStateMachine):
    """Streams come, go and are cut off; batches find no room; copies cannot be put back."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, Asked] = {}
        self.next_stream = 0

    @initialize(
        slots=st.integers(1, 4),
        part=st.integers(20, 60),
        unified=st.booleans(),
        can_cut=st.booleans(),
        can_restore=st.booleans(),
        most=st.sampled_from((0, 30, 10_000)),
    )
    def start(self, *, slots: int, part: int, unified: bool, can_cut: bool, can_restore: bool, most: int) -> None:
        context = min(slots * part, 100) if unified else part
        self.table = Table(
            slots=slots,
            context_length=context,
            pool=slots * part,
            unified=unified,
            can_cut=can_cut,
            can_restore=can_restore,
            answer=WORD,
            seconds_per_token=0.01,
        )
        self.most = most
        self.engine = Engine(self.table, clock=self.table.clock, max_parked=most)

    @rule(prompt=PROMPTS, n=st.integers(1, 3), limit=st.none() | st.integers(1, 40), priority=st.sampled_from(Priority))
    def submit(self, prompt: list[int], n: int, limit: int | None, priority: Priority) -> None:
        self._submit(prompt[: self.table.context_length - 2], n=n, limit=limit, priority=priority)

    @rule(prompt=PROMPTS, drawn=st.integers(0, 35))
    def resume(self, prompt: list[int], drawn: int) -> None:
        self._submit(prompt[: self.table.context_length - 2], resumed=drawn)

    def _submit(
        self,
        prompt: list[int],
        *,
        n: int = 1,
        limit: int | None = None,
        priority: Priority = Priority.DEFAULT,
        resumed: int = 0,
    ) -> None:
        if sum(not asked.ended for asked in self.asked.values()) >= 20:
            return
        prompt = [*prompt, 0]
        room = self.table.context_length - len(prompt)
        room = room if limit is None else min(limit, room)
        whole = [*WORD.encode(), END]
        finish = Finish.STOP if len(whole) <= room else Finish.LENGTH
        drawn = whole[:resumed]
        self.next_stream += 1
        self.engine.submit(
            Job(
                stream=self.next_stream,
                prompt=prompt,
                sampler=Sampler(seed=1, temperature=0),
                n=n,
                max_tokens=limit,
                priority=priority,
                resume=(Resume(token_ids=tuple(drawn), emitted_chars=0),) if resumed else None,
            )
        )
        self.asked[self.next_stream] = Asked(n=n, tokens=whole[:room], resumed=min(len(drawn), room), finish=finish)

    @rule()
    def step(self) -> None:
        for stream, event in self.engine.step():
            asked = self.asked[stream]
            assert not asked.ended, "nothing after the end"
            match event:
                case Chunk(choice=choice):
                    assert choice not in asked.finished
                    asked.said.setdefault(choice, []).extend(event.token_ids)
                    if event.finish is not None:
                        assert event.finish is asked.finish
                        asked.finished.add(choice)
                case End():
                    assert asked.finished == set(range(asked.n))
                    assert all(said == asked.tokens[asked.resumed :] for said in asked.said.values())
                    assert event.usage.completion_tokens == asked.n * len(asked.tokens)
                    asked.ended = True
                case _:
                    assert isinstance(event, Progress), event

    @rule()
    def run_on(self) -> None:
        """More than any answer takes, so that some end in each run."""
        for _ in range(20):
            self.step()

    @precondition(lambda self: any(not asked.ended for asked in self.asked.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from([stream for stream, asked in self.asked.items() if not asked.ended]))
        self.engine.cancel(stream)
        self.asked[stream].ended = True

    @rule(refusals=st.integers(1, 3))
    def refuse(self, refusals: int) -> None:
        """llama.cpp finds no room although we think there is."""
        self.table.refusals = refusals

    @invariant()
    def the_cache_holds_what_the_engine_believes(self) -> None:
        if not hasattr(self, "engine"):
            return
        for slot in self.engine.slots:
            assert self.table.kept(slot.id) == slot.tokens[: slot.count]
        assert self.engine.slots.used == self.table.used <= self.table.pool
        assert 0 <= self.engine.parked_bytes <= self.most

    def teardown(self) -> None:
        """Nobody waits for ever, and what is left is what idle slots keep."""
        if not hasattr(self, "engine"):
            return
        self.table.refusals = 0
        for _ in range(5000):
            if not self.engine.busy:
                break
            self.step()
        assert all(asked.ended for asked in self.asked.values())
        assert self.engine.parked_bytes == 0
        assert self.engine.free_slots == self.table.slots
        assert self.engine.kv_free_tokens == self.table.pool


TestClients = Clients.TestCase
TestClients.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
