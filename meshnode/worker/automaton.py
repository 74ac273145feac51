"""What may come next in a text that follows a grammar: a network of nodes run byte by byte, its states kept (pure).

A state is the set of all places in the network where the text so far can have led: a node that reads, and the frames to return
to, innermost first. A grammar that is unsure for long has many. States and what each byte makes of them are computed when they
are first needed and kept in a table, so that a byte seen before costs one look-up, and numpy can look up for all tokens at once.

Hostile grammars double their places with every byte (a schema of 200 bytes does, and llama.cpp's own grammars then take seconds,
hours, for ever). So a state has at most `MAX_PLACES`, of at most `MAX_FRAMES` frames each; what would lead beyond is refused as
if the grammar did not allow it. All work is counted, and whoever asks for more than was granted gets `Exhausted`.
"""

from collections.abc import Iterable, Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from meshnode.worker.network import RETURN, Call, Network, Read, Return, Split

MAX_PLACES = 1024
MAX_FRAMES = 256
"""How deep values may lie within each other, about."""
MAX_STATES = 8 * 1024
MAX_KEPT_PLACES = 200_000
"""Of all states together: some 30 MB. When one of these two is reached, an automaton is `full`."""
DEAD = -1
"""The state from which nothing leads on."""
_UNKNOWN = -2
_BOTTOM = 0
"""The frame below all: returning from there ends the text."""

Place = tuple[int, int]
"""A node, and the frame to return to."""
Table = NDArray[np.int32]
_Readers = tuple[dict[int, list[Place]], dict[tuple[int, int], list[Place]]]
"""Where a byte leads, by that byte, and by the first and last of a range that it is in."""


class Exhausted(Exception):
    """More work than was granted."""


class Automaton:
    """The states of one grammar that were needed so far; `start` is the first."""

    def __init__(self, network: Network, *, granted: int = 100_000) -> None:
        """Raises Exhausted where already the beginning is too much."""
        self.network = network
        self.table: Table = np.full((16, 256), _UNKNOWN, np.int32)
        """The state after a state and a byte; what is below `DEAD` is not known yet."""
        self.granted = granted
        """How many places may still be looked at; whoever makes use of the automaton sets it."""
        self._frames: list[tuple[int, int, int]] = [(RETURN, _BOTTOM, 0)]
        """Node to return to, the frame below, and how many there are below."""
        self._frame_ids: dict[Place, int] = {}
        self._states: list[tuple[frozenset[Place], bool]] = []
        self._state_ids: dict[tuple[frozenset[Place], bool], int] = {}
        self._readers: dict[int, _Readers] = {}
        self._kept = 0
        self.start = self._state([(network.starts[network.root], _BOTTOM)])

    @property
    def full(self) -> bool:
        return len(self._states) >= MAX_STATES or self._kept >= MAX_KEPT_PLACES

    def complete(self, state: int) -> bool:
        """Whether the text may end here."""
        return state != DEAD and self._states[state][1]

    def final(self, state: int) -> bool:
        """Whether it can do nothing else."""
        return state == DEAD or not self._states[state][0]

    def step(self, state: int, byte: int) -> int:
        """The state after `byte`. Raises Exhausted."""
        if state == DEAD:
            return DEAD
        following: int = self.table.item(state, byte)
        if following == _UNKNOWN:
            following = self._state(self._after(state, byte))
            self.table[state, byte] = following
        return following

    def learn(self, states: Table, bytes_: NDArray[np.uint8]) -> Table:
        """`step` for many at once, none of them DEAD."""
        following = self.table[states, bytes_]
        unknown = following == _UNKNOWN
        if unknown.any():
            for key in np.unique(states[unknown].astype(np.int64) * 256 + bytes_[unknown]).tolist():
                self.step(key >> 8, key & 255)
            following = self.table[states, bytes_]
        return following

    def places(self, state: int) -> list[tuple[int, tuple[int, ...]]]:
        """A state as it is in every automaton of this network: nodes, each with the nodes to return to."""
        return [(node, tuple(self._returns(frame))) for node, frame in self._states[state][0]]

    def enter(self, places: Sequence[tuple[int, tuple[int, ...]]], *, complete: bool) -> int:
        """The state that another automaton of this network called so."""
        found = set()
        for node, returns in places:
            frame: int | None = _BOTTOM
            for each in reversed(returns):
                assert frame is not None, "it was deep enough there"
                frame = self._push(each, frame)
            assert frame is not None
            found.add((node, frame))
        return self._intern(frozenset(found), complete=complete)

    def _returns(self, frame: int) -> Iterable[int]:
        while frame != _BOTTOM:
            node, frame, _ = self._frames[frame]
            yield node

    def _after(self, state: int, byte: int) -> list[Place]:
        single, ranges = self._readers.get(state) or self._index(state)
        self._work(len(ranges))
        return single.get(byte, []) + [place for (low, high), places in ranges.items() if low <= byte <= high for place in places]

    def _index(self, state: int) -> _Readers:
        """What its places read, by byte, so that each further byte does not look at all of them."""
        single: dict[int, list[Place]] = {}
        ranges: dict[tuple[int, int], list[Place]] = {}
        for node, frame in self._states[state][0]:
            reader = self.network.nodes[node]
            assert isinstance(reader, Read)
            self._work(len(reader.edges))
            for low, high, then in reader.edges:
                if low == high:
                    single.setdefault(low, []).append((then, frame))
                else:
                    ranges.setdefault((low, high), []).append((then, frame))
        self._readers[state] = single, ranges
        return single, ranges

    def _state(self, places: Iterable[Place]) -> int:
        """The state of all reading nodes that `places` lead to."""
        seen = set(places)
        todo = list(seen)
        reading = []
        complete = False
        while todo:
            self._work()
            node, frame = todo.pop()
            following: Iterable[Place] = ()
            match self.network.nodes[node]:
                case Read(edges=edges) if edges:
                    reading.append((node, frame))
                case Read():
                    pass
                case Split(nodes=targets):
                    following = [(target, frame) for target in targets]
                case Call(rule=rule, then=then):
                    inner = frame if then == RETURN else self._push(then, frame)
                    following = () if inner is None else ((self.network.starts[rule], inner),)
                case Return() if frame == _BOTTOM:
                    complete = True
                case Return():
                    following = ((self._frames[frame][0], self._frames[frame][1]),)
                case other:
                    assert_never(other)
            fresh = [place for place in following if place not in seen]
            seen.update(fresh)
            todo += fresh
        if len(reading) > MAX_PLACES or not (reading or complete):
            return DEAD
        return self._intern(frozenset(reading), complete=complete)

    def _intern(self, places: frozenset[Place], *, complete: bool) -> int:
        key = (places, complete)
        state = self._state_ids.get(key)
        if state is None:
            state = self._state_ids[key] = len(self._states)
            self._states.append(key)
            self._kept += len(places)
            if state >= len(self.table):
                self.table = np.concatenate([self.table, np.full_like(self.table, _UNKNOWN)])
        return state

    def _push(self, node: int, below: int) -> int | None:
        """None when it gets too deep."""
        key = (node, below)
        frame = self._frame_ids.get(key)
        if frame is None:
            depth = self._frames[below][2] + 1
            if depth > MAX_FRAMES:
                return None
            frame = self._frame_ids[key] = len(self._frames)
            self._frames.append((node, below, depth))
        return frame

    def _work(self, places: int = 1) -> None:
        self.granted -= places
        if self.granted < 0:
            raise Exhausted
