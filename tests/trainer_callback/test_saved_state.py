"""Whose state a snapshot holds, and whether the callback of this run can have it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer_callback import PluginError, TrainerCallback
from trainer_callback.calls.manager import CallbackManager, Plugin
from trainer_callback.calls.saved_state import describe_writer, read_saved_state

STATE = {"best": 0.5}


def make(version: object = 1, distribution: str = "dist-x", **methods: Any) -> Plugin:
    cls = type("Best", (TrainerCallback,), {"state_version": version, **methods})
    return Plugin(cls(), "best", distribution, "2.0")


def writer(plugin: Plugin, **changes: Any) -> dict[str, Any]:
    return {**describe_writer(plugin), **changes}


def test_the_writer_is_described_in_plain_json() -> None:
    facts = describe_writer(make(3))
    assert json.loads(json.dumps(facts)) == {
        "name": "best",
        "distribution": "dist-x",
        "version": "2.0",
        "state_version": 3,
    }


def test_a_state_of_the_same_version_is_restored_as_it_is() -> None:
    assert read_saved_state(make(2), STATE, writer(make(2)), 8) == (STATE, "restored")


def test_a_callback_without_saved_state_starts_fresh() -> None:
    assert read_saved_state(make(), None, {}, 8) == (None, "fresh")


def test_the_state_of_an_absent_callback_is_carried_along() -> None:
    assert read_saved_state(None, STATE, writer(make(9)), 8) == (STATE, "carried along")


def test_a_manifest_that_knows_no_state_version_means_version_1() -> None:
    assert read_saved_state(make(1), STATE, {}, 8)[1] == "restored"


def test_an_older_state_is_migrated_from_a_copy() -> None:
    def migrate_state(self, state, old_version):
        state["best"] += 1
        return {"best": state["best"], "from": old_version}

    plugin = make(3, migrate_state=migrate_state)
    state, verdict = read_saved_state(plugin, STATE, writer(make(1)), 8)
    assert (state, verdict) == ({"best": 1.5, "from": 1}, "migrated")
    assert STATE == {"best": 0.5}


def test_a_newer_state_is_refused_naming_both_versions() -> None:
    with pytest.raises(PluginError) as caught:
        read_saved_state(make(1), STATE, writer(make(4), version="3.0"), 8)
    message = str(caught.value)
    assert "best (dist-x 2.0) reads state of version 1" in message
    assert "version 4, written by dist-x 3.0" in message


def test_an_older_state_without_migration_is_refused() -> None:
    with pytest.raises(PluginError, match=r"best \(dist-x 2.0\).*version 1; it has 2.*migrate"):
        read_saved_state(make(2), STATE, writer(make(1)), 8)


@pytest.mark.parametrize("answer", [KeyError("gone"), SystemExit(1), None, [1]])
def test_a_migration_that_fails_is_a_refusal(answer: object) -> None:
    def migrate_state(self, state, old_version):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    with pytest.raises(PluginError, match="cannot read the snapshot's state of version 1"):
        read_saved_state(make(2, migrate_state=migrate_state), STATE, writer(make(1)), 8)


def test_a_state_of_another_distribution_is_refused_naming_both() -> None:
    with pytest.raises(PluginError, match=r"best \(dist-x 2.0\).*'Best'.*dist-y 2.0.*state_key"):
        read_saved_state(make(), STATE, writer(make(distribution="dist-y")), 8)


@pytest.mark.parametrize(("ours", "theirs"), [("dist-x", ""), ("", "dist-x"), ("", "")])
def test_code_that_is_not_installed_shares_state_with_its_installed_self(
    ours: str, theirs: str
) -> None:
    found = read_saved_state(make(distribution=ours), STATE, writer(make(distribution=theirs)), 8)
    assert found[1] == "restored"


@pytest.mark.parametrize("version", [0, "1", True, None, 1.5])
def test_a_state_version_that_is_no_count_is_refused(version: object) -> None:
    with pytest.raises(PluginError, match="state_version must be an integer"):
        describe_writer(make(version))


def test_such_a_state_version_is_refused_before_training() -> None:
    with pytest.raises(PluginError, match="state_version must be an integer of at least 1, got 0"):
        CallbackManager([make(0)])


def test_a_module_has_a_state_version_too() -> None:
    import types

    module = types.ModuleType("trainer_x")
    module.state_version = 2
    module.migrate_state = lambda state, old_version: {"from": old_version}
    plugin = Plugin(module, "x")
    assert read_saved_state(plugin, STATE, {}, 8)[0] == {"from": 1}
    del module.migrate_state
    with pytest.raises(PluginError, match="no `migrate_state`"):
        read_saved_state(plugin, STATE, {}, 8)
