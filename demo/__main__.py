"""Command line of the demo: every fault is one sentence, before a browser is opened."""

import argparse
import os
import signal
import socket
import sys
import tempfile
from importlib.util import find_spec

from tools.shared import options as shared

NO_GRADIO = (
    "The demo needs gradio, which is not installed here: run `make demo`, which puts it"
    " beside the course (.venv-bonus), or pip install -r requirements-bonus.txt."
)
# Nothing is sent to the makers of the libraries.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MPLBACKEND": "agg",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = shared.parser("demo", "The model in service as a web page.")
    shared.add_home(parser)
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    host = "address to listen on (default: this machine alone)"
    parser.add_argument("--host", default="127.0.0.1", help=host)
    share = "a public address, through a server of Gradio's makers"
    parser.add_argument("--share", action="store_true", help=share)
    return parser.parse_args(arguments)


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if find_spec("gradio") is None:
        print(NO_GRADIO, file=sys.stderr)
        return 2
    if not is_free(options.host, options.port):
        print(
            f"Nothing can listen on port {options.port} of {options.host}, perhaps"
            " another demo does: choose another --port (make demo DEMO_ARGS='--port"
            " 7900'), or an address of this machine with --host.",
            file=sys.stderr,
        )
        return 2
    # as after Ctrl+C, so that the scratch folder goes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="demo-") as scratch:
        os.environ |= QUIET | {"GRADIO_TEMP_DIR": scratch}  # uploads go with it
        from demo.service import open_service

        served = open_service(shared.home(options.home))
        # loads gradio, for seconds: only what will be served is worth them
        from demo import app

        app.serve(served, options.host, options.port, options.share)
    return 0


if __name__ == "__main__":
    from tools import cli

    sys.exit(cli.main(["demo", *sys.argv[1:]]))
