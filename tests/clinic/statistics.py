"""Running statistics that are lost, broken, or kept by nobody: EN108–EN117, EN607, EN702, EN703."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clinic.networks import Images, Rows, images, rows, sgd, step
from clinic.pair import Health, pair
from evenorm.doctor import Examination, Monitor, examine


def _trained(batches: int = 40) -> Images:
    model = Images()
    optimizer = sgd(model)
    for x, y in images(batches):
        step(model, optimizer, x, y)
    return model


@pair("EN108", "fedbiomed/fedbiomed#903")
def a_federated_average_of_parameters(health: Health) -> Examination:
    clients = [_trained(), _trained()]
    server = Images()
    average = server.parameters() if health == "ailing" else server.state_dict().values()
    parts: list[Any] = [c.parameters() if health == "ailing" else c.state_dict().values() for c in clients]
    with torch.no_grad():
        for target, *values in zip(average, *parts, strict=True):
            target.copy_(torch.stack([v.float() for v in values]).mean(0))
    return examine(server.eval(), next(images())[0], intent="infer")


@pair("EN108", "torch/nn#1165")
def a_reload_of_the_parameters(health: Health) -> Examination:
    trained = _trained()
    saved = dict(trained.named_parameters()) if health == "ailing" else trained.state_dict()
    model = Images()
    model.load_state_dict(saved, strict=False)
    return examine(model.eval(), next(images())[0], intent="infer")


@pair("EN109", "pytorch/pytorch#90342", also=("EN108",))
def an_overflow_under_mixed_precision(health: Health) -> Examination:
    model = _trained()
    x = next(images())[0]
    if health == "ailing":
        x[0, 0, 0, 0] = torch.inf
    # The scaler would skip the optimizer's step; the pass has happened all the same.
    model(x)
    return examine(model.eval(), next(images())[0], intent="infer")


@pair("EN109", "facebookresearch/SparseConvNet#190")
def a_checkpoint_with_nan(health: Health) -> Examination:
    state = deepcopy(_trained().state_dict())
    if health == "ailing":
        state["features.1.running_var"][0] = torch.nan
    return examine(Images(), state_dict=state)


@pair("EN112", "pytorch/vision#8250")
def a_ported_vision_transformer(health: Health) -> Examination:
    return examine(Images(momentum=0.99 if health == "ailing" else 0.01), next(images())[0])


@pair("EN112", "kazuto1011/deeplab-pytorch#79")
def caffe_s_moving_average_fraction(health: Health) -> Examination:
    decay = 0.9997
    return examine(Images(momentum=decay if health == "ailing" else 1 - decay), next(images())[0])


@pair("EN112", "r9y9/tacotron_pytorch#19")
def a_ported_text_to_speech(health: Health) -> Examination:
    norm = nn.BatchNorm1d(8, momentum=0.99 if health == "ailing" else 0.01, eps=1e-3)
    bank = nn.Sequential(nn.Conv1d(4, 8, 3, bias=False), norm, nn.ReLU())
    return examine(bank, torch.randn(4, 4, 12))


@pair("EN112", "huggingface/transformers#19454")
def a_ported_mobile_network(health: Health) -> Examination:
    model = Images(momentum=0.997 if health == "ailing" else 0.003)
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in images():
            step(model, optimizer, x, y)
    return monitor.examination()


@pair("EN114", "xu-ji/IIC#49")
def clusters_without_running_statistics(health: Health) -> Examination:
    norm = nn.BatchNorm2d(8, track_running_stats=health == "healed")
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.ReLU()).train()
    for x, _ in images(40):
        model(x)
    x = next(images())[0] * torch.arange(1.0, 9).view(8, 1, 1, 1)
    return examine(model.eval(), x, intent="infer")


@pair("EN115", "AntreasAntoniou/HowToTrainYourMAMLPytorch#3")
def an_inner_loop_s_batch_norm(health: Health) -> Examination:
    class Inner(nn.Module):
        """Weights come from outside in the inner loop, so the norm is functional."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6))
            self.register_buffer("mean", torch.zeros(8))
            self.register_buffer("variance", torch.ones(8))
            self.mean: Tensor
            self.variance: Tensor

        def forward(self, x: Tensor) -> Tensor:
            training = True if health == "ailing" else self.training
            return functional.batch_norm(x @ self.weight.T, self.mean, self.variance, training=training)

    return examine(Inner().eval(), torch.randn(8, 6) * torch.arange(1.0, 9).view(8, 1), intent="infer")


@pair("EN117", "pyg-team/pytorch_geometric#9647", also=("EN211",))
def a_graph_norm_over_all_graphs(health: Health) -> Examination:
    class Nodes(nn.Module):
        """Normalizes nodes over features, and over all that is in the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            axes = (0, 1, 2) if health == "ailing" else (1, 2)
            variance, mean = torch.var_mean(x, axes, keepdim=True)
            return (x - mean) * (variance + 1e-5).rsqrt() * self.weight

    graphs = torch.randn(4, 5, 6) * torch.arange(1.0, 5).view(4, 1, 1)
    return examine(nn.Sequential(nn.Linear(6, 8), Nodes(), nn.Linear(8, 2)).eval(), graphs, intent="infer")


@pair("EN607", "fadel/pytorch_ema#13", also=("EN108",))
def an_ema_of_the_parameters(health: Health) -> Examination:
    model = Rows()
    average, optimizer = deepcopy(model), sgd(model)
    for x, y in rows(60):
        step(model, optimizer, x, y)
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            if health == "healed":
                for kept, moved in zip(average.buffers(), model.buffers(), strict=True):
                    kept.copy_(moved)
    return examine(average.eval(), next(rows(1, 256))[0], reference=model, intent="infer")


@pair("EN607", "CuriousAI/mean-teacher#9", also=("EN108",))
def a_teacher_that_never_saw_a_batch(health: Health) -> Examination:
    student = Images()
    teacher, optimizer = deepcopy(student), sgd(student)
    for x, y in images(40):
        step(student, optimizer, x, y)
        with torch.no_grad():
            if health == "healed":
                teacher.train()(x)
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.2)
    return examine(teacher.eval(), next(images(1, 32))[0], reference=student, intent="infer")


@pair("EN702", "huggingface/peft#1732")
def only_what_is_trained_is_saved(health: Health) -> Examination:
    model = _trained()
    saved = dict(model.named_parameters()) if health == "ailing" else model.state_dict()
    return examine(Images(), state_dict=saved)


@pair("EN702", "NVIDIA/DIGITS#496")
def a_checkpoint_of_weights(health: Health) -> Examination:
    kept = ("weight", "bias") if health == "ailing" else ("",)
    saved = {name: value for name, value in _trained().state_dict().items() if name.endswith(kept)}
    return examine(Images(), state_dict=saved)


@pair("EN703", "pytorch/pytorch#8430")
def a_prefix_that_is_not_taken_off(health: Health) -> Examination:
    model = Images()
    saved = {f"encoder.{name}": value for name, value in _trained().state_dict().items()}
    if health == "healed":
        saved = {name.removeprefix("encoder."): value for name, value in saved.items()}
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        model.load_state_dict(saved, strict=False)
        for x, y in images():
            step(model, optimizer, x, y)
    return monitor.examination()


@pair("EN703", "2231122/PCOD#8")
def a_backbone_under_another_name(health: Health) -> Examination:
    saved = _trained().state_dict()
    if health == "ailing":
        saved = {name.replace("features", "backbone"): value for name, value in saved.items()}
    return examine(Images(), state_dict=saved)
