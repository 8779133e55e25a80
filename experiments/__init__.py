"""Experiments with trained models and compiled programs; experiments/README.md lists them."""
