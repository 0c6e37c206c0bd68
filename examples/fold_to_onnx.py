"""Fold a trained network, write it as ONNX, and run it in onnxruntime.

    python examples/fold_to_onnx.py [file.onnx]

Needs onnxruntime, and what pip install 'evenorm[export]' brings. The same from the command line:

    evenorm fold mypackage.models:build --input 1,3,32,32 --state-dict weights.safetensors --out folded.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import torch
from torch import nn

import evenorm


def network() -> nn.Sequential:
    """Depthwise-separable convolutions, as mobile networks have them."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, bias=False),
        evenorm.BatchNorm2d(16, activation="relu"),
        nn.Conv2d(16, 16, 3, groups=16, bias=False),
        evenorm.BatchNorm2d(16),
        nn.Conv2d(16, 32, 1, bias=False),
        evenorm.BatchNorm2d(32, activation="hardswish"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def main(file: Path = Path("folded.onnx")) -> float:
    """Fold, write, run; return the largest difference between onnxruntime's answer and the network's."""
    torch.manual_seed(0)
    model = network()
    model(torch.randn(64, 3, 32, 32) + 1)  # stands for a training: it moves the running statistics
    model.eval()
    example = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(example)
        folded, report = evenorm.fold(model, example, inplace=False, report=True)
        print(report)
        torch.onnx.export(
            folded,
            (example,),
            str(file),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: "batch"},),
            external_data=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    (answer,) = session.run(None, {given: example.numpy()})
    difference = float((torch.from_numpy(answer) - expected).abs().max())
    print(f"{file}: {file.stat().st_size:,} bytes, differs by {difference:.1e}")
    return difference


if __name__ == "__main__":
    main(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
