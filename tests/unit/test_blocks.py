"""What blocks are, how an id becomes a block, and what a run costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from shmcache.blocks import Block, Cost, Inputs, Outputs, charge_for, get_block, known_blocks, register, registry
from shmcache.errors import BlockError, UnknownBlock
from shmcache.frozen import freeze


class Shout(Block):
    """A complete block."""

    id = "test.shout"
    inputs = ("text",)
    outputs = ("text",)

    def run(self, inputs: Inputs) -> Outputs:
        yield "text", inputs["text"].upper()


class NoRun(Block):
    """A block without its method."""

    id = "test.no_run"


def _priced(cost: Cost, expected_seconds: float = 0.0) -> Block:
    class Priced(Shout):
        id = "test.priced"

        def seconds(self, inputs: Inputs) -> float:
            return expected_seconds

    Priced.cost = cost
    return Priced()


def test_all_built_in_blocks_can_be_had_by_their_id() -> None:
    built_in = [block_id for block_id in known_blocks() if block_id.startswith("shmcache.")]
    assert len(built_in) == 14
    for block_id in built_in:
        assert get_block(block_id).id == block_id
        assert get_block(block_id) is get_block(block_id)


def test_a_block_can_be_had_by_its_import_path() -> None:
    assert list(get_block(f"{__name__}:Shout").run({"text": "a"})) == [("text", "A")]


@pytest.mark.parametrize(
    "block_id",
    [
        "no.such.block", "", ":", "a:", ":b", "no_such_package:Block", f"{__name__}:Missing", f"{__name__}:NoRun",
        f"{__name__}:_priced", "shmcache.errors:BlockError", "a b:c", "../x:y", "\0:x",
    ],
)  # fmt: skip
def test_what_is_no_block_is_an_unknown_block(block_id: str) -> None:
    with pytest.raises(UnknownBlock) as caught:
        get_block(block_id)
    assert caught.value.block_id == block_id


def test_a_module_that_exits_while_it_is_imported_is_an_unknown_block(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaves_at_once.py").write_text("import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownBlock):
        get_block("leaves_at_once:Block")


def test_a_registered_block_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    assert register(Shout) is Shout
    assert register(Shout) is Shout
    assert "test.shout" in known_blocks()
    assert isinstance(get_block("test.shout"), Shout)


def test_an_id_belongs_to_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})

    class Other(Shout):
        pass

    class Impostor(Shout):
        id = "shmcache.delay"

    register(Shout)
    for block_class in (Other, Impostor):
        with pytest.raises(ValueError, match="already"):
            register(block_class)


def test_only_a_complete_block_can_be_registered() -> None:
    class OneName(Shout):
        inputs = "text"  # type: ignore[assignment]

    class NoPrice(Shout):
        cost = 3  # type: ignore[assignment]

    for block_class in (NoRun, OneName, NoPrice, int):
        with pytest.raises(TypeError):
            register(block_class)  # type: ignore[type-var]


def test_an_entry_point_brings_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("acme.shout", f"{__name__}:Shout", registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr(registry, "_entry_points", lambda: points)
    monkeypatch.setattr(registry, "_made", {})
    assert "acme.shout" in known_blocks()
    assert isinstance(get_block("acme.shout"), Shout)


def test_importing_the_package_imports_no_block_library() -> None:
    code = (
        "import sys, shmcache.blocks; shmcache.blocks.known_blocks();"
        "print([name for name in ('httpx', 'jinja2', 'jsonpath', 'simpleeval') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_price_per_run_is_its_amount() -> None:
    assert charge_for(_priced(Cost(7, "run")), {"text": "a" * 1000}) == 7


@pytest.mark.parametrize(("seconds", "charge"), [(0.0, 0), (0.01, 1), (1.0, 3), (1.1, 4), (1.5, 5), (10, 30)])
def test_a_price_per_second_is_rounded_up(seconds: float, charge: int) -> None:
    assert charge_for(_priced(Cost(3, "second"), seconds), {}) == charge


def test_a_price_per_second_counts_the_digits_that_one_sees() -> None:
    assert charge_for(_priced(Cost(100, "second"), 1.1), {}) == 110


def test_a_price_per_byte_is_that_of_the_packed_inputs() -> None:
    inputs = {"text": "abc", "more": [1, 2]}
    packed_bytes = 1 + 5 + 4 + 5 + 3
    assert charge_for(_priced(Cost(2, "byte")), inputs) == 2 * packed_bytes
    assert charge_for(_priced(Cost(2, "byte")), freeze(inputs)) == 2 * packed_bytes


def test_the_order_of_inputs_does_not_change_the_charge() -> None:
    block = _priced(Cost(1, "byte"))
    assert charge_for(block, {"a": 1, "b": "x"}) == charge_for(block, {"b": "x", "a": 1})


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [
        (Cost(-1, "run"), 0), (Cost(2**62 + 1, "run"), 0), (Cost(1, "second"), -1), (Cost(1, "second"), float("nan")),
        (Cost(1, "second"), float("inf")), (Cost(1, "second"), 1e300), (Cost(2**62, "byte"), 0), (Cost(1, "day"), 0),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_charge_that_is_negative_or_too_large_is_refused(cost: Cost, seconds: float) -> None:
    with pytest.raises(BlockError, match="cannot be charged"):
        charge_for(_priced(cost, seconds), {"text": "a"})


def test_inputs_that_are_no_json_cannot_be_priced_by_the_byte() -> None:
    with pytest.raises(BlockError, match="not JSON"):
        charge_for(_priced(Cost(1, "byte")), {"text": object()})


def test_the_largest_charge_is_allowed() -> None:
    assert charge_for(_priced(Cost(2**62, "run")), {}) == 2**62


def test_a_delay_costs_a_credit_a_second_begun() -> None:
    assert charge_for(get_block("shmcache.delay"), {"seconds": 2.5}) == 3


def test_input_output_and_constant_are_free() -> None:
    for name in ("input", "output", "constant"):
        assert charge_for(get_block(f"shmcache.{name}"), {"value": 1}) == 0


def test_forgotten_blocks_are_imported_anew_with_their_package_and_ours_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_made", {})
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "acme_of_the_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.py").write_text("WORD = 'old'\n")
    (package / "blocks.py").write_text(
        "from shmcache.blocks import Block, register\n"
        "from acme_of_the_test.words import WORD\n"
        "@register\n"
        "class Say(Block):\n"
        "    id = 'acme.say'\n"
        "    def run(self, inputs):\n"
        "        yield 'word', WORD\n"
    )
    assert list(get_block("acme_of_the_test.blocks:Say").run({})) == [("word", "old")]
    ours = type(get_block("shmcache.constant"))
    (package / "words.py").write_text("WORD = 'brand new'\n")
    registry.forget_imported()
    assert list(get_block("acme_of_the_test.blocks:Say").run({})) == [("word", "brand new")]
    assert type(get_block("shmcache.constant")) is ours
    registry.forget_imported()
    assert not [name for name in sys.modules if name.startswith("acme_of_the_test")]
