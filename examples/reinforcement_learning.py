"""Reinforcement learning, in a loop of its own: a policy gradient in an environment of 20 lines.

There is no loader; the environment's state is part of each snapshot (`run.keep`).
"""

import torch
from torch import nn

from trainer import Run, TrainerConfig


class Balance:
    """Many poles at once; a push left or right keeps each upright. Reward: 1 while it stands."""

    def __init__(self, count: int) -> None:
        self.poles = torch.zeros(count, 2)  # angle, speed

    def act(self, pushes: torch.Tensor) -> torch.Tensor:
        """Takes 0 or 1 of each pole, of shape (count,); returns the rewards, of the same shape."""
        angle, speed = self.poles.unbind(1)
        speed = speed + 0.1 * angle + 0.05 * (2 * pushes - 1) + 0.02 * torch.randn(len(angle))
        angle = angle + 0.1 * speed
        stands = angle.abs() < 0.3
        self.poles = torch.stack([angle, speed], 1) * stands[:, None]
        return stands.float()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"poles": self.poles}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.poles = state["poles"]


torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
world = Balance(64)
config = TrainerConfig(max_steps=150, output_dir="runs/balance", snapshot_interval=50)
run = Run(policy, torch.optim.Adam(policy.parameters(), lr=1e-2), config=config)
run.keep("world", world)
with run.start(resume="auto"):
    for _ in run.updates():
        seen, chosen, rewards = [], [], []
        for _ in range(40):
            with torch.no_grad():
                push = torch.distributions.Categorical(logits=policy(world.poles * 5)).sample()
            seen.append(world.poles * 5)
            chosen.append(push)
            rewards.append(world.act(push))
        value, returns = torch.zeros(64), []
        for reward in reversed(rewards):
            value = (reward + 0.9 * value) * reward  # nothing follows a fall
            returns.insert(0, value)
        advantage = torch.stack(returns)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        picked = run.module(torch.stack(seen)).log_softmax(-1)
        picked = picked.gather(-1, torch.stack(chosen)[..., None])[..., 0]
        run.backward(-(advantage * picked).mean())
        run.step()
        run.log({"falls": 1 - torch.stack(rewards).mean().item()})
print(f"falls {run.view.metrics['falls']:.4f}")
