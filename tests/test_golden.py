"""Agreement with the reference implementation, all samples in one batch, to 1e-4."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flashray import engine
from flashray.active_image import Job
from flashray.degradations import Degradation, Operator, Parameters, make_degradation
from flashray.seeding import STREAM_RESAMPLE, STREAM_SOLVER
from flashray.solvers import Problem, Solver, make_solver
from tests.support.golden import golden, keys, toy_prior, toy_schedule
from tests.support.paper_loss import error_std, severity_loss

TOLERANCE = 1e-4
GRADIENT_SOLVERS = ("latent_dps", "gml_dps", "psld")
STEPS = (950, 600, 400, 120, 5)
OPERATORS = ("gaussian_blur", "inpainting")


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), atol=tolerance, rtol=0)


def family_of(operator: str) -> tuple[Degradation, Parameters]:
    """The family and the parameters of the three samples."""
    if operator == "inpainting":
        return make_degradation("random_inpainting"), {"mask": golden("inpainting/mask")}
    return make_degradation("gaussian_blur", {"kernel_size": 31}), {"blur_std": golden("blur_std")}


def operator_of(name: str) -> Operator:
    family, parameters = family_of(name)
    return family.bind(parameters, (32, 32))


def test_start_steps_equal_the_reference():
    schedule = toy_schedule()
    assert torch.equal(schedule.start_step(golden("start_step/variance").sqrt()), golden("start_step/index"))


@pytest.mark.parametrize("steps", [500, 200, 100])
def test_respaced_schedules(steps: int):
    schedule = toy_schedule().respaced(steps, set_alpha_to_one=False)
    assert torch.equal(schedule.timesteps, golden(f"ddim{steps}/timesteps"))
    close(schedule.alphas_cumprod, golden(f"ddim{steps}/alphas"), 1e-6)
    close(schedule.alphas_cumprod_prev, golden(f"ddim{steps}/alphas_prev"), 1e-6)
    eta = 0.0 if steps == 200 else 1.0
    alpha, previous = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    sigma = eta * ((1 - previous) / (1 - alpha) * (1 - alpha / previous)).sqrt()
    close(sigma, golden(f"ddim{steps}/sigmas"), 1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_forward_and_adjoint(name: str):
    operator = operator_of(name)
    close(operator.A_linear(golden("clean")), golden(f"{name}/forward"))
    close(operator.A_adjoint(golden("clean")), golden(f"{name}/adjoint"))


def problem(operator: str = "gaussian_blur") -> Problem:
    prior = toy_prior()
    y = golden(f"{operator}/measurement")
    return Problem(y, operator_of(operator), golden("noise_std").expand(len(y)), prior.encode, prior.decode)


def solver_of(name: str, operator: str = "gaussian_blur") -> Solver:
    recorded = ("dc_step",) if name == "latent_dps" else ("dc_step", "ae_weight")
    return make_solver(name, {setting: golden(f"{operator}/{name}/{setting}").item() for setting in recorded})


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", GRADIENT_SOLVERS)
def test_single_step(name: str, step: int, operator: str, monkeypatch: pytest.MonkeyPatch):
    prefix = f"{operator}/{name}/step{step}"
    monkeypatch.setattr(engine, "normal", lambda *_: golden(f"{prefix}/noise"))
    step_B, seed_B = torch.full((3,), step), torch.zeros(3, dtype=torch.long)
    prior = toy_prior()
    z = golden(f"{prefix}/z")
    solver = solver_of(name, operator)
    z_next = engine.advance(prior, solver, prior.schedule, problem(operator), z, step_B, seed_B)
    close(z_next, golden(f"{prefix}/z_next"))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["resample", "resample_proximal"])
def test_resample_single_step(name: str, step: int, operator: str, monkeypatch: pytest.MonkeyPatch):
    """Every stage, with the proximal term and, as the reference implementation runs, without."""
    prefix = f"{operator}/{name}"
    noises = {STREAM_SOLVER: "noise", STREAM_RESAMPLE: "resample_noise"}
    monkeypatch.setattr(engine, "normal", lambda *a: golden(f"{prefix}/step{step}/{noises[a[-1]]}"))
    settings = {
        "proximal": golden(f"{prefix}/z0_pred_corr_lam").item(),
        "iterations": int(golden(f"{prefix}/z0_pred_corr_steps").item()),
        "resample_step": golden(f"{prefix}/resample_step").item(),
        "every": 1,
    }
    step_B, seed_B = torch.full((3,), step), torch.zeros(3, dtype=torch.long)
    prior = toy_prior()
    z = golden(f"{prefix}/step{step}/z")
    solver = make_solver("resample", settings)
    z_next = engine.advance(prior, solver, prior.schedule, problem(operator), z, step_B, seed_B)
    close(z_next, golden(f"{prefix}/step{step}/z_next"))


def test_resample_serves_images_in_different_stages_at_once():
    """Images above, between and below the stages' timesteps, due and not due: as each alone."""
    prior, solver, measured = toy_prior(), make_solver("resample", {"every": 5, "iterations": 20}), problem()
    step_B, seed_B = torch.tensor([950, 400, 5]), torch.tensor([7, 8, 9])
    z = torch.cat([golden(f"gaussian_blur/resample/step{i}/z")[:1] for i in step_B.tolist()])
    together = engine.advance(prior, solver, prior.schedule, measured, z, step_B, seed_B)
    for b in range(3):
        row = torch.tensor([b])
        alone = engine.advance(prior, solver, prior.schedule, measured.select(row), z[row], step_B[row], seed_B[row])
        close(together[row], alone, 1e-5)
    not_due = engine.advance(prior, solver, prior.schedule, measured, z, step_B + 1, seed_B)
    assert torch.isfinite(not_due).all()


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", GRADIENT_SOLVERS)
def test_trajectories_in_one_batch_with_their_own_steps(name: str, operator: str, monkeypatch: pytest.MonkeyPatch):
    """The whole engine: three images that start at 9, 14 and 21 share a batch and leave it one after the other."""
    prefix = f"{operator}/{name}/trajectory"
    start = golden(f"{prefix}/start_step").tolist()
    prior, measured = toy_prior(), problem(operator)

    def recorded_noise(seed_B: Tensor, step_B: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
        # the k-th update of image b runs at step start[b] - 1 - k
        pairs = zip(seed_B.tolist(), step_B.tolist(), strict=True)
        return torch.stack([golden(f"{prefix}/{b}/noise")[start[b] - 1 - i] for b, i in pairs])

    monkeypatch.setattr(engine, "normal", recorded_noise)
    degradation, parameters = family_of(operator)
    jobs = [
        Job(
            key=str(b),
            seed=b,
            y=measured.y_BCHW[b],
            parameters={key: value[b] for key, value in parameters.items()},
            noise_std=0.05,
            z_start=golden(f"{prefix}/{b}/z_start")[0],
            start_step=start[b],
        )
        for b in (2, 0, 1)
    ]
    widths: list[int] = []
    solver = solver_of(name, operator)
    solved = engine.solve(prior, degradation, solver, prior.schedule, jobs, slots=3, on_step=widths.append)
    finished = list(solved)
    assert [one.key for one in finished] == ["0", "1", "2"]
    assert [one.nfe for one in finished] == start
    assert widths == [3] * 9 + [2] * 5 + [1] * 7
    for one in finished:
        assert one.image is not None
        expected = golden(f"{prefix}/{one.key}/image")[0]
        close(one.image, expected.clamp(-1, 1))


def test_severity_loss_terms_and_loss():
    z0, z_hat = golden("z0", "severity"), golden("z_mean", "severity")
    variance, clean = golden("variance", "severity"), golden("clean", "severity")
    close(error_std(z_hat, z0).square(), golden("error_variance", "severity"))
    weights = [key for key in keys("severity") if key.endswith("/loss")]
    assert weights
    x_hat = torch.tanh(torch.nn.functional.conv_transpose2d(z_hat, golden("decoder_weight", "severity"), stride=4))
    for key in weights:
        lambdas = {name: float(value) for name, value in (part.split("=") for part in key.split("/")[:2])}
        terms = severity_loss(z_hat, z0, variance.sqrt(), x_hat, clean, **lambdas, target="variance")
        prefix = key.removesuffix("/loss")
        # the reference reports sums: over the pixels of the mean image, and over the whole batch
        close(terms["latent"] * z0[0].numel(), golden(f"{prefix}/latent_term", "severity")[0], 1e-3)
        close(terms["image"] * clean.numel(), golden(f"{prefix}/image_term", "severity")[0], 1e-2)
        # its loss gives the image term the weight of the batch size: averaged over the batch, ours needs it back
        batched = {**lambdas, "lambda_image": lambdas["lambda_image"] * len(clean)}
        loss = severity_loss(z_hat, z0, variance.sqrt(), x_hat, clean, **batched, target="variance")["loss"]
        close(loss, golden(key, "severity")[0])


def test_std_target_is_the_published_objective():
    z0, z_hat = golden("z0", "severity"), golden("z_mean", "severity")
    sigma_hat = golden("variance", "severity").sqrt()
    terms = severity_loss(z_hat, z0, sigma_hat, None, golden("clean", "severity"), lambda_image=0.0)
    expected = torch.stack([(a - b).flatten().std() for a, b in zip(z_hat, z0, strict=True)])
    close(terms["sigma"], (expected - sigma_hat).square().mean(), 1e-6)
    assert terms["image"] == 0


def test_a_broken_update_is_caught(monkeypatch: pytest.MonkeyPatch):
    """The tolerance has teeth: a wrong sign of the data term leaves it by far."""
    prefix = "gaussian_blur/latent_dps/step120"
    monkeypatch.setattr(engine, "normal", lambda *_: golden(f"{prefix}/noise"))
    broken = replace(solver_of("latent_dps"))
    object.__setattr__(broken, "dc_step", -broken.dc_step)
    prior = toy_prior()
    step_B, seed_B = torch.full((3,), 120), torch.zeros(3, dtype=torch.long)
    z_next = engine.advance(prior, broken, prior.schedule, problem(), golden(f"{prefix}/z"), step_B, seed_B)
    assert (z_next - golden(f"{prefix}/z_next")).abs().max() > 100 * TOLERANCE
