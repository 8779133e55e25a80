"""The published context modules in torch, written from their papers and files.

Attributes are named as in `ggcf_jax.models.contexts`, so that `state_dict` names parameters alike.
Those with attention keep the weights of the last call in `maps`: [b, queries, keys] of each step.
"""

import torch
from torch import nn
from torch.nn import functional as F


class ConvNorm(nn.Module):
    def __init__(self, n, m, kernel, activation=F.relu):
        super().__init__()
        self.conv = nn.Conv2d(n, m, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(m)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.norm(self.conv(x)))


class PSP(nn.Module):
    """model/pspnet.py of hszhao/semseg: PPM and the first layer of `cls`."""

    def __init__(self, n, model):
        super().__init__()
        c = model.psp.channels
        self.scales, self.align = model.psp.pool_scales, model.psp.align_corners
        self.branches = nn.ModuleList(ConvNorm(n, c, 1) for _ in self.scales)
        self.bottleneck = ConvNorm(n + len(self.scales) * c, c, 3)

    def forward(self, x):
        maps = [x]
        for scale, branch in zip(self.scales, self.branches):
            y = branch(F.adaptive_avg_pool2d(x, scale))
            maps.append(F.interpolate(y, x.shape[2:], mode='bilinear', align_corners=self.align))
        return self.bottleneck(torch.cat(maps, 1))


class NonLocal(nn.Module):
    """NLHead and FCNHead of mmsegmentation around NonLocal2d of mmcv."""

    def __init__(self, n, model):
        super().__init__()
        own = model.non_local
        c, inner = own.channels, own.channels // own.reduction
        self.use_scale, self.concat_input = own.use_scale, own.concat_input
        self.reduce = ConvNorm(n, c, 3)
        self.theta, self.phi, self.g = (nn.Conv2d(c, inner, 1) for _ in range(3))
        self.w = ConvNorm(inner, c, 1, activation=nn.Identity())
        self.refine = ConvNorm(c, c, 3)
        if own.concat_input:
            self.fuse = ConvNorm(n + c, c, 3)

    def forward(self, x):
        y = self.reduce(x)
        theta, phi, g = (layer(y).flatten(2) for layer in (self.theta, self.phi, self.g))
        scores = theta.transpose(1, 2) @ phi
        if self.use_scale:
            scores = scores / theta.shape[1] ** 0.5
        weights = scores.softmax(-1)
        self.maps = [weights]
        z = (weights @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        y = self.refine(y + self.w(z))
        return self.fuse(torch.cat([x, y], 1)) if self.concat_input else y


TWINS = {'psp': PSP, 'nonlocal': NonLocal}
