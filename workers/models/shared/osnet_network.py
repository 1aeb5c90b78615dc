"""OSNet: omni-scale features for telling people apart, after K. Zhou, Y. Yang, A. Cavallaro and T. Xiang, "Omni-Scale
Feature Learning for Person Re-Identification", ICCV 2019 (arXiv:1905.00953). For inference alone, no classifier.

Its block looks at the picture at four scales at once: four streams of one to four light 3x3 convolutions see 3x3 to
9x9 pixels, and one gate, shared among them, weighs their channels by what is in the picture. Names of modules are those
of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

from torch import nn

FEATURES = 512
X0_25 = (16, 64, 96, 128)  # channels of the four stages at width 0.25


def osnet_x0_25() -> Any:
    """(n, 3, h, w) → (n, 512); trained on 256x128."""
    return OSNet(X0_25)


class OSNet(nn.Module):  # type: ignore[misc]
    """A convolution, three stages of two blocks each, and what averages the picture into one vector."""

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.conv1 = Convolution(3, first, 7, stride=2, padding=3)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = stage(first, second, nn.Sequential(Convolution(second, second, 1), nn.AvgPool2d(2)))
        self.conv3 = stage(second, third, nn.Sequential(Convolution(third, third, 1), nn.AvgPool2d(2)))
        self.conv4 = stage(third, fourth)
        self.conv5 = Convolution(fourth, fourth, 1)
        self.fc = nn.Sequential(nn.Linear(fourth, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU())

    def forward(self, pixels: Any) -> Any:
        maps = self.conv4(self.conv3(self.conv2(self.maxpool(self.conv1(pixels)))))
        return self.fc(self.conv5(maps).mean((2, 3)))


def stage(inputs: int, outputs: int, *transition: nn.Module) -> Any:
    return nn.Sequential(Block(inputs, outputs), Block(outputs, outputs), *transition)


class Convolution(nn.Module):  # type: ignore[misc]
    """Convolution, normalisation and, unless it is linear, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, padding: int = 0, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.last = nn.Identity() if linear else nn.ReLU()

    def forward(self, maps: Any) -> Any:
        return self.last(self.bn(self.conv(maps)))


class LightConvolution(nn.Module):  # type: ignore[misc]
    """The paper's Lite 3x3: a 3x3 convolution in two factors, across channels and then within each ("pointwise, then
    depthwise").
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, maps: Any) -> Any:
        return self.relu(self.bn(self.conv2(self.conv1(maps))))


class ChannelGate(nn.Module):  # type: ignore[misc]
    """The aggregation gate: each channel times a number between 0 and 1 that the whole picture decides."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, maps: Any) -> Any:
        return maps * self.fc2(self.relu(self.fc1(maps.mean((2, 3), keepdim=True)))).sigmoid()


class Block(nn.Module):  # type: ignore[misc]
    """The omni-scale residual block: `inputs` narrowed to a quarter of `outputs`, four streams, one gate, widened."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = Convolution(inputs, middle, 1)
        self.conv2a = LightConvolution(middle)
        self.conv2b = nn.Sequential(*(LightConvolution(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConvolution(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConvolution(middle) for _ in range(4)))
        self.gate = ChannelGate(middle)
        self.conv3 = Convolution(middle, outputs, 1, linear=True)
        self.downsample = Convolution(inputs, outputs, 1, linear=True) if inputs != outputs else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, maps: Any) -> Any:
        narrow = self.conv1(maps)
        scales = [self.gate(stream(narrow)) for stream in (self.conv2a, self.conv2b, self.conv2c, self.conv2d)]
        return self.relu(self.conv3(sum(scales[1:], scales[0])) + self.downsample(maps))
