"""What every kernel must compute, in numpy and float64: one function per op, and a transformer of them."""

from reference.ops import attention, gate, layer_norm, matmul, rms_norm, rope, widen

__all__ = ["attention", "gate", "layer_norm", "matmul", "rms_norm", "rope", "widen"]
