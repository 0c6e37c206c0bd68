"""The command `evenorm`: verbs named like the functions that they call.

What a verb needs is imported inside it, so that no verb waits for what another needs.
"""

from typing import Annotated

import typer

app = typer.Typer(
    help="Every normalization layer of PyTorch out of one engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def evenorm() -> None:
    """Keeps verbs verbs: without it typer runs an only command under no name."""


@app.command()
def env(as_json: Json = False) -> None:
    """Show versions, threads and kernels, for bug reports."""
    import json

    from rich.console import Console
    from rich.table import Table

    from evenorm.kernels.environment import environment

    lines = environment()
    if as_json:
        typer.echo(json.dumps(lines, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    for name, text in lines.items():
        table.add_row(f"[bold]{name}[/bold]", text)
    Console().print(table)
