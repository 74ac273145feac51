"""The reader against files that we write here, byte by byte, and against every damage that Hypothesis can think of."""

import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshnode.errors import ConfigurationError
from meshnode.worker import split
from meshnode.worker.gguf import MAX_STRING, Facts, read_facts

DEMO = Path(__file__).parents[2] / "meshnode/data/demo.gguf"
Value = str | int | float | list[str] | list[int]


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
        case [int(), *_]:
            return struct.pack("<IIQ", 9, 5, len(value)) + b"".join(struct.pack("<i", each) for each in value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(str(each)) for each in value)


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
    "llama.feed_forward_length": 128,
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
        width=64,
        hidden=128,
        kv_bytes_per_token=2 * (2 * 16 * 2) * 2,  # layers x (K and V: two heads of 16) x two bytes
        temperature=0.25,
    )


def test_the_demo_model_is_read() -> None:
    facts = read_facts(DEMO)

    assert facts.architecture == "llama"
    assert "<|im_start|>" in facts.chat_template
    assert facts.vocabulary > 1000


def test_layers_that_differ_are_each_counted(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, model(LLAMA | {"llama.attention.head_count_kv": [2, 0], "llama.feed_forward_length": [64, 256]}))

    assert facts.kv_bytes_per_token == 2 * (16 + 16) * 2
    assert facts.hidden == 256


def test_recurrent_layers_keep_a_state_for_each_slot(tmp_path: Path) -> None:
    mamba: dict[str, Value] = {
        "general.architecture": "mamba",
        "mamba.block_count": 3,
        "mamba.ssm.inner_size": 128,
        "mamba.ssm.state_size": 16,
        "mamba.ssm.conv_kernel": 4,
    }
    facts = facts_of(tmp_path, model(mamba))

    assert facts.kv_bytes_per_token == 0
    assert facts.state_bytes_per_slot == 3 * (3 * 128 + 128 * 16) * 4


def write_parts(folder: Path, count: int = 3) -> list[Path]:
    """A model split over `count` files, of which only the first has the facts."""
    paths = [folder / f"m-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        path.write_bytes(model((LLAMA if number == 0 else {}) | {"split.no": number, "split.count": count}))
    return paths


def test_the_parts_of_a_split_model_are_one(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    facts = read_facts(paths[0])

    assert facts.parts == 3
    assert facts.size == sum(path.stat().st_size for path in paths)
    assert split.parts(paths[0], facts.parts) == tuple(paths)


def test_an_incomplete_split_model_names_what_is_missing(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[1].unlink()

    with pytest.raises(ConfigurationError, match=r"part 2 of 3 is missing: there is no m-00002-of-00003\.gguf"):
        read_facts(paths[0])


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match=r"m-00003-of-00003\.gguf is truncated"):
        read_facts(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(ConfigurationError, match=r"m-00003-of-00003\.gguf is not part 3 of 3, as its name says"):
        read_facts(paths[0])


def test_a_later_part_points_to_the_first(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)

    with pytest.raises(ConfigurationError, match="is part 2 of 3 of a model") as caught:
        read_facts(paths[1])
    assert str(paths[0]) in caught.value.hint
    paths[0].unlink()
    with pytest.raises(ConfigurationError, match=r"part 1 of 3 is missing: there is no m-00001-of-00003\.gguf"):
        read_facts(paths[1])


def test_a_name_like_a_parts_is_only_a_name(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00003.gguf"
    path.write_bytes(model(LLAMA))

    assert read_facts(path).parts == 1


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
        (model(LLAMA | {"split.count": 3}), "is part 1 of a model of 3 parts, and is not called NAME-00001-of-00003.gguf"),
        (model(LLAMA | {"split.count": 70_000}), "claims 70000 parts"),
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
    assert facts.kv_bytes_per_token >= 0
