"""The reader against files that we write here, byte by byte, and against every damage that Hypothesis can think of."""

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnode.errors import ConfigurationError
from meshnode.worker.gguf import MAX_STRING, Facts, read_facts

DEMO = Path(__file__).parents[2] / "meshnode/data/demo.gguf"
Value = str | int | float | list[str]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def encoded(value: Value) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + text(value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))


def model(
    pairs: Mapping[str, Value], *, tensors: int = 1, elements: int = 64, data: int | None = None, version: int = 3
) -> bytes:
    """A GGUF file with F32 tensors of `elements` each, one after the other, and `data` bytes of them (default: all)."""
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, len(pairs))
    head += b"".join(text(key) + encoded(value) for key, value in pairs.items())
    for index in range(tensors):
        head += text(f"t{index}") + struct.pack("<IQIQ", 1, elements, 0, index * elements * 4)
    head += b"\0" * (-len(head) % 32)
    return head + b"\0" * (tensors * elements * 4 if data is None else data)


LLAMA: dict[str, Value] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
    "general.sampling.temp": 0.25,
}


def facts_of(tmp_path: Path, data: bytes) -> Facts:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return read_facts(path)


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ConfigurationError) as caught:
        facts_of(tmp_path, data)
    assert str(tmp_path / "m.gguf") in caught.value.message
    return caught.value.message


def test_the_facts_of_a_file_are_read(tmp_path: Path) -> None:
    data = model(LLAMA)
    facts = facts_of(tmp_path, data)

    assert facts == Facts(
        architecture="llama",
        name="tiny",
        size=len(data),
        context_length=512,
        vocabulary=3,
        chat_template="{{ messages }}",
        kv_bytes_per_token=2 * (2 * 16 * 2) * 2,  # layers x (K and V: two heads of 16) x two bytes
        temperature=0.25,
    )


def test_the_demo_model_is_read() -> None:
    facts = read_facts(DEMO)

    assert facts.architecture == "llama"
    assert "<|im_start|>" in facts.chat_template
    assert facts.vocabulary > 1000


def test_memory_grows_with_the_context(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, model(LLAMA))

    assert facts.memory_needed(2000) - facts.memory_needed(1000) == 1000 * facts.kv_bytes_per_token


def test_a_missing_name_is_the_files(tmp_path: Path) -> None:
    assert facts_of(tmp_path, model({"general.architecture": "llama"})).name == "m"


def test_a_truncated_file_is_told_with_both_sizes(tmp_path: Path) -> None:
    whole = model(LLAMA)

    assert f"is truncated: it has {len(whole) - 1} of at least {len(whole)} bytes" in refusal(tmp_path, whole[:-1])


@pytest.mark.parametrize("length", [24, 60, 200])
def test_a_file_that_ends_in_its_header_is_truncated(tmp_path: Path, length: int) -> None:
    assert "is truncated" in refusal(tmp_path, model(LLAMA)[:length])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too short"),
        (b"PK\x03\x04" + b"\0" * 100, "is not a GGUF file: it starts with b'PK"),
        (model(LLAMA, version=1), "version 1"),
        (model(LLAMA, version=3 << 24), "the other byte order"),
        (model({"general.name": "x"}), "names no architecture"),
        (model(LLAMA | {"split.count": 3}), "split model"),
        (model(LLAMA | {"general.alignment": 7}), "its alignment is 7"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + b"\0" * 64, "claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + b"\0" * 64, "claims 1152921504606846976 keys"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in refusal(tmp_path, data)


def test_a_string_longer_than_the_file_is_not_allocated(tmp_path: Path) -> None:
    assert "is truncated" in refusal(tmp_path, b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"\0" * 64)


def test_a_text_beyond_the_limit_is_skipped(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, model({"tokenizer.chat_template": "x" * (MAX_STRING + 1), **{"general.architecture": "llama"}}))

    assert facts.chat_template == ""


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.gguf", tmp_path):
        with pytest.raises(ConfigurationError, match=str(path)):
            read_facts(path)


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(model(LLAMA))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        if not damaged:
            break
    try:
        facts = facts_of(tmp_path, bytes(damaged))
    except ConfigurationError:
        return
    assert facts.size == len(damaged)
    assert facts.memory_needed(1) > 0
