"""The losses without the (P, k, d) tensor: `fused` says what, native and triton_kernels how."""
