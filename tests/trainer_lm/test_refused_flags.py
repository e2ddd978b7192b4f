"""What `train-lm` says of a flag that it does not have, where plugins are installed."""

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
