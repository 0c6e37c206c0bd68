"""Half precision, eps and conventions of weights: EN501–EN507, EN701, EN705."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from clinic.networks import Language, tokens
from clinic.pair import Health, pair
from evenorm.doctor import Examination, examine


class LlamaNorm(nn.Module):
    """Llama's, with or without its upcast."""

    def __init__(self, width: int, eps: float = 1e-6, *, upcast: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon, self.upcast = eps, upcast

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        x = hidden_states.float() if self.upcast else hidden_states
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(dtype)


class GemmaNorm(nn.Module):
    """Gemma's, whose weight is stored without its one."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class TeaNorm(nn.Module):
    """A layer norm by hand, of the kind that early BERT ports had."""

    def __init__(self, width: int, eps: float = 1e-12, *, upcast: bool = False) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.variance_epsilon, self.upcast = eps, upcast

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.float() if self.upcast else x
        u = x.mean(-1, keepdim=True)
        s = (x - u).pow(2).mean(-1, keepdim=True)
        return (self.gamma * ((x - u) / torch.sqrt(s + self.variance_epsilon)) + self.beta).to(dtype)


class Decoder(nn.Module):
    """Embedding, two residual blocks with a norm each, a last norm and a head."""

    def __init__(self, *norms: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.norms = nn.ModuleList(norms)
        self.mlps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in norms[1:])
        self.head = nn.Linear(width, 16, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embed(ids)
        for norm, mlp in zip(self.norms, self.mlps, strict=False):
            x = x + mlp(norm(x)).relu()
        return self.head(self.norms[-1](x))


def trained(model: nn.Module, middle: float) -> nn.Module:
    """Weights of norms as training leaves them."""
    for name, parameter in model.named_parameters():
        if "norms" in name and parameter.dim() == 1:
            parameter.data = middle + 0.15 * torch.randn(parameter.shape)
    return model


@pair("EN501", "deepspeedai/DeepSpeed#581")
def a_bert_port_in_half(health: Health) -> Examination:
    norms = [TeaNorm(32, eps=1e-12 if health == "ailing" else 1e-5) for _ in range(3)]
    model = Decoder(*norms).half().eval()
    # It squares in float16 too, as such ports did.
    return examine(model, tokens(), intent="infer", ignore=["EN502"])


@pair("EN501", "wenet-e2e/wenet#907")
def an_export_in_half_stores_zero(health: Health) -> Examination:
    model = Language().half().eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12 if health == "ailing" else 1e-5
    return examine(model, tokens(), intent="export")


@pair("EN501", "huggingface/diffusers#13316")
def an_rms_norm_guards_nothing(health: Health) -> Examination:
    norms = [LlamaNorm(32, eps=1e-8, upcast=health == "healed") for _ in range(3)]
    return examine(Decoder(*norms).half().eval(), tokens(), intent="infer", ignore=["EN502"])


@pair("EN502", "meta-llama/llama#1048")
def an_rms_norm_without_upcast(health: Health) -> Examination:
    norms = [LlamaNorm(32, eps=1e-5, upcast=health == "healed") for _ in range(3)]
    return examine(Decoder(*norms).half().eval(), tokens(), intent="infer")


@pair("EN502", "pytorch/pytorch#66707")
def a_layer_norm_squares_in_half(health: Health) -> Examination:
    norms = [TeaNorm(32, eps=1e-5, upcast=health == "healed") for _ in range(3)]
    return examine(Decoder(*norms).half().eval(), tokens(), intent="infer")


@pair("EN505", "huggingface/transformers#40796")
def zero_centered_weights_in_a_plain_norm(health: Health) -> Examination:
    kind = LlamaNorm if health == "ailing" else GemmaNorm
    model = trained(Decoder(*(kind(32) for _ in range(3))), 0.0)
    return examine(model.eval(), tokens(), intent="infer")


@pair("EN505", "ggml-org/llama.cpp#5810")
def one_was_added_by_the_converter_too(health: Health) -> Examination:
    model = Decoder(*(GemmaNorm(32) for _ in range(3)))
    reference = trained(Decoder(*(GemmaNorm(32) for _ in range(3))), 0.4)
    model.load_state_dict(reference.state_dict())
    if health == "ailing":
        with torch.no_grad():
            for norm in model.norms:
                next(norm.parameters()).add_(1)
    return examine(model.eval(), tokens(), reference=reference.eval(), intent="infer")


@pair("EN505", "utensils/mold#1078")
def a_checkpoint_of_the_other_convention(health: Health) -> Examination:
    model = Decoder(*(LlamaNorm(32) for _ in range(3)))
    state = trained(Decoder(*(GemmaNorm(32) for _ in range(3))), 0.0).state_dict()
    if health == "healed":
        state = {name: t + 1 if "norms" in name else t for name, t in state.items()}
    return examine(model, tokens(), state_dict=state, intent="finetune")


class FrozenBatchNorm2d(nn.Module):
    """Torchvision's, of the time when it had no eps."""

    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.rand(n) + 0.5)
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.randn(n) * 0.1)
        self.register_buffer("running_var", torch.rand(n) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w, b, m, v = (self.get_buffer(k)[:, None, None] for k in ("weight", "bias", "running_mean", "running_var"))
        scale = w * (v + self.eps).rsqrt()
        return x * scale + (b - m * scale)


@pair("EN507", "pytorch/vision#2190")
def a_frozen_backbone_without_eps(health: Health) -> Examination:
    eps = 0.0 if health == "ailing" else 1e-5
    model = nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8, eps), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    return examine(model, torch.randn(4, 3, 8, 8), intent="finetune")


@pair("EN507", "torchcvnn/torchcvnn#32")
def an_eps_that_is_an_argument_and_nothing_more(health: Health) -> Examination:
    class Standardize(nn.Module):
        def __init__(self, width: int, eps: float = 1e-5) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

        def forward(self, x: Tensor) -> Tensor:
            centered = x - x.mean(-1, keepdim=True)
            variance = centered.square().mean(-1, keepdim=True) + (self.eps if health == "healed" else 0.0)
            return self.weight * centered / variance.sqrt()

    return examine(Decoder(*(Standardize(32) for _ in range(3))), tokens())


@pair("EN507", "pytorch/pytorch#173337")
def a_layer_norm_with_eps_zero(health: Health) -> Examination:
    model = Language()
    model.ln_f.eps = 0.0 if health == "ailing" else 1e-5
    return examine(model, tokens())


@pair("EN701", "Lightning-AI/lit-llama#339")
def a_port_of_llama_2_keeps_the_eps_of_llama(health: Health) -> Examination:
    model = Decoder(*(LlamaNorm(32, eps=1e-6 if health == "ailing" else 1e-5) for _ in range(3)))
    return examine(model.eval(), tokens(), config=SimpleNamespace(rms_norm_eps=1e-5), intent="infer")


@pair("EN701", "huggingface/transformers#585")
def torch_s_default_for_bert_s(health: Health) -> Examination:
    model = Language().eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if health == "ailing" else 1e-12
    return examine(model, tokens(), config={"layer_norm_eps": 1e-12, "hidden_size": 8}, intent="infer")


@pair("EN705", "huggingface/transformers#143")
def one_initializer_for_all_parameters(health: Health) -> Examination:
    model = Decoder(*(nn.LayerNorm(32) for _ in range(3)))
    for parameter in model.parameters():
        if health == "ailing" or parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, 0.02)
    return examine(model, tokens())


@pair("EN705", "mosaicml/llm-foundry#1745")
def memory_of_the_meta_device_is_never_written(health: Health) -> Examination:
    with torch.device("meta"):
        model = Decoder(*(nn.LayerNorm(32) for _ in range(3)))
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) or (health == "healed" and isinstance(module, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, nn.LayerNorm):
            # What is in fresh memory differs from run to run; zeros are the commonest.
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    # Scales of zero are a constant output too.
    return examine(model, tokens(), ignore=["EN203"])


@pair("EN705", "NVIDIA/TransformerEngine#2528")
def ones_where_one_is_added(health: Health) -> Examination:
    model = Decoder(*(GemmaNorm(32) for _ in range(3)))
    if health == "ailing":
        for norm in model.norms:
            nn.init.ones_(next(norm.parameters()))
    return examine(model, tokens())
