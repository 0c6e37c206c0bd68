"""Every rule fires on its ailing specimens and on none of its healthy ones, in every dress."""

import pytest

from doctor_models import dresses, examined
from evenorm.doctor.rule import HEADINGS, Rule, rules

ALL = [pytest.param(rule, id=rule.code) for rule in rules()]


@pytest.mark.parametrize("rule", ALL)
def test_fires_on_the_ailing(rule: Rule) -> None:
    specimens = list(rule.ailing())
    assert specimens
    for specimen in specimens:
        for dress, model in dresses(specimen):
            found = examined(specimen, model, rule.code)
            assert rule.code in found.codes, f"{rule.code} misses {specimen.about!r} {dress}: {found.notes}"


@pytest.mark.parametrize("rule", ALL)
def test_is_silent_on_the_healthy(rule: Rule) -> None:
    specimens = list(rule.healthy())
    assert specimens
    for specimen in specimens:
        for dress, model in dresses(specimen):
            found = examined(specimen, model, rule.code)
            assert not found.findings, f"{rule.code} fires on {specimen.about!r} {dress}: {found.findings[0]}"
            assert not any(rule.code in note for note in found.notes), found.notes


@pytest.mark.parametrize("rule", ALL)
def test_a_fix_heals(rule: Rule) -> None:
    for specimen in rule.ailing():
        found = examined(specimen, specimen.model, rule.code)
        if found.fix():
            left = examined(specimen, specimen.model, rule.code)
            assert len(left) < len(found), f"{rule.code}: the fix of {specimen.about!r} heals nothing"


@pytest.mark.parametrize("rule", ALL)
def test_reads_like_every_rule(rule: Rule) -> None:
    assert list(rule.texts) == list(HEADINGS)
    assert all(rule.texts.values())
    assert rule.title
    assert not rule.title.endswith(".")


def test_codes_are_unique() -> None:
    codes = [rule.code for rule in rules()]
    assert codes == sorted(set(codes))
