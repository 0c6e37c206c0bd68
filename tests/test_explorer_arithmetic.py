"""The explorer's arithmetic, in a browser, against the reference, the layers and Python's patterns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evenorm  # noqa: F401 — the page's code names it
from browser import MISSING, Opened, opened
from evenorm import Affine, Pattern, PatternError
from evenorm.kernels import reference
from evenorm.lab.explorer.page import write
from patterns import patterns

pytestmark = [pytest.mark.browser, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]

NORMALIZERS = ("batch", "ghost", "layer", "rms", "instance", "group", "layer2d", "rms2d", "qk")


@pytest.fixture(scope="module")
def desk(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """One page for all tests."""
    path = tmp_path_factory.mktemp("explorer") / "explorer.html"
    write(path)
    with opened(chromium, path) as shown:
        yield shown


def computed(shown: Opened, module: str, expression: str, argument: Any = None) -> Any:
    """What an expression says of a module's names, the ``argument`` given."""
    script = f"async (argument) => {{ const module = await import('explorer/{module}'); return {expression}; }}"
    return shown.page.evaluate(script, argument)


def scene(shown: Opened, fragment: str) -> dict[str, Any]:
    """What the page computes for an address, the batches of its history, and what it says of it."""
    found: dict[str, Any] = computed(
        shown,
        "scene",
        """(async (fragment) => {
            const { fromFragment } = await import("explorer/state");
            const { code, sentence } = await import("explorer/normalizers");
            const state = fromFragment(fragment);
            const scene = module.compute(state);
            const list = (values) => (values ? [...values] : null);
            const drawn = (step) => list(scene.source.draw(step, 1, step + 1));
            return {
                shape: scene.shape, x: list(scene.x), y: list(scene.y),
                weight: list(scene.parameters.weight), bias: list(scene.parameters.bias),
                mean: list(scene.history?.mean), variance: list(scene.history?.variance),
                batches: Array.from({ length: state.updates }, (_, step) => drawn(step)),
                code: code(state, scene.made), sentence: sentence(scene.made, state.momentum),
            };
        })(argument)""",
        fragment,
    )
    return found


def tensor(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=100)
@given(pattern=patterns(), data=st.data())
def test_is_the_reference(desk: Opened, pattern: Pattern, data: st.DataObject) -> None:
    shape = tuple(int(np.prod([f.size or data.draw(st.integers(1, 4)) for f in axis.factors])) for axis in pattern.axes)
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    names = data.draw(st.lists(st.sampled_from(pattern.names), unique=True, max_size=3))
    affine, sizes = Affine(tuple(names)), pattern.bind(shape).sizes(names)
    x = random.normal(data.draw(st.sampled_from((0.0, 1.0, 1e3))), 1.0, shape)
    weight, bias = (random.normal(size=sizes) if names else None for _ in range(2))
    centered, eps = data.draw(st.booleans()), data.draw(st.sampled_from((1e-5, 1e-3, 1.0)))
    lists = {
        name: None if value is None else value.ravel().tolist()
        for name, value in (("x", x), ("weight", weight), ("bias", bias))
    }
    found = computed(
        desk,
        "formula",
        """(async ({ text, shape, x, affine, weight, bias, centered, eps }) => {
            const { Pattern } = await import("explorer/pattern");
            const { layout } = await import("explorer/layout");
            const lying = layout({ pattern: Pattern.parse(text), affine, history: [], chunk: null }, shape);
            const { moments, y } = module.forward(Float64Array.from(x), lying, { centered, eps, weight, bias });
            return { mean: [...moments.mean], m2: [...moments.m2], y: [...y] };
        })(argument)""",
        {"text": pattern.text, "shape": shape, "affine": names, "centered": centered, "eps": eps, **lists},
    )
    mean, m2 = reference.moments(x, pattern, centered)
    y = reference.forward(x, pattern, weight, bias, affine=affine, eps=eps, centered=centered)
    # Sums in another order: so many roundings of the largest value, scaled as y is.
    rounding = 4 * np.finfo(float).eps * np.sqrt(x.size)
    largest = np.abs(x).max()
    np.testing.assert_allclose(found["mean"], mean.ravel(), rtol=0, atol=rounding * largest)
    np.testing.assert_allclose(found["m2"], m2.ravel(), rtol=rounding, atol=rounding * largest)
    scale = 1.0 if weight is None else np.abs(weight).max()
    np.testing.assert_allclose(found["y"], y.ravel(), rtol=rounding, atol=rounding * largest * scale / np.sqrt(eps))


def test_moments_of_far_values_are_exact(desk: Opened) -> None:
    """The second pass removes the rounding of the first: one alone is off by 3.4, of values up to 7.5 apart."""
    x = [1e15 + 0.75 * (i * 7919 % 11) for i in range(997)]
    exact = sum(map(Fraction, x), Fraction()) / len(x)
    squares = sum(float(value - exact) ** 2 for value in map(Fraction, x))
    rows = "{ of: new Int32Array(argument.length), size: 1 }"
    script = f"(({{ mean, m2 }}) => [mean[0], m2[0]])(module.moments(argument, {rows}, [argument.length], true))"
    mean, m2 = computed(desk, "formula", script, x)
    assert float(abs(Fraction(mean) - exact)) <= math.ulp(1e15)
    assert m2 == pytest.approx(squares, rel=1e-3)


@settings(max_examples=200)
@given(pattern=patterns(), data=st.data())
def test_reads_patterns_as_python_does(desk: Opened, pattern: Pattern, data: st.DataObject) -> None:
    """Canonical text, or the same words with the caret in the same place; patterns with a few changes at random."""
    text = pattern.text
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(text)))
        put = data.draw(st.sampled_from(["", "[", "]", "(", ")", " ", "a", "...", "=", "=2", "é", "€", "'", "0"]))
        text = text[:at] + put + text[at + data.draw(st.integers(0, 2)) :]
    shape = tuple(data.draw(st.lists(st.integers(1, 6), max_size=5)))
    wanted: dict[str, Any]
    try:
        parsed = Pattern.parse(text)
        binding = parsed.bind(shape)
        wanted = {"text": parsed.text, "shape": list(binding.shape), "reduced": list(binding.reduced)}
    except PatternError as fault:
        wanted = {"message": fault.message, "text": fault.text, "at": fault.at}
    found = computed(
        desk,
        "pattern",
        """(([text, shape]) => {
            try {
                const pattern = module.Pattern.parse(text);
                const { shape: split, reduced } = pattern.bind(shape);
                return { text: pattern.text, shape: split, reduced };
            } catch (fault) {
                if (!(fault instanceof module.PatternError)) throw fault;
                return { message: fault.message, text: fault.text, at: fault.at };
            }
        })(argument)""",
        [text, list(shape)],
    )
    assert found == wanted


@pytest.mark.parametrize("momentum", ["0.1", "0.75", "none"])
@pytest.mark.parametrize(("norm", "shape"), [("batch", "4,6,2,3"), ("ghost", "5,4,2"), ("instance", "3,2,4,2")])
def test_history_is_the_layers(desk: Opened, norm: str, shape: str, momentum: str) -> None:
    """Five batches through the page and through the layer; then evaluation, with γ and β."""
    channels = int(shape.split(",")[1])
    weight, bias = (",".join(f"{v:.8g}" for v in torch.randn(channels)) for _ in range(2))
    asked = {"norm": norm, "shape": shape, "momentum": momentum, "weight": weight, "bias": bias}
    shown = scene(desk, urlencode({**asked, "updates": 5, "mode": "eval", "motion": "drift", "eps": 0.001}))
    layer = eval(shown["code"]).double()
    with torch.no_grad():
        for batch in shown["batches"]:
            layer(tensor(batch).reshape(shown["shape"]))
        layer.weight.copy_(tensor(shown["weight"]))
        layer.bias.copy_(tensor(shown["bias"]))
        y = layer.eval()(tensor(shown["x"]).reshape(shown["shape"]))
    np.testing.assert_allclose(shown["mean"], layer.running_mean, rtol=1e-12)
    np.testing.assert_allclose(shown["variance"], layer.running_var, rtol=1e-12)
    np.testing.assert_allclose(shown["y"], y.ravel(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", NORMALIZERS)
def test_code_makes_what_is_shown(desk: Opened, norm: str) -> None:
    """The line of Python makes a layer with the page's recipe, whose output is the page's."""
    shown = scene(desk, f"norm={norm}")
    layer = eval(shown["code"]).double()
    text, *parts = str(layer.recipe).split(" | ")
    pattern, *said = shown["sentence"]
    assert Pattern.parse(pattern).bind(shown["shape"]) == Pattern.parse(text).bind(shown["shape"])
    # An eps that is none is the dtype's, which the page gives for float32.
    assert [part.replace("machine eps", "eps 1.19209e-07") for part in parts] == said
    y = layer(tensor(shown["x"]).reshape(shown["shape"])).detach()
    bound = 2e-6 if "machine eps" in parts else 1e-11
    np.testing.assert_allclose(shown["y"], y.ravel(), rtol=bound, atol=bound)


def test_a_sample_stays_among_other_batchmates(desk: Opened) -> None:
    """Bit for bit, and all others change."""
    stays = """(() => {
        const { x, batchmates } = module.compute(argument);
        const { draws, moved, sample } = batchmates();
        const kept = (batch) => [...batch].map((value, i) => (value === x[i] ? Math.floor(i / sample) : -1));
        return [...draws, moved].map(kept);
    })()"""
    state = computed(desk, "state", "module.fromFragment('at=2,1,0,0&shift=1')")
    for batch in computed(desk, "scene", stays, state):
        assert batch == [-1] * 72 + [2] * 36 + [-1] * 36
