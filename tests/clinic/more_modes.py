"""More of modes, averages and loads, in other surroundings: one-dimensional, recurrent, generative."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from clinic.networks import Images, Rows, Still, images, rows, sgd, step
from clinic.pair import Health, pair
from evenorm.doctor import Examination, Monitor, examine


@pair("EN102", "m2lines/Samudra#572")
def the_shape_of_the_output_is_asked_first(health: Health) -> Examination:
    model = nn.Sequential(nn.Conv1d(2, 8, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 2, 3))
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        model.train(health == "ailing")
        with torch.no_grad():
            model(torch.ones(1, 2, 16)).shape[-1]
        model.train()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 2, 16)).square().mean().backward()
            optimizer.step()
    return monitor.examination()


@pair("EN103", "shubhamagarwal92/mmd#14")
def evaluation_inside_the_epoch(health: Health) -> Examination:
    model = Rows()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for number, (x, y) in enumerate(rows(6)):
            step(model, optimizer, x, y)
            if number == 1:
                model.eval()
                with torch.no_grad():
                    model(x)
                model.train(health == "healed")
    return monitor.examination()


@pair("EN103", "Lightning-AI/pytorch-lightning#19820", also=("EN108",))
def a_part_that_came_asleep(health: Health) -> Examination:
    model = Images().eval()
    if health == "healed":
        model.train()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in images():
            step(model, optimizer, x, y)
    return monitor.examination()


@pair("EN104", "lightly-ai/lightly#1438")
def a_frozen_projector(health: Health) -> Examination:
    class Probe(nn.Module):
        """A frozen encoder with its projector, and a linear probe."""

        def __init__(self) -> None:
            super().__init__()
            body = Rows().body.requires_grad_(False)
            self.encoder, self.probe = body if health == "ailing" else Still(body), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.probe(self.encoder(x))

    model = Probe()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in rows():
            step(model, optimizer, x, y)
    return monitor.examination()


@pair("EN105", "poppinace/indexnet_matting#35")
def frozen_norms_in_the_constructor(health: Health) -> Examination:
    class Matting(nn.Module):
        """Its constructor freezes all batch norms."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Images()
            self.freeze()

        def freeze(self) -> None:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
                    module.requires_grad_(False)

        def train(self, mode: bool = True) -> Matting:
            super().train(mode)
            if health == "healed":
                self.freeze()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = Matting()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for epoch in range(2):
            if epoch:
                model.train()
            for x, y in images(2):
                step(model, optimizer, x, y)
    return monitor.examination(ignore=["EN104"])


@pair("EN108", "HomericIntelligence/Odyssey#5543")
def a_constant_class(health: Health) -> Examination:
    model = Images()
    optimizer = sgd(model)
    for x, y in images(40):
        step(model, optimizer, x, y)
    saved = model.state_dict()
    if health == "ailing":
        fresh = Images().state_dict()
        saved = {name: fresh[name] if "running" in name else value for name, value in saved.items()}
    return examine(Images(), next(images())[0], state_dict=saved)


@pair("EN109", "pytorch/pytorch#1206")
def a_single_value_s_variance(health: Health) -> Examination:
    model = Rows()
    for x, _ in rows(40):
        model(x)
    if health == "ailing":
        norm = model.body.get_submodule("1")
        assert isinstance(norm.running_var, Tensor)
        norm.running_var.lerp_(torch.randn(1, 8).var(0), 0.1)
    return examine(model.eval(), next(rows())[0], intent="infer")


@pair("EN112", "Cadene/pretrained-models.pytorch#44")
def inception_s_momentum(health: Health) -> Examination:
    norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.9 if health == "ailing" else 0.1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.ReLU())
    return examine(model, next(images())[0], intent="finetune")


@pair("EN201", "huaifeng1993/DFANet#9")
def an_attention_over_channels(health: Health) -> Examination:
    class Gate(nn.Module):
        """Scales channels by what their pooled values say."""

        def __init__(self) -> None:
            super().__init__()
            norm = nn.BatchNorm1d(8) if health == "ailing" else nn.LayerNorm(8)
            self.pooled = nn.Sequential(nn.Linear(3, 8, bias=False), norm, nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.pooled(x.mean((2, 3)))[:, :, None, None]

    return examine(Gate(), next(images())[0], batch_size=1)


@pair("EN401", "4uiiurz1/pytorch-nested-unet#39")
def a_nested_block(health: Health) -> Examination:
    bias = health == "ailing"

    class Nested(nn.Module):
        """Two scales that meet in one norm."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8)
            self.second = nn.Conv2d(11, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.cat([x, self.norm(self.first(x)).relu()], 1))

    return examine(Nested(), next(images())[0])


@pair("EN602", "huggingface/transformers#42769")
def a_test_by_class_that_misses_one(health: Health) -> Examination:
    class Scale(nn.Module):
        """An RMS norm by hand."""

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.gain

    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8), Scale(), nn.Linear(8, 2))
    kinds: tuple[type[nn.Module], ...] = (nn.LayerNorm,) if health == "ailing" else (nn.LayerNorm, Scale)
    norms = [p for module in model.modules() if isinstance(module, kinds) for p in module.parameters()]
    spared = {id(p) for p in norms}
    rest = [p for p in model.parameters() if id(p) not in spared]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return examine(model, torch.randn(8, 6), optimizer=torch.optim.AdamW(groups))


@pair("EN607", "pytorch/ignite#2590")
def weights_averaged_over_the_last_epochs(health: Health) -> Examination:
    model = Rows()
    optimizer = sgd(model)
    average = deepcopy(model)
    kept = list(rows(60, 64))
    for number, (x, y) in enumerate(kept):
        step(model, optimizer, x, y)
        if number >= 40:
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 1 / (number - 39))
    if health == "healed":
        update_bn([x for x, _ in kept], average)
    return examine(average.eval(), kept[0][0], reference=model, intent="infer", ignore=["EN108"])


@pair("EN607", "mosaicml/composer#624")
def stochastic_weight_averaging(health: Health) -> Examination:
    kept = [x * 3 + 5 for x, _ in rows(30, 64)]
    model = Rows()
    average = AveragedModel(model)
    for _ in range(3):
        average.update_parameters(model)
    if health == "healed":
        update_bn(kept, average)
    return examine(average.eval(), kept[0], intent="infer", ignore=["EN108"])
