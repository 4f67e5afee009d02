"""Sampling by vLLM: by a server (``server``, ``client``) or an engine in the same process (``engine``)."""
