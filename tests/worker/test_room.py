from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import ModelUnavailable
from meshnode.worker import machine, room
from meshnode.worker.memory import Held, Need
from meshnode.worker.room import Occupant, Plan, Room, plan, shares

BUSY, IDLE = True, False


def occupant(size: int, busy: bool = IDLE, *, resident: bool = False, leaving: bool = False, last_used: float = 0) -> Occupant:
    return Occupant(size, busy, resident, leaving, last_used)


def test_what_fits_is_loaded_at_once() -> None:
    assert plan(5, 7, [occupant(9)]) == Plan((), False, 7)


def test_the_longest_unused_go_first_and_no_more_than_needed() -> None:
    occupants = [occupant(3, last_used=2), occupant(3, last_used=1), occupant(3, last_used=3)]

    assert plan(10, 5, occupants) == Plan((1, 0), True, 5)
    assert plan(8, 5, occupants) == Plan((1,), True, 5)


def test_nobody_is_unloaded_where_that_is_not_enough() -> None:
    assert plan(10, 5, [occupant(3), occupant(4, BUSY)]) == Plan((), True, 5)


def test_those_given_by_name_stay_and_what_cannot_fit_is_not_waited_for() -> None:
    assert plan(10, 5, [occupant(3), occupant(9, resident=True)]) == Plan((), False, 8)


def test_what_leaves_already_is_waited_for_and_not_counted_twice() -> None:
    assert plan(10, 5, [occupant(5, leaving=True), occupant(5)]) == Plan((), True, 5)


@given(st.integers(0, 100), st.integers(0, 100), st.lists(st.builds(Occupant, st.integers(1, 50), st.booleans(), st.booleans(),
       st.booleans(), st.floats(0, 9))))  # fmt: skip
def test_nothing_at_work_is_ever_unloaded_and_nothing_in_vain(needed: int, free: int, occupants: list[Occupant]) -> None:
    todo = plan(needed, free, occupants)
    chosen = [occupants[index] for index in todo.unload]
    leaving = sum(each.bytes for each in occupants if each.leaving)

    assert not any(each.busy or each.resident or each.leaving for each in chosen)
    assert not chosen or free + leaving + sum(each.bytes for each in chosen) >= needed
    assert not chosen or free + leaving + sum(each.bytes for each in chosen[:-1]) < needed


@given(st.integers(1, 128), st.integers(1, 40))
def test_the_cores_are_shared_without_rest(cores: int, busy: int) -> None:
    each = shares(cores, busy)

    assert sum(each) == max(cores, busy)
    assert max(each) - min(each) <= 1


@dataclass(eq=False)
class Fake:
    """A tenant whose process ends at once when it is unloaded."""

    name: str
    size: int = 60
    resident: bool = False
    busy: bool = False
    last_used: float = 0.0
    threads: int = 0
    loaded: bool = False
    hall: Room | None = None
    on_gpu: bool = False
    history: list[str] = field(default_factory=list)

    @property
    def held(self) -> Held | None:
        return Held(self.size, self.size) if self.loaded else None

    def unload(self) -> bool:
        assert not self.busy
        self.loaded = False
        self.history.append("unloaded")
        assert self.hall is not None
        trio.lowlevel.current_trio_token().run_sync_soon(self.hall.left, self)
        return True

    def set_threads(self, count: int) -> None:
        self.threads = count


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Room, Fake, Fake]:
    """Two models of which only one fits, on four cores."""
    monkeypatch.setattr(machine, "cores", lambda: 4)
    one, two = Fake("one"), Fake("two")
    hall = one.hall = two.hall = Room(lambda: [one, two])
    monkeypatch.setattr(machine, "memory_available", lambda: 100 - sum(each.size for each in (one, two) if each.loaded))
    return hall, one, two


async def load(hall: Room, tenant: Fake) -> None:
    await hall.wait_turn(tenant, Need(tenant.size, 0, 0, 0))
    tenant.loaded = True
    hall.end_turn(tenant)


async def test_an_idle_model_makes_room(pair: tuple[Room, Fake, Fake]) -> None:
    hall, one, two = pair
    await load(hall, one)
    with trio.fail_after(1):
        await load(hall, two)

    assert (one.history, two.loaded) == (["unloaded"], True)


async def test_a_busy_one_is_waited_for_and_makes_room_when_it_ends(pair: tuple[Room, Fake, Fake]) -> None:
    hall, one, two = pair
    await load(hall, one)
    one.busy = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, hall, two)
        await trio.testing.wait_all_tasks_blocked()
        assert (one.loaded, two.loaded) == (True, False)
        one.busy = False
        hall.change()

    assert (one.loaded, two.loaded) == (False, True)


async def test_who_waited_too_long_is_told_what_for(
    pair: tuple[Room, Fake, Fake], autojump_clock: trio.testing.MockClock
) -> None:
    hall, one, two = pair
    await load(hall, one)
    one.busy = True
    with pytest.raises(ModelUnavailable, match=r"two needs 60 B: .*no room beside .* \(one\)") as caught:
        await load(hall, two)

    assert caught.value.retry_after == room.WAIT_S / 2
    assert one.loaded


async def test_two_are_not_loaded_at_the_same_time(pair: tuple[Room, Fake, Fake]) -> None:
    hall, one, two = pair
    one.size = two.size = 10
    await hall.wait_turn(one, Need(10, 0, 0, 0))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load, hall, two)
        await trio.testing.wait_all_tasks_blocked()
        assert not two.loaded
        hall.end_turn(one)

    assert two.loaded


async def test_the_cores_belong_to_those_at_work(pair: tuple[Room, Fake, Fake]) -> None:
    hall, one, two = pair
    one.busy = True
    hall.change()
    alone = one.threads
    two.busy = True
    hall.change()

    assert (alone, one.threads, two.threads) == (4, 2, 2)


async def test_on_a_graphics_processor_the_longest_unused_goes_once_a_child_was_refused(pair: tuple[Room, Fake, Fake]) -> None:
    hall, one, two = pair
    before = hall.unload_on_gpu()
    one.on_gpu = two.on_gpu = True
    one.last_used, two.last_used, two.busy = 2, 1, True
    first = hall.unload_on_gpu()
    with trio.fail_after(1):
        await hall.wait_turn(two, Need(1, 0, 0, 0))
    one.resident = True

    assert (before, first, hall.unload_on_gpu()) == (False, True, False)
    assert (one.history, two.history) == (["unloaded"], [])


async def test_a_system_that_does_not_tell_its_memory_loads_what_is_asked_for(
    pair: tuple[Room, Fake, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    hall, one, _ = pair
    monkeypatch.setattr(machine, "memory_available", lambda: None)

    assert await hall.wait_turn(one, Need(10**12, 0, 0, 0)) is None
