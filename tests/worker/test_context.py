from meshnode.worker.context import of_request, of_slot, warning
from meshnode.worker.gguf import Facts

FACTS = Facts(
    architecture="llama", name="m", size=1, context_length=8192, vocabulary=1, chat_template="", kv_bytes_per_token=1
)  # fmt: skip


def test_a_slot_has_what_was_wanted_up_to_what_the_model_was_trained_for() -> None:
    assert [of_slot(FACTS, wanted) for wanted in (None, 512, 100_000)] == [4096, 512, 8192]


def test_a_request_may_have_all_of_a_shared_cache_and_only_its_part_of_another() -> None:
    assert [of_request(FACTS, wanted, slots=4, unified=True) for wanted in (None, 512, 100_000)] == [8192, 2048, 8192]
    assert [of_request(FACTS, wanted, slots=4, unified=False) for wanted in (None, 512, 100_000)] == [4096, 512, 8192]


def test_who_wants_more_than_the_model_was_trained_for_is_told() -> None:
    assert warning(FACTS, None) == warning(FACTS, 8192) == ""
    assert warning(FACTS, 9000) == "It was trained for a context of 8192 tokens and gets that, not 9000."
