"""The notebooks' networks in plain PyTorch, channels last: what `make bench` compares them with."""

import contextlib
import itertools
import time

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def vgg16(width):
    stack, before = [], 3
    for convolutions, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(convolutions):
            stack += [nn.Conv2d(before, round(channels * width), 3, padding=1, bias=False)]
            before = round(channels * width)
            stack += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
        stack += [nn.MaxPool2d(2)]
    return nn.Sequential(*stack, nn.Flatten(), nn.Linear(before, 100))


class Residual(nn.Module):
    def __init__(self, before, channels, strides):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, channels, 3, strides, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if strides > 1 or before != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(before, channels, 1, strides, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        return functional.relu(self.main(x) + self.shortcut(x))


def resnet(depth, width):
    stack, before = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)], width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stack += [Residual(before, width * 2**stage, 2 if stage and not block else 1)]
            before = width * 2**stage
    return nn.Sequential(*stack, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 100))


def classifier_step(model, batch_size, bfloat16=False, compiled=False):
    """Return a function that takes one training step of `model` on a fixed batch."""
    model = model.to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 100, (batch_size,), device=DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05, fused=DEVICE == "cuda")
    model = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
            scores = model(images)
        functional.cross_entropy(scores.float(), labels, label_smoothing=0.1).backward()
        optimizer.step()

    return step


class ConditionalNorm(nn.Module):
    def __init__(self, channels, latent):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(100, channels), nn.Embedding(100, channels)
        self.noise_scale, self.noise_shift = (nn.Linear(latent, channels, bias=False) for _ in range(2))

    def forward(self, x, label, noise):
        scale, shift = self.scale(label) + self.noise_scale(noise), self.shift(label) + self.noise_shift(noise)
        return functional.relu(self.norm(x) * scale[:, :, None, None] + shift[:, :, None, None])


class Generator(nn.Module):
    def __init__(self, channels, latent):
        super().__init__()
        widths, strides = [width * channels for width in (4, 4, 4, 4, 2, 1)], (1, 2, 1, 2, 2)
        self.start = nn.Linear(latent, 16 * widths[0])
        self.norms = nn.ModuleList(ConditionalNorm(width, latent) for width in widths)
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 2 + stride, stride, 1, bias=False)
            for (before, after), stride in zip(itertools.pairwise(widths), strides, strict=True)
        )
        self.end = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, noise, label):
        x = self.start(noise).view(len(noise), -1, 4, 4).to(memory_format=torch.channels_last)
        for norm, up in zip(self.norms, self.ups, strict=False):
            x = up(norm(x, label, noise))
        return torch.tanh(self.end(self.norms[-1](x, label, noise)))


class Discriminator(nn.Module):
    def __init__(self, channels):
        super().__init__()
        layers, before = [], 3
        for width, size, strides in ((2, 4, 2), (4, 4, 2), (4, 4, 2), (4, 3, 1), (4, 3, 1)):
            layers += [spectral_norm(nn.Conv2d(before, width * channels, size, strides, 1)), nn.LeakyReLU(0.1)]
            before = width * channels
        self.trunk = nn.Sequential(*layers)
        self.score, self.classes = spectral_norm(nn.Linear(before, 1)), nn.Embedding(100, before)

    def forward(self, images, label):
        features = self.trunk(images).sum((2, 3))
        return self.score(features)[:, 0] + (features * self.classes(label)).sum(1)


class Teacher(nn.Module):
    def __init__(self, channels):
        super().__init__()
        stack, before = [], 3
        for width in (channels, 2 * channels, 4 * channels):
            stack += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2)]
            before = width
        self.trunk, self.end = nn.Sequential(*stack, nn.AvgPool2d(2), nn.Flatten()), nn.Linear(4 * before, 100)
        for name in ("real_means", "means"):
            self.register_buffer(name, torch.zeros(100, 4 * before))
        for name in ("real_covariance", "covariance"):
            self.register_buffer(name, torch.eye(4 * before))

    def gaps(self, features, label):
        """How far the generated class means and the covariance about them are off, as in notebook 1's ClassMoments."""
        y = functional.one_hot(label, 100).to(features)
        count = y.sum(0)[:, None]
        mean = y.T @ features.detach() / count.clamp(min=1)
        self.means = self.means * 0.9**count + mean * (1 - 0.9**count)
        around = features - y @ self.real_means
        fixed = around.detach()
        self.covariance = 0.95 * self.covariance + 0.05 * (fixed.T @ fixed) / len(fixed)
        spread = fixed @ (self.covariance - self.real_covariance)
        return (around * (y @ (self.means - self.real_means))).sum(1).mean(), (around * spread).sum(1).mean()

    def forward(self, images, label):
        features = self.trunk(images)
        return functional.cross_entropy(self.end(features).float(), label), *self.gaps(features.float(), label)


def with_copies(real, fake):
    """Return both, each followed by its shifted and flipped copies, as in notebook 1's discriminator_loss."""
    return torch.cat([part for images in (real, fake) for part in (images, shift_and_flip(images))])


def shift_and_flip(images):
    """Move each image by up to 4 pixels, and flip half of them."""
    n, padded = len(images), functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, n, 1), device=DEVICE) + torch.arange(32, device=DEVICE)
    left = torch.where(torch.rand(n, 1, device=DEVICE) < 0.5, left.flip(1), left)
    moved = padded[torch.arange(n, device=DEVICE)[:, None, None], :, top[:, :, None], left[:, None, :]]  # channels come last
    return moved.permute(0, 3, 1, 2)


def discriminator_loss(scores):
    """Return hinge loss and consistency term (weight 10) of the scores of real images, their copies, fake images and theirs."""
    real, fake = scores.chunk(2)
    first, again = scores.reshape(2, 2, -1).unbind(1)
    return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean() + 10 * (first - again).square().mean()


def gan_step(channels, latent, batch_size, bfloat16=False, compiled=False):
    """Return a function that takes one step of generator and discriminator on a fixed batch, teacher included."""
    g, d = Generator(channels, latent), Discriminator(channels)
    average, guide = Generator(channels, latent), Teacher(channels).eval().requires_grad_(False)
    g, d, average, guide = (model.to(DEVICE, memory_format=torch.channels_last) for model in (g, d, average, guide))
    real = torch.randn(batch_size, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    label = torch.randint(0, 100, (batch_size,), device=DEVICE)
    optimizers = [torch.optim.Adam(model.parameters(), 4e-4, (0.0, 0.99), fused=DEVICE == "cuda") for model in (g, d)]
    parameters = [list(model.parameters()) for model in (average, g)]
    g, d, guide = (torch.compile(model) if compiled else model for model in (g, d, guide))
    half = batch_size // 2

    def step():
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
            fake = g(torch.randn(batch_size, latent, device=DEVICE), label)
            scores = d(with_copies(real[:half], fake[:half].detach()), label[:half].repeat(4)).float()
        optimizers[1].zero_grad()
        discriminator_loss(scores).backward()
        d.requires_grad_(False)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
            opinion, means, spread = guide(fake, label)
            loss = 0.1 * opinion + 0.05 * means + 0.004 * spread - d(fake, label).float().mean()
        optimizers[0].zero_grad()
        loss.backward()
        d.requires_grad_(True)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(*parameters, 0.002)

    return step


def build_step(network, channels, latent, batch_size, bfloat16, compiled):
    """Return a function that takes one training step of a network by its name in `make bench`."""
    if network == "GAN":
        return gan_step(channels, latent, batch_size, bfloat16, compiled)
    model = vgg16(float(network.split("x")[1])) if network.startswith("VGG") else resnet(20, 16)
    return classifier_step(model, batch_size, bfloat16, compiled)


def serve(connection, *arguments):
    """Take as many steps as `connection` asks for and send the seconds a step back, until it is closed."""
    step = build_step(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            steps = connection.recv()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            wait()
            connection.send((time.perf_counter() - start) / steps)


def wait():
    """Wait until the device has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
