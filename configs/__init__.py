"""Recipes: `get_config()` starts from `ggcf_jax.config.default()` and sets what differs."""
