"""Whose statistics they are: EN107, EN110, EN111, EN202, EN301, EN302, EN309, EN402, EN407, EN902."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from clinic.networks import Images, Language, Rows, images, rows, sgd, step
from clinic.pair import Health, pair
from evenorm.doctor import Examination, Monitor, examine


def trained(model: nn.Module, batches: int = 60) -> nn.Module:
    with torch.no_grad():
        for x, _ in images(batches) if isinstance(model, Images) else rows(batches):
            model(x)
    return model


@pair("EN107", "Lightning-AI/pytorch-lightning#15063")
def a_flag_instead_of_a_freeze(health: Health) -> Examination:
    model = trained(Images())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
            if health == "ailing":
                module.track_running_stats = False
            else:
                module.eval()
    # That train() would undo eval() is another fault.
    return examine(model, torch.randn(8, 3, 8, 8), intent="finetune", ignore=["EN104", "EN105"])


@pair("EN107", "pytorch/pytorch#37823")
def a_flag_to_ask_for_batches(health: Health) -> Examination:
    model = trained(Images()) if health == "ailing" else Images()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and health == "ailing":
            module.track_running_stats = False
        elif isinstance(module, nn.BatchNorm2d):
            model.set_submodule(path, nn.BatchNorm2d(8, track_running_stats=False))
    return examine(model, torch.randn(8, 3, 8, 8))


def loader(scale: float = 2.0) -> Any:
    return DataLoader(TensorDataset(torch.randn(256, 6) * scale + 1), 32)


@pair("EN110", "pytorch/pytorch#4741")
def a_last_epoch_of_large_steps(health: Health) -> Examination:
    model = trained(Rows())
    if health == "ailing":
        # What a large learning rate does within fewer steps than the average remembers.
        with torch.no_grad():
            next(model.parameters()).mul_(3)
    # Half a forward's answers move with it, which other rules measure too.
    return examine(model.eval(), loader=loader(), intent="infer")


@pair("EN110", "https://arxiv.org/abs/2105.07576")
def statistics_of_tiny_inputs(health: Health) -> Examination:
    model = Rows()
    with torch.no_grad():
        for _ in range(80):
            model(torch.randn(32, 6) * (0.5 if health == "ailing" else 2.0) + (0 if health == "ailing" else 1))
    return examine(model.eval(), loader=loader(), intent="infer")


@pair("EN111", "vacancy/Synchronized-BatchNorm-PyTorch#5")
def a_momentum_of_a_thousandth(health: Health) -> Examination:
    model = trained(Images(momentum=0.001 if health == "ailing" else 0.1), 80)
    return examine(model.eval(), torch.randn(8, 3, 8, 8), intent="infer")


@pair("EN111", "facebookresearch/schedule_free#60")
def a_short_recalibration(health: Health) -> Examination:
    model = Images()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and health == "healed":
            module.momentum = None
    return examine(trained(model, 10).eval(), torch.randn(8, 3, 8, 8), intent="infer")


@pair("EN202", "apple/ml-cvnets#20")
def four_values_after_pooling(health: Health) -> Examination:
    norm = nn.BatchNorm2d(8) if health == "ailing" else nn.GroupNorm(2, 8)
    pooled = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.AdaptiveAvgPool2d(2), norm, nn.Flatten(), nn.Linear(32, 4)
    )
    return examine(pooled, torch.randn(2, 3, 8, 8), batch_size=2)


@pair("EN202", "jwyang/faster-rcnn.pytorch#170")
def rows_by_fours(health: Health) -> Examination:
    data = TensorDataset(torch.randn(64, 6))
    return examine(Rows(), loader=DataLoader(data, batch_size=4 if health == "ailing" else 32))


@pair("EN301", "ultralytics/yolov5#401")
def eight_devices_with_four_rows(health: Health) -> Examination:
    data = TensorDataset(torch.randn(512, 6))
    sampler: Any = DistributedSampler(data, num_replicas=8, rank=0)
    batches = DataLoader(data, batch_size=4, sampler=sampler)
    model: nn.Module = Rows()
    if health == "healed":
        model = Rows(norm=nn.LayerNorm)
    return examine(model, loader=batches)


@pair("EN301", "fundamentalvision/BEVFormer#136")
def two_pooled_images_per_device(health: Health) -> Examination:
    data = TensorDataset(torch.randn(32, 3, 8, 8))
    sampler: Any = DistributedSampler(data, num_replicas=4, rank=0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(8)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)),
    )
    return examine(model, loader=DataLoader(data, batch_size=2 if health == "ailing" else 8, sampler=sampler))


@pair("EN302", "mlcommons/training#289")
def each_rank_saves_its_own_statistics(health: Health) -> Examination:
    ranks = [Images() for _ in range(2)]
    ranks[1].load_state_dict(ranks[0].state_dict())
    with torch.no_grad():
        for shift, model in zip((0.0, 1.0 if health == "ailing" else 0.0), ranks, strict=True):
            torch.manual_seed(1)
            for x, _ in images(60):
                model(x + shift)
    return examine(ranks[0].eval(), state_dict=[model.state_dict() for model in ranks], intent="infer")


@pair("EN302", "pytorch/pytorch#13711")
def shards_sorted_by_class(health: Health) -> Examination:
    model = Rows()
    x = torch.randn(1024, 6)
    ordered = x.sort(0).values
    states = []
    for rank in range(4):
        replica = copy.deepcopy(model)
        # Seen whole, every shard has the same statistics; sorted, each has its own.
        shard = ordered[rank * 256 :][:256] if health == "ailing" else x
        with torch.no_grad():
            for batch in shard.split(8):
                replica(batch)
        states.append(replica.state_dict())
    return examine(model.eval(), state_dict=states, intent="infer")


@pair("EN309", "NVIDIA/Megatron-LM#1446")
def sequence_parallel_norms_without_a_reduction(health: Health) -> Examination:
    model = Language()
    states = []
    for rank in range(2):
        torch.manual_seed(rank)
        state = {name: t.clone() for name, t in model.state_dict().items()}
        for name, tensor in state.items():
            if ".mix." in name or ".mlp." in name:
                state[name] = torch.randn_like(tensor)
            elif "ln" in name and health == "ailing":
                state[name] = tensor + 0.01 * torch.randn_like(tensor)
        states.append(state)
    return examine(model.eval(), state_dict=states, intent="infer")


@pair("EN309", "NVIDIA/TransformerEngine#435")
def drift_of_a_few_steps(health: Health) -> Examination:
    ranks = [Language() for _ in range(2)]
    ranks[1].load_state_dict(ranks[0].state_dict())
    for rank, model in enumerate(ranks):
        torch.manual_seed(rank if health == "ailing" else 0)
        norms = [p for name, p in model.named_parameters() if "ln" in name]
        optimizer = torch.optim.SGD(norms, lr=0.05)
        for _ in range(3):
            ids = torch.randint(16, (4, 6))
            nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return examine(ranks[0].eval(), state_dict=[model.state_dict() for model in ranks], intent="infer")


def perceptron(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), *layers, nn.Linear(32, 4))


@pair("EN402", "luigibonati/mlcolvar#205")
def dropout_before_the_batch_norm(health: Health) -> Examination:
    drop, norm = nn.Dropout(0.5), nn.BatchNorm1d(32)
    return examine(perceptron(*((drop, norm) if health == "ailing" else (norm, drop))), torch.randn(128, 6))


@pair("EN402", "arXivTimes/arXivTimes#608")
def dropout_between_blocks(health: Health) -> Examination:
    drop = nn.Dropout(0.5) if health == "ailing" else nn.Identity()
    blocks = (nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), drop)
    again = (nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
    return examine(perceptron(*blocks, *again), torch.randn(128, 6))


class Pyramid(nn.Module):
    """A detector's head over three levels."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(i, 8, 3, stride=2, padding=1) for i in (3, 8, 8))
        self.tower = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(norms))
        self.score = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = []
        for level, stage in enumerate(self.stages):
            x = stage(x).relu()
            y = self.norms[level % len(self.norms)](self.tower(x)).relu()
            scores.append(self.score(y).flatten(2))
        return torch.cat(scores, 2)


@pair("EN407", "open-mmlab/mmdetection#6515")
def a_head_shared_by_levels(health: Health) -> Examination:
    return examine(Pyramid(1 if health == "ailing" else 3), torch.randn(8, 3, 32, 32) + 0.5)


class Recurrent(nn.Module):
    """A cell whose state grows from step to step, with one norm or one per step."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.cell = nn.Linear(6, 8, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(norms))
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        y = torch.zeros(len(x), 8)
        for time in range(x.shape[1]):
            total = total + x[:, time]
            y = y + self.norms[time % len(self.norms)](self.cell(total)).tanh()
        return self.out(y)


@pair("EN407", "keras-team/keras#8794")
def one_norm_for_all_time_steps(health: Health) -> Examination:
    return examine(Recurrent(1 if health == "ailing" else 4), torch.randn(64, 4, 6) + 0.5)


def evaluated(model: nn.Module, x: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        model(x)
    model.train()


@pair("EN902", "IsoNet-cryoET/IsoNet2#33")
def two_half_maps_in_turn(health: Health) -> Examination:
    model = Images()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in images():
            other = 3 * torch.randn_like(x) - 1
            optimizer.zero_grad()
            batches = [x, other] if health == "ailing" else [torch.cat([x, other])]
            scores = torch.cat([model(batch) for batch in batches])
            nn.functional.cross_entropy(scores, y.repeat(2)).backward()
            optimizer.step()
        evaluated(model, x)
    return monitor.examination()


@pair("EN902", "eriklindernoren/PyTorch-GAN#135")
def source_and_target_domain(health: Health) -> Examination:
    model = Rows()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for source, y in rows():
            target = torch.randn_like(source) * 0.2 - 3
            optimizer.zero_grad()
            if health == "ailing":
                loss = nn.functional.cross_entropy(model(source), y) + model(target).square().mean()
            else:
                first, second = model(torch.cat([source, target])).chunk(2)
                loss = nn.functional.cross_entropy(first, y) + second.square().mean()
            loss.backward()
            optimizer.step()
        evaluated(model, source)
        step(model, optimizer, source, y)
    return monitor.examination()
