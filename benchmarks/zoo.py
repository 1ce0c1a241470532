"""The zoo: what is derived for architectures that people train, and whether it is true and all that there is.

python benchmarks/zoo.py --json found.json   # derive, check and look for more; --page found.json writes docs/zoo.md
python benchmarks/zoo.py --watch             # the same zoo in training: the same laws, and no alarm
python benchmarks/zoo.py GPT-2 BERT torch    # some of it, by name or family

Every architecture is a small copy with random weights. Its gradients, of random combinations of all its outputs, are
computed in float64 throughout, and each law is held against them. The null space of a narrow copy, solved for from
gradients alone (`tests/helpers/null_space.py`), says what laws there are beyond those that were found.
"""

import argparse
import json
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import equipoise as eq
from architectures.entry import Architecture, Inputs, call
from equipoise.errors import EquipoiseError
from equipoise.laws import Law, Laws
from equipoise.monitor.log import Log
from helpers.independence import dependent
from helpers.null_space import InDouble, NoGap, null_space

FAMILIES = {
    "torch": "plain",
    "operations": "operations",
    "torch_geometric": "geometric",
    "transformers": "huggingface",
}  # and their modules
PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
WIDTH, NARROW = 8, 4  # of the copy that is derived, and of that whose null space is solved for
LARGEST = 2600  # parameters of a copy whose null space is solved for
COUNTED = 250  # quantities at most that are asked whether they follow from each other
SECONDS = 120  # for one architecture


@dataclass
class Row:
    """What was found of one architecture."""

    name: str
    family: str
    parameters: int = 0
    refused: str = ""
    laws: int = 0
    conserved: int = 0
    dependent: int = 0  # of these, how many follow from others
    share: float = 0.0
    residual: float = 0.0
    softened: float = 0.0
    check: str = ""
    coverage: str = ""
    seconds: float = 0.0
    null: str = ""
    false: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)


def examine(architecture: Architecture, *, null: bool = True) -> Row:
    """Derive the laws of one architecture, hold them against a gradient, and look for more."""
    model, inputs = architecture.model(WIDTH), architecture.arguments(WIDTH)
    row = Row(architecture.name, architecture.family, sum(p.numel() for p in model.parameters()))
    began = time.perf_counter()
    try:
        laws = eq.invariances(model, inputs)
    except EquipoiseError as error:
        row.refused = str(error)
        return row
    row.seconds = time.perf_counter() - began
    row.laws, row.conserved, row.coverage = len(laws), laws.conserved, str(laws.coverage)
    row.dependent = dependent(laws, model) if laws.conserved <= COUNTED else 0
    row.share = share(laws, model)
    row.residual, row.softened = residuals(architecture, laws, model)
    row.false = [law.name for law in laws if law.exact and law_residual(law, model) > 1e-12]
    row.check = _said_by(lambda: "" if (audit := laws.check(model, inputs)).passed else str(audit))
    if null:
        judge(architecture, row)
    return row


def law_residual(law: Law, model: nn.Module) -> float:
    gradients = {name: _dense(p) for name, p in model.named_parameters()}
    return float(law.residual(dict(model.named_parameters()), gradients))


def _dense(parameter: Tensor) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.to_dense() if gradient.is_sparse else gradient


def share(laws: Laws, model: nn.Module) -> float:
    """Which part of the trained parameters, entry by entry, some law moves."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    numbers = {name: torch.arange(p.numel()).reshape(p.shape) for name, p in trained.items()}
    seen: dict[str, set[int]] = {name: set() for name in trained}
    for law in laws:
        for member in law.interface.members:
            seen[member.parameter].update(
                member._rows(numbers[member.parameter])[member.index.reshape(-1)].flatten().tolist()
            )
    return sum(map(len, seen.values())) / sum(p.numel() for p in trained.values())


def residuals(architecture: Architecture, laws: Laws, model: nn.Module) -> tuple[float, float]:
    """The largest residual of exact laws, and of the others with what an `eps` adds taken off."""
    inputs = architecture.arguments(WIDTH, seed=1)
    with InDouble():
        outputs = call(model, inputs)
        torch.manual_seed(2)
        weights = [torch.randn_like(output) for output in outputs]
        sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
    exact = [law_residual(law, model) for law in laws if law.exact]
    broken = [law_residual(law, model) for law in laws if not law.exact]
    return max(exact, default=0.0), max(broken, default=0.0)


def judge(architecture: Architecture, row: Row) -> None:
    """The null space of a narrow copy without `eps`, beside its laws."""
    model = with_generic_statistics(without_eps(architecture.model(NARROW)))
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        row.null = "too large"
        return
    laws = eq.invariances(model, architecture.arguments(NARROW))
    exact = [law for law in laws if all(eps < 1e-100 for _, eps in law.interface.breaks)]
    try:
        verdict = null_space(model, lambda seed: architecture.arguments(NARROW, seed=seed), call, exact)
    except NoGap as error:
        row.null = str(error)
        return
    row.null = str(verdict)
    row.false += [f"{name} (narrow copy)" for name in verdict.false]
    row.missing = [f"{count} × {', '.join(names)}" for names, count in Counter(verdict.moved).items()]
    said = str(laws.coverage)
    row.unsaid = [
        line for line in row.missing if not any(name.lstrip("+") in said for name in line.split(" × ")[1].split(", "))
    ]


def with_generic_statistics(model: nn.Module) -> nn.Module:
    """Running means and variances as they are once a network has been trained: means of zero have laws of their own."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator).to(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator).to(buffer) + 0.5)
    return model


def without_eps(model: nn.Module) -> nn.Module:
    """Normalisations without their `eps`, as far as they keep it in an attribute (torch refuses zero for BatchNorm)."""
    for module in model.modules():
        for name in ("eps", "variance_epsilon", "epsilon"):
            own = getattr(module, name, None)
            if isinstance(own, float) or (own is None and isinstance(module, nn.RMSNorm)):  # None: that of the dtype
                setattr(module, name, 1e-300 if "BatchNorm" in type(module).__name__ else 0.0)
    return model


# Training -----------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """One architecture in training, under one way of computing."""

    name: str
    way: str
    laws: int = 0
    refused: str = ""  # by eq.invariances
    absent: list[str] = field(default_factory=list)  # laws of eq.invariances that eq.watch does not have
    added: list[str] = field(default_factory=list)  # and the other way about
    alarms: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    off: dict[str, str] = field(default_factory=dict)  # observers that need laws, which there are
    trained: str = ""  # why the training itself failed
    unable: str = ""  # and why it does without eq.watch, too
    seconds: float = 0.0
    steps: int = 20

    @property
    def good(self) -> bool:
        return not (self.absent or self.added or self.alarms or self.notes or self.off or self.trained)


STEPS = 20
WAYS = ("float32", "autocast", "accelerate")


def watched(architecture: Architecture, ways: Sequence[str] = WAYS, steps: int = STEPS) -> Iterator[Watched]:
    """Some steps of SGD under `eq.watch`, in each way of computing."""
    model, inputs = architecture.model(WIDTH).float(), _single(architecture.arguments(WIDTH))
    expected, refused = [], ""
    try:
        expected = [law.name for law in eq.invariances(model, inputs)]
    except EquipoiseError as error:
        refused = str(error)
    for way in ways:
        row = Watched(architecture.name, way, len(expected), refused, steps=steps)
        began = time.perf_counter()
        try:
            with deadline(SECONDS):
                log = train(architecture, way, steps)
        except Exception as error:
            row.unable = _unable(architecture, way)
            row.trained = "" if row.unable else _failure(error)
        else:
            found = [] if log.laws is None else [law.name for law in log.laws]
            row.absent, row.added = _without(expected, found), _without(found, expected)
            row.alarms, row.notes = [str(alarm) for alarm in log.alarms], [str(note) for note in log.notes]
            row.off = {} if refused else {name: why for name, why in log.off.items() if name != "alignment"}
        row.seconds = time.perf_counter() - began
        yield row


def train(architecture: Architecture, way: str, steps: int = STEPS, watch: bool = True) -> Log | None:
    """What `eq.watch` saw of a training, or a training without it."""
    model, inputs = architecture.model(WIDTH).float(), _single(architecture.arguments(WIDTH))
    optimizer: Any = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    if way == "accelerate":
        from accelerate import Accelerator

        model, optimizer = Accelerator(cpu=True, mixed_precision="bf16").prepare(model, optimizer)
    with eq.watch(model, optimizer, every=1, quiet=True) if watch else nullcontext() as log:
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
                outputs = call(model, inputs)
            sum(output.float().tanh().square().mean() for output in outputs).backward()
            optimizer.step()
    return log


def _unable(architecture: Architecture, way: str) -> str:
    """Why it cannot be trained in this way by torch alone: `F.bilinear` knows no autocast, for one."""
    try:
        train(architecture, way, 1, watch=False)
    except Exception as error:
        return _failure(error)
    return ""


def _single(inputs: Inputs) -> Inputs:
    narrow = lambda leaf: leaf.float() if leaf.is_floating_point() else leaf  # noqa: E731
    return torch.utils._pytree.tree_map_only(Tensor, narrow, inputs)


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    return sorted((Counter(names) - Counter(others)).elements())


def _failure(error: Exception) -> str:
    """What was raised, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error}"[:300] + f" ({Path(last.filename).name}:{last.lineno})"


# The table ----------------------------------------------------------------------------------------------------------


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` after so many seconds of processor time: other work on the machine does not count."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not within {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _said_by(work: Callable[[], str]) -> str:
    try:
        return work()
    except EquipoiseError as error:
        return str(error)


def guarded(architecture: Architecture, work: Callable[[Architecture], Row]) -> Row:
    """Whatever happens to one architecture stays with it."""
    try:
        with deadline(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work(architecture)
    except Exception as error:
        return Row(architecture.name, architecture.family, refused=f"CRASH {type(error).__name__}: {error}"[:400])


def chosen(names: Sequence[str]) -> list[Architecture]:
    """All architectures, or those of these names and families; only the libraries that are needed are imported."""
    families = [family for family in FAMILIES if not names or family in names or not set(names) <= FAMILIES.keys()]
    everything = [each for family in families for each in import_module(f"architectures.{FAMILIES[family]}").ENTRIES]
    return [each for each in everything if not names or each.name in names or each.family in names]


def summary(rows: Iterable[Row]) -> str:
    rows = list(rows)
    read = [row for row in rows if not row.refused]
    judged = [row for row in read if "generators" in row.null]
    return (
        f"{len(rows)} architectures, {len(read)} read; {sum(row.laws for row in read)} laws, of whose quantities "
        f"{sum(row.dependent for row in read)} follow from others; "
        f"{sum(len(row.false) for row in read)} false, and some dropped as false by the self-test in "
        f"{sum('dropped as false' in row.coverage for row in read)}; "
        f"{sum(bool(row.check) for row in read)} checks of right gradients failed; null space solved for "
        f"{len(judged)}, with something missing in {sum(bool(row.missing) for row in judged)}, "
        f"without a line in the coverage in {sum(bool(row.unsaid) for row in judged)}"
    )


def table(rows: Iterable[Row]) -> str:
    """Markdown."""
    lines = ["| architecture | laws | conserved | parameters in a law | largest residual | null space | seconds |"]
    lines.append("|---|---:|---:|---:|---:|---|---:|")
    for row in rows:
        if row.refused:
            lines.append(f"| {row.name} | | | | | not read: {row.refused} | |")
            continue
        figures = f"{row.laws} | {row.conserved} | {row.share:.0%} | {row.residual:.0e}"
        null = row.null or "not asked"
        lines.append(f"| {row.name} | {figures} | {null} | {row.seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures or families; all of them if none is named")
    parser.add_argument("--watch", action="store_true", help="train each under eq.watch")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training under --watch")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="of computing under --watch")
    parser.add_argument("--no-null", action="store_true", help="without the null space")
    parser.add_argument("--json", type=Path, help="write all that was found here")
    parser.add_argument("--page", type=Path, nargs="+", help="rewrite docs/zoo.md from files that --json wrote")
    options = parser.parse_args()
    if options.page:
        _write(options.page)
        return
    torch.set_num_threads(1)
    found: list[Any] = []
    for architecture in chosen(options.names):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if options.watch:
                rows: list[Any] = list(watched(architecture, options.ways, options.steps))
            else:
                rows = [guarded(architecture, lambda each: examine(each, null=not options.no_null))]
        for row in rows:
            found.append(row)
            _tell_watched(row) if options.watch else _tell(row)
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    print(summary_of_watch(found) if options.watch else summary(found))


def summary_of_watch(rows: Sequence[Watched]) -> str:
    kinds = Counter((row.way, row.steps) for row in rows)
    ways = ", ".join(f"{count} of {steps} steps ({way})" for (way, steps), count in kinds.items())
    return (
        f"{len(rows)} trainings, {ways}, of {len({row.name for row in rows})} architectures, of which "
        f"{len({row.name for row in rows if row.refused})} cannot be read: "
        f"{sum(bool(row.absent or row.added) for row in rows)} with other laws than `eq.invariances`, "
        f"{sum(bool(row.alarms) for row in rows)} with an alarm, {sum(bool(row.notes) for row in rows)} with a note, "
        f"{sum(bool(row.off) for row in rows)} with an observer off, {sum(bool(row.trained) for row in rows)} failed, "
        f"{sum(bool(row.unable) for row in rows)} that torch itself cannot train so"
    )


def _tell_watched(row: Watched) -> None:
    print(
        f"{row.name} | {row.way} | {row.laws} laws | {row.seconds:.1f} s | {'' if row.good else 'NOT '}as it should be"
    )
    for label in ("absent", "added", "alarms", "notes"):
        for line in getattr(row, label):
            print(f"      {label}: {line}")
    if row.unable:
        print(f"      torch itself: {row.unable}")
    for name, why in row.off.items():
        print(f"      off: {name}: {why}")
    if row.trained:
        print(f"      failed: {row.trained}", flush=True)
    sys.stdout.flush()


def _tell(row: Row) -> None:
    if row.refused:
        print(f"{row.name} | REFUSED {row.refused}", flush=True)
        return
    print(
        f"{row.name} | {row.laws} laws, {row.conserved} conserved, share {row.share:.2f}, residual {row.residual:.0e}, "
        f"softened {row.softened:.0e}, {row.seconds:.1f} s | {row.null}",
        flush=True,
    )
    if row.dependent:
        print(f"      dependent: {row.dependent}", flush=True)
    for label in ("false", "missing", "unsaid"):
        for line in getattr(row, label):
            print(f"      {label}: {line}", flush=True)
    if row.check:
        print(f"      check: {row.check}", flush=True)


def _write(files: Sequence[Path]) -> None:
    """The page from what `--json` wrote, with `--watch` or without; of one architecture the last found counts."""
    found = [row for file in files for row in json.loads(file.read_text())]
    rows = {row["name"]: Row(**row) for row in found if "way" not in row}
    watched = {(row["name"], row["way"]): Watched(**row) for row in found if "way" in row}
    everything = [architecture.name for architecture in chosen([])]
    absent = [name for name in everything if name not in rows]
    unwatched = [name for name in everything if not any((name, way) in watched for way in WAYS)]
    parts = [f"{summary(rows.values())}. {standing(rows.values())} Not run: {_listed(absent)}.", table(rows.values())]
    parts.append(
        f"Right gradients that `laws.check` refuses: {_listed([row.name for row in rows.values() if row.check])}."
    )
    if watched:
        parts.append(f"In training: {summary_of_watch(list(watched.values()))}. Not run: {_listed(unwatched)}.")
    text = PAGE.read_text()
    begin, end = "<!-- table: python benchmarks/zoo.py --page found.json -->\n", "<!-- end of table -->\n"
    before, after = text.split(begin)[0], text.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n" + "\n\n".join(parts) + f"\n\n{end}{after}")


def standing(rows: Iterable[Row]) -> str:
    """How many are known to be complete, and of how many that is not known."""
    read = [row for row in rows if not row.refused]
    judged = [row for row in read if "generators" in row.null]
    complete, unsaid = [row for row in judged if not row.missing], [row for row in judged if row.unsaid]
    return (
        f"By the null space {len(complete)} are complete, {len(judged) - len(complete) - len(unsaid)} miss something "
        f"that has a line in the coverage, {len(unsaid)} miss something without one, and of {len(read) - len(judged)} "
        "it was not asked, or not solved for."
    )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({'; '.join(names)})" if names else "none"


if __name__ == "__main__":
    main()
