"""The doctor finds the fault of every ailing script and nothing in the healed one."""

import pytest

from clinic.pair import LEAST_PRECISION, LEAST_RECALL, Diagnosis, Pair, admitted, precision, recall


@pytest.fixture(scope="module")
def diagnoses() -> list[Diagnosis]:
    return [Diagnosis.of(pair) for pair in admitted()]


@pytest.mark.slow
def test_there_are_sixty_pairs_each_cited() -> None:
    pairs = admitted()
    assert len(pairs) >= 60
    assert len({pair.name for pair in pairs}) == len(pairs)
    assert all("/" in pair.thread for pair in pairs)


@pytest.mark.slow
def test_recall_and_precision(diagnoses: list[Diagnosis]) -> None:
    assert recall(diagnoses) >= LEAST_RECALL, [d.pair.name for d in diagnoses if not d.found]
    assert precision(diagnoses) >= LEAST_PRECISION, [alarm for d in diagnoses for alarm in d.false_alarms]


def test_a_miss_and_a_false_alarm_count() -> None:
    def script(health: str) -> object:
        raise AssertionError

    pair = Pair("EN101", "a/b#1", (), script)  # type: ignore[arg-type]
    assert recall([Diagnosis(pair, True, ()), Diagnosis(pair, False, ())]) == 0.5
    assert precision([Diagnosis(pair, True, ("healed: …",)), Diagnosis(pair, True, ())]) == 2 / 3
