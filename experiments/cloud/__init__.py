"""Runs in a bucket of this machine, disturbed in every way, beside undisturbed ones on its disk."""
