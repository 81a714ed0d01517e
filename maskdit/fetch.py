"""`maskdit fetch`: published weights into the cache, ahead of the runs that name them."""

import logging
from collections.abc import Sequence

from maskdit import config as configs
from maskdit import importing
from maskdit.interop import published
from maskdit.references import WeightsError

_LOG = logging.getLogger(__name__)


def fetch(names: Sequence[str]) -> list[str]:
    """Brings published weights into the cache, where `load` and the references of configs find them offline.

    Args:
      names: of `maskdit.interop.published.ALIASES`. What is in the cache already is not fetched again.

    Returns:
      The work directory of each.

    Raises:
      WeightsError: for a name that is not published, before anything is fetched, and for weights that cannot be had.
        What else `maskdit.importing.import_weights` raises.
    """
    for name in names:
        if name not in published.ALIASES:
            near = configs.nearest(name, list(published.ALIASES))
            raise WeightsError(f"there are no published weights '{name}'; {near}")
    paths = []
    for name in names:
        paths.append(importing.cached(name))
        _LOG.info("%s is in %s", name, paths[-1])
    return paths
