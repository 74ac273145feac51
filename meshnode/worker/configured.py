"""The models of a node as its settings name them."""

import math
from importlib.resources import files
from pathlib import Path

from meshnode.config import Settings
from meshnode.worker.compute import Compute, FlashAttention, KvType
from meshnode.worker.models import Models


def models_of(settings: Settings, *, cache_dir: Path) -> Models:
    """Those that the settings name; the demo model when they name none, so that the first run answers."""
    given = settings.model
    if not given and not settings.models_dir:
        given = (("demo", Path(str(files("meshnode") / "data" / "demo.gguf"))),)
    return Models(
        given if settings.worker else (),
        settings.models_dir if settings.worker else (),
        cache_dir=cache_dir,
        slots=settings.slots,
        context_length=settings.context_length,
        compute=Compute(
            unified=settings.kv_unified,
            gpu_layers=settings.gpu_layers,
            kv_type=KvType(settings.kv_type),
            flash_attention=FlashAttention(settings.flash_attention),
        ),
        keep_alive=settings.keep_alive or math.inf,
    )
