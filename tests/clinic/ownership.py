"""Normalizers that nobody owns or trains, and deep post-norm: EN116, EN405, EN603."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clinic.networks import Images, Language, tokens
from clinic.pair import Health, pair
from evenorm.doctor import Examination, examine


@pair("EN116", "pytorch/pytorch#46818", also=("EN115",))
def built_where_it_is_used(health: Health) -> Examination:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            norm = nn.BatchNorm2d(8) if health == "ailing" else self.norm
            return norm(x).relu().mean((2, 3))

    model = Block()
    if health == "ailing":
        del model.norm
    return examine(model, torch.randn(4, 3, 8, 8))


@pair("EN116", "pytorch/pytorch#20875")
def a_plain_list_of_norms(health: Health) -> Examination:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(6, 6)
            norms = [nn.LayerNorm(6) for _ in range(3)]
            self.norms = norms if health == "ailing" else nn.ModuleList(norms)

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = x + norm(self.cell(x)).tanh()
            return x

    return examine(Steps(), torch.randn(4, 6))


@pair("EN405", "pytorch/pytorch#55270")
def torch_s_encoder_at_full_speed(health: Health) -> Examination:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if health == "healed":
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=400)
    return examine(model, torch.randn(4, 6, 8), optimizer=optimizer)


@pair("EN405", "LiyuanLucasLiu/Transformer-Clinic#16")
def a_cosine_from_its_peak(health: Health) -> Examination:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=health == "healed")
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    return examine(model, torch.randn(4, 6, 8), optimizer=optimizer)


@pair("EN603", "package/torchtest2")
def an_optimizer_from_before_the_exchange(health: Health) -> Examination:
    model = Images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(path, nn.GroupNorm(2, 8))
    if health == "healed":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return examine(model, torch.randn(4, 3, 8, 8), optimizer=optimizer)


@pair("EN603", "package/torchtest2")
def only_matrices_were_collected(health: Health) -> Examination:
    model = Language()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": matrices}]
    if health == "healed":
        groups.append({"params": [p for p in model.parameters() if p.dim() == 1]})
    return examine(model, tokens(), optimizer=torch.optim.SGD(groups, lr=0.1))
