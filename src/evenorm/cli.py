"""The command `evenorm`: verbs named like the functions that they call.

What a verb needs is imported inside it, so that `evenorm --help` answers at once.
"""

import typer

app = typer.Typer(
    name="evenorm",
    help="Every normalization layer of PyTorch out of one engine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
