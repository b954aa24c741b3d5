"""One evaluation as a run: a pilot for each batch of images, the curve, the gaps on simulated data; stored as it goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossy_mlflow.experiments.evaluation_progress import EvaluationProgress, Work
from lossy_mlflow.experiments.evaluation_state import Done, from_tensors, to_tensors
from lossy_mlflow.experiments.evaluation_subject import Subject
from lossy_mlflow.experiments.tunings import Target, fitted, load_tuning, store_tuning, tuning_of_target
from lossy_mlflow.rate_distortion import (
    Curve,
    Distortion,
    Gap,
    Pilot,
    Tuning,
    curve,
    gap,
    mixed,
    negative_log_likelihood,
    simulate,
    stretched,
    tune,
)
from lossy_mlflow.rate_distortion.annealing import Annealing, Point, anneal, start
from lossy_mlflow.rate_distortion.curves import as_point, curve_of, joined
from lossy_mlflow.rate_distortion.mixture import Stretched
from lossy_mlflow.rate_distortion.variational import VariationalPoint, fresh_encoder, variational_curve
from lossy_mlflow.tracking.ending import StoppedError
from lossy_mlflow.tracking.session import Attempt
from lossy_mlflow.tracking.signals import StopRequest
from lossy_mlflow.tracking.training_state import Progress, TrainingState, TrainingStates
from lossy_mlflow.training import derived_seed, generator_for, iwae_bound

log = logging.getLogger("lossy_mlflow")

_SAVE_EVERY_S = 20.0
_IWAE_SAMPLES = 500
DRAWN_IMAGES, _DRAWN_BETAS = 8, 7


class Evaluation:
    """The work of one process on one run. `state`: what an earlier attempt has stored."""

    def __init__(
        self,
        attempt: Attempt,
        label: str,
        subject: Subject,
        target: Target | None,
        state: TrainingState | None,
        asked: StopRequest,
        progress: Callable[[EvaluationProgress], None] | None,
    ) -> None:
        settings = subject.settings
        self._attempt, self._label, self._settings, self._subject = attempt, label, settings, subject
        self._target, self._asked = target, asked
        self._device = subject.images.device
        self.done = from_tensors(state.tensors, self._device) if state else Done()
        self._states = TrainingStates(attempt.connection, attempt.run_id, state)
        self._n_saved = state.progress.epoch if state else 0
        self._saved = time.monotonic()
        self._pilot = Pilot(target_acceptance=settings.target_acceptance)
        self._work = Work(label, settings, progress)
        for _ in self.done.curves:  # one of each part of each batch
            self._work.finish("pilot", settings.batch_size)
            self._work.finish("curve", settings.batch_size)
        for _ in self.done.gaps:
            self._work.finish("gap pilot", settings.gap_images)
            self._work.finish("gap", settings.gap_images)

    def run(self) -> Curve:
        """The curve of all images; the gaps are in `done`. Raises StoppedError where somebody asks the process to stop."""
        settings = self._settings
        if settings.estimator == "variational":
            self._train_encoders()
        else:
            self._anneal_batches()
        for index in range(len(self.done.gaps), len(settings.gap_betas)):
            self.done.gaps.append(self._gap(index, settings.gap_betas[index]))
            self._save()
        if settings.log_likelihood and not self.done.likelihood:
            self.done.likelihood = self._likelihood()
            self._save()
        return self._together(self.done.curves)

    def _together(self, curves: Sequence[Curve]) -> Curve:
        """Of each part of each batch, as one of all images."""
        shares = self._settings.prior_shares
        return joined(
            [mixed(curves[at : at + len(shares)], shares) for at in range(0, len(curves), len(shares))]
        )

    def _anneal_batches(self) -> None:
        n_parts = len(self._settings.prior_shares)
        for index in range(len(self.done.curves), self._settings.n_batch * n_parts):
            batch, part = divmod(index, n_parts)
            distortion = self.distortions(batch)[part]
            self._measure(index, distortion, self._tuning(index, distortion))
            self._save()

    def _train_encoders(self) -> None:
        """The variational curve. Its points are those of a curve without weights, whose chains are samples of q."""
        done, settings, images = self.done, self._settings, self._subject.images
        if done.curves:
            return
        generator = generator_for(settings.random_seed, "variational", 0, self._device)
        encoder = fresh_encoder(images.shape[1], self._subject.z_size, generator)
        if done.generator is not None:
            encoder.load_state_dict(done.encoder)
            _restore(generator, done.generator, len(done.points))

        def take(point: VariationalPoint) -> None:
            done.points.append(as_point(point))
            done.encoder = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
            done.generator = generator.get_state()
            self._work.report("curve", len(done.points) / len(settings.betas), len(images))
            if self._is_due():
                self._save()
            self._stop_if_asked()

        variational_curve(
            self._subject.made,
            self._subject.train_images,
            images,
            settings.betas[len(done.points) :],
            settings.encoder_epochs,
            generator,
            encoder=encoder,
            on_point=take,
        )
        self._work.finish("curve", len(images))
        done.curves.append(curve_of(done.points))
        done.points, done.encoder, done.generator = [], {}, None
        self._save()

    def _likelihood(self) -> dict[str, float]:
        """Log p(x) of the images, in nats: by AIS, a lower bound in expectation; by the IWAE bound where there is an encoder."""
        settings, subject = self._settings, self._subject
        curves: list[Curve] = []
        for images in torch.split(subject.images, settings.batch_size):
            joint = negative_log_likelihood(subject.decoder, images, subject.z_size)
            for std in settings.prior_stds:
                distortion = stretched(joint, std)
                tuning = self._run_pilot(distortion, (1.0,), "likelihood pilot", len(curves))
                noise = generator_for(settings.random_seed, "likelihood", len(curves), self._device)
                curves.append(self._joint_curve(distortion, tuning, noise))
        found = self._together(curves)
        values = {
            "log_likelihood_ais": float(found.mean("log_z")[0]),
            "log_likelihood_ais_se": float(found.standard_error("log_z")[0]),
        }
        if subject.autoencoder is not None and len(subject.images) > 1:
            noise = generator_for(settings.random_seed, "iwae", 0, self._device)
            bound, error = iwae_bound(subject.autoencoder, subject.images, _IWAE_SAMPLES, noise)
            values |= {"log_likelihood_iwae": bound, "log_likelihood_iwae_se": error}
        return values

    def _joint_curve(self, joint: Distortion, tuning: Tuning, noise: torch.Generator) -> Curve:
        def heard(done: int, of: int) -> None:
            self._work.report("likelihood", done / of, joint.n_data)
            self._stop_if_asked()

        n_chains = self._settings.n_chains
        found = curve(joint, (1.0,), tuning, noise, n_chains=n_chains, progress=heard)
        self._work.finish("likelihood", joint.n_data)
        return found

    def distortions(self, batch: int) -> list[Distortion]:
        """Of one batch of images, under each part of the prior."""
        of_images = self._of_images(batch)
        return [stretched(of_images, std) for std in self._settings.prior_stds]

    def _of_images(self, batch: int) -> Distortion:
        settings, size = self._settings, self._settings.batch_size
        made = self._subject.made(self._subject.images[batch * size : (batch + 1) * size])
        if settings.data != "simulate":
            return made
        draws = generator_for(settings.random_seed, "simulated data", batch, self._device)
        simulated, _ = self._simulate(made, size, settings.betas[-1], draws)
        return simulated.unstretched if isinstance(simulated, Stretched) else simulated

    def _simulate(
        self, made: Distortion, n: int, beta: float, draws: torch.Generator
    ) -> tuple[Distortion, Tensor]:
        """Each datum's z is of one part of the prior."""
        shares, stds = self._settings.prior_shares, self._settings.prior_stds
        if len(shares) == 1:
            return simulate(made, n, beta, draws)
        odds, widths = torch.tensor((shares, stds), dtype=torch.float64, device=self._device)
        part = torch.multinomial(odds, n, replacement=True, generator=draws)
        return simulate(made, n, beta, draws, widths[part])

    def _tuning(self, index: int, distortion: Distortion) -> Tuning:
        """What an earlier attempt has found for that part of that batch, or the target has, else what a pilot finds now."""
        connection, settings = self._attempt.connection, self._settings
        if found := load_tuning(connection, self._attempt.run_id, index, self._device):
            return found
        if self._target is None:
            tuning = self._run_pilot(distortion, settings.betas, "pilot", index)
        else:
            tuning = tuning_of_target(connection, self._target, index, settings.betas, self._device)
            if not self._target.same_data:
                tuning = fitted(tuning, self._run_pilot(distortion, settings.betas, "pilot", index))
        store_tuning(connection, self._attempt.run_id, index, tuning)
        return tuning

    def _run_pilot(
        self, distortion: Distortion, betas: tuple[float, ...], purpose: str, index: int
    ) -> Tuning:
        settings = self._settings

        def heard(done: int, of: int) -> None:
            self._work.report(purpose, done / of, distortion.n_data)
            self._stop_if_asked()

        tuning = tune(
            distortion,
            betas,
            generator_for(settings.pilot_seed, purpose, index, self._device),
            n_steps=settings.anneal_steps,
            n_leapfrog=settings.leapfrog_steps,
            pilot=self._pilot,
            progress=heard,
        )
        self._work.finish(purpose, distortion.n_data)
        log.info(
            "%s %d: %d betas, arc %.1f, %.0f gradients a particle",
            purpose,
            index,
            len(tuning.betas),
            tuning.arc(),
            tuning.n_gradients,
        )
        return tuning

    def _measure(self, index: int, distortion: Distortion, tuning: Tuning) -> None:
        done, settings = self.done, self._settings
        generator = generator_for(settings.random_seed, "measure", index, self._device)
        if done.annealing is None:
            done.annealing = start(distortion, settings.n_chains, generator)
        elif done.generator is not None:
            _restore(generator, done.generator, done.annealing.step)

        def take(annealing: Annealing, point: Point) -> None:
            done.points.append(point)
            if index == 0:
                self._draw(annealing)

        def moved(annealing: Annealing) -> None:
            self._work.report("curve", annealing.step / (len(tuning.betas) - 1), distortion.n_data)
            if self._is_due() or self._asked():
                done.annealing, done.generator = annealing, generator.get_state()
                self._stop_if_asked()
                self._save()

        anneal(done.annealing, distortion, tuning, settings.betas, generator, on_point=take, on_step=moved)
        self._work.finish("curve", distortion.n_data)
        done.curves.append(curve_of(done.points))
        done.points, done.annealing, done.generator = [], None, None

    def _draw(self, annealing: Annealing) -> None:
        """Keep z of the first images' heaviest chains, at a few betas; of a mixture prior, in its part of std 1."""
        index, n_betas = len(self.done.points) - 1, len(self._settings.betas)
        wanted = {round(place * (n_betas - 1) / (_DRAWN_BETAS - 1)) for place in range(_DRAWN_BETAS)}
        if index in wanted:
            heaviest = annealing.log_w[:DRAWN_IMAGES].argmax(1)
            self.done.drawn[index] = annealing.state.z[torch.arange(len(heaviest)), heaviest]

    def _gap(self, index: int, beta: float) -> Gap:
        settings = self._settings
        draws = generator_for(settings.random_seed, "gap data", index, self._device)
        simulated, z = self._simulate(self._of_images(0), settings.gap_images, beta, draws)
        tuning = self._run_pilot(simulated, (beta,), "gap pilot", index)
        n_steps = len(tuning.betas) - 1
        moves = iter(range(1, 2 * n_steps + 1))

        def heard() -> None:
            self._work.report("gap", next(moves) / (2 * n_steps), simulated.n_data)
            self._stop_if_asked()

        noise = generator_for(settings.random_seed, "gap", index, self._device)
        found = gap(simulated, z, tuning, settings.n_chains, noise, progress=heard)
        self._work.finish("gap", simulated.n_data)
        return found

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved > _SAVE_EVERY_S

    def _save(self) -> None:
        self._n_saved += 1
        with self._attempt.connection.keeping(self._attempt.run_id, "evaluation state"):
            self._states.save(to_tensors(self.done), Progress(self._n_saved, 0, 0.0))
        self._saved = time.monotonic()

    def _stop_if_asked(self) -> None:
        if not self._asked():
            return
        self._save()
        raise StoppedError(
            self._asked.name,
            f"The evaluation of {self._label} was stopped by {self._asked.name}; its state is saved.",
            "Go on from there: the same command again",
        )


def _restore(generator: torch.Generator, state: torch.Tensor, n_done: int) -> None:
    """To `state`; where that is another kind of device's, to numbers that nothing before has drawn."""
    if len(state) == len(generator.get_state()):
        generator.set_state(state)
    else:
        log.info("goes on on another kind of device than it was stopped on, with other random numbers")
        generator.manual_seed(derived_seed(generator.initial_seed(), "another device", n_done))
