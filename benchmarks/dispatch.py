"""What one hook call costs: a list of bound methods, ours, plain pluggy and the peers' dispatchers,
with 0, 1, 5 and 20 implementations that take two arguments and do nothing.

Bar: ours at most 1.5 times the list of bound methods.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable

import pluggy
from measure import (
    Row,
    is_installed,
    make_parser,
    print_table,
    run_rounds,
    summarise,
    write_json,
)
from peer_dispatchers import PEERS

from trainer_callback import TrainerCallback, hookimpl
from trainer_callback.calls.manager import CallbackManager

CALLS = 200
BASE = "list of bound methods"
CASES = {
    "0": (0, False),
    "1": (1, False),
    "5": (5, False),
    "20": (20, False),
    "5 and a wrapper": (5, True),
}
"""Title -> number of implementations, and whether a wrapper stands around them."""

MANAGERS: list[CallbackManager] = []
"""What calls our hooks: it has to live as long as they are called."""


class Listener(TrainerCallback):
    def __init__(self, number: int) -> None:
        self.state_key = str(number)

    @hookimpl
    def on_batch_end(self, trainer: object, batch_idx: int) -> None: ...


class Wrapper(TrainerCallback):
    @hookimpl(wrapper=True)
    def on_batch_end(self) -> object:  # type: ignore[override,misc]
        return (yield)


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Returns what runs `call` a few times and returns the µs of one."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - start) / CALLS * 1e6

    return run


def make_calls(count: int, *, wrapper: bool) -> dict[str, Callable[[], object]]:
    listeners: list[TrainerCallback] = [Listener(number) for number in range(count)]
    methods = [listener.on_batch_end for listener in listeners]

    def call_list() -> None:
        for method in methods:
            method(None, 0)

    everybody = [*listeners, *([Wrapper()] if wrapper else [])]
    plain = pluggy.PluginManager("trainer")
    plain.add_hookspecs(TrainerCallback)
    for callback in everybody:
        plain.register(callback)
    MANAGERS.append(CallbackManager(everybody))
    ours = MANAGERS[-1].hook.on_batch_end
    theirs = plain.hook.on_batch_end
    calls: dict[str, Callable[[], object]] = {
        BASE: call_list,
        "ours": lambda: ours(trainer=None, batch_idx=0, loss=None, outputs=None),  # type: ignore[arg-type]
        "plain pluggy": lambda: theirs(trainer=None, batch_idx=0, loss=None, outputs=None),
    }
    if not wrapper:
        peers = {
            name: make(count) for name, (module, make) in PEERS.items() if is_installed(module)
        }
        calls |= peers
    return calls


def main() -> None:
    arguments = make_parser(__doc__, rounds=101).parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    results: dict[str, dict[str, Row]] = {}
    for title, (count, wrapper) in CASES.items():
        ways = {name: timed(call) for name, call in make_calls(count, wrapper=wrapper).items()}
        results[title] = summarise(run_rounds(ways, arguments.rounds), BASE)
    left_out = sorted(name for name, (module, _) in PEERS.items() if not is_installed(module))
    print_results(results)
    print(f"\nLeft out, not installed: {', '.join(left_out) or 'none'}.")
    write_json(arguments.json, results, left_out=left_out, rounds=arguments.rounds)


def print_results(results: dict[str, dict[str, Row]]) -> None:
    print("µs per hook call, and as a multiple of the list of bound methods.")
    rows = []
    for name in results["0"]:
        cells = [
            f"{rows_of[name]['median']:.2f} ({rows_of[name]['ratio']:.2f} x)"
            if name in rows_of
            else "-"
            for rows_of in results.values()
        ]
        rows.append([name, *cells])
    print_table(("implementations", *results), rows)


if __name__ == "__main__":
    main()
