import random

from hypothesis import given
from hypothesis import strategies as st

from meshnode.inference import Message, Request
from meshnode.names import ModelDigest, NodeId
from meshnode.routing.prefix import BLOCK, MAX_BLOCKS, MAX_MARKS, Sketch, canonical, chain
from meshnode.routing.prefixes import MAX_HOLDERS, Prefixes
from meshnode.wire import messages
from meshnode.wire.codec import decode, encode

DIGEST = ModelDigest(b"d" * 32)
HOLDER = (NodeId(b"n" * 16), "m")
SALT = random.Random(1).randbytes(16)
texts = st.binary(max_size=4 * BLOCK)
hashes = st.integers(0, 2**64 - 1)


def conversation(*turns: tuple[str, str], tools: str | None = None) -> Request:
    return Request(id="r", model="m", messages=tuple(Message(role=role, content=content) for role, content in turns), tools=tools)


def chain_of(*turns: tuple[str, str], tools: str | None = None, digest: ModelDigest = DIGEST) -> tuple[int, ...]:
    return chain(digest, canonical(conversation(*turns, tools=tools)))


@given(common=texts, one=texts, other=texts)
def test_two_texts_share_as_many_hashes_as_whole_blocks(common: bytes, one: bytes, other: bytes) -> None:
    first, second = common + one, common + other
    alike = next(
        (place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), min(len(first), len(second))
    )
    chains = chain(DIGEST, [first]), chain(DIGEST, [second])

    shared = sum(1 for pair in zip(*chains, strict=False) if pair[0] == pair[1])
    assert shared == alike // BLOCK
    assert len(chains[0]) == len(first) // BLOCK


@given(parts=st.lists(texts, max_size=5))
def test_it_does_not_matter_how_a_text_is_cut(parts: list[bytes]) -> None:
    assert chain(DIGEST, parts) == chain(DIGEST, [b"".join(parts)])


def test_a_conversation_begins_as_it_did_a_turn_before() -> None:
    before = (("system", "Be brief. " * 60), ("user", "What is a mesh? " * 30))
    after = (*before, ("assistant", "Nodes and links."), ("user", "And then? " * 60))

    assert len(chain_of(*before)) >= 4
    assert chain_of(*after)[: len(chain_of(*before))] == chain_of(*before)
    assert len(chain_of(*after)) > len(chain_of(*before))


def test_other_weights_other_tools_and_another_speaker_are_other_chains() -> None:
    plain = chain_of(("user", "x" * 600))

    assert not set(plain) & set(chain_of(("user", "x" * 600), digest=ModelDigest(b"e" * 32)))
    assert not set(plain) & set(chain_of(("user", "x" * 600), tools="[]"))
    assert not set(plain) & set(chain_of(("system", "x" * 600)))


def test_a_chain_ends_somewhere_however_long_the_text_and_bears_half_a_surrogate_pair() -> None:
    assert len(chain_of(("user", "x" * BLOCK * (MAX_BLOCKS + 9)))) == MAX_BLOCKS
    assert chain_of(("user", "\ud800" * 200))


@given(cached=st.lists(hashes, min_size=1, max_size=60, unique=True), more=st.lists(hashes, max_size=30), kept=st.integers(0, 60))
def test_a_sketch_knows_how_far_a_chain_is_cached(cached: list[int], more: list[int], kept: int) -> None:
    held = tuple(cached[:kept])
    sketch = Sketch.of([held], SALT)
    asked = (*held, *(each for each in more if not {each >> 32, each} & sketch.marks))

    found = sketch.blocks(asked)
    assert found >= len(held)  # a mark may be met by chance, which costs one wrong estimate
    assert sketch.blocks(held) == len(held)


def test_unknown_hashes_are_hardly_ever_taken_for_known_ones() -> None:
    rng = random.Random(2)
    sketch = Sketch.of([tuple(rng.getrandbits(64) for _ in range(MAX_MARKS))], SALT)

    assert sum(sketch.blocks((rng.getrandbits(64),)) for _ in range(50_000)) <= 1


def test_two_nodes_with_equal_caches_tell_different_marks() -> None:
    rng = random.Random(3)
    cached = tuple(rng.getrandbits(64) for _ in range(200))
    one, other = Sketch.of([cached], rng.randbytes(16)), Sketch.of([cached], rng.randbytes(16))

    assert not one.marks & other.marks
    assert not one.marks & {hashed >> 32 for hashed in cached}
    assert one.blocks(cached) == other.blocks(cached) == 200


@given(chains=st.lists(st.lists(hashes, max_size=20).map(tuple), max_size=20), salt=st.binary(min_size=16, max_size=16))
def test_a_sketch_survives_its_way(chains: list[tuple[int, ...]], salt: bytes) -> None:
    sketch = Sketch.of(chains, salt)
    (frame,) = decode(encode(sketch.frame("m", DIGEST)))
    assert isinstance(frame, messages.Sketch)
    read = Sketch.read(frame)

    assert (read.salt, read.marks) == (salt, sketch.marks)
    assert all(read.blocks(each) == len(each) for each in chains)


def test_the_largest_sketch_fits_a_frame() -> None:
    rng = random.Random(4)
    full = Sketch.of([tuple(rng.getrandbits(64) for _ in range(5000))], SALT)

    assert len(full.marks) == MAX_MARKS
    assert decode(encode(full.frame("m", DIGEST))) == [full.frame("m", DIGEST)]


def test_what_we_sent_is_believed_to_be_cached_until_the_node_tells_better() -> None:
    known = Prefixes()
    known.place(HOLDER, (1, 2, 3), now=10.0)
    believed = known.blocks(HOLDER, (1, 2, 3, 4))
    known.tell(HOLDER, Sketch.of([(1,)], SALT), now=11.0)
    told = known.blocks(HOLDER, (1, 2, 3, 4))
    known.place(HOLDER, (1, 2), now=12.0)

    assert (believed, told, known.blocks(HOLDER, (1, 2, 3, 4))) == (3, 1, 2)
    assert known.blocks(HOLDER, (9, 2)) == 0
    assert known.blocks((NodeId(b"o" * 16), "m"), (1, 2)) == 0


def test_a_cache_that_was_lost_is_forgotten() -> None:
    known = Prefixes()
    known.place(HOLDER, (1, 2), now=10.0)
    known.tell(HOLDER, Sketch.of([(1, 2)], SALT), now=10.0)
    known.forget(HOLDER)

    assert known.blocks(HOLDER, (1, 2)) == 0


def test_the_memory_of_what_was_sent_has_an_end_and_keeps_beginnings_longest() -> None:
    known, rng = Prefixes(), random.Random(5)
    chains = [tuple(rng.getrandbits(64) for _ in range(MAX_BLOCKS)) for _ in range(17)]
    for number, each in enumerate(chains):
        known.place(HOLDER, each, now=float(number))
    for number in range(MAX_HOLDERS):
        known.place((NodeId(number.to_bytes(16, "big")), "m"), (7,), now=99.0)

    assert known.blocks(HOLDER, chains[-1]) == 0  # the holder that was used longest ago is gone

    known = Prefixes()
    for number, each in enumerate(chains):
        known.place(HOLDER, each, now=float(number))
    assert [known.blocks(HOLDER, each) for each in (chains[0], chains[1], chains[-1])] == [0, MAX_BLOCKS, MAX_BLOCKS]


def test_a_sketch_that_came_in_a_frame_is_read_once_and_counts_from_when_it_came() -> None:
    known = Prefixes()
    frame = Sketch.of([(1 << 40, 2 << 40)], SALT).frame("m", DIGEST)
    known.place(HOLDER, (1 << 40, 2 << 40, 3 << 40), now=9.0)
    known.hear(HOLDER, frame, 10.0)
    told = known.blocks(HOLDER, (1 << 40, 2 << 40, 3 << 40))
    known.place(HOLDER, (1 << 40, 2 << 40, 3 << 40), now=11.0)
    known.hear(HOLDER, frame, 10.0)

    assert told == 2
    assert known.blocks(HOLDER, (1 << 40, 2 << 40, 3 << 40)) == 3
