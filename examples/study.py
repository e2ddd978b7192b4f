"""A study with optuna: looks for a learning rate, and prunes hopeless trials.

python examples/study.py, or, each trial in two processes, torchrun --nproc-per-node 2 ...
"""

import optuna
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from trainer import Trainer, TrainerConfig
from trainer_optuna import OptunaCallback


def train(trial: optuna.Trial | None, rate: float) -> float | None:
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 128)[:, None]
    loader = DataLoader(TensorDataset(x, torch.sin(3 * x)), batch_size=16, shuffle=True)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    mse = nn.functional.mse_loss
    given = {"loss_fn": lambda model, batch: mse(model(batch[0]), batch[1]), "progress": False}
    given |= {"config": TrainerConfig(epochs=5), "callbacks": [OptunaCallback(trial)]}
    return Trainer(model, optimizer, loader, loader, **given).train().val_loss


together = distributed.is_torchelastic_launched()
if together:
    distributed.init_process_group("gloo")
sampler = optuna.samplers.TPESampler(seed=0)
study = None if together and distributed.get_rank() else optuna.create_study(sampler=sampler)
space = {"rate": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)}
for _ in range(8):
    trial = study.ask(space) if study else None
    chosen = [trial.params if trial else None]
    if together:
        distributed.broadcast_object_list(chosen)  # the main process's choice, to the others
    try:
        value, state = train(trial, **chosen[0]), None
    except optuna.TrialPruned:
        value, state = None, optuna.trial.TrialState.PRUNED
    if study:
        study.tell(trial, value, state)
if study:
    pruned = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
    print(f"pruned {len(pruned)}\nbest_loss {study.best_value:.4f}")
