"""The Runtime on llama.cpp's C interface: the only module that imports llama_cpp, and it lives in the child process.

Traps that shape this file (llama-cpp-python 0.3.36):
- GGML_ASSERT ends the process, for instance on a batch longer than `n_batch`; nothing of it can be caught.
- A NULL pointer comes back as an object; `bool()` of it tells.
- The logits belong to llama.cpp and are overwritten by the next decode.
- The log callback is called from C threads and must stay referenced for ever.
- `llama_supports_gpu_offload` says yes without any GPU, so devices are enumerated.
"""

import ctypes
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import _ggml
from llama_cpp import llama_cpp as c

from meshnode.errors import ConfigurationError, ModelUnavailable, Unsupported
from meshnode.worker import machine, memory
from meshnode.worker.compute import Compute, FlashAttention, KvType
from meshnode.worker.embedding import Vectors
from meshnode.worker.gguf import Facts
from meshnode.worker.runtime import NoRoom, Span
from meshnode.worker.sampling import Logits
from meshnode.worker.threads import ThreadCount

BATCH = 512
"""Rows of one batch, and of one pass over the weights. More helps prefill a little on a GPU and costs memory."""
BYTES_PER_THREAD = 16 * 1024 * 1024
"""Of weights. For less, a second thread has next to nothing to compute and waits for the first at every layer, which is ruinous
on a busy machine: with the demo model the speed is the same alone, and tens of times higher beside other work."""
LOGITS_BYTES = 512 * 1024 * 1024
"""That a pass over texts to embed may fill with logits: 4096 tokens with a vocabulary of 32,000."""
_WARN, _ERROR = 3, 4
_NO_ROOM = 1
"""Of llama_decode: no slot for the batch in the KV cache, and the state is as before."""
_PAD = 256
"""llama.cpp makes a sequence's own part of the cache a multiple of so many tokens."""
_GPU, _INTEGRATED_GPU = 1, 2
_FLASH = {
    FlashAttention.AUTO: c.LLAMA_FLASH_ATTN_TYPE_AUTO,
    FlashAttention.ON: c.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    FlashAttention.OFF: c.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_KV_TYPES = {KvType.F16: c.GGML_TYPE_F16, KvType.Q8_0: c.GGML_TYPE_Q8_0, KvType.Q4_0: c.GGML_TYPE_Q4_0}


class DecodeFailed(Exception):
    """llama.cpp could not run a batch; its state is unknown, so the process must end."""


def gpus() -> int:
    """How many graphics processors ggml would use."""
    lib = _ggml.libggml
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    kinds = [lib.ggml_backend_dev_type(lib.ggml_backend_dev_get(index)) for index in range(lib.ggml_backend_dev_count())]
    return sum(kind in (_GPU, _INTEGRATED_GPU) for kind in kinds)


_CALLBACKS: list[Any] = []
"""Never forgotten: llama.cpp calls the last one also when the runtime that set it is gone, as in tests."""


class _Log:
    """The last complaints of llama.cpp, in place of its hundreds of lines on standard error."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=4)
        self._callback = c.llama_log_callback(self._hear)
        _CALLBACKS.append(self._callback)
        c.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _hear(self, level: int, text: bytes, _data: int) -> None:
        if level in (_WARN, _ERROR) and (line := text.decode("utf-8", "replace").strip()):
            self._lines.append(line)

    def tail(self) -> str:
        return " | ".join(self._lines)


class LlamaRuntime:
    """One loaded model with a KV cache of `slots` times `context_length` tokens, a few more where llama.cpp rounds up."""

    def __init__(
        self,
        path: Path,
        facts: Facts,
        *,
        slots: int,
        context_length: int,
        compute: Compute = Compute(),  # noqa: B008 - frozen
        memory_free: int | None = None,
    ) -> None:
        """Load `path`; raises ConfigurationError with llama.cpp's last words when it refuses.

        `memory_free` are the bytes of main memory that it may take; None: not known.
        """
        self._log = _Log()
        c.llama_backend_init()
        self.slots = slots
        self.unified = unified = compute.unified
        self.pool = slots * context_length
        self.context_length = min(self.pool, max(context_length, facts.context_length)) if unified else context_length
        self.batch_size = BATCH
        self.on_gpu = gpus() > 0 and compute.gpu_layers != 0
        self._compute = compute
        self._check_memory(path, facts, memory_free)
        self._model = self._load(path)
        self._context = self._open_context(path, facts)
        self._memory = c.llama_get_memory(self._context)
        self.generates = bool(self._memory)
        """Whether it writes text: one that reads it from both sides keeps no memory of it, and only makes embeddings."""
        self._copies = unified and not (c.llama_model_is_recurrent(self._model) or c.llama_model_is_hybrid(self._model))
        self._vocab = c.llama_model_get_vocab(self._model)
        self._size: int = c.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self._size
        self._ends = frozenset(token for token in range(self._size) if c.llama_vocab_is_eog(self._vocab, token))
        self._rows = _Rows(BATCH, slots)

    def _check_memory(self, path: Path, facts: Facts, free: int | None) -> None:
        """On a GPU the weights go elsewhere, and llama.cpp itself refuses what does not fit there."""
        needed = memory.need(facts, slots=self.slots, context_length=self.pool // self.slots, kv_type=self._compute.kv_type)
        if free is not None and needed.total > free and not self.on_gpu:
            raise machine.MemoryShort(
                f"{path} does not fit in memory: it needs about {needed}; {machine.human(free)} are free.",
                hint="Free memory, take fewer slots or a shorter context, or a smaller quantisation.",
            )

    def _load(self, path: Path) -> c.llama_model_p:
        params = c.llama_model_default_params()
        layers = self._compute.gpu_layers
        params.n_gpu_layers = 0 if not self.on_gpu else -1 if layers is None else layers
        params.split_mode = c.LLAMA_SPLIT_MODE_LAYER
        params.load_mode = c.LLAMA_LOAD_MODE_AUTO
        params.main_gpu = 0
        params.vocab_only = False
        params.check_tensors = False
        params.use_extra_bufts = True
        model: c.llama_model_p = c.llama_model_load_from_file(bytes(path), params)
        if not model:
            raise ConfigurationError(f"llama.cpp cannot load {path}: {self._log.tail()}")
        if c.llama_model_has_encoder(model) or not c.llama_model_has_decoder(model):
            raise ConfigurationError(
                f"{path} is not a text generation model.", hint="Models with an encoder are not supported yet."
            )
        return model

    def _open_context(self, path: Path, facts: Facts) -> c.llama_context_p:
        self._thread_limit = min(machine.cores(), 1 + facts.size // BYTES_PER_THREAD)
        self._threads = ThreadCount(self._thread_limit)
        params = c.llama_context_default_params()
        params.n_ctx = self.pool if self.unified else self.slots * _padded(self.context_length)
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = self.slots
        params.n_threads = params.n_threads_batch = self._threads.count
        params.rope_scaling_type = c.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED
        params.flash_attn_type = _FLASH[self._compute.flash_attention]
        params.type_k = params.type_v = _KV_TYPES[self._compute.kv_type]
        params.embeddings = False
        params.offload_kqv = params.op_offload = True
        params.no_perf = True
        params.swa_full = True
        params.kv_unified = self.unified
        context: c.llama_context_p = c.llama_init_from_model(self._model, params)
        if not context:
            raise machine.MemoryShort(
                f"llama.cpp cannot make room for {path}: {self._log.tail()}", hint="Take a shorter context, or --kv-type f16."
            )
        return context

    def embedding(self) -> "LlamaEmbedding":
        """A second context on the same weights. Raises Unsupported for a model that ranks, ModelUnavailable without memory."""
        return LlamaEmbedding(self._model, context_length=self.context_length, threads=c.llama_n_threads(self._context))

    def decode(self, spans: Sequence[Span]) -> Sequence[Logits]:
        batch = self._rows.fill(spans)
        code = self._adapting(batch.n_tokens, lambda: c.llama_decode(self._context, batch))
        if code == _NO_ROOM:
            raise NoRoom
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}: {self._log.tail()}")
        wanted = sum(span.last for span in spans)
        if not wanted:
            return ()
        logits: Logits = np.ctypeslib.as_array(c.llama_get_logits(self._context), shape=(wanted, self._size))
        return tuple(logits)

    def cut(self, slot: int, length: int) -> bool:
        return bool(c.llama_memory_seq_rm(self._memory, slot, length, -1))

    def set_threads(self, count: int) -> None:
        """Use at most `count` threads from the next batch on."""
        self._threads.set_limit(min(count, self._thread_limit))
        self._use_threads()

    def _use_threads(self) -> None:
        c.llama_set_n_threads(self._context, self._threads.count, self._threads.count)

    def _adapting(self, rows: int, decode: Callable[[], int]) -> int:
        """Run `decode`, of so many rows, and learn from it how many threads the next one should have."""
        before, wall, cpu = self._threads.count, time.monotonic(), time.process_time()
        code = decode()
        now = time.monotonic()
        self._threads.observe(rows=rows, wall=now - wall, cpu=time.process_time() - cpu, now=now)
        if self._threads.count != before:
            self._use_threads()
        return code

    def threads(self) -> int:
        """How many llama.cpp uses now."""
        return int(c.llama_n_threads(self._context))

    def copy(self, source: int, target: int, length: int) -> bool:
        """In a cache in parts, copying a part of a sequence is an assertion failure. A recurrent state has no beginning."""
        if self._copies:
            c.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return self._copies

    def save(self, slot: int, most: int) -> bytearray | None:
        size: int = c.llama_state_seq_get_size(self._context, slot)
        if not 0 < size <= most:
            return None
        saved = bytearray(size)
        written: int = c.llama_state_seq_get_data(self._context, (ctypes.c_uint8 * size).from_buffer(saved), size, slot)
        return saved if written == size else None

    def restore(self, slot: int, saved: bytearray) -> bool:
        data = (ctypes.c_uint8 * len(saved)).from_buffer(saved)
        if c.llama_state_seq_set_data(self._context, data, len(saved), slot) == len(saved):
            return True
        self.cut(slot, 0)
        return False

    def piece(self, token: int) -> bytes:
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token, 64)
        return piece

    def _read_piece(self, token: int, room: int) -> bytes:
        buffer = ctypes.create_string_buffer(room)
        length: int = c.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
        return buffer.raw[:length] if length >= 0 else self._read_piece(token, -length)

    def ends(self, token: int) -> bool:
        return token in self._ends

    def ending(self) -> frozenset[int]:
        """Every token with which the model can say that it is done."""
        return self._ends

    def vocabulary(self) -> int:
        """How many tokens there are; their ids begin at 0."""
        return self._size

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count: int = c.llama_tokenize(self._vocab, data, len(data), tokens, room, False, parse_special)
        return tokens[: max(count, 0)]

    def first_token(self) -> int | None:
        """The token that every prompt of this model must begin with."""
        return int(c.llama_vocab_bos(self._vocab)) if c.llama_vocab_get_add_bos(self._vocab) else None

    def token_text(self, token: int) -> str:
        """The text that stands for a special token in a template; empty when there is no such token."""
        if not 0 <= token < self._size:
            return ""
        text: bytes = c.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def bos(self) -> str:
        return self.token_text(c.llama_vocab_bos(self._vocab))

    def eos(self) -> str:
        return self.token_text(c.llama_vocab_eos(self._vocab))

    def control_texts(self) -> tuple[str, ...]:
        """The texts that `tokenize(parse_special=True)` turns into control tokens, and `parse_special=False` does not."""
        mask = c.LLAMA_TOKEN_ATTR_CONTROL | c.LLAMA_TOKEN_ATTR_UNKNOWN
        tokens = (token for token in range(self._size) if c.llama_vocab_get_attr(self._vocab, token) & mask)
        return tuple(text for text in map(self.token_text, tokens) if text)


class LlamaEmbedding:
    """Vectors of texts (embedding.EmbeddingRuntime), pooled as the model's file says, and by their mean where it says nothing.

    A text has to lie in one pass whole. The pass computes the logits of all its tokens too, which nobody wants and llama.cpp
    cannot leave out, so its size is bounded by their memory.
    """

    sequences = 64

    def __init__(self, model: c.llama_model_p, *, context_length: int, threads: int) -> None:
        self._model = model
        self._vocab = c.llama_model_get_vocab(model)
        row = 4 * c.llama_vocab_n_tokens(self._vocab)
        self.max_tokens = min(context_length, c.llama_model_n_ctx_train(model), max(BATCH, LOGITS_BYTES // row))
        needed, available = row * self.max_tokens, machine.memory_available()
        if available is not None and needed > available:
            figures = f"they need about {machine.human(needed)}, {machine.human(available)} are free"
            raise ModelUnavailable(f"There is no memory for embeddings here: {figures}.", retry_after=30)
        self._threads = threads
        self._dimensions: int = c.llama_model_n_embd(model)
        self._context = self._open(c.LLAMA_POOLING_TYPE_UNSPECIFIED)
        pooling = c.llama_pooling_type(self._context)
        if pooling == c.LLAMA_POOLING_TYPE_NONE:
            c.llama_free(self._context)
            self._context = self._open(c.LLAMA_POOLING_TYPE_MEAN)
        elif pooling == c.LLAMA_POOLING_TYPE_RANK:
            c.llama_free(self._context)
            raise Unsupported("This model ranks texts, and makes no embeddings.", param="model")
        self._memory = c.llama_get_memory(self._context)
        self._rows = _Rows(self.max_tokens, self.sequences)

    def _open(self, pooling: int) -> c.llama_context_p:
        params = c.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.max_tokens
        params.n_seq_max = self.sequences
        params.n_threads = params.n_threads_batch = self._threads
        params.embeddings = True
        params.pooling_type = pooling
        params.no_perf = True
        params.kv_unified = True
        context: c.llama_context_p = c.llama_init_from_model(self._model, params)
        if not context:
            raise ModelUnavailable("There is no memory left for embeddings here.", retry_after=30)
        return context

    def tokenize(self, text: str) -> list[int]:
        """With the tokens that the model wants around a text, and no control token from within it."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        count: int = c.llama_tokenize(self._vocab, data, len(data), tokens, room, True, False)
        return tokens[: max(count, 0)]

    def embed(self, texts: Sequence[Sequence[int]]) -> Vectors:
        if self._memory:
            c.llama_memory_clear(self._memory, False)
        spans = [Span(slot, 0, text, True) for slot, text in enumerate(texts)]
        code = c.llama_decode(self._context, self._rows.fill(spans, every=True))
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code} for embeddings")
        rows = [c.llama_get_embeddings_seq(self._context, slot) for slot in range(len(texts))]
        return np.array([np.ctypeslib.as_array(row, shape=(self._dimensions,)) for row in rows], np.float32)


class _Rows:
    """A llama_batch over numpy arrays, filled in a few vectorised assignments a step. Never to be given to llama_batch_free."""

    def __init__(self, rows: int, slots: int) -> None:
        self._tokens = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)
        self._counts = np.ones(rows, np.int32)
        self._wanted = np.zeros(rows, np.int8)
        self._pointers = np.zeros(rows, np.uint64)
        self._slot_ids = np.arange(slots, dtype=np.int32)
        self._slot_pointers = self._slot_ids.ctypes.data + 4 * np.arange(slots, dtype=np.uint64)
        self._batch = c.llama_batch()
        self._batch.token = _pointer(self._tokens, ctypes.c_int32)
        self._batch.pos = _pointer(self._positions, ctypes.c_int32)
        self._batch.n_seq_id = _pointer(self._counts, ctypes.c_int32)
        self._batch.seq_id = _pointer(self._pointers, ctypes.POINTER(ctypes.c_int32))
        self._batch.logits = _pointer(self._wanted, ctypes.c_int8)

    def fill(self, spans: Sequence[Span], *, every: bool = False) -> c.llama_batch:
        """`every` token's result is wanted, not the last one's alone."""
        tokens = list(itertools.chain.from_iterable(span.tokens for span in spans))
        count = len(tokens)
        assert 0 < count <= len(self._tokens), "llama.cpp would abort"
        self._tokens[:count] = tokens
        self._wanted[:count] = every
        row = 0
        for span in spans:
            end = row + len(span.tokens)
            self._positions[row:end] = np.arange(span.start, span.start + len(span.tokens))
            self._pointers[row:end] = self._slot_pointers[span.slot]
            self._wanted[end - 1] = span.last or every
            row = end
        self._batch.n_tokens = count
        return self._batch


def _padded(length: int) -> int:
    return -(-length // _PAD) * _PAD


def _pointer(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
