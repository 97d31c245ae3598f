"""What is typed for `--preprocess` and `--postprocess`: the entries that it spells, and what does not fit a graph."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import chains
from modelctl.chains import spelling
from modelctl.errors import UsageError
from modelctl.manifest import TensorSpec
from modelctl.options import ExportOptions
from modelctl.processing import fitting


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


PICTURE = spec("x", "n", 1, 28, 28)


def before(*texts: str, inputs: tuple[TensorSpec, ...] = (PICTURE,)) -> Any:
    return fitting.settled_before(spelling.parse("preprocess", texts), inputs)


def after(*texts: str, outputs: tuple[TensorSpec, ...] = (spec("y", "n", 3),)) -> Any:
    return fitting.settled_after(spelling.parse("postprocess", texts), (), (PICTURE,), outputs)


def test_what_is_not_said_is_found_in_the_graph() -> None:
    assert before("image") == (chains.Image(input="x", height=28, width=28, color="gray"),)
    (found,) = before("image", inputs=(spec("x", "n", 224, 200, 3, dtype="uint8"),))
    assert (found.layout, found.color, found.height, found.width, found.scale) == ("nhwc", "rgb", 224, 200, 1.0)
    (found,) = before("image", inputs=(spec("x", "n", 28, 20),))
    assert (found.layout, found.color, found.height, found.width) == ("nhw", "gray", 28, 20)
    (found,) = before("image:16x10", inputs=(spec("x", "n", 480),))
    assert (found.layout, found.color) == ("flat", "rgb")
    (found,) = before("image:32x32,rgb", inputs=(spec("x", "n", "c", "h", "w"),))
    assert (found.layout, found.color, found.height) == ("nchw", "rgb", 32)
    (found,) = before("image:3x5,nchw", inputs=(spec("x", "n", 3, "h", "w"),))
    assert (found.height, found.width, found.color) == (3, 5, "rgb")


def test_every_word_of_a_picture() -> None:
    text = "image:224x192,rgb,crop=256,bicubic,scale=1/128,mean=0.5:1/2:0.25,std=imagenet,invert,background=255,nhwc"
    (found,) = before(text, inputs=(spec("a", "n", "h", "w", 3), ))  # fmt: skip
    assert found == chains.Image(
        input="a",
        height=224,
        width=192,
        color="rgb",
        fit="crop",
        shorter=256,
        filter="bicubic",
        scale=1 / 128,
        mean=(0.5, 0.5, 0.25),
        std=(0.229, 0.224, 0.225),
        invert=True,
        background=255,
        layout="nhwc",
    )


def test_several_inputs_are_named() -> None:
    inputs = (PICTURE, spec("row", "n", 2))
    found = before("image:input=x", "table:age,pay", inputs=inputs)
    assert [one.input for one in found] == ["x", "row"]
    with pytest.raises(UsageError, match="which input is it for"):
        before("image", inputs=inputs)
    with pytest.raises(UsageError, match="nothing makes input 'row'"):
        before("image:input=x", inputs=inputs)
    with pytest.raises(UsageError, match="made twice"):
        before("image:input=x", "image:input=x")


@pytest.mark.parametrize(
    ("text", "inputs", "words"),
    [
        ("image:32x32", (PICTURE,), "makes float32[N,1,32,32], and the model takes x:float32[n,1,28,28]"),
        ("image:rgb", (PICTURE,), "makes float32[N,3,28,28]"),
        ("image", (spec("x", "n", 3, "h", "w"),), "leaves its size open: say image:HEIGHTxWIDTH"),
        ("image", (spec("x", "n", 784),), "leaves its size open"),
        ("image:scale=1/255", (spec("x", "n", 1, 8, 8, dtype="uint8"),), "which can't hold"),
        ("image:input=z", (PICTURE,), "the model has no input 'z'; it takes x"),
        ("image:4x4", (spec("x", "n", 16, dtype="string"),), "makes numbers, and the model takes x:string[n,16]"),
        ("table:a,b", (spec("x", "n", 3),), "makes float32[N,2], and the model takes x:float32[n,3]"),
        ("table:a,a", (spec("x", "n", 2),), "a name stands twice"),
        ("table", (spec("x", "n", 2),), "missing required field `columns`"),
        ("table:a=mean", (spec("x", "n", 2),), "more than a column's name is told in a .toml file"),
        ("picture", (PICTURE,), "'picture' is not image, table or text"),
        ("image:28", (PICTURE,), "what is '28'?"),
        ("image:blurred", (PICTURE,), "what is 'blurred'?"),
        ("image:0x5", (PICTURE,), "height: expected `int` >= 1"),
        ("image:mean=a", (PICTURE,), "'mean=a': not a number"),
        ("image:scale=1/0", (PICTURE,), "not a number"),
        ("image:mean=0.5:0.5", (PICTURE,), "2 numbers for"),
        ("image:std=0", (PICTURE,), "a std of 0"),
        ("image:scale=nan", (PICTURE,), "not a finite number"),
        ("image:background=300", (PICTURE,), "background: expected `int` <= 255"),
        ("image:crop=5", (PICTURE,), "shorter: is for crop"),
        ("image:layout=nchwd", (PICTURE,), "layout: invalid enum value 'nchwd'"),
        ("text:max-length=5", (spec("ids", "n", "t", dtype="int64"),), "says no tokenizer.json"),
        ("text:none.txt", (spec("ids", "n", "t", dtype="int64"),), "none.txt: no such file"),
        ("", (PICTURE,), "'' is not image, table or text"),
        ("missing.toml", (PICTURE,), "missing.toml: no such file"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(text: str, inputs: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        before(text, inputs=inputs)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_a_chain_after_the_model(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("shirt\n coat \nbag\n\n")
    found = after(f"softmax,top-k=2,labels={tmp_path / 'labels.txt'}")
    assert found == (
        chains.Softmax(output="y"),
        chains.TopK(output="y", k=2, labels=("shirt", "coat", "bag")),
    )
    assert after("sigmoid,threshold=0.25,output=y")[1] == chains.Threshold(output="y", at=0.25)
    tokens = (spec("h", "n", "t", 8), spec("y", "n", 3))
    assert after("pool=max,normalize", "argmax,output=y", outputs=tokens) == (
        chains.Pool(output="h", how="max"),
        chains.Normalize(output="h"),
        chains.Argmax(output="y"),
    )


@pytest.mark.parametrize(
    ("text", "shape", "words"),
    [
        ("top-k=5", ("n", 3), "top-k=5: y[n,3] has 3 classes"),
        ("top-k=0", ("n", 3), "k: expected `int` >= 1"),
        ("top-k=x", ("n", 3), "'top-k=x': not a whole number"),
        ("top-k", ("n", 3), "what is 'top-k'?"),
        ("argmax,softmax", ("n", 3), "softmax: comes after what names the classes"),
        ("argmax", ("n",), "takes scores [N,classes], and is given y[n]"),
        ("pool", ("n", 3), "takes [N,tokens,K], and is given y[n,3]"),
        ("pool,mask=m", ("n", "t", 3), "no input 'm' to be the mask"),
        ("softmax,output=z", ("n", 3), "no output 'z'; it gives y"),
        ("softmax,labels=l.txt", ("n", 3), "what is 'labels=l.txt'?"),
        ("argmax,labels=l.txt", ("n", 3), "l.txt: no such file"),
        ("threshold=inf", ("n", 3), "not a finite number"),
        ("soft", ("n", 3), "what is 'soft'?"),
        (",", ("n", 3), "says nothing"),
        ("softmax", (), "takes rows, and is given y[]"),
    ],
)
def test_an_answer_that_can_not_be_made_is_told_in_one_line(text: str, shape: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        after(text, outputs=(spec("y", *shape),))
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_labels_are_as_many_as_classes(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("a\nb\n")
    with pytest.raises(UsageError, match=r"2 labels for 3 classes of y\[n,3\]"):
        after(f"argmax,labels={file}")
    assert after(f"threshold,labels={file}", outputs=(spec("y", "n", 1),))[0].labels == ("a", "b")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        after(f"argmax,labels={file}")
    file.write_text("\n \n")
    with pytest.raises(UsageError, match="holds no labels"):
        after(f"argmax,labels={file}")


TOML = """
[[preprocess]]
do = "table"
columns = [{is = "number", name = "age", mean = 38.5, std = 13}, {is = "category", name = "job", values = ["a", "b"]}]

[[postprocess]]
do = "softmax"

[[postprocess]]
do = "argmax"
labels = "names.txt"
"""


def test_a_file_says_more_and_names_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "chain.toml").write_text(TOML)
    (tmp_path / "names.txt").write_text("no\nyes\nmaybe")
    place = str(tmp_path / "chain.toml")
    (found,) = before(place, inputs=(spec("x", "n", 3),))
    assert found.columns[0] == chains.Number(name="age", mean=38.5, std=13.0)
    assert after(place)[1].labels == ("no", "yes", "maybe")
    entries = [{"do": "image", "height": 28, "width": 28, "color": "gray"}]
    (tmp_path / "chain.json").write_text(json.dumps(entries))
    assert before(str(tmp_path / "chain.json"))[0].height == 28


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no list of entries under 'preprocess'"),
        ("preprocess = 3", "holds no list of entries"),
        ("preprocess = [1]", "holds no list of entries"),
        ("[[preprocess]]\ncolor = 'gray'", "missing required field `do`"),
        ("[[preprocess]]\ndo = 'softmax'", "invalid value 'softmax'"),
        ("[[preprocess]]\ndo = 'image'\ncolour = 'gray'", "unknown field `colour`"),
        ("[[preprocess]]\ndo = 'table'\ncolumns = [{is='number', name='a', std=0}]", "a std of 0"),
        ("[[preprocess]]\ndo = 'table'\ncolumns = [{is='number', name='a', min=1}]", "min and max go together"),
        ("[[preprocess]]\ndo = 'table'\ncolumns = [{is='category', name='a', values=['b', 'b']}]", "stands twice"),
        ("[[", "not sound"),
    ],
)
def test_a_file_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "chain.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        before(str(tmp_path / "chain.toml"))
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_options_refuse_what_is_not_spelled_well_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="--preprocess blob: 'blob' is not image"):
        ExportOptions(preprocess=("blob",))
    with pytest.raises(UsageError, match="what is 'hard'"):
        ExportOptions(postprocess=("hard",))
    with pytest.raises(UsageError, match="stands alone"):
        ExportOptions(preprocess=("none", "image"))
    ExportOptions(preprocess=("none",), postprocess=("later.toml",))


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(["preprocess", "postprocess"]),
    st.lists(
        st.sampled_from(
            ["image:", "table:", "softmax,", "top-k", "=", "1/", "28x28", ",", "mean", "std", ":", "9", "nan"]
        )
        | st.text(max_size=3),
        max_size=6,
    ).map("".join),
)
def test_anything_typed_is_understood_or_refused(kind: str, text: str) -> None:
    try:
        spelling.check(kind, (text,))
    except UsageError as error:
        assert error.hint
