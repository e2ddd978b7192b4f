"""What one hook call costs: plain pluggy, ours, and a list of bound methods, with 0, 1, 5 and 20
implementations.

Bar: ours at most 1.5 times the list of bound methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pluggy
from measure import describe_machine, print_table, read_arguments, run_rounds, summarise, write_json

from trainer_callback import TrainerCallback, hookimpl
from trainer_callback.manager import CallbackManager

CALLS = 2_000


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
    def run() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - start) / CALLS * 1e6

    return run


def make_ways(count: int, *, wrapper: bool) -> dict[str, Callable[[], float]]:
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
    ours = CallbackManager(everybody).table.plain.on_batch_end
    theirs = plain.hook.on_batch_end
    return {
        "a list of bound methods": timed(call_list),
        "ours": timed(lambda: ours(trainer=None, batch_idx=0, loss=None)),  # type: ignore[arg-type]
        "plain pluggy": timed(lambda: theirs(trainer=None, batch_idx=0, loss=None)),
    }


def main() -> None:
    arguments = read_arguments(str(__doc__), rounds=101)
    results = {}
    for count, wrapper in ((0, False), (1, False), (5, False), (20, False), (5, True)):
        title = f"{count} implementations" + (" and a wrapper" if wrapper else "")
        figures = run_rounds(make_ways(count, wrapper=wrapper), arguments.rounds)
        results[title] = summarise(figures, "a list of bound methods")
        print_table(title, results[title], "µs")
    write_json(arguments.json, {**describe_machine(["pluggy", "trainer-core"]), "results": results})


if __name__ == "__main__":
    main()
