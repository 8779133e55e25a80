"""Figures of the paper, drawn for trained models."""
