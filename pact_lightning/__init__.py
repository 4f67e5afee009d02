"""Privileged Trace Co-Training (PACT, arXiv 2606.16215) of multi-turn tool-use agents with Lightning."""

__version__ = "0.1.0"
