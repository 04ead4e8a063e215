"""The online tier beside the reference kernel and its peers: `make bench-online`.

Each section prints a table, says whether its targets hold, and writes results/online/SECTION.parquet. Sides are
measured in turn, and a speed counts only where the sides end in the same state. What loses is printed too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import online_durability
import online_growth
import online_modes
import online_pathway
import online_peers
import online_speed
import ray
from measure import environment

from exoflow.cluster import ensure_ray

SECTIONS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "throughput": online_speed.throughput,
    "small": online_speed.small,
    "modes": online_modes.modes,
    "peers": online_peers.peers,
    "pathway": online_pathway.pathway,
    "growth": online_growth.growth,
    "sparse": online_growth.sparse,
    "delta": online_durability.delta,
    "recovery": online_durability.recovery,
}


def main() -> int:
    """Run the sections; returns the exit code."""
    options = _options()
    ensure_ray(log_to_driver=False)
    print(environment())
    with tempfile.TemporaryDirectory(prefix="exoflow-bench-") as folder:
        for name in options.only:
            SECTIONS[name](Path(folder), options)
    ray.shutdown()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), metavar="A,B", help=", ".join(SECTIONS))
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs")
    parser.add_argument("--threads", type=int, default=2, help="threads of the online tier")
    parser.add_argument("--scale", type=int, default=20, help="throughput: 2^SCALE vertices")
    parser.add_argument("--edges", type=int, default=5_000_000, help="throughput: records")
    parser.add_argument("--epoch-edges", type=int, default=100_000, help="throughput: records of an epoch")
    parser.add_argument("--small-scale", type=int, default=18, help="small epochs: 2^SCALE vertices")
    parser.add_argument("--small-edges", type=int, default=4_000_000, help="small epochs: records")
    parser.add_argument("--small-measured", type=int, default=500, help="small epochs: newest epochs that count")
    parser.add_argument("--small-runs", type=int, default=5, help="small epochs: interleaved runs")
    parser.add_argument("--small-load", type=float, default=0.25, help="small epochs: share of the reference's rate")
    parser.add_argument("--mode-scale", type=int, default=20, help="modes: 2^SCALE vertices")
    parser.add_argument("--mode-epochs", type=int, default=1_120, help="modes: epochs of a run")
    parser.add_argument("--mode-epoch-edges", type=int, default=10_000, help="modes: records of an epoch")
    parser.add_argument("--peer-scale", type=int, default=18, help="peers: 2^SCALE vertices")
    parser.add_argument("--peer-edges", type=int, default=2_000_000, help="peers: records")
    parser.add_argument("--peer-probability", type=float, default=0.5, help="peers: retweet probability")
    parser.add_argument("--peer-tolerance", type=float, default=1e-3, help="peers: relative error to reach")
    parser.add_argument("--peer-max-epochs", type=int, default=2_000, help="peers: most epochs of a run of ours")
    parser.add_argument("--pathway-scale", type=int, default=16, help="Pathway: 2^SCALE vertices")
    parser.add_argument("--pathway-bulk", type=int, default=100_000, help="Pathway: edges before the first epoch")
    parser.add_argument("--pathway-seconds", type=float, default=600, help="Pathway: time limit for each ranking")
    parser.add_argument("--pathway-python", type=Path, default=Path(".venv-pathway/bin/python"), help="its environment")
    parser.add_argument("--full", action="store_true", help="growth: also 20 and 50 million records")
    parser.add_argument("--sparse-edges", type=int, default=2_000_000, help="sparse: records")
    parser.add_argument("--delta-scale", type=int, default=20, help="deltas: 2^SCALE vertices")
    parser.add_argument("--delta-edges", type=int, default=5_000_000, help="deltas: records")
    parser.add_argument("--recovery-scale", type=int, default=22, help="recovery: 2^SCALE vertices")
    parser.add_argument("--recovery-edges", type=int, default=20_000_000, help="recovery: records")
    parser.add_argument("--recovery-runs", type=int, default=3, help="recovery: how often to kill")
    parser.add_argument("--without-plain", action="store_true", help="throughput: leave out the plain-Python way")
    parser.add_argument("--out", type=Path, default=Path("results/online"))
    return parser.parse_args()


def _sections(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        message = f"unknown: {', '.join(unknown)}; there are {', '.join(SECTIONS)}"
        raise argparse.ArgumentTypeError(message)
    return names


if __name__ == "__main__":
    sys.exit(main())
