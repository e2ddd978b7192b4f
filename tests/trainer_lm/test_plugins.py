"""What `train-lm` refuses because of the plugins that are installed, or are not."""

from __future__ import annotations

from typing import Any

TRAIN_LM = "import sys; from trainer_lm.cli import main; sys.exit(main())"
LIVE = "from trainer_callback import hookimpl\n@hookimpl\ndef on_log(metrics): pass\n"


def refuse(site: Any, *words: str) -> str:
    done = site.python("-c", TRAIN_LM, *words)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) <= 2
    return str(done.stderr)


def test_a_plugin_that_is_live_in_every_run_has_no_flag(site: Any) -> None:
    site.install("dist-a", plugins={"heart-beat": "m_a"}, modules={"m_a": LIVE})
    said = refuse(site, "--heart-beat")
    assert "--heart_beat is no option: heart-beat (dist-a 1.0) is live in every run" in said
    assert "--no_plugin heart_beat" in said


def test_a_flag_of_a_plugin_that_is_gone_leads_to_what_is_installed(site: Any) -> None:
    said = refuse(site, "--loss_spike")
    assert "there is no option --loss_spike." in said
    assert "trainer plugins for what is installed" in said


def test_what_a_plugin_wants_of_every_run_is_refused_naming_it(site: Any) -> None:
    wants = "@hookimpl\ndef add_options(parser): parser.add_argument('warmth')\n"
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": LIVE + wants})
    said = refuse(site, "--print_config")
    assert "a (dist-a 1.0) adds 'warmth', which every run would have to give" in said
    assert "--no_plugin a" in said


def test_a_flag_of_a_known_plugin_that_is_blocked_says_so(site: Any) -> None:
    site.install("trainer-plugin-early-stopping", plugins={"early_stopping": "m:C"})
    said = refuse(site, "--early_stop_patience", "3", "--no_plugin", "early_stopping")
    assert "--early_stop_patience cannot be used: " in said
    assert "is blocked by --no_plugin" in said


def test_a_broken_plugin_is_a_warning_and_with_strict_plugins_a_refusal(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": "import gone"})
    done = site.python("-c", TRAIN_LM, "--print_config")
    assert done.returncode == 0
    assert "train-lm: warning: entry point 'a' of dist-a 1.0 could not be imported" in done.stderr
    said = refuse(site, "--print_config", "--strict_plugins")
    assert "entry point 'a' of dist-a 1.0 could not be imported" in said
    assert "--no_plugin a" in said


def test_the_flag_of_a_broken_plugin_is_refused_with_the_reason(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": "import gone"})
    assert "--a cannot be used: entry point 'a' of dist-a 1.0" in refuse(site, "--a")


def test_a_plugin_that_is_not_on_the_allow_list_is_not_loaded(site: Any) -> None:
    site.install("dist-a", plugins={"a": "m_a"}, modules={"m_a": "import gone"})
    words = ("-c", TRAIN_LM, "--print_config")
    assert site.python(*words, TRAINER_PLUGINS="b").stderr == ""
    done = site.python(*words, "--a", TRAINER_PLUGINS="b")
    assert done.returncode == 2
    assert "--a cannot be used: blocked by TRAINER_PLUGINS" in done.stderr


def test_two_plugins_with_one_flag_are_both_named(site: Any) -> None:
    for name in ("a", "b"):
        adds = "@hookimpl\ndef add_options(parser): parser.add_argument('--warmth')\n"
        modules = {f"m_{name}": LIVE + adds}
        site.install(f"dist-{name}", plugins={name: f"m_{name}"}, modules=modules)
    said = refuse(site, "--print_config")
    assert "a (dist-a 1.0) and b (dist-b 1.0) both add --warmth" in said
    assert "--no_plugin a or --no_plugin b" in said
