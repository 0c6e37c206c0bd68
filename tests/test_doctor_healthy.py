"""No error and no warning on healthy architectures; what is left is a true finding and listed."""

import pytest

from doctor_architectures import ARCHITECTURES, TRUE_FINDINGS, batch, build
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
    assert not trained.notes
    served = examine(model.eval(), batch(name), intent="infer")
    assert not loud(served) - TRUE_FINDINGS.get(name, set()) - {"EN505"}, [str(f) for f in served]


def test_there_are_more_than_fifty() -> None:
    assert len(ARCHITECTURES) - len(TRUE_FINDINGS) >= 50
