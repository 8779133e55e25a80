"""A web page to try a trained model on images of one's own."""

import pathlib
import socket
import threading
from collections.abc import Sequence

from absl.flags import FlagValues
from ml_collections import ConfigDict

from ggcf_jax import config as config_lib
from ggcf_jax.distributed.preemption import stop_requests
from ggcf_jax.errors import InputError
from ggcf_jax.export import Size, parse_sizes
from ggcf_jax.serving import viewer
from ggcf_jax.serving.answers import Answers
from ggcf_jax.serving.server import Server, is_loopback
from ggcf_jax.workdir.checkpoints import Which

_LAST_SECONDS = 60  # that a request may take to end when the server is told to stop


def run(config: ConfigDict, workdir: pathlib.Path, flags: FlagValues) -> int:
    """`main.py --mode=serve`.

    Reads `--host`, `--port`, `--allow_host`, `--sizes` and `--checkpoint`.
    """
    serve_workdir(
        config,
        workdir,
        flags.checkpoint,
        flags.host,
        flags.port,
        names=flags.allow_host,
        sizes=parse_sizes(flags.sizes),
    )
    return 0


def serve_workdir(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    checkpoint: Which,
    host: str,
    port: int,
    *,
    names: Sequence[str] = (),
    sizes: Sequence[Size] = (),
) -> None:
    """Serves a checkpoint of a run until Ctrl-C or SIGTERM.

    Programs for images of some sizes are compiled at once, while the page can be used already.

    Args:
        config: configuration of the run; `eval` says how images are predicted.
        workdir: directory of the run.
        checkpoint: 'best', 'latest' or a step number.
        host: name or address to listen on; the loopback interface is for this machine alone.
        port: port to listen on; 0 picks a free one.
        names: further names that the page may be opened by, such as that of a proxy.
        sizes: (height, width) of the images to compile for; () for those of the example pictures.

    Raises:
        InputError: no such run or checkpoint, or a host and port that cannot be listened on.
    """
    config_lib.check(config, devices=None)
    model = viewer.load(config, workdir, checkpoint)
    answers = Answers(model)
    try:
        server = Server(answers, host, port, names)
    except (OSError, OverflowError) as error:
        raise InputError(f'--host={host} --port={port} cannot be listened on: {error}') from error
    server.timeout = 0.5  # seconds between two looks for signals
    with server, stop_requests() as stop_requested:
        name = socket.gethostname() if host in ('0.0.0.0', '::', '') else host
        print(f'checkpoint of step {model.step}: http://{name}:{server.server_port}', flush=True)
        if not is_loopback(host):
            print(f'warning: everyone who can reach {host} can use this server', flush=True)
        wanted = sizes or [example.size for example in model.examples]
        preparation = threading.Thread(
            target=answers.prepare, args=(wanted, stop_requested), daemon=True
        )
        preparation.start()
        while not stop_requested():
            server.handle_request()
        server.finish(_LAST_SECONDS)
        preparation.join(_LAST_SECONDS)
        print(f'stopped by {stop_requested()}')
