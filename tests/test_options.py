"""Options refuse what makes no sense, in the words of the flag that was typed."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import options
from modelctl.errors import UsageError
from modelctl.knobs import Options, fields_of, granted_threads, knobs
from modelctl.options import (
    DistillOptions,
    EncryptOptions,
    ExportOptions,
    Method,
    PruneOptions,
    QuantizeOptions,
    VerifyOptions,
)

CLASSES = [one for _, one in inspect.getmembers(options, inspect.isclass) if issubclass(one, Options)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_is_a_knob_with_a_text(cls: type[Options]) -> None:
    for name, mark in knobs(cls).items():
        assert mark.text
        assert not mark.text.endswith(".")
        assert mark.text[0].islower() or not mark.text[1].islower() or mark.text.startswith(("Ed", "RSA", "AES")), name
        assert mark.flag_of(name).startswith("--")
        assert mark.variable_of(name).replace("_", "").isalnum()


@pytest.mark.parametrize("cls", CLASSES)
def test_flags_and_variables_are_each_one_fields(cls: type[Options]) -> None:
    flags = [part for name, mark in knobs(cls).items() for part in mark.flag_of(name).split("/")]
    assert len(set(flags)) == len(flags)
    variables = [mark.variable_of(name) for name, mark in knobs(cls).items()]
    assert len(set(variables)) == len(variables)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_repeatable_field_has_a_flag_in_the_singular(cls: type[Options]) -> None:
    for name, (kind, mark) in fields_of(cls).items():
        if str(kind).startswith("tuple"):
            assert name.endswith("s")
            assert mark.flag is not None
            assert not mark.flag.endswith("s") or mark.flag.endswith("ss")
            assert mark.text.partition(";")[2].strip().startswith("repeatable"), name


def test_variables_go_by_flags() -> None:
    assert knobs(QuantizeOptions)["per_channel"].variable_of("per_channel") == "MODELCTL_PER_CHANNEL"
    assert knobs(EncryptOptions)["recipients"].variable_of("recipients") == "MODELCTL_RECIPIENT"


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_is_finite(cls: type[Options], value: float) -> None:
    for name, (kind, mark) in fields_of(cls).items():
        if "float" in str(kind):
            with pytest.raises(UsageError, match="must be") as caught:
                cls.parse({name: value})
            assert caught.value.message.startswith(mark.flag_of(name))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_number_keeps_to_its_range(cls: type[Options]) -> None:
    for name, (hint, mark) in fields_of(cls).items():
        kind = float if "float" in str(hint) else int
        for value in ([mark.low - 1] if mark.low is not None else []) + ([mark.high + 1] if mark.high else []):
            with pytest.raises(UsageError, match=f"^{mark.flag_of(name)} .*must be"):
                cls.parse({name: kind(value)})


def test_plain_values_become_options() -> None:
    given_options = QuantizeOptions.parse({"method": "dynamic", "max_drop": 1, "data": "x.npz", "op_types": ["Conv"]})
    assert given_options == QuantizeOptions(method=Method.DYNAMIC, max_drop=1.0, data="x.npz", op_types=("Conv",))
    assert VerifyOptions.parse({"roots": ["a.pt"]}).roots == (Path("a.pt"),)
    assert ExportOptions.parse({"weights": "w.pt"}).weights == Path("w.pt")


@pytest.mark.parametrize(
    ("values", "trouble"),
    [
        ({"bitz": 8}, "unknown option: bitz"),
        ({"bits": "8"}, "--bits: expected `int | null`, got `str`"),
        ({"bits": True}, "--bits: expected `int | null`, got `bool`"),
        ({"bits": 8.5}, "--bits: expected `int | null`"),
        ({"bits": 1}, "--bits 1: must be 2 to 16"),
        ({"bits": 3}, "--bits 3: weight-only takes 4 or 8"),
        ({"bits": 4, "method": "dynamic", "data": "d.npz"}, "--bits 4: dynamic takes 8"),
        ({"method": "static"}, "--method static needs samples to calibrate on"),
        ({"method": "qat"}, "--method qat needs samples to learn from"),
        ({"method": "float16", "excludes": ["a"]}, "--op-type and --exclude do not go with float16"),
        ({"min_agreement": 0.9}, "--min-agreement needs samples"),
        ({"fraction_bits": 3}, "--fraction-bits belongs to fixed-point"),
        ({"plot": "f.png"}, "--plot f.png: only .svg is drawn"),
        ({"method": "magic"}, "--method: invalid enum value 'magic'"),
        ({"op_types": "Conv"}, "--op-type: expected `array`, got `str`"),
        ({"op_types": ["Conv", 3]}, "--op-type: expected `str`, got `int`"),
        ({"annotations": ["novalue"]}, "--annotate novalue: not key=value"),
        ({"annotations": ["=x"]}, "--annotate =x: not key=value"),
        ({"annotations": ["a=\x1b[2J"]}, "can't be printed"),
        ({"max_drop": 1}, "--max-drop needs samples"),
        ({"seed": -1}, "--seed -1: must be 0 to"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_flag(values: dict[str, Any], trouble: str) -> None:
    with pytest.raises(UsageError) as caught:
        QuantizeOptions.parse(values)
    assert trouble in caught.value.message


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=3))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CLASSES), st.data())
def test_any_plain_values_are_options_or_a_usage_error(cls: type[Options], data: st.DataObject) -> None:
    values = data.draw(st.dictionaries(st.sampled_from(sorted(knobs(cls))), plain, max_size=4))
    try:
        made = cls.parse(values)
    except UsageError:
        return
    assert isinstance(made, cls)


def test_impossible_combinations_are_refused() -> None:
    for cls, values in (
        (PruneOptions, {}),
        (PruneOptions, {"sparsity": 0.5, "keep": 3}),
        (DistillOptions, {"data": "x"}),
        (DistillOptions, {"student": "a:b"}),
        (EncryptOptions, {}),
        (EncryptOptions, {"passphrase": "prompt", "recipients": ["k"]}),
    ):
        with pytest.raises(UsageError):
            cls.parse(values)


def test_threads_are_those_asked_for_or_granted() -> None:
    assert QuantizeOptions(threads=3).thread_count() == 3
    assert QuantizeOptions().thread_count() == granted_threads() >= 1
