"""A GAN, in a loop of its own: two models, two optimizers, one run that can be killed and resumed.

It learns points on a ring. What is validated is the average of the generator's weights.
"""

import torch
from torch import nn

from trainer import Run, TrainerConfig
from trainer_ema import EMACallback


def make_ring(count: int) -> torch.Tensor:
    """Returns points at a distance of about 1 from the middle, of shape (count, 2)."""
    angles = 2 * torch.pi * torch.rand(count)
    return torch.stack([angles.cos(), angles.sin()], 1) + 0.05 * torch.randn(count, 2)


def make_network(inputs: int, outputs: int) -> nn.Module:
    hidden = [nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)]
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def judge(discriminator: nn.Module, points: torch.Tensor, wanted: float) -> torch.Tensor:
    found = discriminator(points)
    return nn.functional.binary_cross_entropy_with_logits(found, torch.full_like(found, wanted))


def measure() -> dict[str, float]:
    """How far generated points are from the ring, as a mean."""
    return {"ring_error": (g(torch.randn(500, 4)).norm(dim=1) - 1).abs().mean().item()}


torch.manual_seed(0)
g, d = make_network(4, 2), make_network(2, 1)
optimizers = {
    "g": torch.optim.Adam(g.parameters(), lr=1e-3, betas=(0.5, 0.9)),
    "d": torch.optim.Adam(d.parameters(), lr=1e-3, betas=(0.5, 0.9)),
}
run = Run(
    {"g": g, "d": d},
    optimizers,
    validate=measure,
    config=TrainerConfig(epochs=8, output_dir="runs/gan", snapshot_epochs=True),
    callbacks=[EMACallback(decay=0.99)],
)
loader = torch.utils.data.DataLoader(make_ring(6400), batch_size=64, shuffle=True)
generator, discriminator = run.module["g"], run.module["d"]
with run.start(resume="auto"):
    for _ in run.epochs():
        for real in run.batches(loader):
            fake = generator(torch.randn(len(real), 4))
            loss = judge(discriminator, real, 1.0) + judge(discriminator, fake.detach(), 0.0)
            run.backward(loss, "d")
            run.step("d")
            run.backward(judge(discriminator, fake, 1.0), "g")
            run.step("g")
print(f"ring_error {run.result.history[-1]['ring_error']:.3f}")
