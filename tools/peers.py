"""The notebooks' networks in plain PyTorch, for `make bench`. When called, they return the loss."""

import sys
import time
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH_SIZE, NOISE_SIZE = 64, 64  # the same as in tools/bench.py


def convolution(inputs, outputs, size=3, stride=1):
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Classifier(nn.Sequential):
    def forward(self, images, label):
        return functional.cross_entropy(super().forward(images), label, label_smoothing=0.1)


def vgg16(width):
    layers, inputs = [], 3
    for convolutions, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(convolutions):
            layers += [convolution(inputs, round(channels * width)), nn.ReLU(inplace=True)]
            inputs = round(channels * width)
        layers.append(nn.MaxPool2d(2))
    return Classifier(*layers, nn.Flatten(), nn.Linear(inputs, 100))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        stride = outputs // inputs  # where the channels double, height and width are halved
        first, second = convolution(inputs, outputs, 3, stride), convolution(outputs, outputs)
        self.main = nn.Sequential(first, nn.ReLU(inplace=True), second)
        self.shortcut = nn.Identity() if stride == 1 else convolution(inputs, outputs, 1, stride)

    def forward(self, x):
        return functional.relu(self.main(x) + self.shortcut(x))


def resnet20():
    pairs = pairwise([16] * 4 + [32] * 3 + [64] * 3)
    end = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100)
    start = convolution(3, 16), nn.ReLU(inplace=True)
    return Classifier(*start, *(ResidualBlock(*pair) for pair in pairs), *end)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.widths = [64, 64, 64, 64, 32, 16]
        self.start = nn.Linear(NOISE_SIZE, 4 * 4 * 64)
        self.normalizations = nn.ModuleList(nn.BatchNorm2d(n, affine=False) for n in self.widths)
        self.of_class = nn.Embedding(100, 2 * sum(self.widths))
        self.of_noise = nn.Linear(NOISE_SIZE, 2 * sum(self.widths), bias=False)
        self.layers = nn.ModuleList()
        for (inputs, outputs), stride in zip(pairwise(self.widths), (1, 2, 1, 2, 2), strict=True):
            self.layers += [nn.ConvTranspose2d(inputs, outputs, 2 + stride, stride, 1, bias=False)]
        self.layers += [nn.Conv2d(16, 3, 3, padding=1)]

    def forward(self, noise, label):
        x = self.start(noise).view(-1, 64, 4, 4).to(memory_format=torch.channels_last)
        modulation = (self.of_class(label) + self.of_noise(noise))[:, :, None, None]
        scales, shifts = (half.split(self.widths, dim=1) for half in modulation.chunk(2, dim=1))
        blocks = zip(self.normalizations, scales, shifts, self.layers, strict=True)
        for normalization, scale, shift, layer in blocks:
            x = layer(functional.relu(normalization(x) * scale + shift))
        return torch.tanh(x)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for channels, size, stride in ((32, 4, 2), (64, 4, 2), (64, 4, 2), (64, 3, 1), (64, 3, 1)):
            layer = nn.Conv2d(inputs, channels, size, stride, padding=1)
            layers += [spectral_norm(layer), nn.LeakyReLU(0.1)]
            inputs = channels
        self.features = nn.Sequential(*layers)
        self.score, self.class_vectors = spectral_norm(nn.Linear(64, 1)), nn.Embedding(100, 64)

    def forward(self, images, label):
        features = self.features(images).sum((2, 3))
        return self.score(features)[:, 0] + (features * self.class_vectors(label)).sum(1)


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.average, self.discriminator = Generator(), Generator(), Discriminator()

    def forward(self, images, label):
        fake = self.generator(torch.randn(BATCH_SIZE, NOISE_SIZE, device=DEVICE), label)
        scores = self.discriminator(torch.cat([images, fake.detach()]), label.repeat(2))
        real_score, fake_score = scores.chunk(2)
        d_loss = functional.relu(1 - real_score) + functional.relu(1 + fake_score)
        weights = {name: w.detach() for name, w in self.discriminator.named_parameters()}
        g_loss = -torch.func.functional_call(self.discriminator, weights, (fake, label))
        average, weights = (list(net.parameters()) for net in (self.average, self.generator))
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.002)
        return (d_loss + g_loss).mean()


def main(network, kind):
    """Train for as many steps as each line of standard input says; print the seconds per step."""
    others = {"GAN": GAN, "ResNet-20": resnet20}
    model = others[network]() if network in others else vgg16(float(network.split("x")[1]))
    model.to(DEVICE, memory_format=torch.channels_last)
    if "compiled" in kind:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-4, fused=True)
    images = torch.randn(BATCH_SIZE, 3, 32, 32, device=DEVICE)
    label = torch.randint(0, 100, (BATCH_SIZE,), device=DEVICE)
    for line in sys.stdin:
        start, taken = time.perf_counter(), 0
        while taken < int(line) and time.perf_counter() - start < 3:  # bfloat16 can be slow
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16, enabled="bfloat16" in kind):
                loss = model(images, label)
            loss.backward()
            optimizer.step()
            taken += 1
        loss.item()  # waits until a GPU has finished
        print((time.perf_counter() - start) / taken, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
