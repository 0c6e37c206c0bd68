"""The command `evenorm`: verbs named like the functions that they call.

What a verb needs is imported inside it, so that no verb waits for what another needs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch.nn import Module

    from evenorm.surgery.proof import Inputs

app = typer.Typer(
    help="Every normalization layer of PyTorch out of one engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Target = Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="The model, or what makes it.")]
ModelInput = Annotated[
    list[str],
    typer.Option("--input", metavar="1,3,224,224", help="An input; mask=2,16:bool, 2,16:int64<1000. Repeatable."),
]
StateDict = Annotated[Path | None, typer.Option("--state-dict", metavar="FILE", help="A checkpoint to load.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Weights (.safetensors) or a program (.pt2, .onnx).")
]


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
    device: Annotated[str, typer.Option(help="cpu or cuda, which need not be here.")] = "cpu",
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
        device=device,
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
    model: Annotated[
        str, typer.Option(help="mlp, cnn or resnet; or MODULE:FACTORY, whose batch norms are converted.")
    ] = "cnn",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of IDX files or of class folders.", show_default="scikit-learn's digits"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report.html"),
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Train one small network with every normalizer, and say which to use.

    Measures accuracy, steps to 90 %, the largest learning rate that still
    trains, the gap between training and evaluation mode, time and memory per
    step.
    """
    from evenorm.lab.comparison.command import run

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
def explorer(
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("explorer.html"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a page on which to choose a normalizer, change everything, and watch what it computes."""
    from evenorm.lab.explorer.command import run

    raise typer.Exit(run(output, show))


@app.command()
def bench(
    suites: Annotated[
        list[str],
        typer.Argument(
            metavar="[layers|fused|threads|models|saved|dist|monitor]…",
            help="Suites to run.",
            show_default="layers fused threads models saved",
        ),
    ] = ["layers", "fused", "threads", "models", "saved"],  # noqa: B006
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
    device: Annotated[str, typer.Option(help="cpu or cuda; on a GPU layers, fused and dist, against torch.")] = "cpu",
    seconds_per_row: Annotated[float, typer.Option(help="Time for each row; five rounds at least.")] = 0.5,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny tensors: tries the benchmark itself.")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show and write an earlier run's JSON instead.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep all figures, row by row; a file that is there takes them in."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")] = None,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put the figures between this file's markers.")
    ] = None,
) -> None:
    """Time every layer against torch, torch.compile, JAX and onnxruntime.

    A row is timed only if its result agrees with the float64 reference.
    Variants take turns; ratios are of medians, with a paired 95 % interval.
    The suite threads times layers on one thread and on all, saved counts what
    autograd keeps for backward. It ends with what is aimed at, reached or not.
    The suite layers begins no row after 15 minutes. Ctrl-C ends with what is
    finished.
    """
    from evenorm.bench.command import Files, run
    from evenorm.bench.settings import Settings
    from evenorm.doctor import Monitor

    settings = Settings(tuple(suites), against, memory, only, threads, seconds_per_row, quick, device)
    raise typer.Exit(run(settings, Files(json, html, readme), Monitor, source))


lab = typer.Typer(help="Claims about normalization, measured, each with a verdict.", no_args_is_help=True)
app.add_typer(lab, name="lab")

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help="Experiments; see evenorm lab list.")]
LabScale = Annotated[str, typer.Option("--scale", help="quick (three seeds), full (five) or large (ten).")]
LabData = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Folder of images, text file; one of each.", show_default="what ships"),
]
LabFolder = Annotated[Path, typer.Option("--store", help="Folder of finished seeds.")]


@lab.command("list")
def lab_list(as_json: Json = False) -> None:
    """List the experiments with their questions."""
    from evenorm.lab.command import show

    raise typer.Exit(show(as_json))


@lab.command("run")
def lab_run(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="Every experiment.")] = False,
    scale: LabScale = "quick",
    data: LabData = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each.", show_default="by the scale")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one for each processor")] = None,
    store: LabFolder = Path(".evenorm-lab"),
    as_json: Json = False,
) -> None:
    """Run experiments and print their verdicts. Finished seeds are kept; Ctrl-C loses no more than those that run."""
    from evenorm.lab.command import Order, run

    if bool(names) == everything:
        raise typer.BadParameter("name experiments, or pass --all (evenorm lab list shows them)")
    order = Order(tuple(names or ()), scale, tuple(data or ()), seeds, store)
    raise typer.Exit(run(order, workers, as_json))


@lab.command("report")
def lab_report(
    names: Names = None,
    scale: LabScale = "quick",
    data: LabData = None,
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("lab.html"),
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown too.")] = None,
    store: LabFolder = Path(".evenorm-lab"),
    as_json: Json = False,
) -> None:
    """Write what was measured as one page."""
    from evenorm.lab.command import Order, report

    order = Order(tuple(names or ()), scale, tuple(data or ()), None, store)
    raise typer.Exit(report(order, output, markdown, as_json))


def _loaded(target: str, state_dict: Path | None, input: list[str]) -> tuple["Module", "Inputs | None"]:
    from evenorm.doctor import loading
    from evenorm.surgery.proof import Inputs

    try:
        model = loading.model(target)
        if state_dict is not None:
            model.load_state_dict(loading.state_dict(state_dict))
        given = loading.inputs(input)
    except (ValueError, RuntimeError) as fault:
        typer.echo(str(fault), err=True)
        raise typer.Exit(2) from None
    return model, None if given is None else Inputs(given.args, given.kwargs)


@app.command()
def fold(
    target: Target, input: ModelInput, state_dict: StateDict = None, out: Out = None, as_json: Json = False
) -> None:
    """Take normalizers into the weights of the layers beside them, and prove that nothing else changed.

    For example: evenorm fold mypackage.models:build --input 1,3,224,224 --state-dict weights.pt --out folded.onnx
    """
    from evenorm.surgery.command import run_fold

    raise typer.Exit(run_fold(*_loaded(target, state_dict, input), out, as_json))


@app.command()
def recalibrate(
    target: Target,
    loader: Annotated[str, typer.Option(metavar="MODULE:NAME", help="Batches, or what makes them.")],
    input: ModelInput = [],  # noqa: B006
    state_dict: StateDict = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Set running statistics to the moments of a whole data set.

    For example: evenorm recalibrate mypackage.models:build --loader mypackage.data:batches --out weights.safetensors
    """
    from evenorm.surgery.command import run_recalibrate
    from evenorm.surgery.loading import named

    model, inputs = _loaded(target, state_dict, input)
    try:
        batches = named("--loader", loader)
    except ValueError as fault:
        typer.echo(str(fault), err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(run_recalibrate(model, batches, inputs, out, as_json))


@app.command()
def convert(
    target: Target,
    to: Annotated[str, typer.Option(help="batch, sync, ghost, renorm, frozen, group, layer or weights.")],
    input: ModelInput = [],  # noqa: B006
    state_dict: StateDict = None,
    virtual_batch_size: Annotated[int, typer.Option(help="Of ghost batches.")] = 16,
    groups: Annotated[int | None, typer.Option(help="Of group normalization.", show_default="by channels")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Put one kind of normalization in place of another, with the trained weights.

    For example: evenorm convert mypackage.models:build --to group --state-dict weights.pt --out groups.safetensors
    """
    from evenorm.surgery.command import run_convert

    model, inputs = _loaded(target, state_dict, input)
    raise typer.Exit(run_convert(model, to, inputs, virtual_batch_size, groups, out, as_json))


@app.command()
def accelerate(
    target: Target,
    input: ModelInput,
    state_dict: StateDict = None,
    seconds: Annotated[float, typer.Option(help="To time inference and training for, each.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Put evenorm's layers into a model, fuse what follows them, and time a step before and after.

    For example: evenorm accelerate mypackage.models:build --input 16,3,224,224
    """
    from evenorm.surgery.command import run_accelerate

    raise typer.Exit(run_accelerate(*_loaded(target, state_dict, input), seconds, as_json))


@app.command()
def examine(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="The model, or what makes it.", show_default=False)
    ] = "",
    input: Annotated[
        list[str], typer.Option(metavar="8,3,224,224", help="An input; mask=2,16:bool, 2,16:int64<1000. Repeatable.")
    ] = [],  # noqa: B006
    loader: Annotated[str | None, typer.Option(metavar="MODULE:NAME", help="The training's data loader.")] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="MODULE:NAME", help="Makes the model's optimizer.")] = None,
    state_dict: StateDict = None,
    reference: Annotated[str | None, typer.Option(metavar="MODULE:FACTORY", help="What it was made from.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE|MODULE:NAME", help="Its configuration.")] = None,
    intent: Annotated[str | None, typer.Option(help="train, finetune, infer or export.", show_default="train")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Outputs must not depend on later inputs.")] = False,
    evaluation: Annotated[bool, typer.Option("--eval", help="In evaluation, as after model.eval().")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Of the training, per process.")] = None,
    select: Annotated[list[str], typer.Option(metavar="EN1", help="Only these rules. Repeatable.")] = [],  # noqa: B006
    ignore: Annotated[list[str], typer.Option(metavar="EN4", help="Not these rules. Repeatable.")] = [],  # noqa: B006
    format: Annotated[str, typer.Option(help="text, json, sarif, github or html.")] = "text",
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Make the safe fixes; write the weights as safetensors.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Show each normalizer's figures on the batch.")] = False,
    advise: Annotated[bool, typer.Option("--advise", help="Say which normalizer the model calls for instead.")] = False,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules.")] = False,
    explain: Annotated[str | None, typer.Option(metavar="EN112", help="Explain a rule.")] = None,
) -> None:
    """Find what is wrong with the normalization of a model, by experiments that leave it as it was.

    For example: evenorm examine mypackage.models:build --input 8,3,224,224

    Ends with 1 where there is an error, and with 2 where the model does not run.
    """
    from evenorm.doctor import command

    if rules:
        raise typer.Exit(command.list_rules())
    if explain is not None:
        raise typer.Exit(command.explain_rule(explain))
    if not target:
        raise typer.BadParameter("name a model, for example mypackage.models:build")
    given = command.Arguments(
        *(target, input, loader, optimizer, state_dict, reference, config, intent, causal),
        *(evaluation, batch_size, select, ignore, format, fix, table, advise),
    )
    raise typer.Exit(command.run(given))
