"""A web page to try a trained model on images of one's own."""

import ipaddress
import pathlib

from absl.flags import FlagValues
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax.distributed.preemption import stop_requests
from ggcf_jax.errors import InputError
from ggcf_jax.serving import viewer
from ggcf_jax.serving.answers import Answers
from ggcf_jax.serving.server import Server
from ggcf_jax.workdir.checkpoints import Which

_LAST_SECONDS = 60  # that a request may take to end when the server is told to stop


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=serve`: reads `--host`, `--port` and `--checkpoint`."""
    serve_workdir(config, workdir, flags.checkpoint, flags.host, flags.port)
    return 0


def serve_workdir(
    config: ConfigDict, workdir: str | pathlib.Path, checkpoint: Which, host: str, port: int
) -> None:
    """Serves a checkpoint of a run until Ctrl-C or SIGTERM.

    Args:
        config: configuration of the run; `eval` says how images are predicted.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.
        host: name or address to listen on; the loopback interface is for this machine alone.
        port: port to listen on; 0 picks a free one.

    Raises:
        InputError: no such run or checkpoint, or a host and port that cannot be listened on.
    """
    config_lib.check(config, devices=None)
    model = viewer.load(config, workdir, checkpoint)
    try:
        server = Server(Answers(model), host, port)
    except (OSError, OverflowError) as error:
        raise InputError(f'--host={host} --port={port} cannot be listened on: {error}') from error
    server.timeout = 0.5  # seconds between two looks for signals
    with server, stop_requests() as stop_requested:
        print(f'checkpoint of step {model.step}: http://{host}:{server.server_port}', flush=True)
        if not _is_loopback(host):
            print(f'warning: everyone who can reach {host} can use this server')
        while not stop_requested():
            server.handle_request()
        server.finish(_LAST_SECONDS)
        print(f'stopped by {stop_requested()}')


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'
