"""The command ``e2e-run`` and how it ends.

``e2e-run PATH...`` is ``e2e-run run PATH...``: a first argument that is no command is a path or an
option of ``run``. Commands are imported when they are called, which keeps ``--version`` quick.
"""

import errno
import importlib
import os

import click

import e2e_runner
from e2e_runner.errors import E2ERunError

_COMMANDS = {  # name -> module and attribute
    "run": ("e2e_runner.cli.run", "run_command"),
    "list": ("e2e_runner.cli.list_", "list_command"),
    "history": ("e2e_runner.cli.history_", "history_command"),
    "compare": ("e2e_runner.cli.compare", "compare_command"),
    "sweep-dbs": ("e2e_runner.cli.sweep_dbs", "sweep_command"),
    "postgres": ("e2e_runner.cli.postgres_", "postgres_command"),
    "ports": ("e2e_runner.cli.ports_", "ports_command"),
}


class _Group(click.Group):
    """The commands, with ``run`` as the one that is meant where none is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click names it
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - same
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*_COMMANDS, "--help", "-h", "--version"):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        run = self.get_command(ctx, "run")
        if run is None:
            raise RuntimeError("the command `run` is missing")
        formatter.write_usage(ctx.command_path, "[COMMAND] [OPTIONS] [PATH]...")
        run.format_help_text(ctx, formatter)
        with click.Context(run, info_name="run", parent=ctx) as inner:
            run.format_options(inner, formatter)
        self.format_commands(ctx, formatter)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(e2e_runner.__version__, prog_name="e2e-run")
def group() -> None:
    """Run a project's example scripts as its end-to-end tests."""


def _hold_standard_descriptors() -> None:
    """Fill the numbers of closed standard streams, so that no file or socket of ours takes them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # not for writing: it stays an error to write to what was closed
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest free number, which is this one


def _tell(error: E2ERunError) -> int:
    click.echo(f"e2e-run: {error}", err=True)
    return error.exit_code


def call() -> int:
    """Run ``e2e-run`` and give its exit code; what a user can cause is told without a traceback."""
    _hold_standard_descriptors()
    try:
        code = group.main(prog_name="e2e-run", standalone_mode=False)
    except click.exceptions.Exit as leave:
        code = leave.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
    except click.UsageError as error:
        from e2e_runner.cli.mistakes import explain

        code = _tell(explain(error))
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except E2ERunError as error:
        code = _tell(error)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        click.echo(f"e2e-run: the output cannot be written: {error.strerror}", err=True)
        code = E2ERunError.exit_code
    return code or 0
