"""Triton kernels: GPU code for what tensor cores do best. Imported only when a tensor on a GPU needs one of them."""
