"""What a GPU can do by its maker's data sheet: what MFU is a share of."""

import re

# Dense FLOP/s in bf16 with fp32 accumulation. Of two names that both stand in a device's own name the longer one counts.
PEAK_BF16 = {
    "A100": 312e12,
    "H100": 989e12,  # SXM
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
}


def peak_bf16(device: str) -> float | None:
    """FLOP/s of a device by the name that torch gives it, such as `NVIDIA H100 80GB HBM3`; None for one that is not in the table."""
    if re.search(r"\bMIG\b|Laptop|4090 D\b", device):  # a part of one, or another chip under its name
        return None
    named = max((name for name in PEAK_BF16 if re.search(rf"\b{name}\b", device)), key=len, default=None)
    return None if named is None else PEAK_BF16[named]


def mfu(flops: float, device: str) -> str:
    """FLOP/s as a share of the device's peak, in words: `17.9 %`, or that the device is not in the table."""
    peak = peak_bf16(device)
    return f"{flops / peak:.1%}".replace("%", " %") if peak else f"not known: {device} is not in genlip/common/hardware.py"
