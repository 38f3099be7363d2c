"""Serve many adapters on one backbone over HTTP: ``python -m dept_vl.serve --help``."""

from __future__ import annotations

import importlib.util
import socket
import sys
from argparse import Namespace
from pathlib import Path

from dept_vl.command_line import Parser, run, say
from dept_vl.serving.messages import ServiceSettings
from feature_extraction.errors import InputDataError, UsageError

ADAPTER_FILE = "adapter_config.json"
HOSTS = ("127.0.0.1", "0.0.0.0", "::")  # noqa: S104 - the first is the default
PACKAGES = ("litserve", "prometheus_client", "python_multipart")  # of the extra serve
PORTS = (1024, 65535)
EXAMPLES = """\
  python -m dept_vl.serve --backbone t5-mini --adapters runs --features coco.store
  python -m dept_vl.serve --backbone google-t5/t5-base --adapters adapters --precision bf16 --host 0.0.0.0

  curl http://127.0.0.1:8000/predict --json '{"adapter": "colors", "text": "what color?", "image_id": "beach"}'"""


def main(arguments: list[str]) -> None:
    """Serve as the arguments say, until SIGTERM or Ctrl-C."""
    options = _parser().parse_args(arguments)
    settings = _settings(options)
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f'The package {missing[0]} is not installed. Run: pip install "dept_vl[serve]"')
    from dept_vl.serving.service import run_service

    say(f"Loading {settings.backbone} and the adapters of {settings.adapters}")
    say(f"To serve on http://{options.host}:{options.port}: POST /predict, GET /adapters, /health, /metrics")
    run_service(settings, host=options.host, port=options.port)


def _parser() -> Parser:
    parser = Parser(
        "dept_vl.serve",
        "Answer requests for any of many adapters over HTTP, those for different adapters in one batch.",
        EXAMPLES,
    )
    default = ServiceSettings(backbone="", adapters=Path())
    parser.add_argument("--backbone", required=True, metavar="NAME", help="T5 of all adapters, as for dept_vl.train")
    parser.add_argument(
        "--adapters", type=Path, required=True, metavar="DIR", help="folder of adapters or runs, watched for changes"
    )
    parser.add_argument("--features", type=Path, metavar="STORE", help="of tasks with images: the store of them all")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default=default.precision, help="(default: %(default)s)"
    )
    parser.add_argument("--host", choices=HOSTS, default=HOSTS[0], help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="(default: %(default)s)")
    numbers = {
        "max-batch": (int, default.max_batch, "requests answered at once"),
        "wait-ms": (float, default.wait_seconds * 1000, "that the first request of a batch waits for others"),
        "timeout": (float, default.timeout_seconds, "seconds from a request to its answer"),
        "max-image-mb": (float, default.max_image_bytes / 1e6, "size of an uploaded image"),
        "max-waiting": (int, default.most_waiting, "requests at once; more are refused"),
    }
    for name, (kind, value, text) in numbers.items():
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N", help=f"{text} (default: %(default)g)")
    return parser


def _settings(options: Namespace) -> ServiceSettings:
    """The settings, checked as far as they can be before anything is loaded.

    Raises:
        UsageError: a number is out of range, or the port is taken.
        InputDataError: the folder of adapters is none.
    """
    for name, least in (
        ("max_batch", 1),
        ("wait_ms", 0),
        ("timeout", 0.1),
        ("max_image_mb", 0.001),
        ("max_waiting", 1),
    ):
        value = getattr(options, name)
        if not least <= value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} is {value:g}; it must be at least {least:g}")
    if options.wait_ms / 1000 >= options.timeout:
        raise UsageError(f"--wait-ms is {options.wait_ms:g}, as long as --timeout ({options.timeout:g} s). Lower it")
    if not PORTS[0] <= options.port <= PORTS[1]:
        raise UsageError(f"--port is {options.port}; it must be {PORTS[0]} to {PORTS[1]}")
    if not options.adapters.is_dir():
        raise InputDataError(f"--adapters {options.adapters} is no folder. Give the one in which adapters or runs lie")
    if (options.adapters / ADAPTER_FILE).is_file():
        raise UsageError(f"--adapters {options.adapters} is one adapter. Give the folder that it lies in")
    _refuse_taken(options.host, options.port)
    return ServiceSettings(
        backbone=options.backbone,
        adapters=options.adapters,
        features=options.features,
        precision=options.precision,
        max_batch=options.max_batch,
        wait_seconds=options.wait_ms / 1000,
        timeout_seconds=options.timeout,
        max_image_bytes=int(options.max_image_mb * 1e6),
        most_waiting=options.max_waiting,
    )


def _refuse_taken(host: str, port: int) -> None:
    """See that one can listen on a port.

    Raises:
        UsageError: another program does, or the address is not this machine's.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"--port {port} on {host} cannot be listened on: {error.strerror}. Give another, or stop what is there"
            ) from None


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
