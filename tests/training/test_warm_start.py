from __future__ import annotations

import dataclasses

import torch

from flashray.training.autoencoder_task import AutoencoderConfig, make_autoencoder
from flashray.training.warm_start import copy_trunk

SOURCE = AutoencoderConfig(8, (8, 16, 16, 32), (0, 1, 1, 2), (0, 1, 1, 2), shortcut=True)


def test_an_equal_model_becomes_the_same():
    torch.manual_seed(0)
    source, model = make_autoencoder(SOURCE), make_autoencoder(SOURCE)
    assert copy_trunk(model, source) == len(source.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.encode(x).latent, source.encode(x).latent)
    z = torch.rand(2, 8, 4, 4)
    assert torch.equal(model.decode(z).sample, source.decode(z).sample)


def test_other_latents_keep_the_features():
    torch.manual_seed(0)
    source = make_autoencoder(SOURCE)
    model = make_autoencoder(dataclasses.replace(SOURCE, latent_channels=3, shortcut=False))
    assert copy_trunk(model, source) == len(source.state_dict()) - 4
    x = torch.rand(2, 3, 32, 32)
    features = []
    for each in (source, model):
        each.encoder.conv_out.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        each.encode(x)
    assert torch.equal(*features)


def test_a_shallower_model_takes_the_first_resolutions_and_new_blocks_change_nothing():
    torch.manual_seed(0)
    source = make_autoencoder(SOURCE)
    model = make_autoencoder(AutoencoderConfig(4, (8, 16, 16), (0, 1, 3), (0, 1, 2)))
    assert copy_trunk(model, source) > 0
    x = torch.rand(2, 3, 32, 32)
    ours, theirs = model.encoder.conv_in(x), source.encoder.conv_in(x)
    assert torch.equal(ours, theirs)
    ours, theirs = model.encoder.down_blocks[1](ours), source.encoder.down_blocks[1](theirs)
    assert torch.equal(ours, theirs)
    assert torch.equal(model.encoder.down_blocks[2](ours), source.encoder.down_blocks[2][0](theirs))
    # the decoder's residual block lies behind an upsampling in the deeper model
    h = torch.rand(1, 16, 8, 8)
    assert torch.equal(model.decoder.up_blocks[2](h), source.decoder.up_blocks[2][1](h))
