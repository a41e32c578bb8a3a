"""A GPU's peak is found by the name that torch gives it; a part of one, or another chip under a like name, has none."""

import pytest

from genlip.common.hardware import PEAK_BF16, peak_bf16


@pytest.mark.parametrize(
    ("device", "named"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_device_in_the_table(device, named):
    assert peak_bf16(device) == PEAK_BF16[named]


@pytest.mark.parametrize(
    "device",
    ["NVIDIA RTX A1000", "NVIDIA A10", "NVIDIA L40", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA GeForce RTX 4090 D", "NVIDIA H20", ""],
)  # fmt: skip
def test_a_device_that_is_none_of_them(device):
    assert peak_bf16(device) is None
