"""Forms of a trained model for programs of other makers; `ggcf_jax.export` is their door."""
