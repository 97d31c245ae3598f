"""The page's files and what it is told, as they are sent."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page_models
import pytest
import servers
from servers import Running

from modelctl.options import KeygenOptions, KeyType
from modelctl.serve.page import assets
from modelctl.steps.keygen import keygen

PAGES = ["/", "/docs"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of two models, one of them made in two steps."""
    folder = tmp_path_factory.mktemp("page")
    with servers.running([page_models.readable(folder), servers.affine(folder / "affine.onnx")]) as found:
        yield found
        assert found.stop() == (0, "")


@pytest.mark.parametrize("path", [*PAGES, *(f"/page/{name}" for name in assets.FILES)])
def test_a_file_is_sent_zipped_or_plain_and_not_twice(told: Running, path: str) -> None:
    plain = told.ask(path)
    zipped = told.ask(path, accept_encoding="gzip, br")
    assert plain.status == zipped.status == 200
    assert gzip.decompress(zipped.body) == plain.body
    assert "content-encoding" not in plain.headers
    assert plain.headers["etag"] != zipped.headers["etag"]
    assert plain.headers["vary"] == zipped.headers["vary"] == "accept-encoding"
    again = told.ask(path, accept_encoding="gzip", if_none_match=zipped.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == zipped.headers["etag"]
    assert again.headers["content-length"] == str(len(zipped.body))
    assert told.ask(path, if_none_match='"else"').status == 200
    assert told.ask(path, method="HEAD").headers["content-length"] == str(len(plain.body))
    assert told.ask(path, b"", "POST").status == 405


def test_files_are_kept_by_the_names_that_pages_and_scripts_know_them_by(told: Running) -> None:
    named: set[str] = set()
    for path in PAGES:
        named |= set(re.findall(r'="(/page/[a-z.]+\?[0-9a-f]{16})"', told.ask(path).body.decode()))
    for one in sorted(named):
        answer = told.ask(one)
        assert answer.headers["cache-control"] == "max-age=31536000, immutable"
        for inner in re.findall(r"from '\./([a-z.]+\?[0-9a-f]{16})'", answer.body.decode()):
            assert f"/page/{inner}" in named, f"{inner} is asked for only when {one} has come"
        assert not re.findall(r"from '\./[a-z.]+'", answer.body.decode())
    assert {one.partition("?")[0].removeprefix("/page/") for one in named} == set(assets.FILES)
    assert told.ask("/page/page.js?0123456789abcdef").headers["cache-control"] == "no-cache"
    assert told.ask("/").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_brings_nothing_from_elsewhere_and_no_script_of_its_own(told: Running, path: str) -> None:
    answer = told.ask(path)
    text = answer.body.decode()
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(
        r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=|https?:|//", text.replace("<!doctype", "")
    )
    for name in assets.FILES:
        held = (assets.FOLDER / name).read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", held), name


def test_the_page_is_told_how_to_ask_and_where_a_model_comes_from(told: Running) -> None:
    digits, affine = told.ask("/page/models.json").json
    assert (digits["name"], affine["name"]) == ("digits", "affine")
    (version,) = digits["versions"]
    (entry,) = version["declared"]
    assert (entry["do"], entry["height"], entry["color"]) == ("image", 8, "gray")
    assert version["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["batch", 1, 8, 8]}]
    assert next(one["step"] for one in version["chain"]) == "optimize"
    assert version["chain"][-1] == {
        "name": "linear", "format": "onnx", "digest": version["chain"][-1]["digest"], "step": None, "parents": [],
        "figures": [],
    }  # fmt: skip
    assert version["chain"][0]["parents"] == [version["chain"][1]["digest"]]
    assert "650 parameters" in version["chain"][0]["figures"]
    assert affine["versions"][0]["declared"] == []
    assert [one["step"] for one in affine["versions"][0]["chain"]] == [None]


def test_counts_are_told_as_they_grow(told: Running) -> None:
    before = told.ask("/page/live.json").json
    for _ in range(3):
        assert told.ask("/predict/affine", [[1, 2, 3, 4]]).status == 200
    assert told.ask("/predict/affine", [[1, 2, 3]]).status == 400
    after = told.ask("/page/live.json").json
    grown = {
        key: after["models"]["affine"]["1"][key] - before["models"]["affine"]["1"][key]
        for key in ("requests", "errors")
    }
    assert grown == {"requests": 3, "errors": 1}
    assert after["now"] > before["now"]
    one = after["models"]["affine"]["1"]
    assert sum(one["compute"]) == sum(one["queue"]) == one["requests"] == 3
    assert len(one["compute"]) == len(after["bounds"]) + 1


def test_a_version_is_asked_for_by_its_path(told: Running) -> None:
    row = [[1.0, 2.0, 3.0, 4.0]]
    assert told.ask("/predict/affine/versions/1", row).json == told.ask("/predict/affine", row).json
    assert "no version '2'" in told.ask("/predict/affine/versions/2", row).error
    assert "no model 'none'" in told.ask("/predict/none/versions/2", row).error


def test_where_keys_are_asked_for_the_page_comes_without_and_tells_only_what_its_key_may_know(
    tmp_path: Path, zoo: dict[str, Path]
) -> None:
    keygen(tmp_path / "alice.key", KeygenOptions(type=KeyType.API, models=("aff*",)))
    key = (tmp_path / "alice.key").read_text().strip()
    with servers.running([zoo["affine"], zoo["log"]], "--api-keys", "keys.toml", folder=tmp_path) as server:
        assert [server.ask(path).status for path in assets.PATHS] == [200] * len(assets.PATHS)
        for path in ("/page/models.json", "/page/live.json", "/openapi.json", "/v2/models/affine/manifest"):
            assert server.ask(path).status == 401
        ask: Any = lambda path: server.ask(path, X_Api_Key=key)  # noqa: E731
        assert [one["name"] for one in ask("/page/models.json").json] == ["affine"]
        assert ask("/page/live.json").status == 403  # as /metrics
        assert ask("/v2/models/log/manifest").status == 403
        document = ask("/openapi.json").json
        assert "/predict/affine" in document["paths"]
        assert "log" not in str(document["paths"].keys()) + str(document["components"]["schemas"].keys())
        assert document["security"] == [{"bearer": []}, {"key": []}]
        assert document["paths"]["/v2/health/live"]["get"]["security"] == []
        assert {"401", "403", "429"} <= document["paths"]["/predict/affine"]["post"]["responses"].keys()
        assert server.stop() == (0, "")
