"""Weight and spectral normalization taken away: the weights are what they computed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as SpectralHook
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook, SpectralNormStateDictHook
from torch.nn.utils.weight_norm import WeightNorm as WeightHook

from evenorm.surgery.change import MEMORY, become
from evenorm.surgery.report import SurgeryReport
from evenorm.weights import SpectralNorm, WeightNorm

__all__ = ["plain_weights"]

_PARAMETRIZATIONS = (SpectralNorm, WeightNorm, parametrizations._SpectralNorm, parametrizations._WeightNorm)
_HOOKS = (WeightHook, SpectralHook)


def plain_weights(model: nn.Module, report: SurgeryReport) -> None:
    """Remove weight and spectral normalization, of ours and of torch's, the older kind with hooks too."""
    for path, module in list(model.named_modules()):
        name = type(module).__name__
        if parametrize.is_parametrized(module):
            kinds = [p for found in module.parametrizations.values() for p in found]
            if not all(isinstance(p, _PARAMETRIZATIONS) for p in kinds):
                report.refuse(path, name, "it has other parametrizations as well")
                continue
            _without_parametrizations(module)
        elif not _without_hooks(module):
            continue
        report.did(path, name, f"{type(module).__name__} with plain weights", "weights made plain")


def _without_parametrizations(module: nn.Module) -> None:
    """The class below the one that torch made for the parametrized module, and its weights as parameters."""
    own: Any = module
    with torch.no_grad(), _in_evaluation(module):
        weights = {name: getattr(module, name).detach().clone() for name in own.parametrizations}
    trained = {name: any(p.requires_grad for p in found.parameters()) for name, found in own.parametrizations.items()}
    plain = {name: nn.Parameter(value, requires_grad=trained[name]) for name, value in weights.items()}
    children = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    attributes = {"_parameters": {**plain, **module._parameters}, "_modules": children}
    become(module, type(module).__mro__[1], attributes)


def _without_hooks(module: nn.Module) -> bool:
    """The same for torch.nn.utils.weight_norm and spectral_norm, which compute the weight before each call."""
    found = {k: h for k, h in module._forward_pre_hooks.items() if isinstance(h, _HOOKS)}
    if not found:
        return False
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    plain: dict[str, Tensor] = {}
    for hook in found.values():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            power: Any = (False,) if isinstance(hook, SpectralHook) else ()
            plain[hook.name] = nn.Parameter(hook.compute_weight(module, *power).detach().clone())
        for suffix in ("_g", "_v", "_orig", "_u"):
            parameters.pop(hook.name + suffix, None)
            buffers.pop(hook.name + suffix, None)
    hooks = type(module._forward_pre_hooks)((k, h) for k, h in module._forward_pre_hooks.items() if k not in found)
    attributes = {"_parameters": {**plain, **parameters}, "_buffers": buffers, "_forward_pre_hooks": hooks}
    for kind in ("_state_dict_hooks", "_load_state_dict_pre_hooks"):
        kept = {k: h for k, h in getattr(module, kind).items() if not _is_of_spectral_norm(h)}
        attributes[kind] = type(getattr(module, kind))(kept)
    become(module, type(module), attributes)
    for name in plain:
        # The computed weight was a plain attribute, which would hide the parameter.
        _hide(module, name)
    return True


def _is_of_spectral_norm(hook: Any) -> bool:
    hook = getattr(hook, "hook", hook)
    return isinstance(hook, (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook))


def _hide(module: nn.Module, name: str) -> None:
    own = module.__dict__
    if name in own:
        own[MEMORY].attributes.setdefault(name, (own[name],))
        del own[name]


class _in_evaluation:
    """Power iterations happen in training alone."""

    def __init__(self, module: nn.Module) -> None:
        self.modes = [(m, m.training) for m in module.modules()]

    def __enter__(self) -> None:
        for module, _ in self.modes:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes:
            module.training = mode
