from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from flashray.seeding import (
    STREAM_MEASUREMENT,
    STREAM_OPERATOR,
    STREAM_SOLVER,
    STREAM_START,
    generator_of,
    image_seed,
    normal,
    philox,
    uniform,
)

SHAPES = [(1, 1, 1), (1, 1, 3), (5, 1, 1), (3, 5, 7), (16, 8, 8), (3, 33, 31), (32, 16, 16)]


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]):
    """The known-answer vectors of Random123, philox4x32 with 10 rounds."""
    assert tuple(int(word) for word in philox(words(*counter), words(*key))) == expected


def philox_in_integers(counter: list[int], key: list[int]) -> list[int]:
    """The paper's figure, in Python's integers, which never overflow."""
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def test_philox_equals_arithmetic_without_overflow():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2**32, (200, 6), generator=generator)
    result = torch.stack(philox(tuple(values[:, :4].T), tuple(values[:, 4:].T)), dim=1)
    assert result.tolist() == [philox_in_integers(row[:4], row[4:]) for row in values.tolist()]


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_does_not_depend_on_the_batch_to_the_last_bit(shape: tuple[int, ...]):
    seeds = torch.tensor([image_seed(0, f"photo {i}.png") for i in range(13)])
    steps = torch.arange(13) * 71
    batch = normal(seeds, steps, shape, STREAM_SOLVER)
    assert batch.shape == (13, *shape)
    assert batch.dtype == torch.float32
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normal(seeds[order], steps[order], shape, STREAM_SOLVER), batch[order])
    for n in range(13):
        assert torch.equal(normal(seeds[n : n + 1], steps[n : n + 1], shape, STREAM_SOLVER)[0], batch[n])


def test_noise_differs_by_seed_step_and_stream():
    base = torch.tensor([123456789])
    zero = torch.zeros(1, dtype=torch.long)
    draws = [
        normal(base, zero, (1, 1, 64), STREAM_SOLVER),
        normal(base + 1, zero, (1, 1, 64), STREAM_SOLVER),
        normal(base + 2**32, zero, (1, 1, 64), STREAM_SOLVER),  # the seed's upper half counts
        normal(base, zero + 1, (1, 1, 64), STREAM_SOLVER),
        normal(base, zero + 999, (1, 1, 64), STREAM_SOLVER),
        normal(base, zero, (1, 1, 64), STREAM_START),
        normal(base, zero, (1, 1, 64), STREAM_MEASUREMENT),
    ]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert (one == other).sum() == 0


def test_noise_is_standard_normal():
    seeds = torch.arange(24) * 7919
    values = normal(seeds, seeds % 1000, (3, 73, 71), STREAM_SOLVER).flatten().double()
    count = len(values)
    assert abs(values.mean()) < 4 / math.sqrt(count)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs(stats.skew(values.numpy())) < 4 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(values.numpy())) < 4 * math.sqrt(24 / count)
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    assert 4.5 < values.abs().max() < 6.7  # 32-bit uniforms reach 6.66


def test_every_pixel_is_normal_across_images():
    """Moments of one position over many seeds, which is what an image sees over its steps."""
    values = (
        normal(torch.arange(8_000), torch.zeros(8_000, dtype=torch.long), (7, 1, 1), STREAM_SOLVER).flatten(1).double()
    )
    assert (values.mean(dim=0).abs() < 4 / math.sqrt(8_000)).all()
    for column in values.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    covariance = torch.cov(values.T) - torch.eye(7)
    assert covariance.abs().max() < 5 / math.sqrt(8_000)


def test_neighbouring_steps_seeds_and_streams_are_uncorrelated():
    shape, zero = (4, 100, 150), torch.zeros(1, dtype=torch.long)
    seed = torch.tensor([42])
    draws = (
        torch.cat(
            [
                normal(seed, zero, shape, STREAM_SOLVER),
                normal(seed, zero + 1, shape, STREAM_SOLVER),
                normal(seed + 1, zero, shape, STREAM_SOLVER),
                normal(seed, zero, shape, STREAM_START),
            ]
        )
        .flatten(1)
        .double()
    )
    off_diagonal = torch.corrcoef(draws) - torch.eye(4)
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(60_000)
    shifted = torch.corrcoef(torch.stack([draws[0, :-1], draws[0, 1:]]))[0, 1]
    assert abs(shifted) < 4.5 / math.sqrt(60_000)


def test_image_seeds_are_what_they_were():
    """Changing these changes every image of every run that is resumed."""
    assert image_seed(0, "a.png") == 1157867835434442633
    assert image_seed(0, "más fotos/ключ.png") == 6281975120431581498
    assert image_seed(7, "a.png", "degradation") == 2546618979262038155


def test_image_seeds_differ_by_run_key_and_purpose_and_fit_63_bits():
    seeds = {
        image_seed(run, key, purpose)
        for run in range(20)
        for key in ("", "a", "b", "a/b", "a\x00", "ключ")
        for purpose in ("", "degradation", "x")
    }
    assert len(seeds) == 20 * 6 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(1, "1a") != image_seed(11, "a")  # the parts cannot run into each other


def test_the_noise_itself_is_what_it_was():
    seeds, steps = torch.tensor([image_seed(0, "a.png"), 5]), torch.tensor([0, 999])
    torch.testing.assert_close(
        normal(seeds, steps, (3, 1, 1), STREAM_SOLVER).flatten(1),
        torch.tensor([[0.6566355, -0.0702871, 0.6387176], [-0.4015761, -0.7654822, -0.2440057]]),
        rtol=1e-6,
        atol=1e-6,
    )


def test_generators_repeat_and_differ_by_purpose():
    def draw(seed: int, purpose: str) -> torch.Tensor:
        return torch.rand(8, generator=generator_of(seed, purpose))

    assert torch.equal(draw(3, "degradation"), draw(3, "degradation"))
    assert not torch.equal(draw(3, "degradation"), draw(3, "crop"))
    assert not torch.equal(draw(3, "degradation"), draw(4, "degradation"))


def test_uniform_numbers_of_a_seed():
    seeds = torch.tensor([3, 4, 2**40 + 3])
    u = uniform(seeds, 10_000, STREAM_OPERATOR)
    assert u.min() > 0
    assert u.max() < 1
    for row in u:
        assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-3
    assert (u[0] != u[2]).all()  # the high word counts
    assert torch.equal(uniform(seeds[1:2], 5, STREAM_OPERATOR)[0], u[1, :5])
    assert (uniform(seeds, 5, STREAM_START) != u[:, :5]).all()
