"""The command line: one file a command, each thin. Heavy imports happen inside the commands."""

from __future__ import annotations

import errno
import os
import sys

import typer

import graftlm
from graftlm.cli import adapters, chat, compare, data, demo, eval, export, generate, plan, recipe, train
from graftlm.cli.console import print_error
from graftlm.errors import UserError

app = typer.Typer(
    name="graftlm",
    help="Adapt a pretrained language model: one frozen base, many adapters, trained and served in one batch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("eval")(eval.evaluate)
app.add_typer(data.app, name="data")
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.add_typer(adapters.app, name="adapters")
app.command("export")(export.export)
app.command("recipe")(recipe.recipe)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"graftlm {graftlm.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line. A user's mistake prints one message and exits with 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Their notes on retries and the like are for programmers; what went wrong comes as an error of ours.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print_error(UserError("the disk is full: what was to be printed could not be written"))
        sys.exit(2)
