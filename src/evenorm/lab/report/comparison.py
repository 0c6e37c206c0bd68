"""A comparison as a page."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

from evenorm.lab.comparison import figures
from evenorm.lab.comparison.advice import accuracy_noise, choose, tied
from evenorm.lab.comparison.compare import BELOW_GUESSING, RATES, TRIAL, Comparison, Row
from evenorm.lab.comparison.sentences import Conclusion, at_sizes, invocation
from evenorm.lab.comparison.terminal import largest, steps
from evenorm.lab.normalizers import NORMALIZERS
from evenorm.lab.report.document import Plots, document, key, plural, prose, save
from evenorm.lab.training import EVALUATIONS, WATCHED


def write(comparison: Comparison, conclusion: Conclusion, output: Path) -> None:
    """Write the report of a comparison with at least one result."""
    save(page(comparison, conclusion), output)


def page(comparison: Comparison, conclusion: Conclusion) -> str:
    """Return the whole page."""
    plots = Plots()
    body = "".join(
        [
            header(comparison),
            "<main>",
            result(conclusion),
            introduction(comparison),
            *(section(comparison, size, plots) for size in comparison.protocol.batch_sizes),
            meanings(comparison),
            method(comparison),
            "</main>",
            footer(comparison),
        ]
    )
    return document(f"evenorm compare: {comparison.images.name}", body, plots)


def header(comparison: Comparison) -> str:
    """Return the title, and whether this is all."""
    protocol = comparison.protocol
    about = (
        f"{comparison.images.name} · {protocol.model} · normalizer {protocol.placement} the activation "
        f"· {plural(protocol.seeds, 'seed')}"
    )
    stopped = ""
    if comparison.partial:
        stopped = (
            f"<p class='stopped'><strong>This report is partial.</strong> It was stopped after "
            f"{comparison.finished} of {comparison.total} runs and shows those that had finished.</p>"
        )
    return (
        f"<header><h1>Which normalization for these images?</h1><p class='quiet'>{escape(about)}</p>{stopped}</header>"
    )


def result(conclusion: Conclusion) -> str:
    """Return the three sentences."""
    return (
        "<section class='conclusion'><h2>What follows</h2>"
        f"<p>{prose(conclusion.recommendation)}</p><p>{prose(conclusion.evidence)}</p>"
        f"<p>{escape(conclusion.next)}:</p><pre>{escape(conclusion.command)}</pre></section>"
    )


def introduction(comparison: Comparison) -> str:
    """Return what a newcomer is looking at."""
    protocol = comparison.protocol
    rows = [name for name in protocol.normalizers if name != "none"]
    return (
        "<h2>What you are looking at</h2>"
        "<p>A normalization layer rescales the values inside a neural network so that they keep a steady mean "
        "and spread while it learns. There are several ways to do that, and they differ in which values share "
        "one mean and one spread. Here the same small network learned the same images again and again, from the "
        f"same starting weights, and only that choice changed: {escape(', '.join(rows))}, or none at all.</p>"
        f"<p>Everything was done {at_sizes(protocol.batch_sizes)} (how many images the network sees before "
        "each update), because some ways take their statistics from the batch and suffer when it is small. "
        f"Each row was trained with {plural(protocol.seeds, 'seed')}: other random weights, another order of "
        "images. What differs between seeds alone is noise, and a difference that noise could make is called so."
        "</p>"
    )


def section(comparison: Comparison, batch_size: int, plots: Plots) -> str:
    """Return table and figures of one batch size."""
    rows = comparison.shown(batch_size)
    epochs = comparison.protocol.steps(batch_size) * batch_size / len(comparison.images.train_labels)
    title = (
        f"<h2>Batch size {batch_size}</h2><p class='quiet'>{comparison.protocol.steps(batch_size)} steps, "
        f"{epochs:.1f} times through the training images.</p>"
    )
    if not rows:
        return title + table(comparison, batch_size)
    margin = accuracy_noise(comparison, batch_size).margin(len(rows[0].outcomes), len(rows[0].outcomes))
    noise = (
        f"Faint dots are single runs, bars their means. The shaded band reaches {100 * margin:.1f} points down "
        "from the best mean: a mean inside it is worse by no more than noise."
        if margin < 1
        else "Dots are single runs. With one seed nothing tells noise from a difference."
    )
    return "".join(
        [
            title,
            table(comparison, batch_size),
            "<h3>Accuracy</h3>",
            f"<p class='note'>{noise}</p>",
            plots.place(figures.accuracies(comparison, batch_size), titled=False),
            keys(rows),
            "<h3>How fast it learns</h3>",
            (
                "<p class='note'>Training loss by step, mean over seeds, each row at its own learning rate (the "
                "column “rate used”). Lower is better; steeper is faster.</p>"
            ),
            plots.place(figures.losses(comparison, batch_size), titled=False),
            "<h3>What the layers see</h3>",
            (
                "<p class='note'>Values that enter each activation function, by layer and step: half of them lie in "
                "the dark band, nine in ten in the light one, the line is the median. A band that stays put is what "
                "“stable inputs” means; one that leaves the frame has grown past all others. First seed.</p>"
            ),
            plots.grid(figures.activations(comparison, batch_size)),
            "<h3>What the layers are told</h3>",
            (
                "<p class='note'>Length (L2 norm) of the loss's gradient over each layer's weights and biases, by "
                "step, on a logarithmic scale; median over seeds. Layers of one row with like lengths learn at a "
                "like pace.</p>"
            ),
            plots.grid(figures.gradients(comparison, batch_size)),
        ]
    )


def keys(rows: Sequence[Row]) -> str:
    """Return the legend of all figures of a section; a click hides a row."""
    buttons = [
        f"<button type='button' aria-pressed='true' data-name='{row.normalizer}'>"
        f"{key(row.normalizer)}{row.normalizer}</button>"
        for row in rows
    ]
    return f"<div class='keys' aria-label='Rows shown; press to hide'>{''.join(buttons)}</div>"


COLUMNS = (
    "accuracy, %",
    "steps to 90 %",
    "largest rate",
    "rate used",
    "train/eval gap, %",
    "generalization gap, %",
    "time per step, ms",
    "memory per step, KiB",
)


def table(comparison: Comparison, batch_size: int) -> str:
    """Return the table of one batch size."""
    stars = tied(comparison, batch_size) if comparison.shown(batch_size) else ()
    chosen = choose(comparison).chosen.get(batch_size)
    lines = []
    for row in comparison.at(batch_size):
        head = f"<th scope='row'>{key(row.normalizer)}{row.normalizer}</th>"
        if not row.outcomes:
            reason = f"does not apply: {row.reason}" if row.reason else "no run has finished"
            lines.append(f"<tr class='empty'>{head}<td colspan='{len(COLUMNS)}'>{escape(reason)}</td></tr>")
            continue
        star = " *" if row.normalizer in stars else ""
        values = (
            f"{100 * row.accuracy:.1f}{spread(row)}{star}",
            steps(row),
            largest(row),
            f"{row.rate:g}",
            f"{100 * row.changed:.1f}",
            f"{100 * row.overfit:+.1f}",
            f"{1000 * row.step_seconds:.2f}",
            f"{row.saved_bytes / 1024:,.0f}",
        )
        cells = "".join(
            f"<td data-label='{label}'><span>{value}</span></td>" for label, value in zip(COLUMNS, values, strict=True)
        )
        lines.append(f"<tr{' class=chosen' * (row.normalizer == chosen)}>{head}{cells}</tr>")
    heads = "".join(f"<th scope='col'>{label}</th>" for label in COLUMNS)
    missing = [
        f"{row.normalizer}: {len(row.outcomes)} of {plural(comparison.protocol.seeds, 'seed')}"
        for row in comparison.shown(batch_size)
        if len(row.outcomes) < comparison.protocol.seeds
    ]
    failed = [failure for failure in comparison.failures if f"batch size {batch_size}," in failure]
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in [*missing, *failed])
    return (
        f"<table class='results'><thead><tr><th scope='col'>normalizer</th>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
        f"<p class='note'>* within noise of the most accurate. Bold: recommended.</p>{notes}"
    )


def spread(row: Row) -> str:
    """Return the spread over seeds, where there is one."""
    return f" ± {100 * row.accuracy_spread:.1f}" if len(row.outcomes) > 1 else ""


def meanings(comparison: Comparison) -> str:
    """Return which values share statistics, for each row."""
    lines = "".join(
        f"<tr><th scope='row'>{key(name)}{name}</th><td>{escape(NORMALIZERS[name].meaning)}</td></tr>"
        for name in comparison.protocol.normalizers
    )
    return (
        "<h2>The rows</h2><p>What is brought to one mean and one spread, or to one size:</p>"
        f"<table class='meaning'><tbody>{lines}</tbody></table>"
    )


def method(comparison: Comparison) -> str:
    """Return how each column was measured."""
    protocol = comparison.protocol
    images = comparison.images
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    side = " × ".join(map(str, images.shape[1:]))
    used = (
        f"{protocol.rate:g} for every row, as asked"
        if protocol.rate
        else "the rate whose trial ended with the lowest training loss; held-out images have no part in it"
    )
    terms = {
        "data": f"{images.origin}; {len(images.classes)} classes, {side} pixels.",
        "training": "Plain stochastic gradient descent, without momentum or weight decay, on cross-entropy; the "
        "learning rate falls linearly to zero. Weights start by He's rule and are the same for every row of a "
        "seed. Hidden layers are normalized, the output layer is not. "
        f"The normalizer stands {protocol.placement} the activation (ReLU).",
        "accuracy": "Share of held-out images classified right after the last step, in evaluation mode: mean ± "
        "standard deviation over seeds.",
        "noise": "Two means differ by more than noise when they are further apart than Fisher's least significant "
        "difference (95 %, the spread over seeds pooled over all rows of a batch size) and than the counting error "
        f"of {len(images.test_labels):,} held-out images.",
        "steps to 90 %": f"The first look at which 90 % of (at most {WATCHED}) held-out images were right; there "
        f"are {EVALUATIONS} looks in a run. Median over seeds.",
        "largest rate": f"Of {rates}: the last before the first that fails, in trials of 1/{TRIAL} of the steps. "
        f"A trial fails when its last quarter's mean loss is not {100 * (1 - BELOW_GUESSING):.0f} % below that of "
        "guessing, ln(number of classes). Median over seeds.",
        "rate used": f"{used[0].upper()}{used[1:]}.",
        "train/eval gap": f"Share of (at most {WATCHED}) held-out images whose class changes when the trained "
        "network is put back into training mode and sees them in batches of the training size. Statistics of the "
        "batch make it, and spectral normalization's running estimate; elsewhere it is zero.",
        "generalization gap": "Accuracy on as many training images minus accuracy on held-out ones, in points.",
        "time per step": "Median processor time of forward, backward and update, on one thread.",
        "memory per step": "Bytes that autograd keeps from the forward to the backward pass, every storage once, "
        "without parameters and the batch itself. The same on every machine.",
    }
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in terms.items())
    return f"<h2>How it was measured</h2><dl>{lines}</dl>"


def footer(comparison: Comparison) -> str:
    """Return what makes this report again."""
    return (
        f"<footer><h2>Make it again</h2><pre>{escape(invocation(comparison))}</pre>"
        f"<p>The same seeds give the same figures, times apart. evenorm on torch {escape(torch.__version__)}, "
        f"Python {platform.python_version()}, {escape(platform.machine())}.</p></footer>"
    )
