"""Chips whose peak is known, for model FLOP utilisation."""

import re

# Pattern of `jax.Device.device_kind` -> dense bfloat16 FLOP/s of one JAX device; the first that
# is found holds. Sources:
# - TPUs: "Peak compute per chip (bf16)" at cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}.
#   A device of v2, v3 and TPU7x is one of the chip's two TensorCores, of the others the chip. Names
#   as in jax/_src/pallas/mosaic/tpu_info.py.
# - GPUs: NVIDIA's data sheets, whose figures "with sparsity" are twice these: H100, H200, A100, L4,
#   L40S, A10, HGX B200 (4.5 PFLOPS with sparsity), GB200 NVL72 (5 PFLOPS). Names as in NVIDIA's
#   drivers. Boards of other power limits have other clocks: those that the name does not tell apart
#   are taken for SXM. The two NVL boards of Hopper are not checked against their data sheets.
_PEAKS = {
    r'^TPU v2$': 45e12 / 2,
    r'^TPU v3$': 123e12 / 2,
    r'^TPU v4$': 275e12,
    r'^TPU v5 lite$|^TPU v5e$': 197e12,
    r'^TPU v5p?$': 459e12,
    r'^TPU v6 lite$|^TPU v6e$': 918e12,
    r'^TPU7x$': 2307e12 / 2,
    r'\bGB200\b': 2500e12,
    r'\bB200\b': 2250e12,
    r'H200 NVL': 835e12,
    r'\bG?H200\b': 989e12,
    r'H100 NVL': 835e12,
    r'H100 PCIe': 756e12,
    r'\bH100\b': 989e12,
    r'A100\b': 312e12,
    r'\bL40S\b': 362e12,
    r'NVIDIA L4$': 121e12,
    r'\bA10G?$': 125e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 FLOP/s that a device can do; None where they are not known.

    Args:
        device_kind: `jax.Device.device_kind`, such as 'NVIDIA H100 80GB HBM3'.
    """
    return next((peak for name, peak in _PEAKS.items() if re.search(name, device_kind)), None)
