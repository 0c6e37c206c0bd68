"""Every rule fires on its ailing specimens and on none of its healthy ones, in every dress."""

import pytest

from doctor_models import dressed
from evenorm.doctor.documentation import index, page
from evenorm.doctor.rule import HEADINGS, Rule, rules
from evenorm.doctor.specimens import examined

ALL = [pytest.param(rule, id=rule.code) for rule in rules()]


@pytest.mark.parametrize("rule", ALL)
def test_fires_on_the_ailing(rule: Rule) -> None:
    missed = [(what, found.notes) for what, found in dressed(rule.ailing, rule.code) if rule.code not in found.codes]
    assert not missed
    assert list(rule.ailing())


@pytest.mark.parametrize("rule", ALL)
def test_is_silent_on_the_healthy(rule: Rule) -> None:
    blamed = [(what, str(f), found.notes) for what, found in dressed(rule.healthy, rule.code) for f in found]
    assert not blamed
    assert list(rule.healthy())


@pytest.mark.parametrize("rule", ALL)
def test_no_rule_stumbles(rule: Rule) -> None:
    for specimens in (rule.ailing, rule.healthy):
        for specimen in specimens():
            found = examined(specimen, specimen.model, rule.code)
            assert not [note for note in found.notes if rule.code in note]


@pytest.mark.parametrize("rule", ALL)
def test_a_fix_heals(rule: Rule) -> None:
    for specimen in rule.ailing():
        options = specimen.options(specimen.model)
        found = examined(specimen, specimen.model, rule.code, options)
        # A loop runs again with an optimizer of its own.
        if specimen.loop is None and found.fix():
            left = examined(specimen, specimen.model, rule.code, options)
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


def test_a_page_has_what_the_rule_really_says() -> None:
    rule = next(rule for rule in rules() if rule.code == "EN112")
    text = page(rule)
    assert "error EN112 momentum=0.99 keeps 0.01 of the past" in text
    assert "[pytorch/vision#8250](https://github.com/pytorch/vision/issues/8250)" in text
    assert text.count("## ") == len(HEADINGS) + 2
    several = page(next(rule for rule in rules() if rule.code == "EN109"))
    assert "[pytorch/pytorch#1206](https://github.com/pytorch/pytorch/issues/1206) [pytorch/pytorch#90342](" in several
    assert "[EN112](en112.md)" in index()
