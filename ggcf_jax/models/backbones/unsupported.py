"""Refusal of fields of `config.model.backbone` that a backbone does not have."""

from typing import Any

from ml_collections import ConfigDict

from ggcf_jax.errors import InputError

# Values with which a field asks for nothing.
NOTHING: dict[str, Any] = {
    'multi_grid': (),
    'first_dilation': 'full',
    'drop_path': 0.0,
}


def check_stride(backbone: ConfigDict, stride: int) -> None:
    """Refuses an output stride that a backbone does not have.

    Args:
        backbone: `config.model.backbone`.
        stride: the only one that it has.

    Raises:
        InputError: another one.
    """
    if backbone.stride != stride:
        raise InputError(
            f'config.model.backbone.stride={backbone.stride} is not supported by {backbone.name}; '
            f'use {stride}'
        )


def check(backbone: ConfigDict, *fields: str, activation: str | None = None) -> None:
    """Refuses fields that ask for something.

    Args:
        backbone: `config.model.backbone`.
        fields: names of the fields that the backbone does not have, keys of `NOTHING`.
        activation: the only activation that the backbone has, if there is one.

    Raises:
        InputError: a field asks for something; the message has the value that does not.
    """
    wanted = {field: NOTHING[field] for field in fields}
    asked = {field: backbone[field] for field in fields}
    if activation is not None and backbone.activation is not None:
        wanted['activation'], asked['activation'] = activation, backbone.activation
    for field, value in asked.items():
        value = tuple(value) if isinstance(value, list) else value
        if value != wanted[field]:
            raise InputError(
                f'config.model.backbone.{field}={value!r} is not supported by {backbone.name}; use '
                f'{wanted[field]!r}'
            )
