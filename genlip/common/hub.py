"""The hub: whether it may be asked, by the same rule as huggingface_hub's own, and what it says when it cannot be had."""

import os
from typing import Any


def offline() -> bool:
    """HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is 1, ON, YES or TRUE, as `huggingface_hub.constants` reads it.

    Read at each call, where that module reads it once, at import.
    """
    return (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").upper() in {"1", "ON", "YES", "TRUE"}


def snapshot(repository: str, **options: Any) -> Any:
    """huggingface_hub's snapshot_download. ValueError where the repository cannot be had."""
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(repository, **options)
    except OSError as error:  # the hub's own errors, a network that is not there and a full disk are all of this kind
        check = "Check its name, your access (hf auth login), network, disk"
        raise ValueError(f"{repository} cannot be had from the hub: {error}. {check}") from error
