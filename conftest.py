"""Every annotated shape is checked while the tests run: jaxtyping reads the signatures, beartype enforces them."""

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("equipoise", "beartype.beartype")

# The same examples on every machine, however slow it is.
settings.register_profile("equipoise", deadline=None, derandomize=True)
settings.load_profile("equipoise")
torch.set_num_threads(1)  # small matrices: a second thread only waits
