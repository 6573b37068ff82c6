"""Compiled loops: numba kernels, SIMD steps, float16 conversion and reusable buffers."""
