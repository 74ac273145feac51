"""The estimate's form by plain calls; what real processes take is in test_models.py."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from meshnode.worker.gguf import Facts
from meshnode.worker.memory import Held, free, need

QWEN = Facts(
    architecture="qwen2", name="q", size=4_700_000_000, context_length=32768, vocabulary=152_064, chat_template="",
    width=3584, hidden=18_944, kv_bytes_per_token=28 * 4 * 256 * 2,
)  # fmt: skip


def test_the_parts_are_told_with_their_sum() -> None:
    asked = need(QWEN, slots=4, context_length=8192)

    assert str(asked) == "7.1 GB: 4.7 GB weights, 1.9 GB KV cache, 406 MB buffers, 152 MB for the program"
    assert asked.total == sum(asked)


def test_the_buffers_hold_the_logits_of_a_batch() -> None:
    """llama.cpp reports 304.75 MiB for Qwen 2.5 7B with a context of 4096."""
    assert 0.77 < 304.75 * 2**20 / need(QWEN, slots=1, context_length=4096).buffers <= 1


def test_recurrent_layers_cost_by_slot_and_not_by_token() -> None:
    mamba = msgspec.structs.replace(QWEN, kv_bytes_per_token=0, state_bytes_per_slot=1000)

    assert need(mamba, slots=4, context_length=9999).kv_cache == 4000


@given(st.integers(1, 64), st.integers(256, 100_000))
def test_more_slots_and_longer_contexts_never_take_less(slots: int, context: int) -> None:
    asked = need(QWEN, slots=slots, context_length=context)

    assert need(QWEN, slots=slots + 1, context_length=context).total > asked.total
    assert need(QWEN, slots=slots, context_length=context + 1).total > asked.total


def test_what_loaded_models_still_need_is_not_free() -> None:
    assert free(1000, [Held(need=400, resident=100), Held(need=50, resident=80)]) == 700
