"""What the built-in blocks do, and what they refuse."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shmcache.blocks import get_block
from shmcache.blocks import regular_expression as regular_expression_module
from shmcache.errors import BlockError


def run(name: str, **inputs: Any) -> list[tuple[str, Any]]:
    return list(get_block(f"shmcache.{name}").run(inputs))


@pytest.mark.parametrize("name", ["input", "output", "constant"])
@pytest.mark.parametrize("value", [0, "", False, None, [], {"a": [1]}])
def test_a_value_passes_as_it_is(name: str, value: Any) -> None:
    assert run(name, value=value) == [("value", value)]


@pytest.mark.parametrize("name", ["input", "output", "constant"])
def test_a_missing_value_is_an_error(name: str) -> None:
    with pytest.raises(BlockError, match=f"shmcache.{name}: input 'value' is missing"):
        run(name)


def test_a_list_gives_its_items_in_order() -> None:
    assert run("list_iteration", items=[3, None, 1]) == [("item", 3), ("item", None), ("item", 1)]
    assert run("list_iteration", items=[]) == []


def test_merge_makes_one_object() -> None:
    assert run("merge", b=2, a=None) == [("merged", {"a": None, "b": 2})]


def test_raise_fails_with_its_message() -> None:
    with pytest.raises(BlockError, match=r"^no stock$"):
        run("raise", message="no stock")


def test_delay_gives_its_value_after_the_wait() -> None:
    assert run("delay", seconds=0.001, value=3) == [("value", 3)]
    assert run("delay", seconds=0) == [("value", None)]


def test_a_template_is_filled_with_all_inputs() -> None:
    outputs = run("text_template", template="{{ a.b }}-{{ c | upper }}\n", a={"b": 1}, c="x")
    assert outputs == [("text", "1-X\n")]


@pytest.mark.parametrize(
    "template",
    [
        "{{ missing }}", "{{", "{% for %}", "{{ a.__class__.__mro__ }}", "{{ ''.__class__ }}", "{{ 'x' * 10 ** 9 }}",
        "{{ 9 ** 9 }}", "{{ '%0999999999d' % 1 }}", "{{ 'x'.ljust(999999999) }}", "{{ '{:9}'.format(1) }}",
        "{{ '{:9}'['format'](1) }}", "{{ ('{:9}' | attr('format'))(1) }}",
        "{{ 'x' | center(999999999) }}", "{{ a.append(1) }}", "{{ range(999999999) }}", "{{ 1 / 0 }}",
        "{% include 'x' %}", "{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxx' }}{% endfor %}", "{{ '\\x00' }}",
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_filled_is_an_error(template: str) -> None:
    with pytest.raises(BlockError, match=r"shmcache.text_template"):
        run("text_template", template=template, a=[1])


def test_a_regular_expression_describes_its_matches() -> None:
    outputs = dict(run("regular_expression", pattern=r"(?P<k>\w)=(\d)?", text="a=1 b=", replacement=r"<\1>"))
    assert outputs["matches"] == [
        {"text": "a=1", "groups": ["a", "1"], "names": {"k": "a"}, "start": 0, "end": 3},
        {"text": "b=", "groups": ["b", None], "names": {"k": "b"}, "start": 4, "end": 6},
    ]
    assert outputs["first"] == outputs["matches"][0]
    assert outputs["replaced"] == "<a> <b>"


def test_a_regular_expression_without_a_match_takes_the_other_way() -> None:
    assert run("regular_expression", pattern="x", text="abc") == [("matches", []), ("none", "abc")]


def test_a_catastrophic_pattern_is_stopped_and_the_timer_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_expression_module, "COMPUTING_SECONDS", 0.05)
    handler = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(BlockError, match="of computing"):
        run("regular_expression", pattern="(a+)+$", text="a" * 60 + "b")
    assert signal.getsignal(signal.SIGVTALRM) is handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    "inputs",
    [
        {"pattern": "(", "text": ""}, {"pattern": "a", "text": "a", "replacement": r"\9"}, {"pattern": 3, "text": ""},
        {"pattern": "", "text": "x" * 20_000}, {"pattern": "a" * 1001, "text": ""}, {"pattern": "a"},
        {"pattern": "x", "text": "x" * 9_999, "replacement": "y" * 200}, {"pattern": "a", "text": "x" * 1_000_001},
    ],
)  # fmt: skip
def test_a_regular_expression_that_cannot_be_used_is_an_error(inputs: dict[str, Any]) -> None:
    with pytest.raises(BlockError, match=r"shmcache.regular_expression"):
        run("regular_expression", **inputs)


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("1 + 2 * 3", 7), ("round(x.y * 0.1, 2)", 0.5), ("x['y'] // 2", 2), ("'a' + 'b'", "ab"), ("max([1, 3, 2])", 3),
        ("{**x, 'z': [n for n in l if n > 1]}", {"y": 5, "z": [2, 3]}), ("sum([n * 2 for n in l])", 12),
        ("1 if 2 in l and not None else 0", 1), ("l[0:2]", [1, 2]), ("2 ** 10", 1024), ("-x.y", -5),
        ("sorted([3, 1])", [1, 3]), ("int('12') + float('0.5')", 12.5), ("len(l) == 3", True), ("round(2.5)", 2),
    ],
)  # fmt: skip
def test_an_expression_is_evaluated(expression: str, result: Any) -> None:
    assert run("arithmetic", expression=expression, x={"y": 5}, l=[1, 2, 3]) == [("result", result)]


@pytest.mark.parametrize(
    "expression",
    [
        "", "1 +", "missing", "1 / 0", "9 ** 9 ** 9", "2 ** 64", "1e308 * 10", "(-8) ** 0.5", "'a' * 10 ** 9",
        "'%999999999d' % 1", "x.__class__", "(1).__class__", "[].append(1)", "x.clear()", "__import__('os')", "len",
        "lambda: 1", "(a := 1)", "a = 1", "1; 2", "import os", "round(1, -999999999)", "round(1, digits=3)",
        "[a for a in l for b in l for c in l for d in l]", "-" * 1999 + "1", "f'{1:999999999}'", "{1, 2}", "{1: 2}",
        "'\\x00'", "'\\ud800'", "max(1, 'a')", "1 << 9999", "x.nothing", "'" + "a" * 2000 + "'", "await x", "1j",
        "[[[[[1] + a for a in l] + l for b in l] for c in l] for d in l]", "int('9' + '0' * 500)",
    ],
)  # fmt: skip
def test_an_expression_that_cannot_be_evaluated_is_an_error(expression: str) -> None:
    with pytest.raises(BlockError, match=r"shmcache.arithmetic"):
        run("arithmetic", expression=expression, x={"y": 5}, l=list(range(20)))


def test_an_expression_leaves_its_inputs_alone() -> None:
    values = [1, 2]
    run("arithmetic", expression="values + [3]", values=values)
    assert values == [1, 2]


@pytest.mark.parametrize(("threshold", "way"), [(3, "yes"), (5, "no")])
def test_a_condition_takes_one_of_two_ways(threshold: int, way: str) -> None:
    assert run("condition", expression="value.n > t", value={"n": 4}, t=threshold) == [(way, {"n": 4})]


def test_a_condition_without_a_value_passes_its_variables() -> None:
    assert run("condition", expression="a", a=0) == [("no", {"a": 0})]
    assert run("condition", expression="True", value=None) == [("yes", None)]


def test_a_json_path_finds_values() -> None:
    data = {"o": [{"t": 1}, {"t": 2}]}
    assert run("json_path", path="$.o[*].t", data=data) == [("matches", [1, 2]), ("first", 1)]
    assert run("json_path", path="$.x", data=data) == [("matches", [])]


@pytest.mark.parametrize(("path", "data"), [("$[", {}), ("$.a", '{"a": 1}'), (1, {}), ("", None)])
def test_a_json_path_that_cannot_be_used_is_an_error(path: Any, data: Any) -> None:
    with pytest.raises(BlockError, match=r"shmcache.json_path"):
        run("json_path", path=path, data=data)


def test_a_replayed_task_makes_each_of_its_files_and_says_when_it_is_done() -> None:
    task = {
        "seconds": 0.001,
        "outputs": [{"name": "b", "file": "B", "sizeInBytes": 3}, {"name": "a", "file": "A", "sizeInBytes": None}],
        "done": "done",
    }
    expected = [("b", {"file": "B", "sizeInBytes": 3}), ("a", {"file": "A", "sizeInBytes": None}), ("done", True)]
    assert run("replay_task", task=task, something=1) == expected
    assert run("replay_task", task={}) == []


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("list_iteration", {"items": "abc"}, "input 'items': expected a list, got text"),
        ("list_iteration", {}, "input 'items' is missing"),
        ("delay", {"seconds": "1"}, "input 'seconds': expected a number from 0 to 86,400, got text"),
        ("delay", {"seconds": True}, "got a boolean"),
        ("delay", {"seconds": -1}, "got -1"),
        ("delay", {"seconds": float("nan")}, "got nan"),
        ("text_template", {"template": None}, "input 'template': expected text, got null"),
        ("arithmetic", {"expression": []}, "input 'expression': expected text, got a list"),
        ("condition", {"expression": {}}, "input 'expression': expected text, got an object"),
        ("replay_task", {"task": {"outputs": 3}}, "input 'task.outputs': expected a list, got a number"),
        ("replay_task", {"task": {"seconds": -1}}, "input 'seconds'"),
        ("replay_task", {"task": []}, "input 'task': expected an object"),
        ("raise", {"message": 3}, "input 'message': expected text, got a number"),
    ],
)
def test_an_input_of_the_wrong_type_is_named(name: str, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockError) as caught:
        run(name, **inputs)
    assert str(caught.value).startswith(f"shmcache.{name}: ")
    assert message in str(caught.value)


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, content, status = {
            "/json": ("application/json", b'{"a": [1, 2]}', 200),
            "/text": ("text/plain; charset=latin-1", b"caf\xe9", 200),
            "/nul": ("text/plain", b"a\0b", 200),
            "/broken": ("application/json", b"{", 200),
            "/large": ("text/plain", b"x" * 100_000, 200),
            "/gone": ("text/plain", b"no", 410),
        }[self.path.partition("?")[0]]
        self._answer(status, kind, content)

    def do_POST(self) -> None:
        received = self.rfile.read(int(self.headers["Content-Length"]))
        echo = {"body": received.decode(), "tag": self.headers.get("X-Tag"), "path": self.path}
        self._answer(200, "application/json", json.dumps(echo).encode())

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as httpd, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_response_is_decoded_by_what_it_says_it_is(server: str) -> None:
    outputs = dict(run("http_request", url=f"{server}/json"))
    assert (outputs["body"], outputs["status"]) == ({"a": [1, 2]}, 200)
    assert outputs["headers"]["content-type"] == "application/json"
    assert dict(run("http_request", url=f"{server}/text"))["body"] == "café"


def test_a_request_sends_what_it_is_given(server: str) -> None:
    sent = {"method": "post", "headers": {"X-Tag": "t"}, "query": {"q": "1"}, "json": {"a": 1}}
    body = dict(run("http_request", url=f"{server}/echo", **sent))["body"]
    assert (json.loads(body["body"]), body["tag"], body["path"]) == ({"a": 1}, "t", "/echo?q=1")
    assert dict(run("http_request", url=f"{server}/echo", method="POST", text="é"))["body"]["body"] == "é"


def test_an_error_status_is_an_error_unless_it_is_allowed(server: str) -> None:
    with pytest.raises(BlockError, match="status 410"):
        run("http_request", url=f"{server}/gone")
    assert dict(run("http_request", url=f"{server}/gone", allow_error_status=True))["status"] == 410


@pytest.mark.parametrize(
    "inputs",
    [
        {"url": "/large", "max_bytes": 99_999}, {"url": "/nul"}, {"url": "/broken"}, {"url": "/json", "method": "BREW"},
        {"url": "/json", "headers": {"a": 1}}, {"url": "/json", "headers": {"a": "b\nc"}},
        {"url": "/json", "query": []},
        {"url": "/json", "timeout_seconds": 0}, {"url": "/json", "allow_error_status": 1}, {"url": 3}, {},
        {"url": "/json", "headers": {"ä": "ö"}},
    ],
)  # fmt: skip
def test_a_request_that_fails_is_an_error(server: str, inputs: dict[str, Any]) -> None:
    if isinstance(inputs.get("url"), str):
        inputs = {**inputs, "url": server + inputs["url"]}
    with pytest.raises(BlockError, match=r"shmcache.http_request"):
        run("http_request", **inputs)


@pytest.mark.parametrize(
    "url", ["", "no url", "ftp://127.0.0.1/", "file:///etc/passwd", "http://127.0.0.1:1/", "http://[/"]
)
def test_a_server_that_cannot_be_reached_is_an_error(url: str) -> None:
    with pytest.raises(BlockError, match=r"shmcache.http_request"):
        run("http_request", url=url)
