"""Whether the hub may be asked: the same rule as huggingface_hub's own."""

import os


def offline() -> bool:
    """HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is 1, ON, YES or TRUE, as `huggingface_hub.constants` reads it.

    Read at each call, where that module reads it once, at import.
    """
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in {"1", "ON", "YES", "TRUE"}
