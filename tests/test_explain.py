"""`explain`: the drawing, the numbers, the kernels' answers, and the verb."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import evenorm
from evenorm import Frozen, Norm, Pattern, PatternError, Running, explain
from evenorm.cli import app
from evenorm.explain.drawing import Drawing, spell_out
from evenorm.explain.sizing import layer_named
from evenorm.kernels import KernelError

# Name, shape, statistics, values per statistic, parameters, bytes of history.
LAYERS = [
    ("BatchNorm1d", (32, 64), 64, 32, 128, 520),
    ("BatchNorm2d", (32, 64, 28, 28), 64, 25_088, 128, 520),
    ("BatchNorm3d", (2, 4, 3, 5, 5), 4, 150, 8, 40),
    ("GhostBatchNorm2d", (32, 64, 28, 28), 128, 12_544, 128, 520),
    ("GroupNorm", (8, 64, 56, 56), 256, 6_272, 128, 0),
    ("InstanceNorm2d", (8, 64, 56, 56), 512, 3_136, 0, 0),
    ("LayerNorm", (8, 128, 768), 1_024, 768, 1_536, 0),
    ("LayerNorm2d", (8, 64, 56, 56), 25_088, 64, 128, 0),
    ("RMSNorm", (8, 128, 768), 1_024, 768, 768, 0),
    ("RMSNorm2d", (8, 64, 7, 7), 392, 64, 64, 0),
]


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["explain", *arguments], env={"COLUMNS": "80"})


@pytest.mark.parametrize(("name", "shape", "statistics", "values", "parameters", "history"), LAYERS)
def test_numbers(
    name: str, shape: tuple[int, ...], statistics: int, values: int, parameters: int, history: int
) -> None:
    found = explain(layer_named(name, shape), shape)
    assert (found.statistics, found.values) == (statistics, values)
    assert (found.parameters, found.history_bytes) == (parameters, history)


@pytest.mark.parametrize("name", [name for name, *_ in LAYERS])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fits_80_columns(name: str, channels_last: bool) -> None:
    shape = next(shape for known, shape, *_ in LAYERS if known == name)
    text = str(explain(layer_named(name, shape), shape, channels_last=channels_last))
    assert max(map(len, text.splitlines())) <= 80


def statistic_of_each(pattern: Pattern, shape: tuple[int, ...]) -> Tensor:
    """The number of each element's statistic, by broadcasting."""
    binding = pattern.bind(shape)
    numbers = torch.arange(max(torch.Size(binding.statistics_shape).numel(), 1))
    return numbers.reshape(binding.keepdim_shape).expand(binding.shape).reshape(shape)


# Shapes so small that every element has its cell.
@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("[n] c [...]", (2, 3, 4)),
        ("n c [...]", (2, 3, 4)),
        ("... [d]", (2, 3, 4)),
        ("n [c] l", (2, 3, 4)),
        ("[n] c l", (2, 3, 4)),
        ("n (g=2 [c]) [...]", (2, 4, 3)),
        ("n ([g] c=2) l", (2, 4, 3)),
        ("(k [n=2]) c [...]", (4, 2, 3)),
        ("n c (h=2 [d])", (1, 2, 4)),
        ("[n] c", (3, 4)),
        ("[...]", (4,)),
    ],
)
def test_equal_letters_are_equal_statistics(pattern: str, shape: tuple[int, ...]) -> None:
    parsed = Pattern.parse(pattern)
    drawing = Drawing.of(parsed, shape)
    headers = len(drawing.blocks)
    labels = sum(len(f"{part.name} 0  ") for part in drawing.rows) or 2
    lines = str(drawing).splitlines()[headers:]
    letters = [cell for line in lines for cell in line[labels:].split()]
    # Read line by line: rows, then blocks, then columns.
    sizes = [edge_size(edge) for edge in (drawing.blocks, drawing.rows, drawing.columns)]
    numbers = statistic_of_each(parsed, shape).reshape(sizes).transpose(0, 1).flatten().tolist()
    assert len(letters) == len(numbers)
    pairs = set(zip(letters, numbers, strict=True))
    assert len(pairs) == len(set(letters)) == len(set(numbers))
    assert letters[0] == "■"


def edge_size(edge: Any) -> int:
    return torch.Size([part.size for part in edge]).numel()


def test_drawing_of_batch_norm() -> None:
    assert str(Drawing.of(Pattern.parse("[n] c [...]"), (32, 64, 28, 28))).splitlines() == [
        "      n 0         n 1         n 2         …   n 31",
        "c 0   ■ ■ ■ … ■   ■ ■ ■ … ■   ■ ■ ■ … ■   …   ■ ■ ■ … ■",
        "c 1   A A A … A   A A A … A   A A A … A   …   A A A … A",
        "c 2   B B B … B   B B B … B   B B B … B   …   B B B … B",
        "⋮     ⋮           ⋮           ⋮           …   ⋮",
        "c 63  C C C … C   C C C … C   C C C … C   …   C C C … C",
    ]


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("a [b] c [d] e [f]", (9, 9, 9, 9, 9, 9)),
        ("(a=9 [b]) (c=9 [d]) (e=9 [f])", (81, 81, 81)),
        ("[n] c [h] w", (200, 1_000, 56, 56)),
        ("a_very_long_name another_very_long_name [d]", (1_000_000, 1_000_000, 8)),
    ],
)
def test_wide_drawings_are_cut_into_bands(pattern: str, shape: tuple[int, ...]) -> None:
    assert max(map(len, str(Drawing.of(Pattern.parse(pattern), shape)).splitlines())) <= 80


def test_axes_have_one_line() -> None:
    assert "n 32 reduced | c 64 kept | h·w 784 reduced" in str(explain("[n] c [...]", (32, 64, 28, 28)))


@pytest.mark.parametrize(
    ("pattern", "rank", "spelled"),
    [
        ("[n] c [...]", 2, "[n] c"),
        ("[n] c [...]", 3, "[n] c [l]"),
        ("[n] c [...]", 5, "[n] c [d h w]"),
        ("n d [...]", 5, "n d [i j k]"),
        ("... [i]", 3, "j k [i]"),
        ("n [c] h w", 4, "n [c] h w"),
    ],
)
def test_the_ellipsis_is_spelled_out(pattern: str, rank: int, spelled: str) -> None:
    assert str(spell_out(Pattern.parse(pattern), rank)) == spelled


def test_plan_follows_memory() -> None:
    layer = evenorm.GroupNorm(32, 64)
    first, last = (explain(layer, (8, 64, 56, 56), channels_last=flag) for flag in (False, True))
    assert "batch 1 × outer 1 × group 256 × inner 6,272" in str(first)
    assert "batch 8 × outer 3,136 × group 32 × inner 2" in str(last)
    assert (first.memory_format, last.memory_format) == ("contiguous", "channels last")


def test_a_view_keeps_its_strides() -> None:
    query = torch.randn(2, 5, 24, 64).chunk(3, dim=2)[0]
    found = explain("b t h [d]", query)
    assert found.memory_format == "strides (7680, 1536, 64, 1)"
    assert "copied" not in str(found)
    assert "copied into it" in str(explain("[n] c [h] w", (2, 3, 4, 5)))


def test_no_plan_has_a_reason() -> None:
    found = explain("([a] b=2) ([c] d=2) ([e] f=2)", (4, 4, 4))
    assert isinstance(found.plan, str)
    assert f"none: {found.plan}" in " ".join(str(found).split())
    assert found.to_dict()["plan"] is None


def test_evaluation_uses_the_history() -> None:
    layer = evenorm.GhostBatchNorm2d(64, virtual_batch_size=16)
    training = explain(layer, (32, 64, 7, 7))
    evaluation = explain(layer.eval(), (32, 64, 7, 7))
    assert (training.statistics, evaluation.statistics) == (128, 64)
    assert "in this call: this batch" in str(training).replace("\n         ", " ")
    assert "in this call: the running average" in str(evaluation).replace("\n         ", " ")


def test_a_short_last_chunk_is_told() -> None:
    layer = evenorm.GhostBatchNorm1d(8, virtual_batch_size=16)
    found = explain(layer, (35, 8))
    assert (found.shape, found.statistics) == ((32, 8), 16)
    assert "The other 3 make a short one: 8 more statistics of 3 values each." in found.note
    alone = explain(layer, (3, 8))
    assert (alone.statistics, alone.values) == (8, 3)


def test_a_lone_sample_gets_its_axis() -> None:
    found = explain(layer_named("InstanceNorm2d", (64, 28, 28)), (64, 28, 28))
    assert (found.shape, found.statistics, found.values) == ((1, 64, 28, 28), 64, 784)


def test_kernels_that_decline_say_why() -> None:
    found = explain(evenorm.LayerNorm(8), torch.empty(4, 8, device="meta"))
    answers = dict(found.candidates)
    assert found.chosen == "eager"
    assert answers["cpu"] is not None
    assert f"declines: {answers['cpu']}" in " ".join(str(found).split())


def test_a_kernel_can_be_named() -> None:
    assert "chosen, asked for by name" in str(explain(evenorm.LayerNorm(8), (4, 8), kernel="eager"))
    empty = explain("n [d]", (0, 8), kernel="cpu")
    assert empty.chosen is None
    assert "the call fails" in str(empty)
    with pytest.raises(KernelError, match="there is no kernel 'cuda'"):
        explain("n [d]", (4, 8), kernel="cuda")


def test_a_transform_takes_eager() -> None:
    found = []

    def look(x: Tensor) -> Tensor:
        found.append(explain("n [d]", x))
        return x.sum()

    torch.func.grad(look)(torch.randn(4, 8))
    assert found[0].chosen == "eager"
    assert dict(found[0].candidates)["eager"] is None
    assert all(reason for name, reason in found[0].candidates if name != "eager")


def test_nothing_changes() -> None:
    layer = evenorm.BatchNorm2d(3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(2, 3, 4, 4)
    kept = x.clone()
    explain(layer, x, kernel="eager")
    assert layer.kernel is None
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_takes_the_layers_dtype() -> None:
    assert explain(evenorm.LayerNorm(8, dtype=torch.bfloat16), (4, 8)).dtype is torch.bfloat16
    assert explain("n [d]", (4, 8), dtype=torch.float16).dtype is torch.float16


@pytest.mark.parametrize(
    ("statistics", "source"), [(Running(0.1), "running average (momentum 0.1)"), (Frozen(), "frozen")]
)
def test_source_is_named(statistics: Any, source: str) -> None:
    layer = Norm("[n] c [...]", c=3, statistics=statistics)
    assert source in str(explain(layer, (4, 3, 5)))


@pytest.mark.parametrize("shape", [(), (0, 3, 4), (1, 1, 1), (5,)])
def test_degenerate_shapes_print(shape: tuple[int, ...]) -> None:
    text = str(explain("[...]", shape))
    assert ("nothing to draw" in text) == (0 in shape)


def test_rich_shows_the_same_text() -> None:
    found = explain("n (g [c]) [...]", (8, 64, 5, 5), g=8)
    assert found.__rich__().plain == str(found) == repr(found)


@pytest.mark.parametrize(
    ("normalizer", "x", "options", "error", "said"),
    [
        (torch.nn.BatchNorm2d(3), (2, 3, 4, 4), {}, TypeError, "expected a layer of evenorm"),
        ("n [d]", torch.zeros(2, 3, dtype=torch.long), {}, TypeError, "floating-point"),
        ("n [d]", torch.zeros(2, 3), {"dtype": torch.float32}, ValueError, "the tensor has its own"),
        ("n [d]", torch.zeros(2, 3), {"device": "cuda"}, ValueError, "the tensor has its own"),
        ("n [d]", (2, 3), {"device": "tpx"}, ValueError, "a device like cpu or cuda, got 'tpx'"),
        ("n [d]", (2, -3), {}, ValueError, "a tensor or its shape"),
        ("n [d]", (10**7, 10**7), {}, ValueError, "does not fit into memory"),
        ("n [d]", (2, 3), {"affine": "q"}, PatternError, "'q'"),
        (evenorm.LayerNorm(3), (2, 3), {"affine": "d"}, ValueError, "a layer has|has its own"),
        (evenorm.LayerNorm(3), (2, 4), {}, PatternError, "LayerNorm.*expected an axis of 3, got 4"),
        (evenorm.BatchNorm2d(3), (2, 4, 5, 5), {}, ValueError, "expected 3 channels"),
        (evenorm.BatchNorm1d(3), (1, 3), {}, ValueError, "values per statistic"),
    ],
)
def test_errors(normalizer: Any, x: Any, options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        explain(normalizer, x, **options)


def test_the_verb_says_the_numbers() -> None:
    result = command("BatchNorm2d", "--shape", "32,64,28,28")
    assert result.exit_code == 0
    for said in ("25,088 values per statistic", "64 statistics", "128 parameters"):
        assert said in result.stdout


def test_the_verb_answers_for_a_device() -> None:
    shape = ("--shape", "8,64", "--json")
    here, there = (json.loads(command("LayerNorm", *shape, "--device", name).stdout) for name in ("cpu", "cuda:1"))
    assert (here["device"], there["device"]) == ("cpu", "cuda")
    answers = {candidate["name"]: candidate["reason"] for candidate in there["candidates"]}
    assert answers["cpu"] in ("the tensor is on cuda", "the C++ extension was not built")
    result = command("--help")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "cpu or cuda, which need not be here." in result.stdout


@pytest.mark.parametrize("arguments", [("n (g [c]) [...]", "--size", "g=32"), ("GroupNorm", "--groups", "32")])
def test_the_verb_takes_patterns_and_layers(arguments: tuple[str, ...]) -> None:
    result = command(*arguments, "--shape", "8,64,56,56", "--channels-last", "--json")
    found = json.loads(result.stdout)
    assert (found["statistics"], found["values_per_statistic"]) == (256, 6_272)
    assert found["memory_format"] == "channels last"
    assert found["chosen"] in {candidate["name"] for candidate in found["candidates"]}


def test_the_verb_evaluates() -> None:
    shape = ("--shape", "32,64,7,7", "--virtual-batch-size", "8", "--json")
    training = json.loads(command("GhostBatchNorm2d", *shape).stdout)
    evaluation = json.loads(command("GhostBatchNorm2d", *shape, "--eval").stdout)
    assert (training["statistics"], evaluation["statistics"]) == (256, 64)
    assert evaluation["from_history"]


@pytest.mark.parametrize(
    ("pattern", "caret"),
    [
        ("n (g=7 [c]) [...]", "g=7"),
        ("n (g=8 [c] [...]", "..."),
        ("n [c", "[c"),
        ("n c? [h w]", "?"),
        ("n c [h]", None),
    ],
)
def test_a_wrong_pattern_gets_a_caret(pattern: str, caret: str | None) -> None:
    result = command(pattern, "--shape", "8,64,56,56")
    assert (result.exit_code, result.stdout) == (2, "")
    message, written, below = result.stderr.splitlines()
    assert "(8, 64, 56, 56)" in message
    assert written.strip() == pattern
    # Where an axis is missing, it is missing at the end.
    at = len(pattern) if caret is None else pattern.index(caret)
    assert below == " " * (written.index(pattern) + at) + "^"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("BatchNorm", "--shape", "8,4"), "choose among BatchNorm"),
        *((("BatchNorm", "--shape", "8,4"), name) for name in ("GroupNorm", "SyncBatchNorm", "RMSNorm2d")),
        (("Norm", "--shape", "8,4"), "there is no layer 'Norm'"),
        (("BatchNorm2d", "--shape", "8"), "expected (N, C, H, W)"),
        (("BatchNorm2d", "--shape", "8,x"), "--shape: expected whole numbers"),
        (("n [d]", "--shape", "8,4", "--size", "8"), "--size: expected an axis and its size"),
        (("n [d]", "--shape", "8,4", "--dtype", "half precision"), "--dtype: expected float32"),
        (("n [d]", "--shape", "8,4", "--kernel", "cuda"), "there is no kernel 'cuda'"),
        (("n [d]", "--shape", "8,4", "--device", "tpx"), "a device like cpu or cuda, got 'tpx'"),
        (("GroupNorm", "--shape", "8,48"), "num_groups must divide"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: tuple[str, ...], said: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_mask_is_counted() -> None:
    """What it leaves of each statistic, and who takes a call with it."""
    layer, mask = evenorm.InstanceNorm1d(3), torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])
    found = explain(layer, (3, 3, 5), mask=mask)
    assert found.note == (
        "The mask leaves 21 of 45 values; the others come out as zeros. A statistic has 0 to 5 of them, and 3 of 9 "
        "have none."
    )
    assert found.note.split()[0] in str(found)
    alone = explain(layer, (3, 5), mask=mask[1])
    assert alone.note.endswith(
        "The mask leaves 6 of 15 values; the others come out as zeros. A statistic has 2 to 2 of them."
    )
    ghost = evenorm.GhostBatchNorm1d(3, 2)
    assert explain(ghost, (3, 3, 5), mask=mask).note.endswith("A statistic has 7 to 7 of them.")
    assert explain(evenorm.BatchNorm1d(3).eval(), (3, 3, 5), mask=mask).note.endswith("as zeros.")
    assert "A statistic has 7 to 7" in explain("[n] c [l]", (3, 3, 5), affine="c", mask=mask).note
    with pytest.raises(ValueError, match=r"InstanceNorm1d\(3.*a mask of shape \(3, 5\)"):
        explain(layer, (3, 3, 5), mask=mask.T)
