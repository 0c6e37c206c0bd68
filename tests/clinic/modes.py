"""Training, evaluation and frozen parts: EN101–EN105."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from clinic.networks import Images, Rows, Still, images, rows, sgd, step
from clinic.pair import Health, pair
from evenorm.doctor import Examination, Monitor, examine


@pair("EN101", "csinva/gan-vae-pretrained-pytorch#2")
def samples_of_a_trained_generator(health: Health) -> Examination:
    generator = nn.Sequential(nn.Linear(5, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6), nn.Tanh())
    if health == "healed":
        generator.eval()
    return examine(generator, torch.randn(8, 5), intent="infer")


@pair("EN101", "samet-akcay/ganomaly#56")
def anomaly_scores_of_a_test_set(health: Health) -> Examination:
    model = Images()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in images():
            step(model, optimizer, x, y)
        if health == "healed":
            model.eval()
        with torch.no_grad():
            for x, _ in images(2):
                model(x)
    return monitor.examination()


@pair("EN101", "TyXe-BDL/TyXe#21")
def predictive_samples_between_epochs(health: Health) -> Examination:
    model = Rows()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for _ in range(2):
            model.train()
            for x, y in rows():
                step(model, optimizer, x, y)
            if health == "healed":
                model.eval()
            with torch.inference_mode():
                model(torch.randn(16, 6))
    return monitor.examination()


@pair("EN101", "ando-khachatryan/HiDDeN#13")
def a_decoder_served_one_message_at_a_time(health: Health) -> Examination:
    decoder = Images()
    for x, _ in images(40):
        decoder(x)
    if health == "healed":
        decoder.eval()
    return examine(decoder, torch.randn(4, 3, 8, 8), intent="infer")


@pair("EN102", "ultralytics/ultralytics#14829")
def a_warm_up_with_empty_memory(health: Health) -> Examination:
    model = Images()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        if health == "healed":
            model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, 8, 8))
        model.train()
        for x, y in images():
            step(model, optimizer, x, y)
    return monitor.examination()


@pair("EN102", "princeton-vl/pytorch_stacked_hourglass#44")
def a_loss_that_is_only_logged(health: Health) -> Examination:
    model = Images()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for x, y in images():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if health == "ailing":
                model(x.flip(3)).mean()
            optimizer.step()
    return monitor.examination()


@pair("EN102", "HorizonRobotics/alf#629", also=("EN117",))
def a_target_network_by_hand(health: Health) -> Examination:
    class Normalized(nn.Module):
        """Observations normalized by their running statistics."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(6))
            self.register_buffer("running_var", torch.ones(6))
            self.running_mean: Tensor
            self.running_var: Tensor

        def forward(self, x: Tensor) -> Tensor:
            if self.training or health == "ailing":
                with torch.no_grad():
                    self.running_mean.lerp_(x.mean(0), 0.1)
                    self.running_var.lerp_(x.var(0), 0.1)
            return (x - self.running_mean) * (self.running_var + 1e-5).rsqrt()

    policy = nn.Sequential(Normalized(), nn.Linear(6, 2))
    return examine(policy, torch.randn(8, 6))


@pair("EN103", "tk-rusch/coRNN#1")
def no_train_after_the_test(health: Health) -> Examination:
    model = Rows()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        for epoch in range(3):
            if epoch == 0 or health == "healed":
                model.train()
            for x, y in rows(2):
                step(model, optimizer, x, y)
            model.eval()
            with torch.no_grad():
                model(torch.randn(16, 6))
    return monitor.examination()


@pair("EN103", "ThilinaRajapakse/simpletransformers#941")
def a_pretrained_model_as_it_comes(health: Health) -> Examination:
    class Pretrained(nn.Module):
        """What a hub returns: in evaluation mode, with dropout."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 4))
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Pretrained()
    optimizer = sgd(model)
    with Monitor(model, optimizer) as monitor:
        if health == "healed":
            model.train()
        for x, y in rows():
            step(model, optimizer, x, y)
    return monitor.examination()


@pair("EN103", "autogluon/autogluon#4965")
def a_restored_checkpoint_goes_on(health: Health) -> Examination:
    model = Images()
    model.eval()
    if health == "healed":
        model.train()
    return examine(model, next(images())[0], optimizer=sgd(model))


@pair("EN104", "chemprop/chemprop#952")
def a_frozen_encoder(health: Health) -> Examination:
    model = Images()
    model.features.requires_grad_(False)
    if health == "healed":
        model.features = Still(model.features)
    return examine(model, next(images())[0], intent="finetune", optimizer=sgd(model))


@pair("EN104", "isht7/pytorch-deeplab-resnet#39")
def frozen_first_stage(health: Health) -> Examination:
    class Segmenter(nn.Module):
        """A frozen stem below a trained part."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.rest = Images().features, nn.Conv2d(8, 4, 3)
            self.stem.requires_grad_(False)

        def train(self, mode: bool = True) -> Segmenter:
            super().train(mode)
            if health == "healed":
                self.stem.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.stem(x))

    return examine(Segmenter().train(), next(images())[0])


@pair("EN105", "pgniewko/gt-pyg#112", also=("EN104",))
def frozen_before_the_first_epoch(health: Health) -> Examination:
    model = Images()
    optimizer = sgd(model)

    def freeze() -> None:
        model.features.requires_grad_(False)
        model.features.eval()

    freeze()
    with Monitor(model, optimizer) as monitor:
        for epoch in range(2):
            if epoch:
                model.train()
                if health == "healed":
                    freeze()
            for x, y in images(2):
                step(model, optimizer, x, y)
    return monitor.examination()


@pair("EN105", "Lightning-AI/pytorch-lightning#14277")
def a_module_that_freezes_itself_once(health: Health) -> Examination:
    class Finetuner(nn.Module):
        """Its trainer calls train() before every epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Images()
            self.freeze()

        def freeze(self) -> None:
            self.net.features.requires_grad_(False)
            self.net.features.eval()

        def train(self, mode: bool = True) -> Finetuner:
            super().train(mode)
            if health == "healed":
                self.freeze()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return examine(Finetuner(), next(images())[0], intent="finetune")


@pair("EN104", "pytorch/pytorch#86590")
def a_teacher_of_another_width(health: Health) -> Examination:
    class Distilled(nn.Module):
        """A frozen teacher that is registered beside its student."""

        def __init__(self) -> None:
            super().__init__()
            teacher = Images(width=12).requires_grad_(False)
            self.student, self.teacher = Images(), teacher if health == "ailing" else Still(teacher)

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x) - self.teacher(x)

    return examine(Distilled(), next(images())[0])


@pair("EN101", "soumith/dcgan.torch#19")
def a_grid_of_samples_every_epoch(health: Health) -> Examination:
    generator = nn.Sequential(nn.Linear(5, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6))
    optimizer = sgd(generator)
    fixed = torch.randn(8, 5)
    with Monitor(generator, optimizer) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            generator(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
            sampler = deepcopy(generator).eval() if health == "healed" else generator
            with torch.no_grad():
                sampler(fixed)
    return monitor.examination()
