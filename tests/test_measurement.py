"""Measurements: the same y from every process, whoever shares the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashray.degradations import make_degradation
from flashray.errors import ImageError
from flashray.measurement import Frame, Measurer

SIZE = 32


def measurer(
    simulated: bool = True,
    settings: dict[str, Any] | None = None,
    noise: tuple[float, float] = (0.05, 0.05),
    name: str = "gaussian_blur",
) -> Measurer:
    chosen = {"std": [0.5, 2.0]} if settings is None else settings
    return Measurer(make_degradation(name, chosen), noise, simulated)


def crops(photo: torch.Tensor, n: int = 4) -> dict[str, torch.Tensor]:
    return {f"crop {i}": photo[:, 90:122, 50 * i : 50 * i + SIZE] for i in range(n)}


def test_simulated_measurements_depend_on_key_and_seed_alone(photo: torch.Tensor) -> None:
    simulate = measurer()
    photos = [simulate.photo(key, x) for key, x in crops(photo).items()]
    together = simulate.measure(photos)
    for i, one in enumerate(photos):
        alone = simulate.measure([one])
        assert torch.equal(alone.y_BCHW[0], together.y_BCHW[i])
        assert alone.seeds[0] == together.seeds[i]
    assert len(set(together.parameters["blur_std"].tolist())) == len(photos)
    residual = together.y_BCHW - together.operator.A(torch.stack([one.x for one in photos]))
    assert residual.std().item() / 2 == pytest.approx(0.05, rel=0.05)


def test_some_of_the_measurements(photo: torch.Tensor) -> None:
    simulate = measurer()
    together = simulate.measure([simulate.photo(key, x) for key, x in crops(photo).items()])
    rows = torch.tensor([2, 0])
    some = together.select(rows)
    assert some.keys == ["crop 2", "crop 0"]
    assert torch.equal(some.y_BCHW, together.y_BCHW[rows])
    assert some.seeds == [together.seeds[n] for n in rows.tolist()]
    assert some.x_BCHW is not None
    torch.testing.assert_close(some.operator.A(some.x_BCHW), together.operator.A(together.x_BCHW)[rows])  # type: ignore[arg-type]


def test_noise_is_drawn_from_a_range_per_image(photo: torch.Tensor) -> None:
    simulate = measurer(noise=(0.01, 0.2))
    photos = [simulate.photo(key, x) for key, x in crops(photo).items()]
    assert len({one.noise_std for one in photos}) == len(photos)
    assert all(0.01 <= one.noise_std <= 0.2 for one in photos)


def test_what_is_given_overrides_the_draw(photo: torch.Tensor) -> None:
    simulate = measurer()
    x = crops(photo)["crop 0"]
    measured = simulate.measure([simulate.photo("crop 0", x, {"blur_std": 1.25}, 0.125)])
    assert measured.parameters["blur_std"].tolist() == [1.25]
    assert measured.noise_std_B.tolist() == [0.125]
    hardest = simulate.measure([simulate.photo("crop 0", x, severity=1.0)])
    assert hardest.parameters["blur_std"].tolist() == [2.0]


def test_observed_measurements_are_the_images(photo: torch.Tensor) -> None:
    observe = measurer(simulated=False, settings={"std": [1.0, 1.0]})
    x = crops(photo)["crop 1"]
    measured = observe.measure([observe.photo("crop 1", x)])
    assert torch.equal(measured.y_BCHW[0], x)
    assert measured.x_BCHW is None
    assert measured.parameters["blur_std"].tolist() == [1.0]


def test_what_nothing_tells_is_an_error_of_the_image(photo: torch.Tensor) -> None:
    x = crops(photo)["crop 1"]
    with pytest.raises(ImageError, match="blur_std"):
        measurer(simulated=False).photo("crop 1", x)
    with pytest.raises(ImageError, match="noise_std"):
        measurer(simulated=False, settings={"std": [1.0, 1.0]}, noise=(0.0, 0.1)).photo("crop 1", x)
    with pytest.raises(ImageError, match="positive"):
        measurer().photo("crop 1", x, {"blur_std": 0.0})


def test_observed_and_simulated_masks_measure_the_same(photo: torch.Tensor) -> None:
    """Known pixels are the file's; the holes hold black and the noise that a simulated measurement has there."""
    settings = {"missing": [0.5, 0.5]}
    simulate = measurer(settings=settings, name="random_inpainting")
    x = crops(photo)["crop 2"]
    expected = simulate.measure([simulate.photo("crop 2", x)])
    mask = expected.operator.mask_B1HW[0]  # type: ignore[attr-defined]
    observe = measurer(simulated=False, settings=settings, name="random_inpainting")
    file = torch.where(mask > 0, expected.y_BCHW[0], torch.rand_like(x))  # whatever the file holds in its holes
    y = observe.measure([observe.photo("crop 2", file, mask_1HW=mask)]).y_BCHW
    torch.testing.assert_close(y, expected.y_BCHW)
    with pytest.raises(ImageError, match="missing, mask_seed"):
        observe.photo("crop 2", x)


@pytest.mark.parametrize(
    ("size", "fit"), [((64, 64), "resize"), ((50, 70), "resize"), ((20, 24), "resize"), ((40, 48), "crop")]
)
def test_a_known_pixel_is_free_of_the_missing_ones(photo: torch.Tensor, size: Any, fit: Any) -> None:
    """Files of other sizes: what the holes hold may be anything."""
    image, mask = photo[:, 60 : 60 + size[0], 150 : 150 + size[1]].clone(), torch.ones(3, *size)
    mask[:, 8:15, 10:16] = -1
    mask[:, 2, 3] = -1
    frame, taken = Frame(SIZE, fit), []
    for value in (-1.0, 1.0):
        image[mask < 0] = value
        taken.append(frame.take(image))
    known = frame.take_mask(mask, mask)
    assert known.shape == (1, SIZE, SIZE)
    assert 0.5 < known.mean() < 1
    one, other = taken
    assert (one - other).abs()[known.expand_as(one) > 0].max() < 0.03  # of a change by 2
    assert (one - other).abs().max() > 0.5
