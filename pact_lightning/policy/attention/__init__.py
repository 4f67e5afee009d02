"""Attention over packed rows: ``plan`` first, then ``blockwise`` (CPU), ``flex`` (CUDA), and ``choice`` among them."""
