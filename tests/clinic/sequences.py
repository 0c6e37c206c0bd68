"""Padding and time: EN209, EN210."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clinic.pair import Health, pair
from evenorm.doctor import Examination, examine


def spoken(lengths: tuple[int, ...] = (20, 14, 9, 6)) -> tuple[Tensor, Tensor]:
    """Features (N, T, 8) padded with zeros, and how long each is."""
    valid = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), 8) * valid[..., None], torch.tensor(lengths)


class Transposed(nn.Module):
    """A norm over the channels of (N, C, T)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class TextEncoder(nn.Module):
    """Tacotron's: convolutions with a norm each, by lengths."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv1d(8, 12, 3, padding=1), norm, nn.Linear(12, 4)

    def forward(self, x: Tensor, input_lengths: Tensor) -> Tensor:
        valid = torch.arange(x.shape[1])[None] < input_lengths[:, None]
        y = self.norm(self.conv(x.transpose(1, 2))).relu() * valid[:, None]
        return self.out(y.transpose(1, 2)) * valid[..., None]


@pair("EN209", "Tomiinek/Multilingual_Text_to_Speech#81")
def batch_norm_over_padded_text(health: Health) -> Examination:
    norm = nn.BatchNorm1d(12) if health == "ailing" else Transposed(nn.LayerNorm(12))
    return examine(TextEncoder(norm), spoken())


class SequenceWise(nn.Module):
    """Deep Speech's: time and batch as rows."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm, self.head = nn.Linear(8, 12), norm, nn.Linear(12, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        n, t = x.shape[:2]
        y = self.norm(self.linear(x).reshape(n * t, -1)).reshape(n, t, -1).relu()
        valid = (torch.arange(t)[None] < lengths[:, None])[..., None]
        return self.head((y * valid).sum(1) / lengths[:, None])


@pair("EN209", "SeanNaren/deepspeech.pytorch#312")
def rows_of_all_frames(health: Health) -> Examination:
    return examine(SequenceWise(nn.BatchNorm1d(12) if health == "ailing" else nn.LayerNorm(12)), spoken())


@pair("EN209", "pytorch/pytorch#81985")
def instance_norm_over_padded_frames(health: Health) -> Examination:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(8, 12, 1)
            self.norm = nn.InstanceNorm1d(12) if health == "ailing" else Transposed(nn.LayerNorm(12))

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y = self.norm(self.conv(x.transpose(1, 2)))
            return (y * attention_mask[:, None]).sum(-1) / attention_mask.sum(1, keepdim=True)

    x, lengths = spoken()
    mask = (torch.arange(x.shape[1])[None] < lengths[:, None]).long()
    return examine(Features().eval(), {"x": x, "attention_mask": mask}, intent="infer")


class CausalConv(nn.Module):
    """A convolution that is padded on the left."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (2, 0)))


class CumulativeNorm(nn.Module):
    """Conv-TasNet's cLN."""

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[1] * torch.arange(1, x.shape[2] + 1, device=x.device)
        mean = (x.sum(1).cumsum(-1) / count)[:, None]
        square = (x.square().sum(1).cumsum(-1) / count)[:, None]
        return (x - mean) * (square - mean.square() + 1e-5).rsqrt()


@pair("EN210", "RookieJunChen/FullSubNet-plus#5")
def speech_enhancement_over_the_whole_utterance(health: Health) -> Examination:
    norm = nn.GroupNorm(1, 12) if health == "ailing" else CumulativeNorm()
    model = nn.Sequential(CausalConv(8, 12), norm, nn.PReLU(), CausalConv(12, 8))
    return examine(model.eval(), torch.randn(2, 8, 24), causal=True, intent="infer")


@pair("EN210", "Andong-Li-speech/GaGNet#2")
def instance_norm_in_a_streaming_network(health: Health) -> Examination:
    norm = nn.InstanceNorm1d(12, affine=True) if health == "ailing" else nn.BatchNorm1d(12)
    model = nn.Sequential(CausalConv(8, 12), norm, nn.PReLU(), CausalConv(12, 8))
    if health == "healed":
        for _ in range(40):
            model(torch.randn(4, 8, 24))
    return examine(model.eval(), torch.randn(2, 8, 24), causal=True, intent="infer")


class VideoBlock(nn.Module):
    """A causal video encoder's block: (N, C, T, H, W)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv3d(3, 8, 3), norm, nn.Conv3d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(nn.functional.pad(x, (1, 1, 1, 1, 2, 0)))
        return self.out(self.norm(y).relu())


class ChannelNorm(nn.Module):
    """An RMS norm over channels, as the Wan autoencoder has."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.gamma


@pair("EN210", "Wan-Video/Wan2.1#294")
def group_norm_in_a_causal_video_encoder(health: Health) -> Examination:
    norm = nn.GroupNorm(2, 8) if health == "ailing" else ChannelNorm(8)
    return examine(VideoBlock(norm).eval(), torch.randn(1, 3, 8, 6, 6), causal=True, intent="infer")
