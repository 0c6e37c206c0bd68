"""The command `evenorm`: verbs named like the functions that they call.

What a verb needs is imported inside it, so that no verb waits for what another needs.
"""

from pathlib import Path
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


@app.command()
def explain(
    normalizer: Annotated[str, typer.Argument(metavar="PATTERN-OR-LAYER", help=r"'\[n] c \[...]', or BatchNorm2d.")],
    shape: Annotated[str, typer.Option(metavar="8,64,…", help="Shape of the input; sizes the layer too.")],
    dtype: Annotated[str, typer.Option(help="Of the input.")] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels innermost in memory.")] = False,
    evaluation: Annotated[bool, typer.Option("--eval", help="In evaluation instead of training.")] = False,
    size: Annotated[list[str], typer.Option(metavar="g=8", help="Size of a pattern's axis; repeatable.")] = [],  # noqa: B006
    affine: Annotated[str, typer.Option(metavar="AXES", help="Axes of a pattern's weight and bias.")] = "",
    groups: Annotated[int, typer.Option(help="Groups of GroupNorm.")] = 32,
    virtual_batch_size: Annotated[int, typer.Option(help="Samples of GhostBatchNorm's chunks.")] = 16,
    kernel: Annotated[str | None, typer.Option(help="Kernel to use.", show_default="chosen")] = None,
    as_json: Json = False,
) -> None:
    """Draw what shares statistics, count it, and say which kernel computes it and why.

    For example: evenorm explain BatchNorm2d --shape 32,64,28,28
    """
    from evenorm.explain.command import run

    code = run(
        normalizer=normalizer,
        shape=shape,
        dtype=dtype,
        channels_last=channels_last,
        evaluation=evaluation,
        sizes=size,
        affine=affine,
        groups=groups,
        virtual_batch_size=virtual_batch_size,
        kernel=kernel,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def compare(
    norms: Annotated[
        str, typer.Option(metavar="NAME,…", help="Rows of the comparison.")
    ] = "none,batch,layer,group,instance,rms,weight,spectral",
    batch_size: Annotated[list[int], typer.Option(help="Repeat it for several.")] = [64, 4],  # noqa: B006
    lr: Annotated[float | None, typer.Option(help="One learning rate for all.", show_default="each row's best")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each row.")] = 3,
    placement: Annotated[str, typer.Option(help="Of the normalizer: before or after the activation.")] = "before",
    model: Annotated[str, typer.Option(help="mlp, cnn or resnet.")] = "cnn",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of IDX files or of class folders.", show_default="scikit-learn's digits"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report.html"),
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Train one small network with every normalizer, and say which to use.

    Measures accuracy, steps to 90 %, the largest learning rate that still trains, the gap between
    training and evaluation mode, time and memory per step.
    """
    from evenorm.lab.command import run

    code = run(
        norms=norms,
        batch_sizes=batch_size,
        rate=lr,
        seeds=seeds,
        placement=placement,
        model=model,
        folder=data,
        output=output,
        show=show,
        as_json=as_json,
    )
    raise typer.Exit(code)


@app.command()
def bench(
    suites: Annotated[
        list[str], typer.Argument(metavar="[layers|fused|models]…", help="Suites to run.", show_default="all")
    ] = ["layers", "fused", "models"],  # noqa: B006
    against: Annotated[
        str, typer.Option(metavar="PEER,…", help="Peers, those that are installed.")
    ] = "torch,compile,jax,onnxruntime",
    memory: Annotated[str, typer.Option(metavar="KIND,…", help="Where outputs go: fresh or reused memory.")] = (
        "fresh,reused"
    ),
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Regular expression for rows, for example 'RMSNorm.*float32'.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads and cores to use.", show_default="torch's")] = None,
    seconds_per_row: Annotated[float, typer.Option(help="Time for each row; five rounds at least.")] = 0.7,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny tensors: tries the benchmark itself.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show and write an earlier run's JSON instead.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the figures between this file's markers.")
    ] = None,
) -> None:
    """Time every layer against torch, torch.compile, JAX and onnxruntime.

    A row is timed only if its result agrees with the float64 reference. Variants take turns; ratios are of
    medians, with a paired 95 % interval. Ctrl-C ends with what is finished.
    """
    from evenorm.bench.command import Files, Settings, run

    settings = Settings(tuple(suites), against, memory, only, threads, seconds_per_row, quick)
    raise typer.Exit(run(settings, Files(json, html, readme), source))
