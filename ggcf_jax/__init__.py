"""Graph Guided Context Fusion for semantic segmentation in JAX."""
