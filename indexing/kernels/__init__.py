"""Numba kernels: SIMD operations, float16 conversion, decoding of token vectors and fixed dimensional encodings."""
