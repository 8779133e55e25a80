"""The published context modules in torch, written from their papers and files.

Attributes are named as in `ggcf_jax.models.contexts`, so that `state_dict` names parameters alike.
Those with attention keep the weights of the last call in `maps`: [b, queries, keys] of each step.
"""

import functools

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


class SelfAttention(nn.Module):
    """SelfAttentionBlock2D of openseg on groups of positions, of which some may be no keys."""

    def __init__(self, c, key_channels):
        super().__init__()
        self.query, self.key = (
            nn.ModuleList([ConvNorm(c, key_channels, 1), ConvNorm(key_channels, key_channels, 1)])
            for _ in range(2)
        )
        self.value = nn.Conv2d(c, c, 1, bias=False)
        self.project = ConvNorm(c, c, 1)

    def forward(self, x, partition, long_range):
        q, k = (layers[1](layers[0](x)) for layers in (self.query, self.key))
        n, _, h, w = x.shape
        groups = functools.partial(self._groups, partition=partition, long_range=long_range)
        index = torch.arange(h * w).view(1, 1, h, w)
        index = groups(index + 1)[:, 0].expand(n, -1, -1)  # 0: padding
        queries, keys, values = groups(q), groups(k), groups(self.value(x))
        scores = torch.einsum('ncgi,ncgj->ngij', queries, keys) * q.shape[1] ** -0.5
        inside = index[:, :, None] > 0
        weights = scores.masked_fill(~inside, -torch.inf).softmax(-1)
        y = torch.einsum('ngij,ncgj->ncgi', weights, values).flatten(2)
        # Back to their places: groups and padding fall away.
        to, real = index.flatten(1)[0], index.flatten(1)[0] > 0
        order = torch.argsort(to[real])
        y = y[:, :, real][:, :, order].unflatten(2, (h, w))
        dense = torch.zeros(n, h * w + 1, h * w + 1, dtype=x.dtype)
        for image in range(n):
            for i, row in zip(index[image], weights[image]):
                dense[image, i[:, None], i] = row.detach()
        self.map = dense[:, 1:, 1:]
        return self.project(y)

    @staticmethod
    def _groups(x, partition, long_range):
        """[n, c, groups, positions]: the view and permute of ISA_Block, padded at the far ends."""
        n, c, h, w = x.shape
        dh, dw = partition
        x = F.pad(x, (0, -w % dw, 0, -h % dh))
        x = x.view(n, c, x.shape[2] // dh, dh, x.shape[3] // dw, dw)
        order = (0, 1, 3, 5, 2, 4) if long_range else (0, 1, 2, 4, 3, 5)
        return x.permute(order).flatten(4).flatten(2, 3)


class ISA(nn.Module):
    """ISANet's head of openseg; blocks begin at the first position, and padding is no key."""

    def __init__(self, n, model):
        super().__init__()
        c, self.partition = model.isa.channels, model.isa.partition
        self.reduce = ConvNorm(n, c, 3)
        self.steps = nn.ModuleList(SelfAttention(c, model.isa.key_channels) for _ in range(2))
        self.fuse = ConvNorm(2 * c, c, 1)

    def forward(self, x):
        x = y = self.reduce(x)
        for step, long_range in zip(self.steps, (True, False)):
            y = step(y, self.partition, long_range)
        self.maps = [step.map for step in self.steps]
        return self.fuse(torch.cat([x, y], 1))


class CCNet(nn.Module):
    """RCCAModule of CCNet without its classifier, CrissCrossAttention written out in einsum."""

    def __init__(self, n, model):
        super().__init__()
        c, inner = model.ccnet.channels, model.ccnet.channels // model.ccnet.reduction
        self.recurrence = model.ccnet.recurrence
        self.reduce = ConvNorm(n, c, 3)
        self.theta, self.phi, self.g = (nn.Conv2d(c, m, 1) for m in (inner, inner, c))
        self.gamma = nn.Parameter(torch.zeros(1))
        self.refine = ConvNorm(c, c, 3)
        self.fuse = ConvNorm(n + c, c, 3)

    def _step(self, x):
        n, _, h, w = x.shape
        q, k, v = self.theta(x), self.phi(x), self.g(x)
        down = torch.einsum('nchw,nciw->nhwi', q, k)
        itself = torch.eye(h, dtype=bool)[:, None]  # already in its row
        down = down.masked_fill(itself, -torch.inf)
        across = torch.einsum('nchw,nchj->nhwj', q, k)
        weights = torch.cat([down, across], -1).softmax(-1)
        y = torch.einsum('nhwi,nciw->nchw', weights[..., :h], v)
        y = y + torch.einsum('nhwj,nchj->nchw', weights[..., h:], v)
        dense = torch.zeros(n, h, w, h, w, dtype=x.dtype)
        for row in range(h):
            for column in range(w):
                dense[:, row, column, :, column] += weights[:, row, column, :h].detach()
                dense[:, row, column, row] += weights[:, row, column, h:].detach()
        self.maps.append(dense.view(n, h * w, h * w))
        return self.gamma * y + x

    def forward(self, x):
        self.maps = []
        y = self.reduce(x)
        for _ in range(self.recurrence):
            y = self._step(y)
        return self.fuse(torch.cat([x, self.refine(y)], 1))


TWINS = {'psp': PSP, 'nonlocal': NonLocal, 'isa': ISA, 'ccnet': CCNet}
