"""Many holders on one machine, for notebooks and scripts: five functions.

======================  ================================================================================
:func:`make_population`  people whose true risk is known, and the studies that ask about it
:func:`split_records`    who would hold what, before anything is trained
:func:`run_simulation`   one run: trained together, alone, pooled, and without privacy
:func:`run_sweep`        many runs: numbers of holders, epsilons and seeds; it can be stopped and gone on with
:func:`write_report`     one HTML file, PNG and CSV from what is finished
======================  ================================================================================

Each is loaded when it is used first, so that importing this costs nothing. See ``docs/simulations.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.simulations.notebook import (
        make_population,
        run_simulation,
        run_sweep,
        split_records,
        write_report,
    )

__all__ = ["make_population", "run_simulation", "run_sweep", "split_records", "write_report"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from assay.simulations import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
