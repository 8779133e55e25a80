"""Benchmarks of the attention engine and of the input pipeline against their peers."""
