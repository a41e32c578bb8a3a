"""Where torchvision is on the path (see test_peers.py) beside a torch that it was not built for, its operators are absent and its
import fails at the names of two of them; nothing here calls them. This comes before transformers is imported, which imports it."""

import importlib.util

if importlib.util.find_spec("torchvision") is not None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor x) -> Tensor")
