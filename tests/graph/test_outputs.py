from pathlib import Path

import nets
import pytest
from onnx import helper

from modelctl.artifact import Artifact
from modelctl.data.samples import Samples
from modelctl.errors import CheckFailed, DataError
from modelctl.graph import measure, outputs, scores
from modelctl.graph.session import Session

SAMPLES = Samples({"x": nets.samples(50)[0]})


def session(folder: Path, off: float = 0.0, batch: int | str = "batch", nan: bool = False, width: int = 4) -> Session:
    """A net of three outputs: its logits, those and `off` (or their logarithm, or so many of them), their class."""
    model = nets.linear()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].MergeFrom(
            helper.make_tensor_value_info("", 1, [batch]).type.tensor_type.shape.dim[0]
        )
    model.graph.initializer.append(helper.make_tensor("off", 1, [], [off]))
    model.graph.initializer.append(helper.make_tensor("width", 7, [width], range(width)))
    model.graph.node.extend(
        [
            helper.make_node("Log" if nan else "Neg", ["logits"], ["turned"]),
            helper.make_node("Add", ["turned", "off"], ["added"]),
            helper.make_node("Gather", ["added", "width"], ["second"], axis=1),
            helper.make_node("ArgMax", ["logits"], ["third"], axis=1, keepdims=0),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("second", 1, [batch, width]))
    model.graph.output.append(helper.make_tensor_value_info("third", 7, [batch]))
    return Session(Artifact.open(nets.save(model, folder / f"net{off}{batch}{nan}{width}.onnx")).load())


@pytest.mark.parametrize("batch", ["batch", 7])
def test_each_output_but_the_scored_one_has_its_row(tmp_path: Path, batch: int | str) -> None:
    before, after = session(tmp_path, batch=batch), session(tmp_path, 0.25, batch)
    second, third = outputs.apart(before, after, SAMPLES, None)
    assert (second["output"], third["output"]) == ("second", "third")
    assert second["max_error"] == pytest.approx(0.25, rel=1e-5)
    assert (third["max_error"], third["relative_error"]) == (0, 0)
    if batch == "batch":
        told = (measure.answers(one, SAMPLES, output="second") for one in (before, after))
        assert second["relative_error"] == pytest.approx(scores.agreement(*told)["relative_error"])
    rows = outputs.apart(before, after, SAMPLES, "second")
    assert [row["output"] for row in rows] == ["logits", "third"]


def test_what_can_not_be_held_beside_each_other_is_left_out(tmp_path: Path) -> None:
    assert outputs.apart(session(tmp_path, batch=7), session(tmp_path, batch=5), SAMPLES, None) == []


def test_an_output_that_broke_is_found_though_the_first_did_not(tmp_path: Path) -> None:
    whole, broken = session(tmp_path), session(tmp_path, nan=True)
    with pytest.raises(CheckFailed, match=r"output 'second': answers NaN or infinity where the model before does not"):
        outputs.apart(whole, broken, SAMPLES, None)
    second, _ = outputs.apart(broken, broken, SAMPLES, None)
    assert second["max_error"] == 0
    with pytest.raises(DataError, match=r"'second': the two models answer differently: \[32, 4\] and \[32, 3\]"):
        outputs.apart(whole, session(tmp_path, width=3), SAMPLES, None)
