"""Facts about a GGUF file, read by bounded Python before native code sees the file (security rule 17).

The layout is that of the GGUF specification, versions 2 and 3, little-endian: header, key/value pairs, tensor table, padding,
tensor data. Every count and length is held against what is left of the file before anything is read or allocated, so that a
hostile file costs no more memory than a string of at most `MAX_STRING`. A file that fails is named, with what is wrong with it.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import msgspec

from meshnode.errors import ConfigurationError
from meshnode.worker import split

MAX_STRING = 1024 * 1024
"""Longest text that we keep; real ones are names and chat templates. Longer ones are skipped over, unread."""
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
"""Guesses, about ten times what the largest published models have."""
MAX_ELEMENTS = 16 * 1024 * 1024
"""Elements of an array that is not skipped in one go (of strings); the largest vocabularies have 256 Ki tokens."""
DEFAULT_CONTEXT = 2048
"""Where the file does not say."""
MAX_LAYERS = 1024
"""Longest array of integers that is kept: one for each layer."""
MAX_PARTS = 512
"""Files of a split model. A guess: the largest ones published have some dozens."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_INTEGERS = {0, 1, 2, 3, 4, 5, 10, 11}
_STRING, _ARRAY = 8, 9
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98),
    19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
"""ggml tensor type -> (elements, bytes) of a block. A type that we do not know is checked by its offset alone."""

_Value = int | float | bool | str | tuple[int, ...] | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a GGUF file says of itself."""

    architecture: str
    name: str
    size: int
    """Of the file, or of all parts together, in bytes."""
    parts: int = 1
    """Files that it is split over."""
    context_length: int
    """As trained."""
    vocabulary: int
    chat_template: str
    """Empty when there is none."""
    width: int = 0
    """Of the embedding; 0 when the file does not say, as the next two."""
    hidden: int = 0
    """Widest layer of the feed-forward network."""
    kv_bytes_per_token: int
    """Of the KV cache in 16-bit floats, over all layers."""
    state_bytes_per_slot: int = 0
    """Of what recurrent layers keep in place of a KV cache, over all layers."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    """Its author's defaults for sampling (`general.sampling.*`)."""


class _Bad(Exception):
    """What is wrong, to follow the file's name."""


class _Truncated(_Bad):
    """The file ends inside something that needs it to be at least `needed` bytes long."""

    def __init__(self, needed: int) -> None:
        super().__init__()
        self.needed = needed


class _Reader:
    """A file that knows its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.position = 0

    def reserve(self, count: int) -> None:
        if count > self.size - self.position:
            raise _Truncated(self.position + count)

    def take(self, count: int) -> bytes:
        self.reserve(count)
        data = self.file.read(count)
        if len(data) != count:
            raise _Truncated(self.position + count)
        self.position += count
        return data

    def skip(self, count: int) -> None:
        self.reserve(count)
        self.position += count
        self.file.seek(self.position)

    def scalar(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, limit: int, what: str) -> int:
        value = self.scalar("<Q")
        if value > limit:
            raise _Bad(f"is damaged: it claims {value} {what}.")
        return value

    def text(self) -> str:
        length = self.scalar("<Q")
        if length > MAX_STRING:
            self.skip(length)
            return ""
        return self.take(length).decode("utf-8", "replace")

    def skip_text(self) -> None:
        self.skip(self.scalar("<Q"))


def read_facts(path: Path) -> Facts:
    """The facts of `path`, the first file of a split model. Raises ConfigurationError naming the file and what is wrong with it.

    Blocks: use a thread.
    """
    values, size = _checked(path)
    count = max(1, _integer(values, "split.count", 1))
    if count > 1:
        size += _check_parts(path, _integer(values, "split.no", 0), count)
    architecture = _string(values, "general.architecture")
    if not architecture:
        raise ConfigurationError(f"{path} names no architecture.", hint=_WANTED)
    return Facts(
        architecture=architecture,
        name=_string(values, "general.name") or split.stem(path),
        size=size,
        parts=count,
        context_length=_integer(values, f"{architecture}.context_length", DEFAULT_CONTEXT) or DEFAULT_CONTEXT,
        vocabulary=_integer(values, "tokenizer.ggml.tokens", 0) or _integer(values, f"{architecture}.vocab_size", 0),
        chat_template=_string(values, "tokenizer.chat_template"),
        width=_integer(values, f"{architecture}.embedding_length", 0),
        hidden=max(_integers(values, f"{architecture}.feed_forward_length"), default=0),
        kv_bytes_per_token=_kv_bytes(values, architecture),
        state_bytes_per_slot=_state_bytes(values, architecture),
        temperature=_number(values, "general.sampling.temp"),
        top_p=_number(values, "general.sampling.top_p"),
        top_k=_integer(values, "general.sampling.top_k", -1) if "general.sampling.top_k" in values else None,
    )


_WANTED = "Give the path of a model in GGUF form."


def _checked(path: Path) -> tuple[dict[str, _Value], int]:
    """What one file says, and its size, with every bound checked."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            reader = _Reader(file, size)
            tensors, keys = _header(reader)
            values = _pairs(reader, keys)
            _check_tensors(reader, tensors, _integer(values, "general.alignment", 32))
            return values, size
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.", hint="Give the path of a GGUF file.") from error
    except _Truncated as error:
        raise ConfigurationError(
            f"{path} is truncated: it has {size} of at least {error.needed} bytes.", hint="Download or copy it again."
        ) from error
    except _Bad as error:
        raise ConfigurationError(f"{path} {error}", hint=_WANTED) from error


def _check_parts(path: Path, number: int, count: int) -> int:
    """The size of all parts of a split model but the first, `path`, which says that it is part `number`, from 0, of `count`."""
    if count > MAX_PARTS:
        raise ConfigurationError(f"{path} is damaged: it claims {count} parts.", hint=_WANTED)
    named = split.part_of(path)
    if named is None or (named.number, named.count) != (number + 1, count):
        name = f"NAME-{number + 1:05}-of-{count:05}.gguf"
        raise ConfigurationError(f"{path} is part {number + 1} of a model of {count} parts, and is not called {name}.",
                                 hint="Give all parts the names that they had.")  # fmt: skip
    if number:
        first = path.with_name(f"{named.stem}-00001-of-{count:05}.gguf")
        if not first.exists():
            message = f"{path}: part 1 of {count} is missing: there is no {first.name}."
            raise ConfigurationError(message, hint="Copy it into the same folder.")
        raise ConfigurationError(f"{path} is part {number + 1} of {count} of a model.", hint=f"Give the first: {first}")
    size = 0
    for index, part in enumerate(split.parts(path, count)[1:], start=1):
        if not part.exists():
            raise ConfigurationError(
                f"{path}: part {index + 1} of {count} is missing: there is no {part.name}.", hint="Copy it into the same folder."
            )
        values, more = _checked(part)
        if (_integer(values, "split.no", 0), _integer(values, "split.count", 1)) != (index, count):
            raise ConfigurationError(f"{part} is not part {index + 1} of {count}, as its name says.", hint="Copy it again.")
        size += more
    return size


def _header(reader: _Reader) -> tuple[int, int]:
    if reader.size < 24:
        raise _Bad("is not a GGUF file: it is too short.")
    magic = reader.take(4)
    if magic != b"GGUF":
        raise _Bad(f"is not a GGUF file: it starts with {magic!r}.")
    version = reader.scalar("<I")
    if version not in (2, 3):
        found = f"version {version}" if version < 1 << 16 else "the other byte order"
        raise _Bad(f"is a GGUF file of {found}: we read versions 2 and 3, little-endian.")
    return reader.count(MAX_TENSORS, "tensors"), reader.count(MAX_KEYS, "keys")


def _pairs(reader: _Reader, count: int) -> dict[str, _Value]:
    """Key -> value; of an array only its length, save of a short one of integers, which may be one for each layer."""
    values: dict[str, _Value] = {}
    for _ in range(count):
        key = reader.text()
        values[key] = _value(reader, reader.scalar("<I"))
    return values


def _value(reader: _Reader, kind: int) -> _Value:
    if kind == _STRING:
        return reader.text()
    if kind == _ARRAY:
        return _array(reader)
    if kind in _SCALARS:
        return reader.scalar(_SCALARS[kind])
    raise _Bad(f"is damaged: it has a value of the unknown type {kind}.")


def _array(reader: _Reader) -> int | tuple[int, ...]:
    kind = reader.scalar("<I")
    length = reader.count(reader.size, "elements in an array")
    if kind in _INTEGERS and length <= MAX_LAYERS:
        return tuple(reader.scalar(_SCALARS[kind]) for _ in range(length))
    if kind in _SCALARS:
        reader.skip(length * struct.calcsize(_SCALARS[kind]))
    elif kind == _STRING and length <= MAX_ELEMENTS:
        for _ in range(length):
            reader.skip_text()
    else:
        raise _Bad(f"is damaged: it has an array of {length} elements of type {kind}.")
    return length


def _check_tensors(reader: _Reader, count: int, alignment: int) -> None:
    if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _Bad(f"is damaged: its alignment is {alignment}.")
    end = max((_tensor_end(reader) for _ in range(count)), default=0)
    start = -(-reader.position // alignment) * alignment
    if start + end > reader.size:
        raise _Truncated(start + end)


def _tensor_end(reader: _Reader) -> int:
    """Where the next tensor of the table ends, counted from the start of the tensor data."""
    name = reader.text()
    dimensions = reader.scalar("<I")
    if dimensions > 4:
        raise _Bad(f"is damaged: the tensor {name[:64]!r} has {dimensions} dimensions.")
    elements = 1
    for _ in range(dimensions):
        elements *= reader.scalar("<Q")
    per_block, block_bytes = _BLOCKS.get(reader.scalar("<I"), (1, 0))
    return reader.scalar("<Q") + -(-elements // per_block) * block_bytes


def _kv_bytes(values: dict[str, _Value], architecture: str) -> int:
    """Per token: over the layers, KV heads x (length of a key + of a value) x 2 bytes (llama.cpp, `llama_kv_cache`).

    Layers that differ have an array in place of a number, with 0 for those that have no KV cache. A model that keeps all layers'
    keys in one compressed form (multi-head latent attention) takes less than this.
    """

    def get(key: str, default: int) -> int:
        return _integer(values, f"{architecture}.{key}", default)

    heads = max(_integers(values, f"{architecture}.attention.head_count"), default=0)
    if not heads:
        return 0
    width = get("embedding_length", 0) // heads
    per_head = get("attention.key_length", width) + get("attention.value_length", width)
    kv_heads = _integers(values, f"{architecture}.attention.head_count_kv") or (heads,)
    layers = min(get("block_count", 0), MAX_LAYERS)
    of_all = sum(kv_heads) if len(kv_heads) > 1 else layers * min(kv_heads[0], heads)
    return of_all * per_head * 2


def _state_bytes(values: dict[str, _Value], architecture: str) -> int:
    """Per sequence, in 32-bit floats: of each recurrent layer the convolution's window and the state (llama.cpp,
    `llama_hparams::n_embd_r` and `n_embd_s`, of Mamba and its kin). Counted for all layers, though some may have attention."""

    def get(key: str) -> int:
        return _integer(values, f"{architecture}.ssm.{key}", 0)

    inner, state = get("inner_size"), get("state_size")
    window = max(0, get("conv_kernel") - 1) * (inner + 2 * get("group_count") * state)
    return min(_integer(values, f"{architecture}.block_count", 0), MAX_LAYERS) * (window + inner * state) * 4


def _integers(values: dict[str, _Value], key: str) -> tuple[int, ...]:
    """One for each layer, or one for all; empty when the file does not say."""
    value = values.get(key)
    if isinstance(value, tuple):
        return tuple(max(0, each) for each in value)
    return (value,) if isinstance(value, int) and value >= 0 else ()


def _string(values: dict[str, _Value], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _integer(values: dict[str, _Value], key: str, default: int) -> int:
    value = values.get(key)
    return value if isinstance(value, int) and value >= 0 else default


def _number(values: dict[str, _Value], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value < 1000 else None
