"""ONNX's own node tests pass, but for those that `node_tests.EXCEPTIONS` lists with the reason."""

from fnmatch import fnmatchcase

import generated
import node_tests
import pytest


@pytest.mark.parametrize("operator", sorted(":".join(filter(None, key)) for key in node_tests.KNOWN))
def test_an_operator_computes_what_onnx_says(operator: str) -> None:
    domain, _, name = operator.rpartition(":")
    mine = [one for one, case in node_tests.counted().items() if (domain, name) in node_tests.operators_of(case)]
    wrong = {one: told for one in mine if (told := complaint(one))}
    assert not wrong, "\n".join(f"{one}: {told}" for one, told in wrong.items())


def complaint(name: str) -> str:
    """What is wrong with a test or with what is said of it."""
    reason = node_tests.reason(name)
    if reason == node_tests.HALF:
        return node_tests.trouble(name, node_tests.ROUNDING)
    told = node_tests.trouble(name)
    if reason is None or told:
        return told if reason is None else ""
    return f"passes, though it is listed: {reason}"


def test_every_exception_is_about_a_test_that_is_there() -> None:
    for patterns in node_tests.EXCEPTIONS.values():
        for pattern in patterns:
            assert any(fnmatchcase(name, pattern) for name in node_tests.counted()), pattern


def test_at_least_110_operators_are_claimed_and_95_percent_of_their_tests_pass() -> None:
    assert len(node_tests.KNOWN) >= 110
    assert sum(node_tests.reason(name) is not None for name in node_tests.counted()) <= 0.05 * len(node_tests.counted())


def test_the_readme_tells_the_same() -> None:
    block = generated.README.read_text().partition(generated.OPERATORS[0])[2].partition(generated.OPERATORS[1])[0]
    assert block.strip() == node_tests.section().strip(), generated.AGAIN
