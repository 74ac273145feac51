"""How llama.cpp shall compute with a model: on what, and in which precision it keeps what it has read (pure)."""

from enum import StrEnum

import msgspec


class KvType(StrEnum):
    """What a number of the KV cache is kept in. Blocks of 32 numbers in 8 or 4 bits share a factor of 16 bits (ggml)."""

    F16 = "f16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    @property
    def bits(self) -> float:
        """Of each number."""
        match self:
            case KvType.F16:
                return 16.0
            case KvType.Q8_0:
                return 8.5
            case KvType.Q4_0:
                return 4.5


class FlashAttention(StrEnum):
    """Whether attention is computed without its whole matrix; `AUTO`: where llama.cpp knows how for this model and device."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Compute(msgspec.Struct, frozen=True, kw_only=True):
    """`unified`: one KV cache for all slots, else each has its own part. `gpu_layers` of the model are computed on a graphics
    processor, if there is one; None: all."""

    unified: bool = True
    gpu_layers: int | None = None
    kv_type: KvType = KvType.F16
    flash_attention: FlashAttention = FlashAttention.AUTO
