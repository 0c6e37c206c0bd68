"""No error and no warning on healthy architectures; what is left is a true finding and listed."""

import pytest
from torch.nn.utils.parametrize import is_parametrized

from doctor_architectures import ARCHITECTURES, FAMILIES, TRUE_FINDINGS, TRUE_WHEN_SERVED, batch, build
from evenorm.doctor import Examination, examine

pytest.importorskip("transformers", reason="the architectures are transformers'")

# One of each family in the fast tests.
FAST = ("Llama", "Gemma", "Bert", "ResNet", "Wav2Vec2")


def loud(found: Examination) -> set[str]:
    return {f.code for f in found if f.severity != "info"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in ARCHITECTURES]
)
@pytest.mark.filterwarnings("ignore")
def test_a_healthy_architecture_is_called_healthy(name: str) -> None:
    model = build(name)
    trained = examine(model.train(), batch(name))
    assert loud(trained) == TRUE_FINDINGS.get(name, set()), [str(f) for f in trained]
    served = examine(model.eval(), batch(name), intent="infer")
    assert loud(served) == TRUE_WHEN_SERVED.get(name, set()), [str(f) for f in served]
    assert not [*trained.notes, *served.notes]


def test_every_family_of_the_surgery_is_there_and_more_than_fifty_others() -> None:
    assert set(FAMILIES) <= set(ARCHITECTURES)
    assert len(set(ARCHITECTURES) - set(FAMILIES) - set(TRUE_FINDINGS)) >= 50


@pytest.mark.filterwarnings("ignore")
def test_wav2vec_has_its_weight_norm() -> None:
    assert any(is_parametrized(module) for module in build("Wav2Vec2").modules())
