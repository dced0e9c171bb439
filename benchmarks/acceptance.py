"""The full numbers: every attack and defense at the strength it is held to, measured against required.

    python -m benchmarks.acceptance [--only 1 D3 ...] [--seeds 0 1 2] [--keep FILE.jsonl]

Set-up S: MnistNet on Fashion-MNIST (60,000 to train on, 10,000 others known to the attacker), Adam 1e-3; cut N is after
the network's first N modules. Every figure is of one seed, victim and attacker; an attack's own CPU seconds, on one
thread, are held to three minutes. Ends with 1 where a figure misses what is required of it. What is done is kept in
FILE.jsonl, a line a row and seed, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from attacks import decoder
from attacks.base import Attack, Guess
from attacks.direct_label import DirectLabel
from attacks.gradient_clustering import GradientClustering
from attacks.gradient_norm import GradientDirection, GradientHint, GradientNorm
from attacks.inverse_network import InverseNetwork
from attacks.model_completion import ModelCompletion
from attacks.property_probe import PropertyProbe
from attacks.simulated_client import SimulatedClient, SimulatedTail
from attacks.spectral import Spectral
from attacks.unsplit import UnSplit
from attacks.white_box import WhiteBox
from audits import images
from audits.finished import Finished
from audits.views import empty_handed, view_of
from secsplit import datasets
from secsplit.accounting import hidden_participation_epsilon, label_bound
from secsplit.datasets import Dataset, DataSpec
from secsplit.defenses import Noise
from secsplit.defenses.gaussian import Gaussian
from secsplit.run import Run
from secsplit.threat import Known, Knows, Threat, View
from secsplit.topologies import vanilla
from tests.attacks import figures, runs, test_direct_label, test_feature_inference, test_model_completion
from tests.attacks import test_feature_space_hijacking as hijack
from tests.attacks.conftest import standardised
from tests.attacks.test_property_probe import FOOTWEAR
from tests.attacks.victims import Victim, binary, fashion, mlp, mnistnet, part, train
from tests.audits import defended, hijackers, test_defenses, test_dp

AUX = tuple[dict[str, Tensor], dict[str, Tensor]]
CLUES = frozenset({Knows.CLUES})
LIMIT = 180.0  # CPU seconds of one attack
ANY = float("inf")


@dataclass(frozen=True)
class Figure:
    """What was measured, and the ends between which it must lie, both included."""

    what: str
    value: float
    low: float = -ANY
    high: float = ANY

    @property
    def met(self) -> bool:
        return self.low <= self.value <= self.high

    @property
    def required(self) -> str:
        if self.low == self.high:
            return f"= {self.low:g}"
        ends = [f">= {self.low:g}"] * (self.low > -ANY) + [f"<= {self.high:g}"] * (self.high < ANY)
        return " and ".join(ends) or "(shown)"


@dataclass
class Clock:
    """CPU seconds spent in attacks, the dearest single one."""

    dearest: float = 0.0

    def guess(self, attack: Attack, view: View, seed: int) -> Guess:
        began = time.process_time()
        made = attack.infer(view, coins=torch.Generator().manual_seed(seed))
        self.dearest = max(self.dearest, time.process_time() - began)
        return made


Row = Callable[[int, Clock], Iterator[Figure]]


def aux(n: int | None = None, *, but: int | None = None) -> AUX:
    """The attacker's own images and labels, `but` without one class."""
    _, _, x, y = runs.fashion()
    keep = torch.ones(len(y), dtype=torch.bool) if but is None else y != but
    return {"x": x[keep][:n]}, {"y": y[keep][:n]}


def read_back(victim: runs.Victim, guess: Guess) -> runs.Score:
    return runs.score(victim, guess)


def last_thousand(victim: runs.Victim) -> Tensor:
    return victim.rows - 1 - torch.arange(1000)


def labels_of(victim: Victim, attack: Attack, view: View, clock: Clock, seed: int) -> float:
    return figures.accuracy(victim, clock.guess(attack, view, seed))


def median(victim: Victim, attack: Attack, view: View, clock: Clock, seed: int) -> float:
    return float(figures.leak_aucs(victim, clock.guess(attack, view, seed)).median())


def rare(seed: int, share: float) -> Victim:
    """Class 0 against the rest, cut 6, the server's labels."""
    bottom, top = mnistnet(6, classes=2, seed=seed)
    data = binary(fashion(), 0, share=share, n=20_000, seed=seed)
    return train(vanilla(labels="server"), data, {"bottom": bottom, "top": top}, epochs=3, batch=256, seed=seed)


# attacks on labels


def norm_and_direction(seed: int, clock: Clock) -> Iterator[Figure]:
    victim = rare(seed, 0.1)
    view = victim.view("client", knows=CLUES)
    yield Figure(
        "10% positive, cut 6: direction, median AUC", median(victim, GradientDirection(), view, clock, seed), 0.99
    )
    yield Figure("10% positive, cut 6: hint, median AUC", median(victim, GradientHint(), view, clock, seed), 0.99)
    yield Figure("10% positive, cut 6: norm, median AUC", median(victim, GradientNorm(), view, clock, seed), 0.90)
    noise = empty_handed(view)
    yield Figure("empty-handed: direction", median(victim, GradientDirection(), noise, clock, seed), 0.4, 0.6)
    yield Figure("empty-handed: norm", median(victim, GradientNorm(), noise, clock, seed), 0.4, 0.6)
    norms, directions = [], []
    patients = standardised(datasets.load(DataSpec(name="breast-cancer")))
    balanced = vanilla(labels="server", loss="binary_cross_entropy")
    for each in range(15 * seed, 15 * seed + 15):  # of one victim the norm's area may be anything from .1 to .9
        models = {"bottom": mlp(30, 16, last_relu=True, seed=each), "top": mlp(16, 1, seed=each)}
        victim = train(balanced, patients, models, epochs=15, batch=32, seed=each)
        view = victim.view("client", knows=CLUES)
        norms.append(median(victim, GradientNorm(), view, clock, each))
        directions.append(median(victim, GradientDirection(), view, clock, each))
    yield Figure("breast cancer, 37% positive, mean of 15: norm", float(np.mean(norms)), 0.35, 0.65)
    yield Figure("breast cancer, least of 5: direction", min(directions), 0.99)


def clustering(seed: int, clock: Clock) -> Iterator[Figure]:
    for cut in (3, 6, 8, 10):
        bottom, top = mnistnet(cut, seed=seed)
        data = part(fashion(), torch.arange(20_000))
        victim = train(vanilla(labels="server"), data, {"bottom": bottom, "top": top}, epochs=2, batch=256, seed=seed)
        view = victim.view("client")
        first = labels_of(victim, GradientClustering(rows=25), view, clock, seed)
        yield Figure(f"cut {cut}: first batch, up to permutation", first, 0.98)
        if cut == 10:
            yield Figure("cut 10: all epochs", labels_of(victim, GradientClustering(), view, clock, seed), 0.98)
            noise = labels_of(victim, GradientClustering(rows=25), empty_handed(view), clock, seed)
            yield Figure("empty-handed: first batch", noise, 0.0, 0.25)


def tail(seed: int, clock: Clock) -> Iterator[Figure]:
    victim = runs.setup_s("u_shaped", (6, 10), seed)
    view = victim.view("server", aux=aux(), knows={Knows.ARCHITECTURE})
    guess = clock.guess(SimulatedTail(), view, seed)
    assert guess.labels is not None
    right = float((guess.labels == victim.labels["y"][guess.position]).float().mean())
    own = own_accuracy(victim, guess.position)
    yield Figure("label accuracy", right, max(0.82, own - 0.03))
    yield Figure("the victim's own accuracy", own)
    records = read_back(victim, clock.guess(SimulatedClient(), view, seed))
    yield Figure("records: MSE", records.mse, high=0.027)
    blind = clock.guess(SimulatedTail(steps=300), empty_handed(view), seed)
    assert blind.labels is not None
    found = float((blind.labels == victim.labels["y"][blind.position]).float().mean())
    yield Figure("empty-handed: label accuracy", found, high=0.2)


@torch.no_grad()
def own_accuracy(victim: runs.Victim, position: Tensor) -> float:
    whole = nn.Sequential(*(victim.nets[s.name] for s in victim.topology.order)).eval()
    x, y = victim.inputs["x"][position], victim.labels["y"][position]
    return float((torch.cat([whole(p) for p in x.split(1000)]).argmax(1) == y).float().mean())


def spectral(seed: int, clock: Clock) -> Iterator[Figure]:
    for share, required in ((0.10, 0.98), (0.25, 0.95)):
        victim = rare(seed, share)
        view = victim.view("client")
        yield Figure(
            f"{share:.0%} positive, cut 6: median AUC", median(victim, Spectral(), view, clock, seed), required
        )
    yield Figure("empty-handed, sign-free", median(victim, Spectral(), empty_handed(view), clock, seed), 0.5, 0.6)


def direct(seed: int, clock: Clock) -> Iterator[Figure]:
    digits = datasets.load(DataSpec(name="digits"))
    models = {"left": mlp(32, 32, 10, seed=seed), "right": mlp(32, 10, seed=seed), "top": nn.Identity()}
    victim = train(test_direct_label.SUM, test_direct_label.halves(digits), models, epochs=2, seed=seed)
    view = victim.view("left")
    yield Figure("digits, no trainable top", labels_of(victim, DirectLabel(), view, clock, seed), 1.0, 1.0)
    yield Figure("empty-handed", labels_of(victim, DirectLabel(), empty_handed(view), clock, seed), high=0.2)


def completion(seed: int, clock: Clock) -> Iterator[Figure]:
    for way, gamma in (("passive", None), ("active", 1.0)):
        victim = test_model_completion.victim(fashion(), epochs=4, gamma=gamma, seed=seed)
        raw = test_model_completion.raw_features(victim, "left", 4)
        view = victim.view("left", knows=CLUES, clues=4)
        found = labels_of(victim, ModelCompletion(), view, clock, seed)
        yield Figure(f"{way}, 4 labels a class", found, max(0.70, raw + 0.10))
        yield Figure(f"{way}: the same labels on raw pixels", raw)


# attacks on records


def hijacking(seed: int, clock: Clock) -> Iterator[Figure]:
    """Of a run of 500 client steps, cut 3, the attacker's 5000 images of the test split."""
    run = hijack.run_of(
        model={"name": "mnistnet", "cut": ["pool1"]},
        data={"name": "fashion-mnist", "limit": 6400, "limit_test": 5000},
        optimizer={"lr": 0.001},
        train={"seed": seed, "epochs": 5, "batch_size": 64},
    )
    mse, ssim, again = hijacked(run, seed, clock, view_of)
    yield Figure("500 client steps: MSE", mse, high=0.018)
    yield Figure("500 client steps: SSIM", ssim, 0.60)
    yield Figure("500 client steps: re-identified", again, 0.85)
    yield Figure("class 8 unknown to the attacker: MSE", hijacked(run, seed, clock, without_bags)[0], high=0.05)


def hijacked(run: Run, seed: int, clock: Clock, see: Callable[[Finished, Threat], View]) -> tuple[float, float, float]:
    attack, began = hijack.FeatureSpaceHijacking(), time.process_time()
    figures = hijack.figures(hijack.hijacked(run, attack, seed=seed, see=see), attack, see=see)
    clock.dearest = max(clock.dearest, time.process_time() - began)
    return figures


def without_bags(finished: Finished, threat: Threat) -> View:
    """What the adversary sees whose own records lack class 8."""
    view = view_of(finished, threat)
    assert view.aux is not None
    keep = view.aux.labels["y"] != 8
    return replace(view, aux=Known({"x": view.aux.inputs["x"][keep]}, {"y": view.aux.labels["y"][keep]}))


def simulated(seed: int, clock: Clock) -> Iterator[Figure]:
    victim = runs.setup_s(cuts=(6,), seed=seed)
    view = victim.view("server", aux=aux(), knows={Knows.ARCHITECTURE})
    score = read_back(victim, clock.guess(SimulatedClient(), view, seed))
    yield Figure("cut 6: MSE", score.mse, high=0.025)
    yield Figure("cut 6: SSIM", score.ssim, 0.53)
    yield Figure("cut 6: re-identified in 5000", score.reid, 0.40)
    off = read_back(victim, clock.guess(SimulatedClient(regulariser="none"), view, seed))
    yield Figure("regulariser off: MSE", off.mse, 0.088)


def inverse(seed: int, clock: Clock) -> Iterator[Figure]:
    for cut, mse, reid in ((3, 0.010, 0.98), (6, 0.015, 0.80)):
        victim = runs.setup_s(cuts=(cut,), seed=seed)
        view = victim.view("server", aux=aux(5000), knows={Knows.QUERY}, asked=last_thousand(victim))
        score = read_back(victim, clock.guess(InverseNetwork(), view, seed))
        yield Figure(f"cut {cut}: MSE", score.mse, high=mse)
        yield Figure(f"cut {cut}: re-identified in 5000", score.reid, reid)
    noise = read_back(victim, clock.guess(InverseNetwork(), empty_handed(view), seed))
    yield Figure("empty-handed, cut 6: MSE over the mean image's", noise.mse / noise.mean_mse, 0.95)
    yield Figure("empty-handed, cut 6: re-identified", noise.reid, high=0.005)
    victim = runs.setup_s(cuts=(10,), seed=seed)
    yield Figure("the ten logits (must degrade): MSE", float(from_logits(victim).mean()), 0.02)


@torch.no_grad()
def from_logits(victim: runs.Victim) -> Tensor:
    """(1000,) errors of the inverse network's decoder on the network's outputs."""
    whole = nn.Sequential(*(victim.nets[s.name] for s in victim.topology.order)).eval()
    known = aux(5000)[0]["x"]
    private = victim.inputs["x"][last_thousand(victim)]
    read = decoder.fit(whole(known), known, coins=torch.Generator().manual_seed(0))(whole(private))
    return images.mse(read, private)


def equality(seed: int, clock: Clock) -> Iterator[Figure]:
    digits = datasets.load(DataSpec(name="digits"))
    began = time.process_time()
    yield Figure("9 hidden features: MSE", test_feature_inference.errors(solved(digits, 9, seed))[0], high=1e-12)
    error, mean = test_feature_inference.errors(solved(digits, 20, seed))
    yield Figure("20 hidden features: MSE over the mean's", error / mean, 1.0)
    rounded = test_feature_inference.errors(solved(digits, 9, seed, decimals=2))[0]
    yield Figure("confidences to 2 decimals: MSE", rounded, 0.1)
    clock.dearest = time.process_time() - began


def solved(digits: Dataset, hidden: int, seed: int, decimals: int | None = None) -> Victim:
    return test_feature_inference.victim(digits, hidden, decimals=decimals, seed=seed)


def probe(seed: int, clock: Clock) -> Iterator[Figure]:
    data = datasets.load(DataSpec(name="fashion-mnist", labels={"footwear": "footwear", "y": "y"}))
    for cut, required in ((3, 0.78), (6, 0.70)):
        bottom, top = mnistnet(cut, classes=2, seed=seed)
        victim = train(FOOTWEAR, part(data, torch.arange(20_000)), {"bottom": bottom, "top": top}, epochs=2, seed=seed)
        view = victim.view("server", knows=CLUES, clues=100)
        yield Figure(f"cut {cut}: ten classes", labels_of(victim, PropertyProbe(), view, clock, seed), required)
    noise = labels_of(victim, PropertyProbe(), empty_handed(view), clock, seed)
    yield Figure("empty-handed, cut 6", noise, high=0.2)


def white_box(seed: int, clock: Clock) -> Iterator[Figure]:
    for cut, mse, ssim in ((2, 0.003, 0.0), (3, 0.02, 0.80)):
        victim = runs.setup_s(cuts=(cut,), seed=seed)
        guess = clock.guess(WhiteBox(rows=10), victim.view("server", knows={Knows.WEIGHTS}), seed)
        score = read_back(victim, guess)
        yield Figure(f"cut {cut}, 10 images: MSE", score.mse, high=mse)
        if ssim:
            yield Figure(f"cut {cut}: SSIM", score.ssim, ssim)


def unsplit(seed: int, clock: Clock) -> Iterator[Figure]:
    for cut, low, high in ((2, 0.95, 1.0), (3, 0.80, 1.0), (6, -1.0, 0.5)):
        victim = runs.setup_s(cuts=(cut,), seed=seed)
        guess = clock.guess(UnSplit(rows=10), victim.view("server", knows={Knows.ARCHITECTURE}), seed)
        correlation = read_back(victim, guess).correlation
        yield Figure(f"cut {cut}{' (must fail)' if cut == 6 else ''}: pixel correlation", correlation, low, high)


# privacy


def distinguishing(seed: int, clock: Clock) -> Iterator[Figure]:
    began = time.process_time()
    with TemporaryDirectory() as folder:
        sound = Gaussian(test_dp.spec(4.0), Noise.predictable_for_testing_only(seed))
        claim = test_dp.claimed(sound, 10, Path(folder))
        found = test_dp.audited(sound, claim, 10)
    yield Figure("sigma 4, 10 releases: claimed epsilon", claim, 7.50, 7.52)
    yield Figure("lower bound of mu", found.lower.mu, 1.35, 1.58)
    yield Figure("lower bound of epsilon", found.lower.epsilon, high=claim)
    bugs = [(test_dp.NoClip, 4.0, 1), (test_dp.HalfNoise, 4.0, 1), (test_dp.HalfSensitivity, 4.0, 1)]
    flagged = 0
    for bug, sigma, releases in [*bugs, (test_dp.OneEpoch, 8.0, 10)]:
        broken = bug(test_dp.spec(sigma), Noise.predictable_for_testing_only(seed))
        with TemporaryDirectory() as folder:
            flagged += (
                test_dp.audited(broken, test_dp.claimed(broken, releases, Path(folder)), releases).verdict
                == "violation"
            )
    hidden = hidden_participation_epsilon(sigma=1.0, sample_rate=0.01, steps=1000, delta=test_dp.DELTA)
    amplified = Gaussian(test_dp.spec(2.0), Noise.predictable_for_testing_only(seed))
    flagged += test_dp.audited(amplified, hidden, 10).verdict == "violation"
    yield Figure("planted bugs flagged, of 5", flagged, 5, 5)
    clock.dearest = time.process_time() - began


def label_noise(seed: int, clock: Clock) -> Iterator[Figure]:
    for epsilon in (0.5, 1.0, 2.0, 4.0):
        victim = defended.train([{"kind": "label-dp", "epsilon": epsilon}], cut=10, epochs=1, seed=seed)
        truth, sent, n = test_defenses.clued(victim)
        within = stats.binomtest(truth, n).proportion_ci(0.99, "exact")
        bound = label_bound(epsilon, 10)
        yield Figure(f"epsilon {epsilon:g}: bound {bound:.3f}, true labels from", float(within.low), high=bound)
        yield Figure(f"epsilon {epsilon:g}: to", float(within.high), bound)
        yield Figure(f"epsilon {epsilon:g}: noisy labels read", sent / n, 0.99)


def message_noise(seed: int, clock: Clock) -> Iterator[Figure]:
    before = defended.train(seed=seed)
    before.inverted()
    yield Figure("without noise: re-identified", before.reidentified(), 0.80)
    victim = defended.train([test_defenses.NOISE], seed=seed)
    yield Figure("sigma/C .1, one message: MSE", float(victim.inverted().mse.mean()), 0.028)
    yield Figure("one message: re-identified", victim.reidentified(), high=0.10)
    victim.inverted(draws=10)
    yield Figure("ten messages: re-identified", victim.reidentified(), 0.15)


def client_dp_sgd(seed: int, clock: Clock) -> Iterator[Figure]:
    for cut in (3, 6):
        before = float(defended.train(cut=cut, batch=128, seed=seed).inverted().mse.mean())
        shield = {"kind": "dp-sgd", "segment": "bottom", "clip": 1.0, "sigma": 1.0}
        after = float(defended.train([shield], cut=cut, batch=128, seed=seed).inverted().mse.mean())
        yield Figure(f"cut {cut}: inversion's MSE, with over without", after / before, 0.9, 1.25)


def detection(seed: int, clock: Clock) -> Iterator[Figure]:
    limits: tuple[tuple[hijackers.Server, float, float], ...] = (
        ("honest", 0.6, ANY), ("hijacker", -ANY, 0.1), ("half", -ANY, 0.25),
    )  # fmt: skip
    for server, low, high in limits:
        gaps = [test_defenses.label_gap(g, y) for g, y in hijackers.gradients(server, steps=20, seed=seed)]
        known = [gap for gap in gaps if gap is not None]
        yield Figure(f"{server} server: gap over 20 steps", sum(known) / len(known), low, high)


def gradient_noise(seed: int, clock: Clock) -> Iterator[Figure]:
    data = binary(fashion(), 0, share=0.1, n=20_000, seed=seed)
    for name in ("marvell", "iso", "prune", "sign"):
        specs, expected = test_defenses.TABLE[name]
        found = test_defenses.leaks(defended.train(specs, data=data, labels="server", epochs=3, batch=256, seed=seed))
        for figure, (low, high) in expected.items():
            yield Figure(f"{name}: {figure}", found[figure], low, high)


def nopeek(seed: int, clock: Clock) -> Iterator[Figure]:
    before = defended.train(batch=128, seed=seed)
    x = before.data.train.inputs["x"][:500]
    mild, harsh = (
        defended.train([{"kind": "nopeek", "a": a, "edge": defended.EDGE}], batch=128, seed=seed) for a in (0.5, 0.8)
    )
    yield Figure("a .5: distance correlation", float(test_defenses.distance_correlation(x, mild.sent(x))), high=0.60)
    mild.inverted()
    yield Figure("a .5: still re-identified", mild.reidentified(), 0.50)
    yield Figure("a .8: accuracy lost", before.accuracy() - harsh.accuracy(), 0.10)


def depth(seed: int, clock: Clock) -> Iterator[Figure]:
    victim = defended.train(seed=seed)
    whole = nn.Sequential(*victim.bottom, *victim.top)  # type: ignore[misc]
    known_images, private = victim.data.test.inputs["x"][:5000], victim.data.train.inputs["x"][: defended.POOL]
    last = 1.0
    for cut in (3, 6, 8, 10, 11):
        with torch.no_grad():
            known, seen = whole[:cut](known_images), whole[:cut](private[: defended.JUDGED])
        read = decoder.fit(known, known_images, coins=torch.Generator().manual_seed(0))(seen)
        found = float(images.reidentified(read, private, torch.arange(defended.JUDGED)).double().mean())
        yield Figure(f"cut {cut if cut < 11 else 'at the logits'}: re-identified", found, high=last - 1e-9)
        last = found


ROWS: dict[str, tuple[str, Row]] = {
    "1": ("A1 norm, direction, hint", norm_and_direction),
    "2": ("A2 gradient clustering", clustering),
    "3": ("A5 feature-space hijacking", hijacking),
    "4": ("A6 simulated client", simulated),
    "5": ("A7 simulated tail, U-shape", tail),
    "6": ("A8 inverse network", inverse),
    "7": ("A12 equality solving", equality),
    "8": ("A3 spectral", spectral),
    "9": ("A4 direct", direct),
    "10": ("A11 model completion", completion),
    "11": ("A14 DP distinguishing", distinguishing),
    "12": ("A13 cross-task probe", probe),
    "13": ("A9 white-box", white_box),
    "14": ("A10 UnSplit", unsplit),
    "D1": ("noise on messages", message_noise),
    "D2": ("DP-SGD on the client", client_dp_sgd),
    "D3": ("label noise", label_noise),
    "D5": ("noise on gradients", gradient_noise),
    "D6": ("NoPeek", nopeek),
    "D8": ("hijack detection", detection),
    "D9": ("depth of the cut", depth),
}


@dataclass(frozen=True)
class Measured:
    """A row of one seed; seconds: of CPU, victims included; fault: what broke it off."""

    row: str
    seed: int
    figures: tuple[Figure, ...]
    seconds: float
    fault: str = ""

    @property
    def missed(self) -> int:
        return sum(not figure.met for figure in self.figures) + bool(self.fault)


def measured(key: str, seed: int) -> Measured:
    """Carry out a row, printing each figure as it comes."""
    clock, began, figures, fault = Clock(), time.process_time(), [], ""
    try:
        for figure in ROWS[key][1](seed, clock):
            figures.append(figure)
            show(key, seed, figure)
    except Exception as error:
        traceback.print_exc()
        fault = f"{type(error).__name__}: {error}"
    runs.setup_s.cache_clear()  # a victim's messages are large, and the next row has other victims
    if clock.dearest:
        figures.append(Figure("CPU seconds of the dearest attack", clock.dearest, high=LIMIT))
        show(key, seed, figures[-1])
    return Measured(key, seed, tuple(figures), time.process_time() - began, fault)


def kept(file: Path | None) -> dict[tuple[str, int], Measured]:
    """What was measured before."""
    found = {}
    for line in file.read_text().splitlines() if file and file.exists() else ():
        fields = json.loads(line)
        one = Measured(**{**fields, "figures": tuple(Figure(**figure) for figure in fields["figures"])})
        found[one.row, one.seed] = one
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows, by their number")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, metavar="FILE.jsonl", help="where what is done is kept, and found again")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    before, missed = kept(chosen.keep), 0
    print(f"{'row':4} {'seed':>4} {'':6} {'figure':58} {'measured':>10}   required")
    for key in chosen.only:
        for seed in chosen.seeds:
            print(f"{key:4} {seed:4} {'':6} {ROWS[key][0]}", flush=True)
            one = before.get((key, seed))
            if one is not None:
                for figure in one.figures:
                    show(key, seed, figure)
            else:
                one = measured(key, seed)
                if chosen.keep and not one.fault:
                    with chosen.keep.open("a") as file:
                        file.write(json.dumps(asdict(one)) + "\n")
            missed += one.missed
            print(f"{key:4} {seed:4} {'':6} {one.seconds:.0f} CPU seconds, victims included", flush=True)
    print(f"{missed} missed" if missed else "all met")
    return 1 if missed else 0


def show(key: str, seed: int, figure: Figure) -> None:
    state = "ok" if figure.met else "MISS"
    print(f"{key:4} {seed:4} {state:6} {figure.what:58} {figure.value:10.4g}   {figure.required}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
