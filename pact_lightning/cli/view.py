"""Command ``pact-lightning view``: the page of ``report``, served to this machine, live while a run goes on."""

from collections.abc import Sequence

from pact_lightning.cli.errors import end
from pact_lightning.cli.report import reader_of, run_parser, title_of


def main(arguments: Sequence[str]) -> None:
    """Run the command until it is interrupted; wrong input ends in one sentence and exit status 2.

    Args:
        arguments: The words behind ``view``.
    """
    parser = run_parser(
        "view",
        "Serves the page of `pact-lightning report` to this machine only. New phases appear while the run continues.",
    )
    parser.add_argument("--port", type=int, default=7575, help="its port (default 7575; 0 takes a free one)")
    given = parser.parse_args(list(arguments))
    try:
        if not 0 <= given.port < 1 << 16:
            raise ValueError(f"--port must be a number from 0 to 65535, not {given.port}")
        from pact_lightning.report.server import ViewServer

        reader = reader_of(given)
        try:
            server = ViewServer(reader, title_of(reader), given.port)
        except OSError as error:
            raise ValueError(
                f"port {given.port} cannot be used ({error.strerror}); give another with --port"
            ) from error
    except (ValueError, OSError, ImportError, TypeError) as error:
        end(error, 2)
    print(f"{server.address}  (Ctrl-C stops it)", flush=True)  # noqa: T201  # the address to open
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
