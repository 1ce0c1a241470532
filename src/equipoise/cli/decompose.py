"""`equipoise decompose`: a network as a multilinear map and a tree of signs."""

from pathlib import Path

import equipoise as eq
from equipoise.cli.app import (
    Fields,
    Json,
    Quiet,
    Whole,
    line,
    network_widths,
    refuse_ignored,
    require_seed,
    require_writable,
    say,
)
from equipoise.errors import InputError
from equipoise.stages import show_progress, stage

_PICTURES = (".svg", ".pdf", ".png")


def decompose(
    folder: Path | None = None,
    *,
    inputs: Whole = 5,
    widths: str = "4,3",
    bias: bool = False,
    seed: Whole = 0,
    draw: Path | None = None,
    max_paths: Whole = 100_000,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Count the paths of a network, measure them, and draw the tree of signs that they make.

    Args:
        folder: folder of a finished run, of which it also says how far the paths moved and when signs last changed
            (default: a reference network of the given shape).
        inputs: width of the input.
        widths: hidden widths; the output is one score.
        bias: give every layer a bias.
        seed: seed of the weights.
        draw: picture of a small network: FILE.svg, FILE.pdf or FILE.png.
        max_paths: largest number of paths to unroll.
    """
    _require_picture(draw)
    require_seed(seed)
    if folder is not None:
        shape = {"--inputs": inputs != 5, "--widths": widths != "4,3", "--bias": bias, "--seed": seed != 0}
        refuse_ignored("the folder of a run", shape)
    with show_progress(quiet=quiet), stage("following the paths") as current:
        if folder is None:
            model = eq.networks.mlp(network_widths(inputs, widths), bias=bias, seed=seed)
            parts, moved = eq.decompose(model, max_paths=max_paths), {}
        else:
            run = eq.Run.load(folder)
            parts, moved = _of_run(run, max_paths)
        fields = {"paths": parts.paths, "path_norm": parts.path_norm, **moved}
        if draw is not None:
            current.update(description="drawing")
            fields["drawing"] = str(parts.draw(draw))
    say(line(fields) if json else _words(fields))
    return 0


def _require_picture(path: Path | None) -> None:
    if path is not None and path.suffix not in _PICTURES:
        raise InputError(
            expected=f"--draw to end in {' or '.join(_PICTURES)}",
            found=str(path),
            remedy=f"type --draw {path.stem}.svg",
        )
    require_writable(path, "--draw")


def _of_run(run: "eq.Run", max_paths: int) -> tuple["eq.Decomposition", Fields]:
    parts = eq.decompose(run.model, run.data[0][:2], max_paths=max_paths)
    moved = {
        "initial_path_norm": parts.at(run.initial).path_norm,
        "path_distance": parts.distance(run.initial),
        "signs": eq.sign_changes(run).to_dict("records"),
    }
    return parts, moved


def _words(fields: Fields) -> str:
    lines = [f"{fields['paths']:,.0f} paths, path norm {fields['path_norm']:.6g}"]
    if "signs" in fields:
        lines.append(
            f"path norm at the start {fields['initial_path_norm']:.6g}, distance {fields['path_distance']:.6g}"
        )
        lines += [
            f"  {row['parameter']:24} signs constant from s = {row['last_change']:.2f}, {row['changing']:.2%} of late"
            for row in fields["signs"]
        ]
    return "\n".join([*lines, *([f"drawn: {fields['drawing']}"] if "drawing" in fields else [])])
