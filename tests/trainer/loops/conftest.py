"""Loops that people write by hand, over `Run`: nanoGPT's, a GAN's, an agent's."""

import json
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from trainer import Run, TrainerConfig
from trainer.writers.metrics_file import read_logged
from trainer_callback import HOOKS, TrainerCallback
from trainer_early_stopping import EarlyStoppingCallback
from trainer_ema import EMACallback
from trainer_gradient_monitor import GradientMonitorCallback
from trainer_tensorboard import TensorBoardCallback
from trainer_throughput import ThroughputCallback


def make_config(place, **settings):
    defaults = {
        "epochs": 3,
        "output_dir": place,
        "snapshot_interval": None if place is None else 2,
        "log_interval": 1,
        "max_grad_norm": 1.0,
        "seed": 5,
    }
    return TrainerConfig(**{**defaults, **settings})


class NanoGPT:
    """`get_batch`, accumulation, a learning rate set by hand, an evaluation every n updates."""

    monitor = "val_loss"

    def __init__(self, place, callbacks=(), *, validate=True, exact=False, **settings):
        torch.manual_seed(1)
        self.data = torch.randint(17, (400,))
        self.model = nn.Sequential(
            nn.Embedding(17, 8), nn.Dropout(0.2), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 17)
        )
        if exact:
            self.model.double()
            self.model[1].p = 0.0
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        defaults = {"max_steps": 11, "gradient_accumulation_steps": 2, "eval_interval": 3}
        self.run = Run(
            self.model,
            self.optimizer,
            validate=self.estimate_loss if validate else None,
            config=make_config(place, **{**defaults, **settings}),
            callbacks=callbacks,
            discover=False,
        )

    def get_batch(self, split):
        data = self.data[:300] if split == "train" else self.data[300:]
        starts = torch.randint(len(data) - 9, (4,))
        return torch.stack([data[i : i + 8] for i in starts]), torch.stack(
            [data[i + 1 : i + 9] for i in starts]
        )

    def loss_of(self, ids, labels):
        return functional.cross_entropy(self.run.module(ids).flatten(0, 1), labels.flatten())

    def estimate_loss(self):
        losses = [self.loss_of(*self.get_batch("val")).item() for _ in range(2)]
        return {"val_loss": sum(losses) / 2, "val_best": min(losses)}

    def train(self, resume=False):
        run = self.run
        with run.start(resume=resume):
            for _ in run.updates():
                for group in self.optimizer.param_groups:
                    group["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * run.position.step / 20))
                run.backward(self.loss_of(*self.get_batch("train")))
                run.step()
        return run.result


class Epochs(NanoGPT):
    """The same in epochs of `range(n)`, with a scheduler, and draws round the inner loop."""

    def __init__(self, place, callbacks=(), **settings):
        super().__init__(place, callbacks, **{"max_steps": None, **settings})
        schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.run = self.make_run(self.model, schedule, callbacks)

    def make_run(self, model, schedule, callbacks, **others):
        return Run(
            model,
            self.optimizer,
            scheduler=schedule,
            validate=self.estimate_loss,
            config=self.run.view.config,
            callbacks=callbacks,
            discover=False,
            **others,
        )

    def train(self, resume=False):
        run = self.run
        with run.start(resume=resume):
            for _ in run.epochs():
                shift = torch.rand(()) / 10
                for _ in run.batches(range(7)):
                    run.backward(self.loss_of(*self.get_batch("train")) + shift * 0)
                    run.step()
                run.log({"shift": shift, "behind": torch.rand(())})
        return run.result


class Accelerated(Epochs):
    """The same in a script of Accelerate, which prepares and accumulates."""

    def __init__(self, place, callbacks=(), **settings):
        import accelerate

        super().__init__(place, callbacks, **settings)
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.state.GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        data = [torch.rand(4, generator=torch.Generator().manual_seed(i)) for i in range(28)]
        loader = DataLoader(data, batch_size=4, shuffle=True)
        self.prepared, self.optimizer, self.loader, schedule = self.accelerator.prepare(
            self.model, self.optimizer, loader, schedule
        )
        self.run = self.make_run(self.prepared, schedule, callbacks, accelerator=self.accelerator)

    def train(self, resume=False):
        run = self.run
        with run.start(resume=resume):
            for _ in run.epochs():
                for batch in run.batches(self.loader):
                    with self.accelerator.accumulate(self.prepared):
                        run.backward(self.loss_of(*self.get_batch("train")) + 0 * batch.sum())
                        run.step()
                run.log({"behind": torch.rand(())})
        return run.result


class GAN:
    """Two models, two optimizers, three losses a batch."""

    monitor = "distance"

    def __init__(self, place, callbacks=(), *, exact=False, **settings):
        torch.manual_seed(2)
        norm = [] if exact else [nn.BatchNorm1d(8)]
        drop = [] if exact else [nn.Dropout(0.2)]
        g = nn.Sequential(nn.Linear(4, 8), *norm, nn.ReLU(), nn.Linear(8, 2))
        d = nn.Sequential(nn.Linear(2, 8), *drop, nn.ReLU(), nn.Linear(8, 1))
        if exact:
            g.double()
            d.double()
        self.models = {"g": g, "d": d}
        self.dtype = torch.float64 if exact else torch.float32
        self.optimizers = {
            "g": torch.optim.Adam(g.parameters(), 0.01),
            "d": torch.optim.AdamW(d.parameters(), 0.02),
        }
        schedulers = {"d": torch.optim.lr_scheduler.StepLR(self.optimizers["d"], 3)}
        self.data = [
            torch.randn(6, 2, generator=torch.Generator().manual_seed(i)).to(self.dtype)
            for i in range(5)
        ]
        self.run = Run(
            self.models,
            self.optimizers,
            scheduler=schedulers,
            validate=self.measure,
            config=make_config(place, **settings),
            callbacks=callbacks,
            discover=False,
        )

    def measure(self):
        fake = self.run.module["g"](torch.randn(16, 4).to(self.dtype))
        return {"distance": fake.mean(0).norm(), "spread": fake.std()}

    def judge(self, points, is_real):
        found = self.run.module["d"](points)
        return functional.binary_cross_entropy_with_logits(
            found, torch.full_like(found, float(is_real))
        )

    def noise(self, real):
        return torch.randn(len(real), 4).to(self.dtype)

    def train(self, resume=False):
        run = self.run
        with run.start(resume=resume):
            for _ in run.epochs():
                torch.rand(3)
                for real in run.batches(self.data):
                    fake = run.module["g"](self.noise(real))
                    run.backward(self.judge(real, True), "d")
                    run.backward(self.judge(fake.detach(), False), "d")
                    run.step("d")
                    run.backward(self.judge(fake, True), "g")
                    run.step("g")
                run.log({"behind": torch.rand(())})
        return run.result


class Walk:
    """An environment: stay near 0; it draws from a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.place = torch.zeros(2)

    def step(self, action):
        push = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5]])[action]
        self.place = self.place + push + 0.2 * torch.randn(2, generator=self.generator)
        reward = -float(self.place.norm())
        if reward < -3:
            self.place = torch.zeros(2)
        return self.place, reward

    def state_dict(self):
        return {"generator": self.generator.get_state(), "place": self.place}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])
        self.place = state["place"]


class Replay:
    """The last 50 steps of the environment."""

    def __init__(self):
        self.rows = []

    def add(self, *row):
        self.rows = [*self.rows, row][-50:]

    def sample(self):
        chosen = torch.randint(len(self.rows), (8,)).tolist()
        places, actions, rewards, following = zip(*(self.rows[i] for i in chosen), strict=True)
        return (
            torch.stack(places),
            torch.tensor(actions),
            torch.tensor(rewards),
            torch.stack(following),
        )

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = [*state["rows"]]


class QLearning:
    """No loader: the batches come from a replay buffer, and the first turns only fill it."""

    monitor = "reward"

    def __init__(self, place, callbacks=(), **settings):
        torch.manual_seed(4)
        self.q = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        self.target = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        self.target.load_state_dict(self.q.state_dict())
        self.walk, self.replay = Walk(), Replay()
        self.run = Run(
            self.q,
            torch.optim.RMSprop(self.q.parameters(), 0.01),
            validate=self.measure,
            config=make_config(place, **{"max_steps": 12, "eval_interval": 4, **settings}),
            callbacks=callbacks,
            discover=False,
        )
        self.run.keep("walk", self.walk)
        self.run.keep("replay", self.replay)
        self.run.keep("target", self.target)

    def measure(self):
        with torch.no_grad():
            return {"reward": -self.run.module(torch.ones(1, 2)).max()}

    def act(self):
        place = self.walk.place
        if torch.rand(()) < 0.3:
            action = int(torch.randint(3, ()))
        else:
            with torch.no_grad():
                action = int(self.q(place).argmax())
        following, reward = self.walk.step(action)
        self.replay.add(place, action, reward, following)
        return reward

    def train(self, resume=False):
        run = self.run
        with run.start(resume=resume):
            for _ in run.updates():
                run.log({"seen": self.act()})
                if len(self.replay.rows) < 8:
                    continue
                places, actions, rewards, following = self.replay.sample()
                with torch.no_grad():
                    wanted = rewards + 0.9 * self.target(following).max(1).values
                found = run.module(places).gather(1, actions[:, None])[:, 0]
                run.backward(functional.mse_loss(found, wanted))
                run.step()
                if run.position.step % 5 == 0:
                    self.target.load_state_dict(self.q.state_dict())
        return run.result


LOOPS = {
    "nanogpt": NanoGPT,
    "epochs": Epochs,
    "gan": GAN,
    "rl": QLearning,
    "accelerate": Accelerated,
}


def make_plugins(loop):
    return [
        EarlyStoppingCallback(patience=50, monitor=loop.monitor, mode="min"),
        GradientMonitorCallback(monitor_interval=2, monitor_at_snapshots=True, report=False),
        EMACallback(decay=0.9, every=2),
        ThroughputCallback(interval=2),
        TensorBoardCallback(),
    ]


class Striker(TrainerCallback):
    """Calls `strike` at the n-th hook of all, or of one name."""

    def __init__(self, at=None, hook=None, strike=None):
        self.at, self.hook, self.calls = at, hook, []
        self.act = strike or (lambda: os.kill(os.getpid(), signal.SIGKILL))

    def note(self, hook):
        if self.hook in (None, hook):
            self.calls.append(hook)
            if len(self.calls) == self.at:
                self.act()


def _overriding(hook):
    def method(self):
        self.note(hook)

    return method


for _hook in HOOKS:
    if _hook not in ("add_options", "make_callbacks", "offer_defaults"):
        setattr(Striker, _hook, _overriding(_hook))


def compare(tiny, one, other):
    """Asserts that two runs ended equal, bit by bit, but for their clocks."""
    states = [tiny.newest_state(place) for place in (one, other)]
    for state in states:
        for key in [*state["callback_state"]]:
            if any(word in key for word in ("Tensor", "Through", "Metrics")):
                del state["callback_state"][key]  # times of day, and lengths of lines with times
        metrics = state["progress"]["metrics"]
        for name in [name for name in metrics if name.startswith("throughput/")]:
            metrics[name] = "measured"
    assert tiny.difference(*states) is None
    logs = [[json.loads(line) for line in read_logged(p / "metrics.jsonl")] for p in (one, other)]
    for log in logs:
        for line in log:
            for name in [name for name in line if name.startswith("throughput/")]:
                line[name] = "measured"
    assert logs[0] == logs[1]
    final = [(each / "final" / "model.safetensors").read_bytes() for each in (one, other)]
    assert final[0] == final[1]
    for place in (one, other):
        assert [*place.rglob("events.out.tfevents.*")] or not (place / "tensorboard").exists()


@pytest.fixture(scope="session")
def loops(tiny, tmp_path_factory):
    def start(place, name, *callbacks, resume="auto", plugins=True, **settings):
        """Trains in this process."""
        kind = LOOPS[name]
        chosen = [*(make_plugins(kind) if plugins else ()), *callbacks]
        loop = kind(place, chosen, **settings)
        loop.train(resume)
        return loop

    def train(place, name, *callbacks, **settings):
        """Trains in a process of its own; returns its exit code."""

        def work():
            return start(place, name, *callbacks, **settings).run.result.exit_code

        return tiny.child(work).wait()

    start(tmp_path_factory.mktemp("first"), "rl")  # what plugins import late

    return SimpleNamespace(
        start=start,
        train=train,
        kinds=LOOPS,
        striker=Striker,
        plugins=make_plugins,
        compare=lambda one, other: compare(tiny, one, other),
        config=make_config,
    )
