"""Architectures of transformers, built from small configurations with random weights: nothing is downloaded."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import evenorm
from evenorm.surgery.fixed import is_normalizer
from evenorm.surgery.proof import Inputs, observe, prove, tensors
from evenorm.surgery.writing import write

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
pytest.importorskip("transformers", reason="transformers is in the extra evenorm[bench]")

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = {"vocab_size": 64, **SMALL}


def pixels(side: int = 32, batch: int = 2) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, side, side)}


def words() -> dict[str, Tensor]:
    return {"input_ids": torch.arange(16).reshape(2, 8)}


def mobile(version: int) -> nn.Module:
    return make(f"MobileNetV{version}:ForImageClassification", depth_multiplier=0.25, classifier_dropout_prob=0.0)


def make(name: str, **options: Any) -> nn.Module:
    import transformers

    family, _, head = name.partition(":")
    config = getattr(transformers, f"{family}Config")(**options)
    config.use_cache = False
    model: nn.Module = getattr(transformers, f"{family}{head}")(config)
    return model


IMAGES, CAUSAL = "ForImageClassification", "ForCausalLM"
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "ResNet": (lambda: make(f"ResNet:{IMAGES}", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2]), pixels),
    "RegNet": (
        lambda: make(f"RegNet:{IMAGES}", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8),
        pixels,
    ),
    "MobileNetV1": (
        lambda: make(f"MobileNetV1:{IMAGES}", depth_multiplier=0.25, classifier_dropout_prob=0.0),
        lambda: pixels(64, 8),
    ),
    "MobileNetV2": (
        lambda: make(f"MobileNetV2:{IMAGES}", depth_multiplier=0.25, classifier_dropout_prob=0.0),
        lambda: pixels(64, 8),
    ),
    "EfficientNet": (
        lambda: make(
            f"EfficientNet:{IMAGES}", width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, dropout_rate=0.0
        ),
        lambda: pixels(64, 8),
    ),
    "ConvNeXt": (
        lambda: make(f"ConvNext:{IMAGES}", hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        lambda: pixels(64),
    ),
    "Swin": (
        lambda: make(
            f"Swin:{IMAGES}", image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
        ),
        pixels,
    ),
    "ViT": (lambda: make(f"ViT:{IMAGES}", image_size=32, patch_size=8, **SMALL), pixels),
    "BERT": (lambda: make("Bert:ForSequenceClassification", **WORDS), words),
    "GPT-2": (
        lambda: make("GPT2:LMHeadModel", vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0),
        words,
    ),
    "Llama": (lambda: make(f"Llama:{CAUSAL}", num_key_value_heads=2, **WORDS), words),
    "Gemma": (lambda: make(f"Gemma:{CAUSAL}", num_key_value_heads=2, head_dim=8, **WORDS), words),
    "wav2vec 2.0": (
        lambda: make(
            "Wav2Vec2:ForCTC",
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            apply_spec_augment=False,
            **WORDS,
        ),
        lambda: {"input_values": torch.randn(2, 400)},
    ),
}
# So that the losses of ten steps move by more than they may differ. Two networks are chaotic at ordinary rates: see
# test_chaotic_at_ordinary_rates.
RATE = 1e-2
RATES = {"ResNet": 1e-4, "RegNet": 1e-4, "EfficientNet": 0.1, "MobileNetV1": 1e-7, "MobileNetV2": 1e-8}
# What is fused of each; where a residual is added before the normalization nothing can be.
FUSED = {
    "ResNet": (10, 3),
    "RegNet": (7, 2),
    "MobileNetV1": (27, 0),
    "MobileNetV2": (35, 10),
    "EfficientNet": (14, 0),
    "wav2vec 2.0": (1, 0),
}
FAST = ("ResNet", "Gemma")
ALL = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MODELS]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def trained(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model whose normalizers are not fresh."""
    build, example = MODELS[name]
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(mean := getattr(module, "running_mean", None), Tensor):
                mean.normal_(0, 0.2)
                module.get_buffer("running_var").uniform_(0.5, 2)
            if is_normalizer(module):
                for parameter in module.parameters(recurse=False):
                    parameter.add_(torch.rand_like(parameter) - 0.5)
    return model, example()


def first(output: Any) -> Tensor:
    return next(iter(tensors(output)))


def holds(before: nn.Module, after: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    inputs = Inputs.of(batch)
    return prove(observe(before, inputs), observe(after, inputs), before, inputs).holds


def losses(model: nn.Module, batch: Mapping[str, Tensor], rate: float) -> list[float]:
    """Of ten steps of gradient descent."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=rate)
    found = []
    for step in range(10):
        torch.manual_seed(step)
        optimizer.zero_grad()
        logits = first(model(**batch)).flatten(0, -2)
        loss = F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1])
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def drift(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_accelerated(name: str) -> None:
    model, batch = trained(name)
    plain = copy.deepcopy(model)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    norms = [m for m in model.modules() if is_normalizer(m)]
    _, report = evenorm.accelerate(model, batch, report=True)
    assert report.count("replaced") == len(norms) > 0
    assert not [row for row in report.refused if row.before.endswith("Norm")]
    assert (report.count("activations fused"), report.count("adds fused")) == FUSED.get(name, (0, 0))
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert holds(plain, model, batch)

    rate = RATES.get(name, RATE)
    theirs, ours = (losses(one, batch, rate) for one in (plain, model))
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert max(theirs) - min(theirs) > 1e-4 * theirs[0], "they move by more than they may differ"
    evenorm.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV1", "MobileNetV2"])
def test_chaotic_at_ordinary_rates(name: str) -> None:
    """Torch against itself, each parameter moved by one rounding, drifts as far as ours: a thousandfold of 1e-4."""
    model, batch = trained(name)
    plain = losses(copy.deepcopy(model), batch, 1e-4)
    own = []
    for seed in range(2):
        moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in moved.parameters():
                p.mul_(1 + torch.finfo(p.dtype).eps * (torch.randint(0, 2, p.shape, generator=generator) * 2 - 1))
        own.append(drift(losses(moved, batch, 1e-4), plain))
    assert min(own) > 1e-2
    assert drift(losses(evenorm.accelerate(model, batch), batch, 1e-4), plain) < 4 * max(own)


@pytest.mark.parametrize("name", ALL)
def test_folded(name: str) -> None:
    model, batch = trained(name)
    model.eval()
    folded, report = evenorm.fold(model, batch, inplace=False, report=True)
    assert report.proof is None or report.proof.holds
    assert holds(model, folded, batch)
    batch_norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    # Every batch norm of these architectures stands directly behind its convolution.
    assert report.count("folded") == batch_norms
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.filterwarnings("ignore")
def test_folded_in_onnxruntime(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra evenorm[dev]")
    model, batch = trained(name)
    folded = evenorm.fold(model.eval(), batch)
    written = write(folded, Inputs.of(batch), tmp_path / "folded.onnx")
    assert written.batch == "any", written
    session = onnxruntime.InferenceSession(str(tmp_path / "folded.onnx"), providers=["CPUExecutionProvider"])
    # One of the numbers is not the example's.
    for samples in (2, 5):
        given = {key: t[torch.arange(samples) % len(t)].roll(1, 0) for key, t in batch.items()}
        expected = first(folded(**given)).detach()
        fed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given.values(), strict=True)}
        found = torch.from_numpy(session.run(None, fed)[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
def test_counts_of_resnet_50() -> None:
    model = make(f"ResNet:{IMAGES}")
    _, report = evenorm.accelerate(model, pixels(64), report=True)
    assert report.count("replaced") == 53
    assert report.count("adds fused") == 16
    # The stem's, and three in each of 16 blocks, the last one after the addition.
    assert report.count("activations fused") == 1 + 16 * 3
    assert not report.refused
